"""How a run ends that has no result is noted in its folder, for whoever looks after many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isda_repro.errors import EXIT_USER_ERROR, StoppedError, UserError
from isda_repro.tables.ending import Ending, note_ending
from isda_repro.training.joining import LostContactError
from isda_repro.training.lock import LockedError


@contextmanager
def noting(folder: Path) -> Iterator[None]:
    """Within the block a run trains. Of several processes the one whose own error it is notes it; a stop, the first."""
    try:
        yield
    except StoppedError as stop:
        if str(stop):
            note_ending(folder, Ending(stop.exit_code, str(stop)))
        raise
    except LockedError:  # another process works on it
        raise
    except LostContactError as error:
        note_ending(folder, Ending(EXIT_USER_ERROR, str(error)), keep=True)
        raise
    except Exception as error:
        is_users = isinstance(error, UserError | OSError | MemoryError)
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        note_ending(folder, Ending(EXIT_USER_ERROR if is_users else 1, said.splitlines()[0]))
        raise
