"""Ways to damage the files of an interrupted run, and the files to damage; for ``faults.py``."""

import os
from pathlib import Path


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def append(path: Path, text: str) -> None:
    """Append text to a file."""
    with path.open("a") as file:
        file.write(text)


def halve(path: Path) -> None:
    """Cut off the second half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def newest(folder: Path) -> list[Path]:
    """Return the newest checkpoint, as a list of one."""
    return [max(folder.glob("checkpoint-*.pt"))]


def metrics(folder: Path) -> list[Path]:
    """Return the metrics file, as a list of one."""
    return [folder / "metrics.jsonl"]


def both(folder: Path) -> list[Path]:
    """Return all checkpoints."""
    return list(folder.glob("checkpoint-*.pt"))
