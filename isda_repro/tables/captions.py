"""What is said below a table: what its numbers are, and how far they carry."""

from __future__ import annotations

from collections.abc import Sequence

from isda_repro.tables import wording
from isda_repro.tables.aggregate import FilledTable
from isda_repro.tables.comparison import baselines, competes
from isda_repro.tables.sides import Side


def caption(filled: FilledTable, sides: Sequence[Side], settings: Sequence[str]) -> str:
    """A few sentences.

    Args:
        filled: the table.
        sides: its columns that no run fills.
        settings: in what its runs are not those of the specification; then the paper is left out.
    """
    table, where = filled.table, filled.evaluated_on.capitalize()
    said = [
        f"{where} error in %, {wording.metrics(table)}; mean ± sample standard deviation (divisor n {wording.MINUS} 1) "
        "over n seeds.",
        f"Bold: {competes(table)}.",
    ]
    if settings:
        said.insert(0, "These runs are not the table's: they stand beside nothing that the paper prints.")
    has_paper = not settings and any(cell.paper is not None for cell in table.cells)
    if has_paper and any(cell.paper is not None and cell.paper.std is not None for cell in table.cells):
        said.append("The paper does not say whether its ± is of a sample; it is taken for that.")
    if any(cell.difference or (has_paper and cell.paper_difference) for cell in filled.cells.values()):
        papers = "; the paper's is Welch's, from its printed mean, deviation and n" if has_paper else ""
        said.append(
            "Differences have their 95% confidence interval: Student's t over the pairs of runs that share a seed, "
            f"Welch's where there are not two{papers}. Better, worse: the interval lies on one side of 0, n supports "
            "the claim. Open: it has 0 in it, n does not support the claim. No interval: of a single run, or of runs "
            "that do not vary. A negative difference is a lower error."
        )
        said.append(baselines(table))
    return " ".join([*filter(None, said), *(side.caption for side in sides)])
