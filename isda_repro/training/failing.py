"""How a run ends that has no result is noted in its folder, for whoever looks after many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isda_repro.errors import EXIT_USER_ERROR, StoppedError, UserError
from isda_repro.runs.exit_status import ExitStatus, write_exit_status
from isda_repro.runs.lock import LockedError
from isda_repro.training.joining import LostContactError


@contextmanager
def noting(folder: Path) -> Iterator[None]:
    """Within the block a run trains. Of several processes the one whose own error it is notes it; a stop, the first."""
    try:
        yield
    except StoppedError as stop:
        if str(stop):
            write_exit_status(folder, ExitStatus(stop.exit_code, str(stop)))
        raise
    except LockedError:  # another process works on it
        raise
    except LostContactError as error:
        write_exit_status(folder, ExitStatus(EXIT_USER_ERROR, str(error)), keep=True)
        raise
    except Exception as error:
        is_users = isinstance(error, UserError | OSError | MemoryError)
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write_exit_status(folder, ExitStatus(EXIT_USER_ERROR if is_users else 1, said.splitlines()[0]))
        raise
