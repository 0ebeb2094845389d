"""Time and memory of reading ten thousand finished runs and making a table of them.

    python benchmarks/table_speed.py [output=results/benchmarks/tables.md] [clock=processor]

The runs are invented: 100 cells of five networks, two data sets and ten losses, as result files of 200 epochs and five
curves each, in a temporary folder (160 MB). The command is `scripts/tables.py` as a user starts it, in a process of its
own. Exits 1 if it takes more than 3 s or 300 MB; with `clock=processor`, for a machine that others use too, more than
3 s of processor time on one processor.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from isda_repro.config import compose, request
from isda_repro.config.options import parse_options
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.experiments.plan import Run, plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.measurements import conclude, machine, output_path
from isda_repro.runs.records import Result, SegmentRecord, as_json, mean_of_last

ROOT = Path(__file__).resolve().parents[1]
RUNS, EPOCHS, SHORT = 10_000, 200, 50
SECONDS, MEGABYTES = 3.0, 300.0
REPEATS = 3
TABLE = """
title: ten thousand runs
metric: test_error_last10
baseline: CE
seeds: {seeds}
set: [recipe.epochs={epochs}]
rows:
  - {{A: model=resnet20, B: model=resnet32, C: model=resnet110, D: model=wrn16_8, E: model=densenet_bc100_12}}
  - {{CIFAR-10: dataset=cifar10, CIFAR-100: dataset=cifar100}}
columns:
  - CE: loss=ce
    ISDA: loss=isda
    Center Loss: loss=center
    Lq Loss: loss=lq
    Large Margin: loss=large_margin
    Disturb Label: loss=disturb_label
    "0.1": [loss=isda, loss.lambda_0=0.1]
    "0.25": [loss=isda, loss.lambda_0=0.25]
    "0.75": [loss=isda, loss.lambda_0=0.75]
    "1": [loss=isda, loss.lambda_0=1]
"""
SEEDS, REDUCED_SEEDS = 96, 4  # seeds of each of the 100 cells, whole and with fewer epochs
VERSIONS = ("torch", "torchvision", "timm", "numpy", "hydra-core", "omegaconf", "scikit-learn", "wandb", "isda_repro")
SEGMENT = SegmentRecord(
    step=0, device="cuda", hardware="a GPU", precision="bf16", tf32=True, channels_last=True, compile=True,
    deterministic=False, world_size=1, threads=8, git_revision="0" * 40, git_clean=True,
)  # fmt: skip

LAUNCHER = """
import json, resource, subprocess, sys, time
begin = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
seconds = time.perf_counter() - begin
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6, done.returncode, done.stdout]))
"""
"""Program that runs the command from a small process; a child of this process would be charged the memory of torch."""


class Taken(NamedTuple):
    """Time and memory of one call of the command."""

    seconds: float
    processor_seconds: float
    megabytes: float


@dataclass
class BenchmarkOptions:
    """Options of the script; ``clock`` is "wall" or "processor"."""

    output: str | None = None
    clock: str = "wall"


def main() -> None:
    """Write the runs, time the command on them, print a report, and exit with 1 if a bar is missed."""
    options = parse_options(BenchmarkOptions, sys.argv[1:])
    output = output_path(options.output)
    if options.clock not in ("wall", "processor"):
        raise UserError(f"there is no clock={options.clock}; clock= can be wall or processor")
    with tempfile.TemporaryDirectory() as name:
        size = make_runs(Path(name))
        taken = [tabulate(Path(name)) for _ in range(REPEATS + 1)]
    lines, missed = report(taken, size, options.clock)
    conclude(lines, missed, output)


def report(taken: list[Taken], size: int, clock: str) -> tuple[list[str], list[str]]:
    """Return the lines of the report, and the bars that were missed."""
    later = Taken(*(min(one) for one in zip(*taken[1:], strict=True)))
    counted = later.seconds if clock == "wall" else later.processor_seconds
    megabytes = max(one.megabytes for one in taken)
    in_use = ["The machine was in use by others: what counts here are the seconds of a processor."]
    lines = [
        "# Ten thousand finished runs",
        "",
        f"`python benchmarks/table_speed.py`: {RUNS:,} result files ({size / 1e6:.0f} MB, {EPOCHS} epochs of five",
        f"curves), a tenth of them in `results/`, {100 * REDUCED_SEEDS} of them with fewer epochs, are read, checked",
        "against their run ids and made a table of 100 cells, and a reduced one, by `scripts/tables.py`: all of it,",
        f"with its imports. The files are in the system's cache. To be missed: {SECONDS:.0f} s, {MEGABYTES:.0f} MB.",
        *(in_use if clock == "processor" else []),
        "",
        "| call | seconds | of a processor | peak memory (MB) |",
        "| --- | ---: | ---: | ---: |",
        _line("the first, which composes 100 cells", taken[0]),
        _line(f"later, the least of {REPEATS}", later),
        "",
        *machine(),
    ]
    missed = [f"{counted:.1f} s instead of {SECONDS:.0f} s"] if counted > SECONDS else []
    missed += [f"{megabytes:.0f} MB instead of {MEGABYTES:.0f} MB"] if megabytes > MEGABYTES else []
    return lines, missed


def _line(call: str, taken: Taken) -> str:
    return f"| {call} | {taken.seconds:.1f} | {taken.processor_seconds:.1f} | {taken.megabytes:.0f} |"


def make_runs(folder: Path) -> int:
    """Write the table's specification and the results of its runs; return the bytes of all results."""
    (folder / "many.yaml").write_text(TABLE.format(seeds=list(range(SEEDS)), epochs=EPOCHS), encoding="utf-8")
    table = load_table(str(folder / "many.yaml"))
    few = replace(table, cells=tuple(replace(cell, seeds=cell.seeds[:REDUCED_SEEDS]) for cell in table.cells))
    plans = {EPOCHS: plan_runs(table, compose), SHORT: plan_runs(few, compose, [f"recipe.epochs={SHORT}"])}
    runs = [(epochs, cell, run) for epochs, plan in plans.items() for cell, of in plan.items() for run in of]
    assert len(runs) == RUNS
    random.seed(0)
    size = 0
    for number, (epochs, cell, run) in enumerate(runs):
        kept = epochs == EPOCHS and number % 10 == 0
        where = f"results/many/{cell.slug}/{run.seed}.json" if kept else f"runs/{run.run_id}/result.json"
        (folder / where).parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(as_json(made_up(run, epochs)), sort_keys=True)
        size += (folder / where).write_text(content, encoding="utf-8")
    return size


def made_up(run: Run, epochs: int) -> Result:
    """Return an invented result of this run, with curves of as many digits as real ones."""
    errors = [round(random.uniform(5, 60), 2) for _ in range(epochs)]
    losses = ("test_loss", "train_loss")
    curves = {name: [random.uniform(0, 3) for _ in range(epochs)] for name in losses}
    return Result(
        run_id=run.run_id,
        request=request(dict(run.settings)),
        choices=run.settings["choice"],
        evaluated_on="test",
        test_error_last10=mean_of_last(errors),
        test_error_final=errors[-1],
        test_error_best=min(errors),
        epochs=epochs,
        steps=391 * epochs,
        parameters=36_536_884,
        feature_dim=640,
        train_images=50_000,
        test_images=10_000,
        curves={
            **curves,
            "test_error": errors,
            "train_error": errors,
            "lr": [0.1 * 0.2 ** (e // 60) for e in range(epochs)],
        },
        timing={"train": 86_400.1, "data_wait": 123.4, "criterion": 345.6, "evaluation": 456.7, "images_per_s": 1234.5},
        segments=[as_json(SEGMENT)] * 2,
        environment={"git_revision": "0" * 40, "git_clean": True, "versions": dict.fromkeys(VERSIONS, "1.2.3")},
    )


def tabulate(folder: Path) -> Taken:
    """Call scripts/tables.py, check that its table has all runs, and return its cost."""
    command = [
        *(sys.executable, "scripts/tables.py", f"table={folder}/many.yaml", "figure=null"),
        *(f"runs_dir={folder}/runs", f"results_dir={folder}/results"),
    ]
    surroundings = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    launched = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *command],
        cwd=ROOT,
        env=surroundings,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, processor_seconds, megabytes, code, shown = json.loads(launched.stdout)
    assert code == 0
    assert shown.count(f"n = {SEEDS}") >= 100, shown
    return Taken(seconds, processor_seconds, megabytes)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
