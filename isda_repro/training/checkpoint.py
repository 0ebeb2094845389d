"""Checkpoints of a run: file format, background writer, and the rule for when to save.

The state is saved at intervals, at the end of each epoch, and when a signal asks the run to stop. All processes of a
run save after the same step.
"""

from __future__ import annotations

import operator
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from isda_repro.console import warn
from isda_repro.errors import EXIT_USER_ERROR, StoppedError, UserError, is_out_of_memory
from isda_repro.files import atomic_write
from isda_repro.runs.run_directory import checkpoints_in
from isda_repro.stopping import exit_code, handle_stop_signals
from isda_repro.torch_files import TorchFileError, open_torch_file
from isda_repro.training.distributed import SINGLE_PROCESS, Processes

UNFINISHED = re.compile(r"(checkpoint(-[0-9]{9,})?\.pt|(result|diverged|environment)\.json)\.[0-9a-f]{8}\.tmp")
KEPT = 2  # the second newest is a spare in case the disk damages the newest


class CheckpointError(UserError):
    """Raised when a checkpoint is missing, damaged, or not a file of this program."""


def save(path: Path, state: Mapping[str, Any], before_replace: Callable[[], None] = lambda: None) -> None:
    """Write ``state`` (tensors and plain containers) to ``path`` atomically.

    After a crash ``path`` is either the old file or the complete new one. ``before_replace`` is called when the new one
    is complete; an exception from it leaves the old one.
    """
    with atomic_write(path, before_replace) as file:
        torch.save(dict(state), file)


def load(path: Path) -> dict[str, Any]:
    """Read a file that ``save`` wrote, after verifying its checksums. Tensors are returned on the CPU.

    Raises: see ``load_part``.
    """
    return cast(dict[str, Any], _read(path, lambda state: state))


def load_part(path: Path, key: str) -> Any:
    """Read what a file that ``save`` wrote has under a key, and no other tensors; None if it has no such key.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something other than tensors and plain containers.
        OSError, MemoryError: the file could not be read this time, which does not mean that it is damaged. The message
            names the file.
    """
    return _read(path, operator.methodcaller("get", key))


def _read(path: Path, choose: Callable[[dict[str, Any]], Any]) -> Any:
    try:
        with open_torch_file(path) as file:
            if isinstance(file.content, dict) and {"epoch", "network"} <= set(file.content):
                return file.read(choose(file.content))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: has its run finished?") from error
    except TorchFileError as error:
        raise CheckpointError(f"{path} is not a whole checkpoint, or not one of ours: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"while reading {path}, {path.stat().st_size / 1e6:.0f} MB") from error
    raise CheckpointError(f"{path} is not a checkpoint of ours: it has no network and epoch")


def snapshot(state: Any) -> Any:
    """Return a deep copy of ``state`` in CPU memory, which training can no longer change.

    Tensors on a device are copied with one transfer for each dtype, see ``copy_to_host``.
    """
    elsewhere = [tensor for tensor in _tensors(state) if not tensor.is_cpu]
    on_host = dict(zip(map(id, elsewhere), copy_to_host(elsewhere), strict=True))

    def copied(node: Any) -> Any:
        if isinstance(node, Tensor):
            return on_host[id(node)] if id(node) in on_host else node.detach().clone()
        if isinstance(node, Mapping):
            return {key: copied(value) for key, value in node.items()}
        return [copied(value) for value in node] if isinstance(node, list | tuple) else node

    return copied(state)


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping | list | tuple):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(value)


def copy_to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return CPU copies of ``tensors`` with the same strides, using one transfer for each dtype."""
    dense = [tensor.detach() if _is_dense(tensor) else tensor.detach().contiguous() for tensor in tensors]
    copies: dict[int, Tensor] = {}
    for dtype in {tensor.dtype for tensor in dense}:
        here = [index for index, tensor in enumerate(dense) if tensor.dtype == dtype]
        flat = [dense[index].as_strided((dense[index].numel(),), (1,)) for index in here]  # 1-D view in memory order
        parts = torch.cat(flat).cpu().split([part.numel() for part in flat])
        for index, part in zip(here, parts, strict=True):  # own storage: copies are freed one by one
            copies[index] = part.clone().as_strided(dense[index].size(), dense[index].stride())
    return [copies[index] for index in range(len(dense))]


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


class Checkpoints:
    """The last two checkpoints of an unfinished run: ``checkpoint-<step>.pt`` in its directory.

    Args:
        folder: the run directory.
        ensure_held: raises an error if this process has lost the lock of the directory; it is called right before a
            file is replaced or deleted.
    """

    def __init__(self, folder: Path, ensure_held: Callable[[], None] = lambda: None) -> None:
        self._folder, self._ensure_held = folder, ensure_held
        self._writer: threading.Thread | None = None
        self._failure: Exception | None = None
        self.written_at = time.monotonic()

    def newest_first(self) -> list[Path]:
        """Return the paths of the checkpoints on disk, newest first."""
        return checkpoints_in(self._folder)

    def write(self, state: Mapping[str, Any]) -> None:
        """Copy ``state`` to the CPU and write the copy in a background thread.

        A write that is still going on is waited for first. The file is named after ``state["step"]``.
        """
        self.wait()
        copy = snapshot(state)
        path = self._folder / f"checkpoint-{copy['step']:09}.pt"
        self._writer = threading.Thread(target=self._write, args=(path, copy), name=path.name)
        self._writer.start()
        self.written_at = time.monotonic()

    def wait(self) -> bool:
        """Wait for the background write, and return True unless it failed.

        A failure prints one warning; the earlier checkpoints are still on disk.
        """
        failure = None
        if self._writer is not None:
            self._writer.join()
            failure = self._failure
            if failure is not None:
                last = next((path.name for path in self.newest_first()), "none")
                warn(f"{self._writer.name} could not be written ({failure}); the last on the disk: {last}")
        self._writer = self._failure = None
        return failure is None

    def clear(self) -> None:
        """Delete all checkpoints and unfinished files; called when the run has finished."""
        self.wait()
        self.clear_unfinished()
        self._delete(self.newest_first())

    def clear_unfinished(self) -> None:
        """Delete the partial files of a process that died while it was writing.

        Their names are exactly those that ``atomic_write`` gives to files that only the owner of the lock writes: this
        process, which is writing none now. So they are left over, and nobody else's.
        """
        self._delete([path for path in self._folder.glob("*.tmp") if UNFINISHED.fullmatch(path.name)])

    def _delete(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._ensure_held()
            path.unlink(missing_ok=True)

    def _write(self, path: Path, state: Mapping[str, Any]) -> None:
        try:
            save(path, state, self._ensure_held)
            self._delete(self.newest_first()[KEPT:])
        except Exception as error:  # `wait` reports it in the main thread
            self._failure = error


class Saver:
    """Decides after each step whether to save the state, and stops the run after a signal.

    All processes make the same calls and act after the same step.

    Args:
        checkpoints: where the state goes; only the main process writes.
        state: returns the current state, with its ``step``. All processes call it; the main process's is written.
        minutes: time between two saves within an epoch; None: no saves by the clock.
        steps: optimizer steps between two saves; None: no saves by the number of steps.
        processes: the processes of the run.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        state: Callable[[], Mapping[str, Any]],
        minutes: float | None = None,
        steps: int | None = None,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self._checkpoints, self._state, self._processes = checkpoints, state, processes
        self._seconds = None if minutes is None else 60 * minutes
        self._steps = steps
        self._signal: signal.Signals | None = None
        self._is_due = False

    def step_taken(self, step: int) -> None:
        """Save the state if it is due after ``step`` optimizer steps.

        Raises:
            StoppedError: a signal asked the run to stop; the state has been saved.
        """
        seconds = time.monotonic() - self._checkpoints.written_at
        late = self._seconds is not None and seconds >= self._seconds
        self._is_due = late and not self._is_due  # all processes learn of it one step later: ask once
        if self._agree_and_stop(wants_to_save=self._is_due) or (self._steps is not None and step % self._steps == 0):
            self._write(self._state())

    def epoch_ended(self) -> None:
        """Save the state at the end of an epoch, after its record has been written.

        Raises:
            StoppedError: a signal asked the run to stop; the state has been saved.
        """
        self._agree_and_stop()
        self._write(self._state())

    def stop_if_asked(self) -> None:
        """Save and stop if a signal has come; may be called wherever the state can be saved.

        Raises:
            StoppedError: a signal asked the run to stop; the state has been saved.
        """
        self._agree_and_stop()

    def _agree_and_stop(self, wants_to_save: bool = False) -> bool:
        """Stop if a signal has reached any process; otherwise return True if any process is due to save."""
        number, saves = self._processes.agreed(self._signal or 0, int(wants_to_save))
        if number:
            self._stop(signal.Signals(number))
        return bool(saves)

    def _write(self, state: Mapping[str, Any]) -> None:
        if self._processes.is_main:
            self._checkpoints.write(state)
        else:  # all processes restart the clock together
            self._checkpoints.written_at = time.monotonic()

    def _stop(self, asked: signal.Signals) -> NoReturn:
        state = self._state()
        self._write(state)
        step, failed = state["step"], self._processes.all_reduce_max(int(not self._checkpoints.wait()))
        message = f"{asked.name}: stopped and saved after step {step}; the same command goes on from there"
        if failed:
            message = (
                f"error: {asked.name}: stopped after step {step}, which could not be saved; the same command goes on "
                "from the checkpoint before it"
            )
        raise StoppedError(message if self._processes.is_main else "", EXIT_USER_ERROR if failed else exit_code(asked))

    def listening(self) -> AbstractContextManager[None]:
        """Return a context in which a signal stops the run at its next step.

        A second signal ends the process at once, except under SLURM.
        """
        return handle_stop_signals(self._take)

    def _take(self, asked: signal.Signals) -> None:
        if self._signal is not None and "SLURM_JOB_ID" not in os.environ:  # SLURM repeats its signal
            os._exit(128 + asked)
        self._signal = asked
