"""Loading a network's weights from a checkpoint of this project, of Lightning, timm or torchvision, or of others.

The file may hold more than the network: other modules beside it, an optimizer, settings. The one prefix under which all
weights of the network lie is found; the rest is not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from isda_repro.console import one_line
from isda_repro.errors import UserError, first_line, is_out_of_memory
from isda_repro.files import named, open_regular
from isda_repro.inert_pickle import Inert
from isda_repro.models import AdaptedNetwork, Network
from isda_repro.torch_files import StoredTensor, TorchFileError, open_torch_file

NESTED = ("network", "state_dict_ema", "model_ema", "state_dict", "model")  # keys of a state_dict: ours, then timm's
CLASSIFIERS = ("fc", "classifier", "head", "head.fc", "linear", "last_linear")  # names of the last layer elsewhere
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNT = "num_batches_tracked"  # optional: unused with a numeric momentum, and missing before PyTorch 0.4.1
COMPILED = "_orig_mod."  # torch.compile puts it before the names of what it has compiled
BACKBONE = "backbone."
LONGEST = 100  # characters of a key in a message
NAMED = 3  # number of keys that a message names; it counts the rest

AnyTensor = StoredTensor | Tensor  # a StoredTensor is read when it is needed
Given = AnyTensor | object  # a value of a state_dict


class WeightsError(UserError):
    """Raised when a file holds no weights, or not those of this network. The message is one line of text."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def load_weights(network: Network, path: Path, new_head: bool) -> str:
    """Load the weights of a file into a network.

    Args:
        network: keeps the dtype and the device of each weight.
        path: a file of ``torch.save`` (any version; its code is never run) or ``.safetensors``. It holds a state_dict,
            alone or under one of the keys that this project, Lightning, timm and the ISDA authors use. Names may be
            those of torchvision or timm, with any prefix, such as ``module.`` or ``net.``.
        new_head: accept a head that is missing or has another number of classes, and keep the network's own head then.

    Returns:
        One sentence that says what was loaded, and what is beside it in the file.

    Raises:
        WeightsError: the file is missing, damaged, holds code or no weights, or holds two such networks, or some
            weights do not fit, which it names.
    """
    with _open(path) as file:
        found = _find(network, file)
        given, expected = _in_our_names(network, found.tensors), network.state_dict()
        note = f", whose names begin with {found.prefix[:LONGEST]}" if found.prefix else ""
        head = given.get("head.weight")
        if new_head and (not _is_tensor(head) or head.shape != expected["head.weight"].shape):
            theirs = f"for {head.shape[0] if head.shape else 'no'} classes" if _is_tensor(head) else "missing"
            note += f"; its head is {theirs}, and a new one for {network.head.out_features} classes is trained"
            given, expected = _without_head(given), _without_head(expected)
        elif new_head and "head.bias" not in expected and given.pop("head.bias", None) is not None:
            note += "; its head's bias is left out, since the loss wants none"
        misfits = _misfits(given, expected)
        if not misfits:
            weights = {name: file.read(one) for name, one in given.items()}
            weights = {name: one for name, one in weights.items() if not name.endswith(COUNT) or _is_finite(one)}
            misfits = _listed({"not finite": [name for name, one in weights.items() if not _is_finite(one)]})
        if misfits:
            hint = "; the ISDA authors' DenseNets need faithful=official" if _is_authors(given, expected) else ""
            raise WeightsError(f"{path} does not fit this network: {misfits}{hint}")
        if found.beside:
            note += f"; left out beside it: {_some(found.beside)}"
        network.load_state_dict(weights, strict=False)
    return one_line(f"{path}: {len(weights)} tensors taken{note}")


def _is_authors(given: Mapping[str, Given], expected: Mapping[str, Tensor]) -> bool:
    """Return True if the file has a DenseNet of the ISDA authors, and the network is torchvision's."""
    first = "backbone.features.conv0.weight"
    theirs, ours = given.get(first), expected.get(first)
    return _is_tensor(theirs) and ours is not None and (theirs.shape[:1], ours.shape[:1]) == ((24,), (64,))


def _without_head(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def _misfits(given: Mapping[str, Given], expected: Mapping[str, Tensor]) -> str:
    """Return which names do not fit, grouped by reason, or an empty string."""
    both = [name for name in expected if name in given]
    tensors = {name: one for name in both if _is_tensor(one := given[name])}
    return _listed(
        {
            "missing": [name for name in expected if name not in given and not name.endswith(COUNT)],
            "not of this network": [name for name in given if name not in expected],
            "of another shape": [
                f"{name} {_size(one)} for {_size(expected[name])}"
                for name, one in tensors.items()
                if one.shape != expected[name].shape
            ],
            "not plain floating-point numbers": [
                name for name in both if name not in tensors or not _is_plain(tensors[name], expected[name])
            ],
        }
    )


def _listed(reasons: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{what}: {_some(names)}" for what, names in reasons.items() if names)


def _is_tensor(given: Given) -> TypeGuard[AnyTensor]:
    return isinstance(given, StoredTensor | Tensor)


def _is_plain(given: AnyTensor, expected: Tensor) -> bool:
    """Return True if weights are floating-point where the network's are."""
    return given.dtype in FLOATS or not expected.is_floating_point()


def _is_finite(given: Tensor) -> bool:
    return given.dtype not in FLOATS or bool(given.isfinite().all())


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name.removeprefix(BACKBONE)[:LONGEST] for name in names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _size(tensor: AnyTensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


# ---------------------------------------------------------------------------------------------------------- names


@dataclass(frozen=True)
class _Found:
    """The network in a file: its names, without their common prefix, and the names of what is beside it."""

    prefix: str
    tensors: dict[str, Given]
    beside: list[str]


def _find(network: Network, file: _File) -> _Found:
    """Find the prefix under which all weights of the network lie, or else most.

    Raises:
        WeightsError: two copies of the network with different weights are in the file.
    """
    places = {name.removeprefix(BACKBONE): tuple(one.shape) for name, one in _body(network).items()}
    given = {name.replace(COMPILED, ""): one for name, one in file.state.items()}
    # torchvision's first DenseNets, whose files are still distributed, had a dot before the number
    given = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", name): one for name, one in given.items()}
    if len(given) != len(file.state):
        raise WeightsError(f"{file.path} has weights twice, with and without {COMPILED}: save one of them alone")
    votes = Counter(
        name[:start] for name in given for start in _starts(name) if name[start:] in places
    )  # in how many weights each prefix results
    whole = [prefix for prefix in sorted(votes, key=len) if _holds(given, prefix, places)]
    different = [one for one in whole if not _are_same(given, whole[0], one, places)]
    if different:
        prefixes = _some([f"{prefix}*" for prefix in (whole[0], *different)])
        raise WeightsError(f"{file.path} holds this network more than once, as {prefixes}: save one of them alone")
    prefix = whole[0] if whole else max(votes, key=lambda one: (votes[one], -len(one)), default="")
    if isinstance(network, AdaptedNetwork) and f"{prefix.removesuffix(BACKBONE)}head.weight" in given:
        prefix = prefix.removesuffix(BACKBONE)  # a file of this project: the head is beside the backbone
    under = {name.removeprefix(prefix): one for name, one in given.items() if name.startswith(prefix)}
    return _Found(prefix, under, [name for name in given if not name.startswith(prefix)])


def _body(network: Network) -> dict[str, Tensor]:
    return {name: one for name, one in _without_head(network.state_dict()).items() if not name.endswith(COUNT)}


def _starts(name: str) -> Iterator[int]:
    """Yield where a name could begin if what comes before is a prefix."""
    yield 0
    yield from (found.end() for found in re.finditer(r"\.", name))


def _holds(given: Mapping[str, Given], prefix: str, places: Mapping[str, tuple[int, ...]]) -> bool:
    found = (given.get(prefix + name) for name in places)
    return all(_is_tensor(one) and tuple(one.shape) == shape for one, shape in zip(found, places.values(), strict=True))


def _are_same(given: Mapping[str, Given], one: str, other: str, places: Mapping[str, tuple[int, ...]]) -> bool:
    """Return True if two prefixes name the same tensors, as where two modules have one network in common."""
    pairs = [(given[one + name], given[other + name]) for name in places]
    return all(a is b or (isinstance(a, StoredTensor) and a == b) for a, b in pairs)


def _in_our_names(network: Network, given: dict[str, Given]) -> dict[str, Given]:
    if not isinstance(network, AdaptedNetwork) or any(name.startswith(BACKBONE) for name in given):
        return dict(given)
    classifier = _classifier(network, given)
    ours = {f"{classifier}.{part}": f"head.{part}" for part in ("weight", "bias")}
    return {ours.get(name, f"{BACKBONE}{name}"): tensor for name, tensor in given.items()}


def _classifier(network: AdaptedNetwork, given: Mapping[str, Given]) -> str:
    """Return the name of the last layer in the file.

    It is the network's own name, or another common one that the backbone does not use.
    """
    own = network.classifier_name
    places = {name.removeprefix(BACKBONE) for name in network.state_dict()}
    there = [one for one in (own, *CLASSIFIERS) if f"{one}.weight" in given and f"{one}.weight" not in places]
    return there[0] if there else own


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _File:
    """The state_dict of a file, and the function that reads one of its tensors."""

    path: Path
    state: dict[str, Given]
    read: Callable[[Any], Tensor]


@contextmanager
def _open(path: Path) -> Iterator[_File]:
    """Open a file of weights and find its state_dict, wherever in the file it is."""
    if path.suffix == ".safetensors":
        yield _File(path, _of_safetensors(path), lambda tensor: tensor)
        return
    try:
        with open_torch_file(path) as file:
            yield _File(path, _state_dict(path, file.content), file.tensor)
    except TorchFileError as error:
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error


def _of_safetensors(path: Path) -> dict[str, Given]:
    from safetensors.torch import load_file

    open_regular(path).close()
    try:
        return dict(load_file(path))
    except Exception as error:  # a damaged file raises many types
        if is_out_of_memory(error):
            raise
        if isinstance(error, OSError):
            raise named(error, path) from error
        raise WeightsError(f"{path} cannot be read as weights: {first_line(error)}") from error


def _state_dict(path: Path, content: Any) -> dict[str, Given]:
    """Return the state_dict in what was saved: under one of the known keys, alone, or as the only one under a key."""
    inside = content if isinstance(content, dict) else {}
    for key in NESTED:
        if isinstance(inside.get(key), dict) and inside[key]:
            return _by_name(path, inside[key])
    if _has_tensors(inside):
        return _by_name(path, inside)
    keys = [key for key, one in inside.items() if _has_tensors(one)]
    if len(keys) == 1:
        return _by_name(path, inside[keys[0]])
    if keys:
        raise WeightsError(f"{path} holds several state_dicts, {_some(list(map(str, keys)))}: save one of them alone")
    raise _no_weights(path, content)


def _by_name(path: Path, state: Mapping[Any, Given]) -> dict[str, Given]:
    if not _has_tensors(state):
        raise _no_weights(path, state)
    return {str(name): one for name, one in state.items()}


def _has_tensors(content: Any) -> bool:
    return isinstance(content, dict) and any(map(_is_tensor, content.values()))


def _no_weights(path: Path, content: Any) -> WeightsError:
    parts = content.values() if isinstance(content, dict) else [content]
    code = next((part.name for part in parts if isinstance(part, Inert)), None)
    if code is not None:
        return WeightsError(
            f"{path} holds code ({code[:LONGEST]}), which is never run, and no weights: save the state_dict alone"
        )
    return WeightsError(f"{path} holds no weights: it must be a state_dict, alone or under {', '.join(NESTED)}")
