"""Instantiation of configuration nodes that have a ``_target_``: the only place where a configuration chooses code."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from isda_repro.config.checks import ConfigError
from isda_repro.config.targets import PARTIAL, TARGET, check_targets
from isda_repro.errors import UserError

MAY_BE_OFF = ("weight", "label_smoothing", "prior")
"""Arguments of losses that null turns off."""


def build_model(cfg: DictConfig, num_classes: int) -> Any:
    """Build the network of ``cfg.model`` with random weights.

    ``model.weights``, its digest and ``model.official_init`` are ignored here: they are the caller's.
    """
    arguments = [str(key) for key in cfg.model if key not in ("weights", "weights_sha256", "official_init")]
    return build(OmegaConf.masked_copy(cfg.model, arguments), num_classes=num_classes)


def build_loss(cfg: DictConfig, **arguments: Any) -> Any:
    """Build the loss of ``cfg.loss``.

    ``loss.sync`` is ignored: it concerns the code that sets up the processes of a distributed run. An argument that is
    off is left out, so that the loss has its own default.
    """
    off = {key for key in MAY_BE_OFF if cfg.loss.get(key) is None}
    known = [str(key) for key in cfg.loss if key != "sync" and key not in off]
    return build(OmegaConf.masked_copy(cfg.loss, known), **arguments)


def target_class(node: DictConfig) -> type:
    """Return the class that a node's ``_target_`` names.

    Raises:
        ConfigError: ``conf/`` has no such target.
    """
    plain = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    check_targets(plain, place=None)
    return cast(type, _target_of(plain))


def build(node: DictConfig, **arguments: Any) -> Any:
    """Instantiate the ``_target_`` of a node, after those of the nodes in it.

    ``_partial_: true`` beside a target gives a function that takes further arguments.

    Args:
        node: a node with a ``_target_``; its other keys are arguments.
        arguments: further arguments of the target.

    Raises:
        UserError: ``conf/`` has no such target; or raised by the target, or a ``ConfigError`` that wraps its ValueError
            or TypeError in one sentence.
    """
    plain = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    check_targets(plain, place=None)
    return _instantiated(plain, arguments)


def _instantiated(node: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    target = _target_of(node)
    given = {key: _argument(value) for key, value in node.items() if key not in (TARGET, PARTIAL)}
    if node.get(PARTIAL, False):
        return functools.partial(target, **given, **arguments)
    try:
        return target(**{**given, **arguments})
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        settings = ", ".join(f"{key}={value}" for key, value in node.items() if key != TARGET)
        raise ConfigError(f"{node[TARGET]} cannot be made with {settings}: {error}") from error


def _argument(value: Any) -> Any:
    """Return a value with the nodes in it instantiated that have a ``_target_``."""
    if isinstance(value, dict):
        return _instantiated(value, {}) if TARGET in value else {key: _argument(one) for key, one in value.items()}
    return value


def _target_of(node: Mapping[str, Any]) -> Callable[..., Any]:
    """Import what the ``_target_`` of a checked node names."""
    if TARGET not in node:
        raise ConfigError(f"the node with {', '.join(map(str, node)) or 'no key'} has no {TARGET}: compose it anew")
    module, _, name = str(node[TARGET]).rpartition(".")
    return cast(Callable[..., Any], getattr(importlib.import_module(module), name))
