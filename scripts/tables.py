"""Print a table from finished runs, and draw its error curves. From the repository root:

python scripts/tables.py table=demo                               # and runs/demo.png, runs/demo.svg
python scripts/tables.py table=demo output=results/tables/demo.md figure=results/figures/demo.png
python scripts/tables.py table=demo set=[recipe.epochs=2]         # of a reduced sweep
python scripts/tables.py export table=demo                        # keep the finished runs under results/
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from isda_repro.config import compose
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.options import parse_options
from isda_repro.tables.aggregate import aggregate, export
from isda_repro.tables.figures import draw_curves
from isda_repro.tables.plan import expand
from isda_repro.tables.render import markdown
from isda_repro.tables.specification import load_table
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
    filled = aggregate(table, plan, Path(options.runs_dir), Path(options.results_dir), reduced=bool(options.set))
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


def keep(options: TableOptions) -> None:
    """Copy finished runs into ``results_dir``."""
    if options.set:
        raise UserError("set= makes other runs than the table's own, and only those are kept: export without set=")
    table = load_table(options.table)
    written, problems = export(table, expand(table, compose), Path(options.runs_dir), Path(options.results_dir))
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    print(*(f"wrote {path}" for path in written), f"{len(written)} new or changed", sep="\n")


def main(arguments: list[str]) -> None:
    """``export`` keeps, anything else shows."""
    if arguments and arguments[0] == "export":
        keep(parse_options(TableOptions, arguments[1:]))
    else:
        show(parse_options(TableOptions, arguments))


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
