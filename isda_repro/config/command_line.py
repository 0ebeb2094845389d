"""Command lines of ``train.py`` and ``scripts/train_gan.py``: a frozen file, or settings that Hydra composes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from isda_repro.config.checks import ConfigError
from isda_repro.config.classifier import compose, read_frozen
from isda_repro.config.composing import explain
from isda_repro.config.frozen import refuse_elsewhere
from isda_repro.config.generator import compose_generator, is_frozen_generator, read_frozen_generator
from isda_repro.config.multirun import FailedJob, report_failed_jobs
from isda_repro.config.quoting import literal
from isda_repro.config.rules import register_resolvers
from isda_repro.errors import one_sentence_errors

PICKLE_FLAG = "--experimental-rerun"
HYDRA_FLAGS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", PICKLE_FLAG, "--info"),
)


def compose_run(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the frozen configuration of a generator if the first override is ``gan=``, else of a classifier."""
    return (compose_generator if overrides and overrides[0].startswith("gan=") else compose)(overrides)


def read_frozen_run(path: Path, *, of_generator: bool = False) -> DictConfig:
    """Read ``runs/<run_id>/config.yaml`` of a classifier or a generator, to run it.

    Args:
        path: the file.
        of_generator: refuse a classifier's.

    Raises:
        ConfigError: it is not a frozen configuration, was edited since, was frozen by code with other numerics, or its
            run would write to a place that the user has not chosen.
    """
    read = read_frozen_generator if of_generator or is_frozen_generator(path) else read_frozen
    cfg = read(path)
    refuse_elsewhere(cfg, path)
    return cfg


def run_command_line(
    arguments: Sequence[str], run_file: Callable[[Path], None], compose_and_run: Callable[[], FailedJob | None]
) -> None:
    """Run a frozen file with ``run_file``, or call ``compose_and_run``, which parses Hydra's command line itself.

    Args:
        arguments: command line; a frozen file is recognised by its suffix, ``.yaml`` or ``.yml``.
        run_file: called with the path of a frozen file.
        compose_and_run: called for any other command line, which Hydra reads from ``sys.argv``.
    """
    with one_sentence_errors():
        if arguments and arguments[0].endswith((".yaml", ".yml")):
            if len(arguments) > 1:
                raise ConfigError(f"{arguments[0]} is frozen and takes no further settings: {' '.join(arguments[1:])}")
            run_file(Path(arguments[0]))
            return
        flags = [argument.partition("=")[0] for argument in arguments]
        if any(len(flag) > 2 and PICKLE_FLAG.startswith(flag) for flag in flags):  # flags can be abbreviated
            raise ConfigError(f"{PICKLE_FLAG} runs a pickle, which may be any program: give runs/<run_id>/config.yaml")
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra must not shorten exceptions, which `explain` reads
        register_resolvers()
        before = sys.argv
        sys.argv = [before[0], *_for_hydra(arguments)]  # which Hydra reads
        try:
            with report_failed_jobs(), explain():
                compose_and_run()
        finally:
            sys.argv = before


def _for_hydra(arguments: Sequence[str]) -> list[str]:
    """Return a command line as Hydra has to get it: settings quoted, and before the flags, which can stand anywhere.

    Raises:
        ConfigError: there is a flag that Hydra does not have, or a setting that cannot be quoted.
    """
    from hydra._internal.utils import get_args_parser

    typed = [without_hyphens(argument) for argument in arguments]
    known, unknown = get_args_parser().parse_known_intermixed_args(typed)
    if unknown:
        raise ConfigError(f"{unknown[0]} is no flag of this command: settings are written key=value")
    settings, flags = [*known.overrides], []
    for argument in typed:
        if settings and argument == settings[0]:
            settings.pop(0)
        else:
            flags.append(argument)
    return [*(literal(one, multirun=known.multirun) for one in known.overrides), *flags]


def without_hyphens(argument: str) -> str:
    """Return ``key=value`` for ``--key=value``, as `wandb agent` writes settings. Flags of Hydra's are left alone."""
    setting = re.match(r"(--)[A-Za-z_][\w.@/]*=", argument)
    is_flag = any(flag.startswith(argument.partition("=")[0]) for flag in HYDRA_FLAGS)  # they can be abbreviated
    return argument[2:] if setting and not is_flag else argument
