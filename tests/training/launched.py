"""Worker of test_torchrun.py: one of several processes that train a list of runs.

RANK=.. WORLD_SIZE=.. MASTER_PORT=.. python launched.py FOLDER    # with a plan.json
"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from interrupted_runs import before_call, settings

from isda_repro.errors import StoppedError, UserError
from isda_repro.stopping import hard_exit_if_distributed
from isda_repro.training.checkpoint import Saver
from isda_repro.training.distributed import LostContactError
from isda_repro.training.run import run


def done(folder, overrides, number, rank, step):
    """Train one run and return its outcome; the process of rank ``rank`` gets a signal before the end of ``step``."""
    with pytest.MonkeyPatch.context() as patch:
        if number and os.environ["RANK"] == str(rank):
            before_call(patch, Saver, "step_taken", step, lambda: os.kill(os.getpid(), number))
        try:
            result = run(settings(folder, *overrides))
            return {"steps": [segment["step"] for segment in result.segments], "error": result.test_error_final}
        except (UserError, StoppedError) as error:
            if dist.is_initialized() and not isinstance(error, LostContactError):
                dist.destroy_process_group()
            return {
                "kind": type(error).__name__,
                "said": str(error),
                "exit_code": getattr(error, "exit_code", 2),
            }


def main(folder):
    """Train the runs of plan.json one after another, and write the outcomes of this rank."""
    outcomes = []
    for place, overrides, number, rank, step in json.loads((folder / "plan.json").read_text()):
        outcomes.append(done(folder / place, overrides, number and signal.Signals(number), rank, step))
        (folder / f"outcomes-{os.environ['RANK']}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    with hard_exit_if_distributed():
        main(Path(sys.argv[1]))
