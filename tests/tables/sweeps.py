"""What the tests of sweeps share: programs that stand for training, and where things lie."""

import os
import textwrap
import threading
import time
from pathlib import Path

TRAINER = textwrap.dedent("""
    import sys
    from pathlib import Path

    from omegaconf import OmegaConf
    from synthetic import make_result
    from isda_repro import config
    from isda_repro.tables.plan import Run
    from isda_repro.tables.records import write_result

    path = Path(sys.argv[1])
    cfg = config.read_frozen(path)
    assert Path(cfg.runs_dir) == path.parent.parent
    with (path.parent.parent / "started.txt").open("a") as log:
        log.write(cfg.run_id + "\\n")
    if "fails" in sys.argv[0] and cfg.choice.loss == "ce" and cfg.seed > 0:
        sys.exit(3 if cfg.seed == 1 else 0)
    run = Run(cfg.seed, cfg.run_id, OmegaConf.to_container(cfg))
    write_result(path.parent / "result.json", make_result(run, [2.0 + cfg.seed]))
""")

HEEDS = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path

    from isda_repro.errors import StoppedError, one_sentence_errors
    from isda_repro.stopping import exit_code, heeding

    asked = []

    def take(number):
        asked.append(number)
        with Path(sys.argv[1]).open("a") as log:
            log.write(number.name + "\\n")

    with one_sentence_errors(), heeding(take):
        Path(sys.argv[1]).with_name("pid").write_text(str(os.getpid()))
        while not asked or sys.argv[2] == "ignores":
            time.sleep(0.05)
        raise StoppedError("saved", exit_code(asked[0]))
""")


def started(options):
    path = Path(options.runs_dir) / "started.txt"
    return path.read_text().split() if path.exists() else []


def all_runs(demo):
    return [run for runs in demo[1].values() for run in runs]


def folder_of(options, run):
    return Path(options.runs_dir) / run.run_id


def send_when_begun(pid, *numbers, run_too=False, between=0.0):
    """Send signals to the sweep, which is this process, when its run has written its pid."""

    def send():
        while not pid.exists() or not pid.read_text():
            time.sleep(0.02)
        for number in numbers:
            for target in [os.getpid(), int(pid.read_text())] if run_too else [os.getpid()]:
                os.kill(target, number)
            time.sleep(between)

    threading.Thread(target=send, daemon=True).start()
