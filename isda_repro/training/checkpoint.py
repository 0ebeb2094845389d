"""A run's weights on disk: written whole or not at all, read without running code.

One is written when training has ended.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch

from isda_repro.errors import UserError


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state``, tensors and plain containers, so that ``path`` is either the old file or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what ``save`` wrote.

    Raises:
        UserError: the file is missing, damaged, or holds something other than tensors and plain containers.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: has its run finished?") from error
    except Exception as error:  # whatever a damaged archive makes of PyTorch's reader
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not a whole checkpoint, or not one of ours: {reason}") from error
    if not isinstance(state, dict) or not {"epoch", "network"} <= set(state):
        raise UserError(f"{path} is not a checkpoint of ours: it has no network and epoch")
    return cast(dict[str, Any], state)
