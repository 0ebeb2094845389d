"""Train generators for Table 4. ``--help`` lists the settings; ``conf/gan/`` holds them. From the repository root:

python scripts/train_gan.py gan=acgan dataset=cifar10
python scripts/train_gan.py gan=wgan dataset=digits gan.epochs=300      # one for each class
python scripts/train_gan.py runs/<run_id>/config.yaml                   # again, exactly as it was frozen
torchrun --nproc_per_node=2 scripts/train_gan.py gan=acgan dataset=cifar10
"""

import os
import sys
from pathlib import Path

from isda_repro.stopping import leave_on_interrupt, leaving_whole

leave_on_interrupt()  # what is imported below takes a moment

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from isda_repro.checks import ConfigError
from isda_repro.config import CONF_DIR, explain, register_resolvers
from isda_repro.errors import one_sentence_errors


@hydra.main(version_base=None, config_path=str(CONF_DIR), config_name="train_gan")
def compose_and_run(cfg: DictConfig) -> None:
    """Freeze what Hydra composed from the command line, then train."""
    from isda_repro.config import freeze_generator
    from isda_repro.gan.run import train_generator

    with one_sentence_errors():  # here already: Hydra would add a line to an exception that passes through it
        train_generator(freeze_generator(cfg, HydraConfig.get().overrides.task))


def main(arguments: list[str]) -> None:
    """A frozen file runs as it is; anything else is Hydra's command line."""
    from isda_repro.config import read_frozen_generator
    from isda_repro.gan.run import train_generator

    with one_sentence_errors():
        if arguments and arguments[0].endswith((".yaml", ".yml")):
            if len(arguments) > 1:
                raise ConfigError(f"{arguments[0]} is frozen and takes no further settings: {' '.join(arguments[1:])}")
            train_generator(read_frozen_generator(Path(arguments[0])))
            return
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us whole: `explain` makes the sentence
        register_resolvers()
        with explain():
            compose_and_run()


if __name__ == "__main__":
    with leaving_whole():
        main(sys.argv[1:])
