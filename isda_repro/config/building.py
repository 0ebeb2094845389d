"""Instantiation of configuration nodes that have a ``_target_``."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from isda_repro.config.checks import ConfigError
from isda_repro.errors import UserError


def build_model(cfg: DictConfig, num_classes: int) -> Any:
    """Build the network of ``cfg.model`` with random weights.

    ``model.weights``, its digest and ``model.official_init`` are ignored here: they are the caller's.
    """
    arguments = [str(key) for key in cfg.model if key not in ("weights", "weights_sha256", "official_init")]
    return build(OmegaConf.masked_copy(cfg.model, arguments), num_classes=num_classes)


def build_loss(cfg: DictConfig, **arguments: Any) -> Any:
    """Build the loss of ``cfg.loss``.

    ``loss.sync`` is ignored: it concerns the code that sets up the processes of a distributed run.
    """
    known = [str(key) for key in cfg.loss if key != "sync"]
    return build(OmegaConf.masked_copy(cfg.loss, known), **arguments)


def target_class(node: DictConfig) -> type:
    """Return the class that a node's ``_target_`` names."""
    from hydra.utils import get_class

    return get_class(node["_target_"])


def build(node: DictConfig, **arguments: Any) -> Any:
    """Instantiate the ``_target_`` of a node.

    Args:
        node: a node with a ``_target_``; its other keys are arguments.
        arguments: further arguments of the target.

    Raises:
        UserError: raised by the target, or a ``ConfigError`` that wraps its ValueError or TypeError in one sentence.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    plain = cast(dict[str, Any], OmegaConf.to_container(node))
    try:
        return instantiate(plain, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, ValueError | TypeError):
            given = ", ".join(f"{key}={value}" for key, value in plain.items() if key != "_target_")
            raise ConfigError(f"{plain['_target_']} cannot be made with {given}: {error.__cause__}") from error
        if error.__cause__ is not None:  # a bug, which Hydra's error would hide
            raise error.__cause__ from error
        raise
