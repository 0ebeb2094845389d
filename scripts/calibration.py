"""Measure the calibration of a table's trained runs, before and after temperature scaling. From the repository root:

python scripts/calibration.py table=small_resnet32                    # also runs_dir=runs data_dir=data device=auto
python scripts/calibration.py table=table2 output=FOLDER              # by default results/calibration

It evaluates every run of the table that has finished and whose checkpoint.pt is in runs_dir=, adds its measures to
<table>.json in the folder of output=, and writes the table <table>.md and the figure <table>.png (and .svg) of all
runs of the table in that file. A run that is in it is not evaluated again: delete the file to begin anew. A run without
an error in one half of its images is named and left out.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

from omegaconf import MISSING

from isda_repro.config import compose
from isda_repro.config.options import parse_options
from isda_repro.console import say, warn
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.files import folder_for, write_output

LEGEND = """\
NLL: mean negative log-likelihood of the labels. ECE: expected calibration error, 15 bins. Scaled: after all logits have
been divided by a temperature, which was fitted on the other half of the images. Mean ± sample standard deviation over
seeds. Differences have their 95% interval: Student's t over the pairs of runs that share a seed, Welch's if unpaired.
Better, worse: it lies below, above 0. Open: the interval contains 0. Intervals are not adjusted for their number."""


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
        UserError: a run cannot be measured, or none was and is.
    """
    options = parse_options(CalibrationOptions, arguments)
    table = load_table(options.table)
    from isda_repro.evaluation import load_finished_run
    from isda_repro.evaluation.table_calibration import draw, markdown, measure, read_records, write_records
    from isda_repro.tables.render.markdown import escaped

    names = {kind: f"{table.name}.{kind}" for kind in ("json", "md", "png", "svg")}
    output = folder_for(Path(options.output), *names.values())
    plan, kept = plan_runs(table, compose), read_records(output / names["json"])
    planned = dict.fromkeys(run.run_id for runs in plan.values() for run in runs)
    new = failed = 0
    for run_id in planned:
        folder = Path(options.runs_dir) / run_id
        if run_id in kept or not all((folder / name).exists() for name in ("result.json", "checkpoint.pt")):
            continue
        try:
            record = measure(load_finished_run(folder, options.device, options.data_dir))
        except UserError as error:
            warn(f"{run_id} is not measured: {error}")
            failed += 1
            continue
        if record is None:
            say(f"{run_id}: left out, because one half of its images has no error, and so no temperature")
            continue
        kept[run_id], new = record, new + 1
        write_records(output / names["json"], kept)
        say(f"{run_id}: measured")
    records = {run_id: kept[run_id] for run_id in planned if run_id in kept}
    if not records:
        raise UserError(
            f"no run of table={table.name} has finished in {options.runs_dir} with a checkpoint.pt and with errors in "
            "both halves of its images" + (": the warnings say why" if failed else "")
        )
    found = markdown(table, plan, records)
    sets, machines = (sorted({getattr(one, of) for one in records.values()}) for of in ("evaluated_on", "hardware"))
    legend = f"{LEGEND}\nEvaluated on the {' and '.join(sets)} images in fp32, on {', '.join(machines)}."
    picture = f"![Negative log-likelihood over temperature]({names['png']})"
    command = f"`python scripts/calibration.py table={options.table}`"
    write_output(
        output / names["md"],
        "\n\n".join([f"# Calibration: {escaped(table.title)}", found, legend, picture, command]) + "\n",
    )
    draw(output / names["png"], table, plan, records)
    say(f"{found}\n{new} runs measured, {len(records) - new} known before; written to {output / names['md']}")
    if failed:
        raise UserError(f"{failed} {'run' if failed == 1 else 'runs'} could not be measured: the warnings say why")


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
