"""Train generators for Table 4. ``--help`` lists the settings; ``conf/gan/`` holds them. From the repository root:

python scripts/train_gan.py gan=acgan dataset=cifar10
python scripts/train_gan.py gan=wgan dataset=digits gan.epochs=300      # one for each class
python scripts/train_gan.py runs/<run_id>/config.yaml                   # again, exactly as it was frozen
torchrun --nproc_per_node=2 scripts/train_gan.py gan=acgan dataset=cifar10
"""

import functools
import sys

from isda_repro.errors import check_installation
from isda_repro.stopping import exit_on_interrupt, hard_exit_if_distributed

exit_on_interrupt()  # the imports below take a moment
check_installation()

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from isda_repro.config import CONF_DIR, FailedJob, freeze_generator, read_frozen_run, run_command_line, run_job


def run_frozen(cfg: DictConfig) -> None:
    """Train the generator of a frozen configuration; torch is imported only now."""
    from isda_repro.gan.run import train_generator

    train_generator(cfg)


@hydra.main(version_base=None, config_path=str(CONF_DIR), config_name="train_gan")
def compose_and_run(cfg: DictConfig) -> FailedJob | None:
    """Freeze what Hydra composed from the command line, and train."""
    return run_job(lambda: run_frozen(freeze_generator(cfg, HydraConfig.get().overrides.task)))


if __name__ == "__main__":
    with hard_exit_if_distributed():
        read = functools.partial(read_frozen_run, of_generator=True)
        run_command_line(sys.argv[1:], lambda path: run_frozen(read(path)), compose_and_run)
