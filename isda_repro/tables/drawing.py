"""What a table's file says under ``figure:`` about its curves.

figure:
  lines: rows          # a panel is a column, its lines are the rows; columns (default): the other way round
  detail: 1            # the epochs from the last drop of the learning rate on also stand alone, larger; 2: last but one
  bold: "ISDA*"        # lines that fit this pattern (fnmatch) are heavier, and lie above the others
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from isda_repro.errors import UserError


@dataclass(frozen=True)
class Drawing:
    """How the curves of a table are drawn; without ``detail``, on a logarithmic axis."""

    lines: str = "columns"
    detail: int = 0
    bold: str | None = None


def drawing(node: Any) -> Drawing:
    """From YAML.

    Raises:
        UserError: an unknown key, or a value that it cannot have.
    """
    keys = [field.name for field in fields(Drawing)]
    if node is None:
        return Drawing()
    if not isinstance(node, dict) or set(node) - set(keys):
        raise UserError(f"figure: {node} must be a mapping with some of: {', '.join(keys)}")
    found = Drawing(**node)
    if found.lines not in ("columns", "rows"):
        raise UserError(f"figure: lines: {found.lines} must be columns or rows")
    if type(found.detail) is not int or found.detail < 0:
        raise UserError(f"figure: detail: {found.detail} must be a number of drops of the learning rate")
    if found.bold is not None and not isinstance(found.bold, str):
        raise UserError(f"figure: bold: {found.bold} must be a pattern of labels")
    return found
