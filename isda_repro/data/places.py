"""Where data sets of files lie."""

from pathlib import Path

PARTS = ("train", "val")


def places(name: str, root: Path | str) -> tuple[Path, Path]:
    """Where the data set ``name`` may be below ``root``, in the order in which to look: ``root/name``, ``root``."""
    root = Path(root).expanduser()
    return root / name, root
