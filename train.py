"""One training run. ``python train.py --help`` lists the settings; ``conf/`` holds them.

python train.py model=wrn28_10 loss=isda
python train.py runs/<run_id>/config.yaml
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
from isda_repro.config import explain, freeze, read_any_frozen, register_resolvers, rescaled_milestones
from isda_repro.console import say
from isda_repro.errors import one_sentence_errors


def run_frozen(cfg: DictConfig) -> None:
    """Run a frozen configuration; torch is imported only now, so that ``--help`` and mistakes are instant."""
    if "gan" in cfg:  # scripts/train_gan.py composes these
        from isda_repro.gan.run import train_generator as run
    else:
        from isda_repro.training.run import run  # type: ignore[assignment]
    run(cfg)


@hydra.main(version_base=None, config_path="conf", config_name="train")
def compose_and_run(cfg: DictConfig) -> None:
    """Freeze what Hydra composed from the command line, then run it."""
    with one_sentence_errors():  # here already: Hydra would add a line to an exception that passes through it
        frozen = freeze(cfg, HydraConfig.get().overrides.task)
        if (notice := rescaled_milestones(cfg)) and os.environ.get("RANK", "0") == "0":
            say(notice)
        run_frozen(frozen)


def main(arguments: list[str]) -> None:
    """A frozen file runs as it is; anything else is Hydra's command line."""
    with one_sentence_errors():
        if arguments and arguments[0].endswith((".yaml", ".yml")):
            if len(arguments) > 1:
                raise ConfigError(f"{arguments[0]} is frozen and takes no further settings: {' '.join(arguments[1:])}")
            run_frozen(read_any_frozen(Path(arguments[0])))
            return
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us whole: `explain` makes the sentence
        register_resolvers()
        with explain():
            compose_and_run()


if __name__ == "__main__":
    with leaving_whole():
        main(sys.argv[1:])
