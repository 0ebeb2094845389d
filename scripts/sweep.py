"""Fill a table: run what is missing, here or on a SLURM cluster; finished runs are skipped. From the repository root:

python scripts/sweep.py table=demo                     # one after the other; also runs_dir=runs data_dir=data
python scripts/sweep.py table=demo jobs=4              # four at once; on GPUs: runs_per_gpu=4
python scripts/sweep.py table=table2 minutes=8         # saves and exits with 75 within 8 minutes; repeat it to resume
python scripts/sweep.py table=table4 cluster=slurm partition=gpu gpus=1 cpus=8 time=12:00:00 max_parallel=16
python scripts/sweep.py table=demo dry_run=true        # list the runs without starting them
python scripts/sweep.py table=demo set=[recipe.epochs=2,dataset.train_limit=500]    # a reduced sweep: other runs
python scripts/sweep.py table=table2 "only=['ResNeXt-29, 8x64d',ISDA]" seeds=[0]    # a part of a table, by its labels
python scripts/sweep.py status table=demo              # each cell: done, running, queued, failed; table=all
python scripts/sweep.py cancel table=demo              # end waiting and running jobs; running ones save first
"""

import sys
from collections.abc import Callable
from pathlib import Path

from isda_repro.console import say
from isda_repro.errors import UserError, check_installation, one_sentence_errors
from isda_repro.stopping import exit_on_interrupt

exit_on_interrupt()  # the imports below take a moment
check_installation()

from isda_repro.config import compose_run
from isda_repro.config.options import parse_options
from isda_repro.experiments.compose_cache import ComposeCache
from isda_repro.experiments.plan import Compose
from isda_repro.files import cache_folder
from isda_repro.runs.sources import runs_folder
from isda_repro.sweeps.local import sweep_here
from isda_repro.sweeps.slurm import sweep_on_slurm
from isda_repro.sweeps.status import cancel, status
from isda_repro.sweeps.sweep import SweepOptions

CLUSTERS: dict[str, Callable[[SweepOptions, Compose], int]] = {"local": sweep_here, "slurm": sweep_on_slurm}


def main(arguments: list[str]) -> int:
    """Print the status, cancel the runs, or start those that are missing; return the exit code."""
    if not Path("train.py").is_file():
        raise UserError("train.py is not here: run this from the repository root")
    action = arguments[0] if arguments and arguments[0] in ("status", "cancel") else None
    options = parse_options(SweepOptions, arguments[1:] if action else arguments)
    if options.cluster not in CLUSTERS:
        raise UserError(f"there is no cluster={options.cluster}; cluster= can be {', '.join(CLUSTERS)}")
    if action:
        runs_folder(options.runs_dir)
    remembered = ComposeCache(compose_run, cache_folder())
    try:
        if action == "status":
            say("\n".join(status(options, remembered)))
            return 0
        return cancel(options, remembered) if action else CLUSTERS[options.cluster](options, remembered)
    finally:
        remembered.keep()


if __name__ == "__main__":
    with one_sentence_errors():
        sys.exit(main(sys.argv[1:]))
