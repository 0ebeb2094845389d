"""Helpers of the tests of sweeps: programs in place of training, and paths."""

import functools
import os
import re
import sys
import textwrap
import threading
import time
from pathlib import Path

from omegaconf import OmegaConf
from synthetic import make_result

from isda_repro import config
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.generator_records import GeneratorResult
from isda_repro.runs.records import write_result

TRAINER = textwrap.dedent("""
    import json, sys
    from pathlib import Path

    ready, config = map(Path, sys.argv[1:])
    folder = config.parent
    assert config.is_file()
    with (folder.parent / "started.txt").open("a") as log:
        log.write(folder.name + "\\n")
    ending = (ready / folder.name).read_bytes()
    if ending.startswith(b'{"exit_code"'):
        (folder / "ended.json").write_bytes(ending)
        sys.exit(json.loads(ending)["exit_code"])
    if not ending.startswith(b"{"):
        sys.exit(int(ending))
    (folder / "result.json").write_bytes(ending)
""")

HEEDS = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path

    from isda_repro import stopping
    from isda_repro.errors import StoppedError, one_sentence_errors

    stopping.ECHO_SECONDS = float(sys.argv[2])
    folder, asked = Path(sys.argv[-1]).parent, []

    def take(number):
        asked.append(number)
        with (folder / "seen").open("a") as log:
            log.write(number.name + "\\n")

    with one_sentence_errors(), stopping.handle_stop_signals(take):
        (folder / "pid.new").write_text(str(os.getpid()))
        (folder / "pid.new").rename(folder / "pid")
        while not asked or sys.argv[1] == "ignores":
            time.sleep(0.02)
        raise StoppedError("saved", stopping.exit_code(asked[0]))
""")

WAIT_SECONDS = 60.0  # limit after which a test fails; far more than anything takes


@functools.cache
def _composed(overrides):
    return OmegaConf.to_container(config.compose_run(list(overrides)))


def compose(overrides):
    """Return ``config.compose_run`` of the overrides, cached for the session."""
    return _composed(tuple(overrides))


def training(folder, runs, ends=None):
    """Return a command in place of training that writes the result of each run at once.

    Args:
        folder: directory for its files.
        runs: runs that it can train, with the error 2.0 + seed.
        ends: run id -> exit code of a run that ends without a result, or the ``ended.json`` that it then writes.
    """
    ready = folder / "ready"
    ready.mkdir(exist_ok=True)
    (folder / "trainer.py").write_text(TRAINER)
    for run in runs:
        if run.run_id in (ends or {}):
            (ready / run.run_id).write_text(str(ends[run.run_id]))
        else:
            result = generator_result(run.run_id) if run.is_generator else make_result(run, [2.0 + run.seed])
            write_result(ready / run.run_id, result)
    return [sys.executable, "-I", "-S", str(folder / "trainer.py"), str(ready)]


def generator_result(run_id):
    return GeneratorResult(
        run_id=run_id, request={}, choices={}, epochs=7, steps=1, generator_steps=1, generators=1, parameters=1,
        train_images=1, curves={}, timing={}, segments=[{"precision": "fp32"}], environment={},
    )  # fmt: skip


def heeding_training(does="obeys", echo=600.0):
    """Return a command whose runs log their pid and each stop signal, and exit at the first signal.

    Signals that repeat within ``echo`` seconds are not logged; with ``does="ignores"`` the runs do not exit.
    """
    return [sys.executable, "-c", HEEDS, does, str(echo)]


def one_needs_the_other(path):
    """Write a table whose cell with CE waits for that with ISDA, and return its runs by loss."""
    path.write_text(
        textwrap.dedent("""
        title: one needs the other
        metric: test_error_last10
        seeds: [0, 1]
        rows: [{digits: [model=resnet20, dataset=digits]}]
        columns: [{CE: loss=ce, ISDA: loss=isda}]
        cells: [{column: CE, needs: {column: ISDA}}]
        """)
    )
    return {cell.column[0]: runs for cell, runs in plan_runs(load_table(str(path)), compose).items()}


def started(options):
    path = Path(options.runs_dir) / "started.txt"
    return path.read_text().split() if path.exists() else []


def all_runs(demo):
    return [run for runs in demo[1].values() for run in runs]


def folder_of(options, run):
    return Path(options.runs_dir) / run.run_id


def numbers_of(out, name):
    """Return the whole numbers in the last line with this name, which reports how many runs are done."""
    line = next(line for line in reversed(out.splitlines()) if name in line)
    return [int(number) for number in re.findall(r"\b\d+\b", line.replace(name, ""))]


def until(condition):
    """Wait until ``condition()`` is true; another process or thread changes it."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "what was waited for has not happened"
        time.sleep(0.01)


def send_when_begun(options, *numbers, runs=1, run_too=False):
    """Send signals to this process, which is the sweep, when ``runs`` runs have started.

    Each signal is sent when all runs have logged the previous one; with ``run_too`` the runs get it directly as well.
    """

    def noted(name):
        return [path.read_text() for path in Path(options.runs_dir).glob(f"*/{name}")]

    def send():
        until(lambda: len(noted("pid")) == runs)
        for count, number in enumerate(numbers):
            until(lambda count=count: len("".join(noted("seen")).split()) >= count * runs)
            for target in [os.getpid(), *(map(int, noted("pid")) if run_too else ())]:
                os.kill(target, number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread
