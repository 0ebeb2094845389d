"""Ways to damage the files of an interrupted run, and the files to damage; for ``faults.py``."""

import os
from pathlib import Path


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def append(path: Path, text: str) -> None:
    """To the end of a file."""
    with path.open("a") as file:
        file.write(text)


def halve(path: Path) -> None:
    """Cut off the second half."""
    os.truncate(path, path.stat().st_size // 2)


def newest(folder: Path) -> list[Path]:
    """The last checkpoint."""
    return [max(folder.glob("checkpoint-*.pt"))]


def metrics(folder: Path) -> list[Path]:
    """The lines of the epochs."""
    return [folder / "metrics.jsonl"]


def both(folder: Path) -> list[Path]:
    """All checkpoints."""
    return list(folder.glob("checkpoint-*.pt"))
