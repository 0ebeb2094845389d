"""Which cells of a table are compared with each other, and which of them is printed in bold.

The paper prints in bold, in Tables 1 to 3, the better of each pair of a network without and with ISDA; in Tables 4
and 5, whose rows are the methods, the best of each column. So: cells that are compared with one baseline compete with
it; where nothing in a row is compared, the rows of a column compete if the paper has the table, and else the columns
of a row, as in a search.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from isda_repro.experiments.table import Label, Table
from isda_repro.tables.formatting import DECIMALS, MINUS

Key = tuple[Label, Label]


def comparison(table: Table, row: Label) -> str:
    """What the differences in a row are."""
    pairs = [_method(key, other) for key, other in _compared(table, row)]
    mine, theirs = ({pair[side] for pair in pairs} for side in (0, 1))
    if len(theirs) != 1:
        return "minus baseline"  # ``baselines`` says which
    if table.baseline is not None and len(mine) == 1:
        return f"{mine.pop()} {MINUS} {theirs.pop()}"
    return f"minus {theirs.pop()}"


def baselines(table: Table) -> str:
    """A sentence on the baselines of rows that have several; none where a row has one."""
    by_baseline: dict[str, dict[str, None]] = {}
    for row in table.rows:
        pairs = [(key, _method(key, other)[1]) for key, other in _compared(table, row)]
        if len({theirs for _, theirs in pairs}) > 1:
            for (_, column), theirs in pairs:
                by_baseline.setdefault(theirs, {})[", ".join(column)] = None
    said = (f"{theirs} ({'; '.join(columns)})" for theirs, columns in by_baseline.items())
    return f"Baselines: {', '.join(said)}." if by_baseline else ""


def _compared(table: Table, row: Label) -> Iterator[tuple[Key, Key]]:
    """The cells of a row that are compared, each with its baseline."""
    for cell in table.cells:
        if cell.row == row and (other := table.baseline_of(row, cell.column)) is not None:
            yield (row, cell.column), other


def _method(key: Key, other: Key) -> tuple[str, str]:
    """The labels in which two compared cells differ."""
    mine, theirs = (*key[0], *key[1]), (*other[0], *other[1])
    return next((one, another) for one, another in zip(mine, theirs, strict=True) if one != another)


def best(table: Table, means: Mapping[Key, float]) -> set[Key]:
    """The cells with the lowest mean among those that they compete with, ties as they are printed; alone, none is."""
    groups: dict[Key | Label, dict[Key, float]] = {}
    for key, mean in means.items():
        groups.setdefault(_group(table, key), {})[key] = round(mean, DECIMALS)
    return {
        key for group in groups.values() if len(group) > 1 for key, mean in group.items() if mean == min(group.values())
    }


def competes(table: Table) -> str:
    """How the caption calls those that compete."""
    if table.baseline is not None:
        return f"the lowest of {table.baseline} and what is compared with it"
    return "the lowest of each column" if _rows_are_methods(table) else "the lowest of each row"


def _group(table: Table, key: Key) -> Key | Label:
    row, column = key
    if table.baseline is not None:
        return (row, table.baseline_column(column) or column)
    return column if _rows_are_methods(table) else row


def _rows_are_methods(table: Table) -> bool:
    return any(cell.paper is not None or table.baseline_of(cell.row, cell.column) for cell in table.cells)
