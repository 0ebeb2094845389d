"""Write tables from finished runs, and draw their figures. From the repository root:

python scripts/tables.py table=demo                               # printed; and runs/demo.png, runs/demo.svg
python scripts/tables.py table=table2 format=tex                  # md, tex, csv, html
python scripts/tables.py table=all format=csv output=all.csv      # every table, the paper's first
python scripts/tables.py table=all format=all output=results/tables     # a file for each table and format
python scripts/tables.py table=demo output=demo.html format=html figure=results/figures/demo.png
python scripts/tables.py table=demo set=[recipe.epochs=2]         # of a reduced sweep
python scripts/tables.py table=all source=wandb entity=E project=P    # from W&B alone; source=offline: files in runs
python scripts/tables.py export table=demo                        # keep the finished runs under results/; table=all
python scripts/tables.py import from=DIR                          # keep those of another checkout, or a folder of files
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isda_repro.console import say
from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

from omegaconf import MISSING

from isda_repro.config import compose
from isda_repro.config.options import parse_options
from isda_repro.experiments.compose_cache import ComposeCache
from isda_repro.experiments.plan import Plan, plan_runs
from isda_repro.experiments.specification import load_table, table_names
from isda_repro.experiments.table import Table
from isda_repro.files import cache_folder, check_output, write_output
from isda_repro.plotting import check_figure
from isda_repro.runs.from_wandb import results_from_wandb, results_offline
from isda_repro.runs.offline_runs import offline_files
from isda_repro.runs.result_index import ResultIndex, index_results
from isda_repro.runs.sources import Finding, results_folder, results_in, results_of_runs, results_on_disk, runs_folder
from isda_repro.sweeps.status import ALL
from isda_repro.sweeps.sweep import SweepOptions, sweep_command
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.cost_columns import cost_columns
from isda_repro.tables.export_results import Exported, export_results, runs_of_no_cell
from isda_repro.tables.figures import draw_curves
from isda_repro.tables.layout import Layout, layout
from isda_repro.tables.render import FORMATS


@dataclass
class TableOptions:
    """Options without a command."""

    table: str = MISSING  # or all
    format: str = "md"  # or all
    runs_dir: str = "runs"
    results_dir: str = "results"
    output: str | None = None  # a file with the suffix of the format, or a folder; null: print
    figure: str | None = "auto"  # a file; auto: in runs_dir if there is one table; null: no figure
    set: list[str] = field(default_factory=list)
    source: str = "runs"  # runs: runs_dir and results_dir; wandb: needs entity; offline: W&B's files in runs_dir
    entity: str | None = None
    project: str = "isda_repro"


def show(options: TableOptions) -> None:
    """Print or write the tables, and draw the figure; problems go to standard error."""
    formats = formats_of(options)
    if options.table == ALL and options.figure not in (None, "auto"):
        raise UserError(f"figure={options.figure} is one file: give it with one table")
    if options.figure not in (None, "auto"):
        check_figure(Path(options.figure))  # before the tables are written
    index = index_results(findings(options))
    layouts = [laid_out(table, plan, index, options, extra) for table, plan, extra in changed_plans(options)]
    if problems := list(dict.fromkeys(problem for one in layouts for problem in one.filled.problems)):
        print(*problems, sep="\n", file=sys.stderr)
    if options.output is None:
        say(FORMATS[formats[0]](layouts).removesuffix("\n"))
    else:
        write(files(Path(options.output), formats, layouts))
    if options.table != ALL and options.figure is not None:
        table = layouts[0].filled
        figure = f"{options.runs_dir}/{table.table.name}.png" if options.figure == "auto" else options.figure
        runs_dir = Path(options.runs_dir) if options.source == "runs" else None
        if paths := draw_curves(table, Path(figure), layouts[0].plan, runs_dir):
            print(f"figure: {paths[0]}", file=sys.stderr)


def formats_of(options: TableOptions) -> list[str]:
    """Return the format, or all of them, for which ``output`` has to be a folder."""
    if options.format == ALL:
        if options.output is None or Path(options.output).suffix.removeprefix(".") in FORMATS:
            raise UserError(f"format={ALL} writes several files: name a folder for them, output=FOLDER")
        return list(FORMATS)
    if options.format not in FORMATS:
        raise UserError(f"there is no format={options.format}; format= can be {', '.join(FORMATS)}, {ALL}")
    return [options.format]


def findings(options: TableOptions) -> Iterable[Finding]:
    """Return the results of the chosen source."""
    if options.source == "runs":
        return results_on_disk(runs_folder(options.runs_dir), results_folder(options.results_dir))
    if options.source == "offline":
        if not offline_files(folder := runs_folder(options.runs_dir)):
            raise UserError(f"runs_dir={folder} holds no W&B offline run: those of tracking=offline lie there")
        return results_offline(folder)
    if options.source != "wandb":
        raise UserError(f"there is no source={options.source}; source= can be runs, wandb, offline")
    if options.entity is None:
        raise UserError("source=wandb needs entity=, a W&B user or team")
    return results_from_wandb(options.entity, options.project)


def changed_plans(options: TableOptions) -> Iterator[tuple[Table, Plan, Sequence[str]]]:
    """Yield each table with its runs and the overrides of ``set=`` that make them a reduced sweep.

    These overrides are all of ``set=``, or none if it changes no run of the table.
    """
    if not options.set:
        yield from ((table, plan, ()) for table, plan in plans(options.table))
        return
    for (table, plan), (_, own) in zip(plans(options.table, options.set), plans(options.table), strict=True):
        yield table, plan, () if run_ids(plan) == run_ids(own) else options.set


def run_ids(plan: Plan) -> list[str]:
    """Return the ids of all runs of a plan."""
    return [run.run_id for runs in plan.values() for run in runs]


def laid_out(table: Table, plan: Plan, index: ResultIndex, options: TableOptions, extra: Sequence[str] = ()) -> Layout:
    """Fill a table with results and lay it out."""
    filled = aggregate(table, plan, index, reduced=bool(extra))
    name = table.name if options.table == ALL else options.table  # `options.table` can also be a file
    runs = SweepOptions(name, runs_dir=options.runs_dir, results_dir=options.results_dir, set=options.set)
    return layout(filled, plan, sweep_command(runs), extra, cost_columns(table, plan, Path(options.results_dir)))


def files(output: Path, formats: list[str], layouts: list[Layout]) -> Iterator[tuple[Path, str]]:
    """Yield the path and text of each file to write.

    This is one file if ``output`` has the suffix of the format, else one file per table and format in the folder
    ``output``.
    """
    if output.suffix == f".{formats[0]}":
        yield output, FORMATS[formats[0]](layouts)
        return
    for one in layouts:
        for suffix in formats:
            yield output / f"{one.filled.table.name}.{suffix}", FORMATS[suffix]([one])


def write(texts: Iterable[tuple[Path, str]]) -> None:
    """Write each file, unless one of them is there already and not ours."""
    listed = list(texts)
    for path, _ in listed:
        check_output(path)
    for path, text in listed:
        write_output(path, text)
        print(f"wrote {path}")


# ------------------------------------------------------------------------------------------------------------ keeping


@dataclass
class ExportOptions:
    """Options of ``export``."""

    table: str = MISSING
    runs_dir: str = "runs"
    results_dir: str = "results"
    overwrite: bool = False


@dataclass
class ImportOptions:
    """Options of ``import``."""

    from_: str = MISSING
    table: str = ALL
    results_dir: str = "results"
    overwrite: bool = False


def export_runs(options: ExportOptions) -> None:
    """Copy finished runs into ``results_dir``."""
    runs_dir = runs_folder(options.runs_dir)
    index = index_results(results_of_runs(runs_dir))
    kept = export_results(plans(options.table), index, Path(options.results_dir), options.overwrite)
    if not kept.known and not kept.passed_over:
        command = f"python scripts/sweep.py table={options.table}"
        raise UserError(f"{runs_dir} holds no finished run of table={options.table}: {command}")
    report(kept, kept.passed_over)


def import_results(options: ImportOptions) -> None:
    """Copy results from another folder into ``results_dir``."""
    folder = Path(options.from_)
    if not folder.is_dir():
        raise UserError(f"from={folder} is no folder: give a checkout, its runs/ or results/, or a heap of files")
    index = index_results(results_in(folder))
    kept = export_results(plans(options.table), index, Path(options.results_dir), options.overwrite)
    if not index.ended and not index.problems:
        raise UserError(f"from={folder} holds no result: nothing in it ends in .json, or is a run that has finished")
    of = "any table" if options.table == ALL else f"table={options.table}"
    report(kept, [*kept.passed_over, *runs_of_no_cell(kept, index, of)])


def plans(name: str, extra: Sequence[str] = ()) -> Iterator[tuple[Table, Plan]]:
    """Yield a table with its runs, or all tables with theirs, the paper's tables first."""
    names = sorted(table_names(), key=lambda one: (not one.removeprefix("table").isdigit(), one))
    remembered = ComposeCache(compose, cache_folder())
    try:
        for table in map(load_table, names if name == ALL else [name]):
            yield table, plan_runs(table, remembered, extra)
    finally:
        remembered.keep()


def report(kept: Exported, passed_over: list[str]) -> None:
    """Print which results were copied, and which were not and why."""
    notes = [*kept.unclean, *passed_over]
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    print(*(f"{origin} -> {target}" for origin, target in kept.taken), sep="\n", end="\n" if kept.taken else "")
    print(f"{len(kept.taken)} new or changed, {len(kept.same)} kept already, {len(passed_over)} passed over")


def main(arguments: list[str]) -> None:
    """Run ``export`` or ``import``, or show tables."""
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
