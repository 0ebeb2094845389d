"""Which images a run went without, because they could not be read and were to be skipped."""

from __future__ import annotations

from pathlib import Path

from isda_repro.console import say, warn
from isda_repro.data import Loader, StreamingLoader
from isda_repro.training.processes import Processes


class UnreadableImages:
    """Names each image once, on standard error and in ``unreadable.txt`` in the run's folder.

    Args:
        folder: the run's.
        processes: of the run; the first names those of all.
        loaders: of the run.
    """

    def __init__(self, folder: Path, processes: Processes, *loaders: Loader) -> None:
        self._file, self._processes = folder / "unreadable.txt", processes
        self._known = set(self._file.read_text(encoding="utf-8").splitlines()) if self._file.exists() else set()
        self._untold: list[tuple[str, str]] = []
        self._may_come = any(loader.may_fall_short for loader in loaders)
        for loader in loaders:
            if isinstance(loader, StreamingLoader):
                loader.report = self

    def __call__(self, where: str, reason: str) -> None:
        """An image was skipped for the first time since the process began."""
        if self._processes.is_first:
            self._name(where, reason)
        else:
            self._untold.append((where, reason))

    def collect(self) -> None:
        """All processes call this now and then: the first names what the others have met."""
        if not (self._may_come and self._processes.are_several):
            return
        told = self._processes.told_to_first(self._untold)
        self._untold = []
        for where, reason in (one for of_rank in told or [] for one in of_rank):
            self._name(where, reason)

    def _name(self, where: str, reason: str) -> None:
        line = f"{where}: {reason}"
        if any(known.startswith(f"{where}: ") for known in self._known):  # before the run was resumed, or by another
            return  # Pillow's reason may hold an address, which is another one each time
        self._known.add(line)
        with self._file.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{line}\n")
        warn(f"image {len(self._known)} that cannot be read, and is left out: {line}")

    def conclude(self) -> None:
        """Say how many there were."""
        if self._known:
            say(f"images that could not be read and were left out: {len(self._known)}, listed in {self._file}")
