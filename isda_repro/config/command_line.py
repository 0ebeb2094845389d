"""The command lines of ``train.py`` and ``scripts/train_gan.py``: frozen files, or settings that Hydra composes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from isda_repro.config.checks import ConfigError
from isda_repro.config.classifier import compose, read_frozen
from isda_repro.config.composing import explain
from isda_repro.config.generator import compose_generator, is_frozen_generator, read_frozen_generator
from isda_repro.config.rules import register_resolvers
from isda_repro.errors import one_sentence_errors


def compose_run(overrides: Sequence[str] = ()) -> DictConfig:
    """The frozen configuration of a generator where the first override is ``gan=``, else of a classifier."""
    return (compose_generator if overrides and overrides[0].startswith("gan=") else compose)(overrides)


def read_frozen_run(path: Path) -> DictConfig:
    """Read ``runs/<run_id>/config.yaml`` of either.

    Raises:
        ConfigError: not a frozen configuration, edited since, or frozen by code with other numerics.
    """
    return (read_frozen_generator if is_frozen_generator(path) else read_frozen)(path)


def run_command_line(
    arguments: Sequence[str], run_file: Callable[[Path], None], compose_and_run: Callable[[], None]
) -> None:
    """A frozen file runs as it is; anything else is Hydra's command line, which ``compose_and_run`` reads itself."""
    with one_sentence_errors():
        if arguments and arguments[0].endswith((".yaml", ".yml")):
            if len(arguments) > 1:
                raise ConfigError(f"{arguments[0]} is frozen and takes no further settings: {' '.join(arguments[1:])}")
            run_file(Path(arguments[0]))
            return
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us whole: `explain` makes the sentence
        register_resolvers()
        with explain():
            compose_and_run()
