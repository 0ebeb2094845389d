"""Objects of nodes that have a ``_target_``."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from isda_repro.config.checks import ConfigError
from isda_repro.errors import UserError


def build_model(cfg: DictConfig, num_classes: int) -> Any:
    """The network of ``cfg.model`` as its class draws it; ``model.weights`` is for whoever wants it loaded."""
    arguments = [str(key) for key in cfg.model if key not in ("weights", "weights_sha256", "official_init")]
    return build(OmegaConf.masked_copy(cfg.model, arguments), num_classes=num_classes)


def build_loss(cfg: DictConfig, **arguments: Any) -> Any:
    """The loss of ``cfg.loss``; what ``loss.sync`` asks for is for whoever starts several processes."""
    known = [str(key) for key in cfg.loss if key != "sync"]
    return build(OmegaConf.masked_copy(cfg.loss, known), **arguments)


def target_class(node: DictConfig) -> type:
    """The class that a node's ``_target_`` names."""
    from hydra.utils import get_class

    return get_class(node["_target_"])


def build(node: DictConfig, **arguments: Any) -> Any:
    """Make the object that a node's ``_target_`` names.

    Raises:
        UserError: the object's own, or in one sentence what it refused.
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
        if error.__cause__ is not None:  # a defect of the program, which Hydra's error would hide
            raise error.__cause__ from error
        raise
