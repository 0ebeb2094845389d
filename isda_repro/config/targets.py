"""Targets that a configuration may instantiate: exactly the ``_target_`` nodes of the files of ``conf/``.

A frozen configuration or a table can come from somebody else, and whoever chooses what is called with which arguments
runs code. Therefore only pairs of a place and a ``_target_`` that ``conf/`` has are instantiated. A user adds a target
by adding a file to ``conf/``, which is trusted like the code.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from isda_repro.config.checks import ConfigError
from isda_repro.config.rules import CONF_DIR, require_conf

TARGET, PARTIAL = "_target_", "_partial_"
Target = tuple[str, bool]  # dotted name, and whether ``_partial_: true`` stands beside it


def check_targets(node: Any, place: str | None = "") -> None:
    """Check that every ``_target_`` in a configuration is one that ``conf/`` has in the same place.

    Args:
        node: plain containers.
        place: dotted key of ``node`` in the whole configuration; None: unknown, any place is accepted.

    Raises:
        ConfigError: there is another target, or another key that Hydra would take for an instruction.
    """
    known = targets(CONF_DIR)
    anywhere = frozenset[Target]().union(*known.values())
    for where, mapping in _mappings(node, place or ""):
        if TARGET in mapping:
            target = (mapping[TARGET], mapping.get(PARTIAL, False))
            allowed = anywhere if place is None else known.get(where, frozenset())
            if not isinstance(target[0], str) or not isinstance(target[1], bool) or target not in allowed:
                names = ", ".join(sorted(name for name, _ in allowed)) or "none"
                partial = f" with {PARTIAL}={target[1]!r}" if PARTIAL in mapping else ""
                wrong = f"{_join(where, TARGET)}={target[0]!r}{partial} is not what the files of conf/ have there"
                raise ConfigError(f"{wrong}, which is {names}; a file in conf/ adds another")
        for key in mapping:
            if _is_instruction(key) and (key not in (TARGET, PARTIAL) or TARGET not in mapping):
                raise ConfigError(f"{_join(where, key)} is no setting of this program: leave it out")


@functools.cache
def targets(folder: Path) -> dict[str, frozenset[Target]]:
    """Return the targets of each place, by dotted key, that the groups of a configuration folder can compose."""
    require_conf()
    found: dict[str, set[Target]] = {}
    for group in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "table"):
        for file in sorted(group.glob("*.yaml")):
            for place, target in _targets_of(file, folder):
                found.setdefault(_join(group.name, place), set()).add(target)
    return {place: frozenset(some) for place, some in found.items()}


def _targets_of(file: Path, folder: Path) -> Iterator[tuple[str, Target]]:
    """Yield (place below the group, target) for a file and the files that its defaults list puts into it."""
    spec = yaml.load(file.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    for place, mapping in _mappings(spec, ""):
        if TARGET in mapping:
            yield place, (mapping[TARGET], mapping.get(PARTIAL, False))
    for entry in spec.get("defaults", ()):
        if not isinstance(entry, str) or entry == "_self_":
            continue  # a mapping chooses a file of another group, which is listed there
        name, _, package = entry.partition("@")
        other = folder / f"{name[1:]}.yaml" if name.startswith("/") else file.with_name(f"{name}.yaml")
        for place, target in _targets_of(other, folder):
            yield _join("" if package == "_here_" else package, place), target


def _mappings(node: Any, place: str) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield every mapping in ``node``, itself included, with its dotted key; items of a list have ``[]`` in theirs."""
    if isinstance(node, Mapping):
        yield place, node
        for key, value in node.items():
            yield from _mappings(value, _join(place, key))
    elif isinstance(node, list):
        for value in node:
            yield from _mappings(value, f"{place}[]")


def _is_instruction(key: object) -> bool:
    """Return whether a key has the form of Hydra's instructions, such as ``_args_``."""
    return isinstance(key, str) and len(key) > 2 and key.startswith("_") and key.endswith("_")


def _join(place: str, key: object) -> str:
    return f"{place}.{key}" if place and key != "" else f"{place}{key}"
