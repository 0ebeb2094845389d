"""Data loading: from files on disk to normalised float batches on the device.

The order of the samples depends on the seed alone. This package does not depend on models, losses, the configuration
or the trainer. Importing it imports torch but not torchvision or scikit-learn, which are imported when a data set that
needs them is loaded.
"""

from isda_repro.data.augmentation.augment import Augmentation, Chain, Cutout, Draws, NoAugmentation, PadCropFlip
from isda_repro.data.augmentation.autoaugment import AutoAugment
from isda_repro.data.augmentation.mixup import Mixup
from isda_repro.data.augmentation.normalise import Normalise, channel_statistics, stored_statistics
from isda_repro.data.cifar import load_cifar
from isda_repro.data.decode import Crop
from isda_repro.data.digits import load_digits
from isda_repro.data.folder import FileSplit, images_below, load_folder
from isda_repro.data.in_memory import InMemoryLoader
from isda_repro.data.loader import Loader, Share
from isda_repro.data.packed import PackedSplit, load_packed
from isda_repro.data.packing import Packing, pack, speed_up
from isda_repro.data.source import AnySplit, DataError, MissingDataError, Source, Split, StoredSplit
from isda_repro.data.streaming import StreamingLoader
from isda_repro.data.synthetic import ImageSource, Synthetic
from isda_repro.data.verify import FileCheck, Verification, verify

FIXED_DATA = ("isda_repro.data.load_cifar", "isda_repro.data.load_digits")
"""Loaders of data that is the same everywhere: their files are checked, or come with a package."""

__all__ = [
    "FIXED_DATA",
    "AnySplit",
    "Augmentation",
    "AutoAugment",
    "Chain",
    "Crop",
    "Cutout",
    "DataError",
    "Draws",
    "FileCheck",
    "FileSplit",
    "ImageSource",
    "InMemoryLoader",
    "Loader",
    "MissingDataError",
    "Mixup",
    "NoAugmentation",
    "Normalise",
    "PackedSplit",
    "Packing",
    "PadCropFlip",
    "Share",
    "Source",
    "Split",
    "StoredSplit",
    "StreamingLoader",
    "Synthetic",
    "Verification",
    "channel_statistics",
    "images_below",
    "load_cifar",
    "load_digits",
    "load_folder",
    "load_packed",
    "pack",
    "speed_up",
    "stored_statistics",
    "verify",
]
