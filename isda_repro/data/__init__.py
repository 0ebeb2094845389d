"""Files on disk become normalised float batches on the device, in an order that the seed alone decides.

This room knows nothing of models, losses, configuration or the trainer. Importing it imports torch and nothing else
of weight: torchvision and scikit-learn are met only when a data set of theirs is loaded.
"""

from isda_repro.data.augment import Augmentation, Draws, NoAugmentation, PadCropFlip
from isda_repro.data.cifar import load_cifar
from isda_repro.data.digits import load_digits
from isda_repro.data.normalise import Normalise, channel_statistics
from isda_repro.data.resident import ResidentLoader
from isda_repro.data.source import DataError, Source, Split
from isda_repro.data.verify import FileCheck, Verification, verify

__all__ = [
    "Augmentation",
    "DataError",
    "Draws",
    "FileCheck",
    "NoAugmentation",
    "Normalise",
    "PadCropFlip",
    "ResidentLoader",
    "Source",
    "Split",
    "Verification",
    "channel_statistics",
    "load_cifar",
    "load_digits",
    "verify",
]
