"""How the lines of a figure with many look: each with dashes and a marker of its own, so that grey tells them apart."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Look:
    """Of a line."""

    colour: str
    dashes: Any
    marker: str
    width: float = 0.9
    filled: bool = False


BOLD = (
    Look("#C43E00", "-", "s", width=1.9, filled=True),
    Look("#C43E00", (0, (4, 1.2)), "D", width=1.9),
)
OTHERS = (  # darker and lighter in turns, so that neighbours differ in grey too
    Look("#0072B2", (0, (5, 2)), "o"),
    Look("#56B4E9", (0, (2, 1)), "v", filled=True),
    Look("#00694C", (0, (6, 1.5, 1, 1.5)), "^"),
    Look("#CC79A7", "-", "D", filled=True),
    Look("#8A5A00", (0, (1, 1)), "s"),
    Look("#999933", (0, (8, 2)), "P", filled=True),
    Look("#332288", (0, (3, 1, 1, 1, 1, 1)), "X"),
    Look("#44AA99", (0, (4, 1)), "<", filled=True),
    Look("#882255", (0, (6, 1, 2, 1)), ">"),
    Look("#999999", "-", "o", filled=True),
    Look("#222222", "-", "*", filled=True),
)


def looks_of(names: Sequence[str], bold: str | None) -> dict[str, Look]:
    """A look for each name; of those that fit the pattern ``bold``, the last has the heaviest."""
    heavy = [name for name in names if bold is not None and fnmatch.fnmatchcase(name, bold)]
    light = [name for name in names if name not in heavy]
    looks = {name: BOLD[i % len(BOLD)] for i, name in enumerate(reversed(heavy))}
    return looks | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(light)}
