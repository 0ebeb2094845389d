"""Things that many runs have in common, each kept once."""

from __future__ import annotations

import json
from typing import Any


class Pool:
    """Values by number, in the order in which they came."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.values: list[Any] = []

    def number(self, value: Any) -> int:
        """The number of a value, which is anything that JSON knows; equal ones have the same."""
        text = json.dumps(value, sort_keys=True)
        if text not in self._numbers:
            self._numbers[text] = len(self.values)
            self.values.append(value)
        return self._numbers[text]
