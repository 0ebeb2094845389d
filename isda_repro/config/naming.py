"""A run's name: what was asked for, and a hash of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from isda_repro.config.checks import generator_kind

NUMERICS_VERSION = 2
"""Raise it whenever the same request would give other numbers: every run then gets a new name."""

NOT_REQUESTED = (
    *("choice", "data_dir", "runs_dir", "dataset.source.data_dir", "compute.device", "tracking"),
    *("compute.timeout_minutes", "compute.cuda_graph", "loss.kernels"),
    *("dataset.source.root", "dataset.workers"),
    *("checkpoint", "force", "model.weights"),  # model.weights_sha256 is requested instead
)
"""Keys that cannot change a result. They are no part of a run's identity, and stay out of ``result.json``."""

_SEED = "\0seed\0"  # where the seed comes; no setting can be this


def request(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that can change the result.

    Nulls are left out, and what holds nothing else: a new option, or a new group of them, starts as nulls.
    """
    plain = cfg if isinstance(cfg, dict) else cast(dict[str, Any], OmegaConf.to_container(cast(DictConfig, cfg)))
    identity = ("run_id", "numerics_version")
    return cast(dict[str, Any], _pruned({key: value for key, value in plain.items() if key not in identity}, ""))


def _pruned(node: Any, path: str) -> Any:
    if isinstance(node, Mapping):
        below = {key: _pruned(value, f"{path}.{key}" if path else str(key)) for key, value in node.items()}
        asked = {k: v for k, v in below.items() if v is not None and v != {}}
        return {k: v for k, v in asked.items() if (f"{path}.{k}" if path else k) not in NOT_REQUESTED}
    if isinstance(node, list):
        return [_pruned(value, path) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def run_id(cfg: Mapping[str, Any]) -> str:
    """``<model>-<dataset>-<augmentation>-<loss>-s<seed>-<hash of the request>``."""
    return requested_run_id(request(cfg), cfg["choice"])


def requested_run_id(requested: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    """The same, of what ``request`` gave: runs that have finished keep their request and the names chosen."""
    return run_names(requested, choice)(requested["seed"])


def run_names(requested: Mapping[str, Any], choice: Mapping[str, Any]) -> Callable[[int], str]:
    """Seed -> run id, of runs that differ in their seed alone: to name thousands takes little longer than one."""
    body = {**requested, "numerics_version": NUMERICS_VERSION, "seed": _SEED}
    head, tail = json.dumps(body, sort_keys=True, separators=(",", ":")).encode().split(json.dumps(_SEED).encode())
    begun, cell = hashlib.sha256(head), cell_name({**requested, "choice": choice})

    def name(seed: int) -> str:
        digest = begun.copy()
        digest.update(json.dumps(seed).encode() + tail)
        return f"{cell}-s{seed}-{digest.hexdigest()[:10]}"

    return name


def model_name(cfg: Mapping[str, Any]) -> str:
    """The model that was chosen; of timm's, which one."""
    chosen = str(cfg["choice"]["model"])
    return f"timm_{cfg['model']['name']}".replace("/", "_") if chosen == "timm" else chosen


def dataset_name(cfg: Mapping[str, Any]) -> str:
    """The data set that was chosen; of folders, which one."""
    chosen = str(cfg["choice"]["dataset"])
    return f"folder_{cfg['dataset']['name']}" if chosen == "folder" else chosen


def cell_name(cfg: Mapping[str, Any]) -> str:
    """``<model>-<dataset>-<augmentation>-<loss>[-<generator>]``: what the runs of all seeds have in common."""
    choice, kind = cfg["choice"], generator_kind(cfg)
    parts = [model_name(cfg), dataset_name(cfg), choice["augmentation"], choice["loss"], *([kind] if kind else [])]
    return "-".join(parts)
