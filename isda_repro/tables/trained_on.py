"""Hardware and precision of a table's runs, and the differences of which these are a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from isda_repro.runs.result_index import Record
from isda_repro.tables.aggregate import FilledTable


def trained_on(filled: FilledTable) -> tuple[str, ...]:
    """Return a note on the runs' hardware and precision, and one for each difference between runs of unequal ones."""
    records = [record for cell in filled.cells.values() for record in cell.records.values()]
    return (f"Trained on {_said(records)}.", *_unequal(filled)) if records else ()


def _unequal(filled: FilledTable) -> Iterator[str]:
    for cell in filled.cells.values():
        where = filled.table.baseline_of(cell.cell.row, cell.cell.column)
        if cell.difference is None or where is None:
            continue
        ours, theirs = (list(one.records.values()) for one in (cell, filled.cells[where]))
        if {record.trained_on for record in ours} != {record.trained_on for record in theirs}:
            yield (
                f"{cell.cell.name} was trained on {_said(ours)}, and its baseline on {_said(theirs)}: their difference "
                "includes that of hardware or precision."
            )


def _said(records: Iterable[Record]) -> str:
    numbers = Counter(", then ".join(record.trained_on) for record in records)
    return "; ".join(f"{way} ({number} {'run' if number == 1 else 'runs'})" for way, number in sorted(numbers.items()))
