"""Markdown renderer, whose output is also readable as plain text in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from isda_repro.tables.cost_columns import CostColumn
from isda_repro.tables.formatting import without_breaks
from isda_repro.tables.layout import Block, Entry, Layout
from isda_repro.tables.missing import Missing, in_all


def markdown(layout: Layout, level: int = 2) -> str:
    """Return a table with heading, caption, notes, missing runs and reduced tables.

    Args:
        layout: the table.
        level: heading level; reduced tables are one level lower.
    """
    parts = [f"{'#' * level} {escaped(layout.title)}", "\n".join(_grid(layout)), escaped(layout.caption)]
    if layout.notes:
        parts += ["Notes:", "\n".join(f"- {escaped(note)}" for note in layout.notes)]
    if layout.missing:
        parts.append(f"Not run yet ({in_all(layout.missing)}); {_code(layout.sweep)} runs all of it:")
        parts.append("\n".join(map(_missing, layout.missing)))
    return "\n\n".join(parts) + "\n" + "".join(f"\n{markdown(one, level + 1)}" for one in layout.reduced)


def _grid(layout: Layout) -> Iterator[str]:
    """Yield the lines of the table, padded to align as plain text: names to the left, numbers to the right."""
    names = 2 if layout.has_kinds else 1
    header = [""] * names + [
        escaped(one.title if isinstance(one, CostColumn) else ", ".join(one)) for one in layout.columns
    ]
    grid = [header, *(line for block in layout.blocks for line in _lines(block, names))]
    widths = [max(3, *(len(line[i]) for line in grid)) for i in range(len(header))]
    rule = ["-" * width if i < names else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    for line in (grid[0], rule, *grid[1:]):
        yield f"| {' | '.join(_padded(line, widths, names))} |"


def _lines(block: Block, names: int) -> Iterator[list[str]]:
    for number, line in enumerate(block.lines):
        label = escaped(", ".join(block.row)) if number == 0 else ""
        yield [label, escaped(line.label)][:names] + [_entry(entry) for entry in line.entries]


def _padded(line: Sequence[str], widths: Sequence[int], names: int) -> Iterator[str]:
    for number, (text, width) in enumerate(zip(line, widths, strict=True)):
        yield text.ljust(width) if number < names else text.rjust(width)


def _entry(entry: Entry) -> str:
    return f"**{escaped(entry.text)}**" if entry.bold else escaped(entry.text)


def _missing(missing: Missing) -> str:
    return f"- {escaped(missing.what)}: {_code(missing.command)} ({escaped(missing.remark)})"


def escaped(text: str) -> str:
    """Escape characters that would start a column, a code span, emphasis, HTML or the address of a link."""
    return re.sub(r"([\\`*|<]|\](?=\())", r"\\\1", without_breaks(text))


def _code(text: str) -> str:
    text = without_breaks(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if len(fence) > 1 else ""
    return f"{fence}{padding}{text}{padding}{fence}"
