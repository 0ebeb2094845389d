"""Print a table from finished runs, and draw its error curves. From the repository root:

python scripts/tables.py table=demo                               # and runs/demo.png, runs/demo.svg
python scripts/tables.py table=demo output=results/tables/demo.md figure=results/figures/demo.png
python scripts/tables.py table=demo set=[recipe.epochs=2]         # of a reduced sweep
python scripts/tables.py export table=demo                        # keep the finished runs under results/; table=all
python scripts/tables.py import from=DIR                          # and those of another checkout, or a folder of files
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from isda_repro.config import compose
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.files import cache_folder
from isda_repro.options import parse_options
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.composed import Remembered
from isda_repro.tables.figures import draw_curves
from isda_repro.tables.gathered import gather
from isda_repro.tables.keeping import Kept, keep, strangers
from isda_repro.tables.plan import Plan, expand
from isda_repro.tables.render import markdown
from isda_repro.tables.sources import results_in, results_of_runs, results_on_disk
from isda_repro.tables.specification import Table, load_table, table_names
from isda_repro.tables.status import ALL
from isda_repro.tables.sweep import SweepOptions, sweep_command


@dataclass
class TableOptions:
    """What this script takes; ``figure=null`` draws none."""

    table: str = MISSING
    format: str = "md"
    runs_dir: str = "runs"
    results_dir: str = "results"
    output: str | None = None
    figure: str | None = "${runs_dir}/${table}.png"
    set: list[str] = field(default_factory=list)


def show(options: TableOptions) -> None:
    """Print the table, and the figure's path as the last line."""
    if options.format != "md":
        raise UserError(f"there is no format={options.format}; format= can be md")
    table = load_table(options.table)
    plan = expand(table, compose, options.set)
    gathered = gather(results_on_disk(Path(options.runs_dir), Path(options.results_dir)))
    filled = aggregate(table, plan, gathered, reduced=bool(options.set))
    print(*filled.problems, sep="\n", end="\n" if filled.problems else "", file=sys.stderr)
    text = markdown(
        filled, sweep_command(SweepOptions(table.name, runs_dir=options.runs_dir, set=options.set)), options.set
    )
    print(text)
    if options.output is not None:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        Path(options.output).write_text(text, encoding="utf-8")
    if options.figure is not None and (paths := draw_curves(filled, Path(options.figure))):
        print(f"error curves: {paths[0]}")


# ------------------------------------------------------------------------------------------------------------ keeping


@dataclass
class ExportOptions:
    """What ``export`` takes."""

    table: str = MISSING
    runs_dir: str = "runs"
    results_dir: str = "results"
    overwrite: bool = False


@dataclass
class ImportOptions:
    """What ``import`` takes."""

    from_: str = MISSING
    table: str = ALL
    results_dir: str = "results"
    overwrite: bool = False


def export_runs(options: ExportOptions) -> None:
    """Copy finished runs into ``results_dir``."""
    runs_dir = Path(options.runs_dir)
    gathered = gather(results_of_runs(runs_dir))
    kept = keep(plans(options.table), gathered, Path(options.results_dir), options.overwrite)
    if not kept.known and not kept.passed_over:
        command = f"python scripts/sweep.py table={options.table}"
        raise UserError(f"{runs_dir} holds no finished run of table={options.table}: {command}")
    report(kept, kept.passed_over)


def import_results(options: ImportOptions) -> None:
    """Copy results from elsewhere into ``results_dir``."""
    folder = Path(options.from_)
    if not folder.is_dir():
        raise UserError(f"from={folder} is no folder: give a checkout, its runs/ or results/, or a heap of files")
    gathered = gather(results_in(folder))
    kept = keep(plans(options.table), gathered, Path(options.results_dir), options.overwrite)
    if not gathered.records and not gathered.problems:
        raise UserError(f"from={folder} holds no result: nothing in it ends in .json, or is a run that has finished")
    of = "any table" if options.table == ALL else f"table={options.table}"
    report(kept, [*kept.passed_over, *strangers(kept, gathered, of)])


def plans(name: str) -> Iterator[tuple[Table, Plan]]:
    """One table, or all of them, with their runs."""
    remembered = Remembered(compose, cache_folder())
    try:
        for table in map(load_table, table_names() if name == ALL else [name]):
            yield table, expand(table, remembered)
    finally:
        remembered.keep()


def report(kept: Kept, passed_over: list[str]) -> None:
    """What was taken, and what was not, and why."""
    print(*passed_over, sep="\n", end="\n" if passed_over else "", file=sys.stderr)
    print(*(f"{origin} -> {target}" for origin, target in kept.taken), sep="\n", end="\n" if kept.taken else "")
    print(f"{len(kept.taken)} new or changed, {len(kept.same)} kept already, {len(passed_over)} passed over")


def main(arguments: list[str]) -> None:
    """``export`` and ``import`` keep, anything else shows."""
    match arguments:
        case ["export", *rest]:
            export_runs(parse_options(ExportOptions, rest))
        case ["import", *rest]:
            import_results(parse_options(ImportOptions, rest))
        case _:
            show(parse_options(TableOptions, arguments))


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
