"""Rules for which cells of a table are compared with each other, and which of them is printed in bold.

In Tables 1 to 3 the paper prints in bold the better of each pair of a network without and with ISDA. In Tables 4 and 5,
whose rows are the methods, it is the best of each column. The rules follow it:

- Cells that are compared with one baseline compete with it.
- If nothing in a row is compared, the rows of a column compete if they are methods: some are baselines, or the paper
  has the table.
- Otherwise the columns of a row compete, as in a search.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from isda_repro.experiments.table import Label, Table
from isda_repro.tables.formatting import DECIMALS, MINUS

Key = tuple[Label, Label]


def comparison(table: Table, row: Label) -> str:
    """Return the label of the differences in a row, for example "ISDA − Basic" or "minus Basic"."""
    pairs = [differing_labels(key, other) for key, other in _compared(table, row)]
    mine, theirs = ({pair[side] for pair in pairs} for side in (0, 1))
    if len(theirs) != 1:
        return "minus baseline"  # the caption lists them, see ``baselines``
    if table.baseline is not None and len(mine) == 1:
        return f"{mine.pop()} {MINUS} {theirs.pop()}"
    return f"minus {theirs.pop()}"


def baselines(table: Table) -> str:
    """Return a sentence that lists the baselines of rows that have several, or "" if every row has at most one."""
    by_baseline: dict[str, dict[str, None]] = {}
    for row in table.rows:
        pairs = [(key, differing_labels(key, other)[1]) for key, other in _compared(table, row)]
        if len({theirs for _, theirs in pairs}) > 1:
            for (_, column), theirs in pairs:
                by_baseline.setdefault(theirs, {})[", ".join(column)] = None
    said = (f"{theirs} ({'; '.join(columns)})" for theirs, columns in by_baseline.items())
    return f"Baselines: {', '.join(said)}." if by_baseline else ""


def _compared(table: Table, row: Label) -> Iterator[tuple[Key, Key]]:
    """Yield the compared cells of a row, each with its baseline."""
    for cell in table.cells:
        if cell.row == row and (other := table.baseline_of(row, cell.column)) is not None:
            yield (row, cell.column), other


def differing_labels(key: Key, other: Key) -> tuple[str, str]:
    """Return the first label in which two compared cells differ, as a pair."""
    mine, theirs = (*key[0], *key[1]), (*other[0], *other[1])
    return next((one, another) for one, another in zip(mine, theirs, strict=True) if one != another)


def best(table: Table, means: Mapping[Key, float]) -> set[Key]:
    """Return the cells with the lowest mean among those that they compete with.

    Means are compared as they are printed, so ties give several cells. A cell without competitors is never the best.
    """
    groups: dict[Key | Label, dict[Key, float]] = {}
    for key, mean in means.items():
        groups.setdefault(_group(table, key), {})[key] = round(mean, DECIMALS)
    return {
        key for group in groups.values() if len(group) > 1 for key, mean in group.items() if mean == min(group.values())
    }


def competes(table: Table) -> str:
    """Return the caption's description of the cells that are printed in bold."""
    if table.baseline is not None:
        return f"the lowest of {table.baseline} and what is compared with it"
    return "the lowest of each column" if _rows_are_methods(table) else "the lowest of each row"


def _group(table: Table, key: Key) -> Key | Label:
    row, column = key
    if table.baseline is not None:
        return (row, table.baseline_column(column) or column)
    return column if _rows_are_methods(table) else row


def _rows_are_methods(table: Table) -> bool:
    return bool(table.row_baselines) or any(cell.paper is not None for cell in table.cells)
