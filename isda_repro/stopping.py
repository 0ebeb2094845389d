"""Signals that ask a process to stop. Each means: save, and leave so that the same command can go on."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from isda_repro.errors import EXIT_INTERRUPTED, EXIT_STOPPED, INTERRUPTED, STOP_SIGNALS

ECHO_SECONDS = 1.0  # a cluster, a terminal and our own parent may each pass on the same request


@contextmanager
def handle_stop_signals(take: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Within the block, ``take`` is called for each request, in the main thread, instead of what signals did before.

    One that comes within a second of another is its echo. Those that whoever started the process has it ignore (SIGHUP
    under nohup, Ctrl-C in a shell's background) stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may say what signals do
        yield
        return
    taken_at = -ECHO_SECONDS

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal taken_at
        now = time.monotonic()
        if now - taken_at >= ECHO_SECONDS:
            taken_at = now
            take(signal.Signals(number))

    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_on_interrupt() -> None:
    """From now on until a block of ``handle_stop_signals``, Ctrl-C ends the process at once, in whichever line it is.

    Python's own way, an exception, gets lost in places where none can be raised, and is a traceback while a module is
    being imported.
    """

    def leave(_number: int, _frame: FrameType | None) -> None:
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)


@contextmanager
def hard_exit_if_distributed() -> Iterator[None]:
    """A process of several ends here, when the block has: with its exit code, and not in Python's finalisation.

    There threads of PyTorch's gloo, which live as long as anything refers to their process group, free their last
    tensors; Python ends such a thread, and that aborts the process: one in ten, after all had been done.
    """
    code = 0
    try:
        yield
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
    if os.environ.get("WORLD_SIZE", "1") != "1":
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


def exit_code(asked: signal.Signals) -> int:
    """What a process leaves with that has heeded a signal."""
    return EXIT_INTERRUPTED if asked is signal.SIGINT else EXIT_STOPPED
