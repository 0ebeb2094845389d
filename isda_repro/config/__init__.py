"""Configuration: from the command line to one frozen, checked and named configuration.

Hydra is used in this package, in ``train.py`` and in ``scripts/``, and nowhere else. The steps are:

1. ``compose`` (or Hydra's own command line) merges the files of ``conf/`` and the overrides.
2. ``freeze`` resolves every interpolation, checks the fields, also against each other, and names the run.
3. ``build`` instantiates a node that has a ``_target_``, if the files of ``conf/`` have the same one.

Generators have their own ``compose_generator``, ``freeze_generator`` and ``read_frozen_generator``.
"""

from isda_repro.config.building import build, build_loss, build_model, target_class
from isda_repro.config.classifier import compose, freeze, read_frozen, rescaled_milestones, weights_digest
from isda_repro.config.command_line import compose_run, read_frozen_run, run_command_line
from isda_repro.config.frozen import write_frozen
from isda_repro.config.generator import (
    compose_generator,
    freeze_generator,
    generator_overrides,
    is_frozen_generator,
    read_frozen_generator,
)
from isda_repro.config.multirun import FailedJob, run_job
from isda_repro.config.naming import (
    NUMERICS_VERSION,
    cell_name,
    dataset_name,
    model_name,
    request,
    requested_run_id,
    run_id,
    run_names,
)
from isda_repro.config.plain_yaml import UnreadableError, parse_plain, read_bounded
from isda_repro.config.quoting import quoted
from isda_repro.config.rules import CONF_DIR, lambda_0_of, register_resolvers, rescaled

__all__ = [
    "CONF_DIR",
    "NUMERICS_VERSION",
    "FailedJob",
    "UnreadableError",
    "build",
    "build_loss",
    "build_model",
    "cell_name",
    "compose",
    "compose_generator",
    "compose_run",
    "dataset_name",
    "freeze",
    "freeze_generator",
    "generator_overrides",
    "is_frozen_generator",
    "lambda_0_of",
    "model_name",
    "parse_plain",
    "quoted",
    "read_bounded",
    "read_frozen",
    "read_frozen_generator",
    "read_frozen_run",
    "register_resolvers",
    "request",
    "requested_run_id",
    "rescaled",
    "rescaled_milestones",
    "run_command_line",
    "run_id",
    "run_job",
    "run_names",
    "target_class",
    "weights_digest",
    "write_frozen",
]
