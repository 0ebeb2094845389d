"""What a loss can be made with; anything else is one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable


def require_number(name: str, value: object, within: Callable[[float], bool], what: str) -> None:
    """Refuse what is no finite number for which ``within`` holds.

    Raises:
        ValueError: with the name, the value, and ``what`` it must be.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and within(value)):  # type: ignore[arg-type]
        raise ValueError(f"{name}={value} must be {what}")


def require_from_zero(name: str, value: object) -> None:
    """Refuse what is no finite number from 0 on, likewise."""
    require_number(name, value, lambda number: number >= 0, "a number from 0 on")


def require_count(name: str, value: object) -> None:
    """Refuse what is no whole number from 1 on, likewise; True is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value} must be a whole number from 1 on")
