"""Measure the calibration of a table's trained runs, before and after temperature scaling. From the repository root:

python scripts/calibration.py table=small_resnet32                    # also runs_dir=runs data_dir=data device=auto
python scripts/calibration.py table=table2 output=FOLDER              # by default results/calibration

It evaluates every run of the table that has finished and whose checkpoint.pt is in runs_dir=, adds its measures to
<table>.json in the folder of output=, and writes the table <table>.md and the figure <table>.png (and .svg) of all
runs in that file. A run that is in the file is not evaluated again: delete the file to begin anew.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

from omegaconf import MISSING

from isda_repro.config import compose
from isda_repro.config.options import parse_options
from isda_repro.console import say
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.files import folder_for, write_output

LEGEND = """\
NLL: mean negative log-likelihood of the labels. ECE: expected calibration error, 15 bins. Scaled: after all logits have
been divided by a temperature, which was fitted on the other half of the images. Mean ± sample standard deviation over
seeds; differences have their 95% interval, paired by seed, and are better where it lies below 0. Evaluated in fp32,"""


@dataclass
class CalibrationOptions:
    """Options of this script; ``data_dir``: folder of the data, if it has moved; ``device``: auto, cpu or gpu."""

    table: str = MISSING
    runs_dir: str = "runs"
    data_dir: str | None = None
    device: str = "auto"
    output: str = "results/calibration"


def main(arguments: list[str]) -> None:
    """Evaluate the runs that are not measured yet, and write all measures.

    Raises:
        UserError: there is no finished run with its weights and none was measured before.
    """
    options = parse_options(CalibrationOptions, arguments)
    table = load_table(options.table)
    from isda_repro.evaluation import load_finished_run
    from isda_repro.evaluation.table_calibration import draw, markdown, measure, read_records, write_records

    names = {kind: f"{table.name}.{kind}" for kind in ("json", "md", "png", "svg")}
    output = folder_for(Path(options.output), *names.values())
    plan, records = plan_runs(table, compose), read_records(output / names["json"])
    known = len(records)
    for run_id in dict.fromkeys(run.run_id for runs in plan.values() for run in runs):
        folder = Path(options.runs_dir) / run_id
        if run_id in records or not all((folder / name).exists() for name in ("result.json", "checkpoint.pt")):
            continue
        records[run_id] = measure(load_finished_run(folder, options.device, options.data_dir))
        write_records(output / names["json"], records)
        say(f"{run_id}: measured")
    if not records:
        raise UserError(f"no run of table={table.name} has finished in {options.runs_dir} and has its checkpoint.pt")
    found = markdown(table, plan, records)
    command = f"python scripts/calibration.py table={table.name}"
    picture = f"![Negative log-likelihood over temperature]({names['png']})"
    title = f"# Calibration: {table.title}"
    machines, sets = (sorted({getattr(one, of) for one in records.values()}) for of in ("hardware", "evaluated_on"))
    legend = f"{LEGEND} on the {' and '.join(sets)} images, on {', '.join(machines)}."
    write_output(output / names["md"], "\n\n".join([title, found, legend, picture, f"`{command}`"]) + "\n")
    draw(output / names["png"], plan, records)
    say(f"{found}\n{len(records) - known} runs measured, {known} known before; written to {output / names['md']}")


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
