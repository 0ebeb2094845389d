"""What ``train.py`` and ``scripts/train_gan.py`` do with their command lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from isda_repro.checks import ConfigError
from isda_repro.config.composing import explain
from isda_repro.config.rules import register_resolvers
from isda_repro.errors import one_sentence_errors


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
