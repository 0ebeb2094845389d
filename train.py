"""Train a classifier, or run a frozen configuration. ``python train.py --help`` lists the settings of ``conf/``.

python train.py model=wrn28_10 loss=isda
python train.py runs/<run_id>/config.yaml
"""

import os
import sys

from isda_repro.errors import check_installation
from isda_repro.stopping import exit_on_interrupt, hard_exit_if_distributed

exit_on_interrupt()  # the imports below take a moment
check_installation()

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from isda_repro.config import FailedJob, freeze, read_frozen_run, rescaled_milestones, run_command_line, run_job
from isda_repro.console import say


def run_frozen(cfg: DictConfig) -> None:
    """Run a frozen configuration. It imports torch only now, so that ``--help`` and usage errors are instant."""
    if "gan" in cfg:  # composed by scripts/train_gan.py
        from isda_repro.gan.run import train_generator as run
    else:
        from isda_repro.training.run import run  # type: ignore[assignment]
    run(cfg)


@hydra.main(version_base=None, config_path="conf", config_name="train")
def compose_and_run(cfg: DictConfig) -> FailedJob | None:
    """Freeze what Hydra composed from the command line, and run it."""

    def job() -> None:
        frozen = freeze(cfg, HydraConfig.get().overrides.task)
        if (notice := rescaled_milestones(cfg)) and os.environ.get("RANK", "0") == "0":
            say(notice)
        run_frozen(frozen)

    return run_job(job)


if __name__ == "__main__":
    with hard_exit_if_distributed():
        run_command_line(sys.argv[1:], lambda path: run_frozen(read_frozen_run(path)), compose_and_run)
