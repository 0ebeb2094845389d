"""Names of runs: the choices in words, the seed, and a hash of the request."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from isda_repro.config.checks import generator_kind

NUMERICS_VERSION = 2
"""Increment this whenever the same request would give other numbers, so that every run gets a new name."""

NOT_REQUESTED = (
    *("choice", "data_dir", "runs_dir", "dataset.source.data_dir", "compute.device", "tracking"),
    *("compute.timeout_minutes", "compute.cuda_graph", "loss.kernels"),
    *("dataset.source.root", "dataset.workers"),
    *("checkpoint", "force", "model.weights"),  # model.weights_sha256 is requested instead
)
"""Keys that cannot change a result. They are not part of a run's identity, and not written to ``result.json``."""

_SEED = "\0seed\0"  # placeholder for the seed; no setting can have this value


def request(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that can change the result.

    Nulls, and mappings that hold nothing else, are left out. A new option, or a new group of options, therefore renames
    no run if it defaults to null. Floats without a fraction become integers, so that 1 and 1.0 name the same run.
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
    """Return the run id: ``<model>-<dataset>-<augmentation>-<loss>[-<generator>]-s<seed>-<hash of the request>``."""
    return requested_run_id(request(cfg), cfg["choice"])


def requested_run_id(requested: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    """Return the run id of a request as ``request`` returns it.

    Finished runs store their request and ``choice``, but not the whole configuration.
    """
    return run_names(requested, choice)(requested["seed"])


def run_names(requested: Mapping[str, Any], choice: Mapping[str, Any]) -> Callable[[int], str]:
    """Return a function from the seed to the run id, for runs that differ in their seed alone.

    The hash of the common part is computed once, so naming thousands of runs takes little longer than naming one.
    """
    body = {**requested, "numerics_version": NUMERICS_VERSION, "seed": _SEED}
    head, tail = json.dumps(body, sort_keys=True, separators=(",", ":")).encode().split(json.dumps(_SEED).encode())
    begun, cell = hashlib.sha256(head), cell_name({**requested, "choice": choice})

    def name(seed: int) -> str:
        digest = begun.copy()
        digest.update(json.dumps(seed).encode() + tail)
        return f"{cell}-s{seed}-{digest.hexdigest()[:10]}"

    return name


def model_name(cfg: Mapping[str, Any]) -> str:
    """Return the name of the model; for ``model=timm``, ``timm_`` and timm's name of it."""
    chosen = str(cfg["choice"]["model"])
    return f"timm_{cfg['model']['name']}".replace("/", "_") if chosen == "timm" else chosen


def dataset_name(cfg: Mapping[str, Any]) -> str:
    """Return the name of the data set; for ``dataset=folder``, ``folder_`` and the name of the folder."""
    chosen = str(cfg["choice"]["dataset"])
    return f"folder_{cfg['dataset']['name']}" if chosen == "folder" else chosen


def cell_name(cfg: Mapping[str, Any]) -> str:
    """Return ``<model>-<dataset>-<augmentation>-<loss>[-<generator>]``, which the runs of all seeds have in common."""
    choice, kind = cfg["choice"], generator_kind(cfg)
    others = [choice["augmentation"], choice["loss"], *([kind] if kind else [])]
    names = [safe_name(model_name(cfg)), safe_name(dataset_name(cfg)), *(safe_name(one, longest=32) for one in others)]
    return "-".join(names)


UNSAFE = re.compile(r"""[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff/\\:;,#?%'"]|^\.""")
"""Characters that a run id does not have, wherever its parts come from: separators, control characters, a dot at the
beginning, bytes that are no UTF-8, and characters that W&B refuses or that quoting changes."""

LONGEST_PART = 64  # bytes in UTF-8, of a model's or a data set's name; a file name has at most 255


def safe_name(text: object, longest: int = LONGEST_PART) -> str:
    """Return a text as a part of a run id: unsafe characters become ``_``, and the end of a long text is cut."""
    return UNSAFE.sub("_", str(text)).encode()[:longest].decode(errors="ignore")
