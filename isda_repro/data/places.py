"""Where data sets of files lie, and where is kept what can be made again."""

import os
from pathlib import Path

PARTS = ("train", "val")


def places(name: str, root: Path | str) -> tuple[Path, Path]:
    """Where the data set ``name`` may be below ``root``, in the order in which to look: ``root/name``, ``root``."""
    root = Path(root).expanduser()
    return root / name, root


def cache_folder() -> Path:
    """The user's cache: its files can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isda_repro"
