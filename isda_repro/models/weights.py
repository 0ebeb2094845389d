"""Loading a network's weights from a checkpoint of this project, of timm or torchvision, or of the ISDA authors."""

from __future__ import annotations

import argparse
import errno
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isda_repro.errors import UserError, is_out_of_memory
from isda_repro.files import named
from isda_repro.models import AdaptedNetwork, Network

NESTED = ("network", "state_dict_ema", "model_ema", "state_dict", "model")  # keys of a state_dict: ours, then timm's
WRAPPERS = ("module.", "_orig_mod.", "model.")  # prefixes of DistributedDataParallel, torch.compile and Lightning
CLASSIFIERS = ("fc", "classifier", "head", "head.fc", "linear", "last_linear")  # names of the last layer elsewhere
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNT = "num_batches_tracked"  # optional: unused with a numeric momentum, and missing before PyTorch 0.4.1
NAMED = 3  # number of keys that a message names; it counts the rest


class WeightsError(UserError):
    """Raised when a file holds no weights, or not those of this network."""


def load_weights(network: Network, path: Path, new_head: bool) -> str:
    """Load the weights of a file into a network.

    Args:
        network: keeps the dtype and the device of each weight.
        path: a file of ``torch.save`` (any version; its code is never run) or ``.safetensors``. It holds a state_dict,
            alone or under one of the keys that this project, timm and the ISDA authors use. Names may be those of
            torchvision or timm, with or without ``module.``.
        new_head: accept a head that is missing or has another number of classes, and keep the network's own head then.

    Returns:
        One sentence that says what was loaded.

    Raises:
        WeightsError: the file is missing, damaged, holds code or no weights, or some weights do not fit, which it
            names.
    """
    given, expected = _in_our_names(network, _tensors(path)), network.state_dict()
    note = ""
    head = given.get("head.weight")
    if new_head and (head is None or head.shape != expected["head.weight"].shape):
        theirs = "missing" if head is None else f"for {head.shape[0] if head.ndim else 'no'} classes"
        note = f"; its head is {theirs}, and a new one for {network.head.out_features} classes is trained"
        given, expected = _without_head(given), _without_head(expected)
    elif new_head and "head.bias" not in expected and given.pop("head.bias", None) is not None:
        note = "; its head's bias is left out, since the loss wants none"
    if misfits := _misfits(given, expected):
        hint = (
            "; the ISDA authors' DenseNets need faithful=official" if _is_the_authors_densenet(given, expected) else ""
        )
        raise WeightsError(f"{path} does not fit this network: {misfits}{hint}")
    network.load_state_dict(given, strict=False)
    return f"{path}: {len(given)} tensors taken{note}"


def _is_the_authors_densenet(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    first = "backbone.features.conv0.weight"
    return (
        first in given and first in expected and (given[first].shape[:1], expected[first].shape[:1]) == ((24,), (64,))
    )


def _without_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def _misfits(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return which names do not fit, grouped by reason, or an empty string."""
    both = [name for name in expected if name in given]
    lists = {
        "missing": [name for name in expected if name not in given and not name.endswith(COUNT)],
        "not of this network": [name for name in given if name not in expected],
        "of another shape": [
            f"{name} {_size(given[name])} for {_size(expected[name])}"
            for name in both
            if given[name].shape != expected[name].shape
        ],
        "not plain floating-point numbers": [name for name in both if not _is_plain(given[name], expected[name])],
        "not finite": [name for name in both if not _is_finite(given[name])],
    }
    return "; ".join(f"{what}: {_some(names)}" for what, names in lists.items() if names)


def _is_plain(given: Tensor, expected: Tensor) -> bool:
    """Return True if weights are dense, on the CPU, and floating-point where the network's are.

    Quantised or sparse weights would not be the same numbers.
    """
    here = given.layout == torch.strided and not given.is_quantized and given.device.type == "cpu"
    return here and (given.dtype in FLOATS or not expected.is_floating_point())


def _is_finite(given: Tensor) -> bool:
    return given.dtype not in FLOATS or not _is_plain(given, given) or bool(given.isfinite().all())


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name.removeprefix("backbone.") for name in names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


# ---------------------------------------------------------------------------------------------------------- names


def _in_our_names(network: Network, given: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS * 2:  # twice, because they may be nested in either order
        if all(name.startswith(wrapper) for name in given):
            given = {name.removeprefix(wrapper): tensor for name, tensor in given.items()}
    # torchvision's first DenseNets, whose files are still distributed, had a dot before the number
    given = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", name): one for name, one in given.items()}
    if not isinstance(network, AdaptedNetwork) or any(name.startswith("backbone.") for name in given):
        return given
    classifier = _classifier(network, given)
    ours = {f"{classifier}.{part}": f"head.{part}" for part in ("weight", "bias")}
    return {ours.get(name, f"backbone.{name}"): tensor for name, tensor in given.items()}


def _classifier(network: AdaptedNetwork, given: Mapping[str, Tensor]) -> str:
    """Return the name of the last layer in the file.

    It is the network's own name, or another common one that the backbone does not use.
    """
    own = network.classifier_name
    places = {name.removeprefix("backbone.") for name in network.state_dict()}
    there = [one for one in (own, *CLASSIFIERS) if f"{one}.weight" in given and f"{one}.weight" not in places]
    return there[0] if there else own


# ---------------------------------------------------------------------------------------------------------- reading


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the state_dict of a file, wherever in the file it is."""
    content = _read(path)
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) and content[key]:
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(one, Tensor) for one in content.values()):
        raise WeightsError(f"{path} holds no weights: it must be a state_dict, alone or under {', '.join(NESTED)}")
    # drop batch counts that overflowed in files of half precision
    return {str(name): one for name, one in content.items() if not str(name).endswith(COUNT) or _is_finite(one)}


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path):  # the format since PyTorch 1.6
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise WeightsError(f"{path} is damaged: the checksum of its part {damaged} is wrong")
        # ignored warnings: about pickles that are not PyTorch's, which then raise an error
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_data_beside_weights()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # a damaged file raises many types, OSError with EINVAL among them
        if is_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise named(error, path) from error
        raise WeightsError(_why(path, str(error) or type(error).__name__)) from error


def _data_beside_weights() -> list[Any]:
    """Return the harmless types that training scripts save beside weights: timm's settings, and NumPy's numbers."""
    number = np.float64(0).__reduce__()[0]
    places = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # NumPy 1, NumPy 2
    kinds = [np.dtype, *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64))]
    return [argparse.Namespace, *((number, place) for place in places), *kinds]


def _why(path: Path, message: str) -> str:
    if code := re.search(r"(?i)unsupported (?:global: GLOBAL|global|class) ([\w.]+)", message):
        return f"{path} holds code ({code[1]}), which is never run: save the state_dict alone, where you trust the file"
    reason = (
        "it is no state_dict that torch.save wrote" if "weights_only" in message else message.splitlines()[0]
    )  # PyTorch's own message advises weights_only=False, which would run code
    return f"{path} cannot be read as weights: {reason}"
