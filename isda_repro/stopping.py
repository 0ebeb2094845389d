"""Signals that ask a process to stop: it saves its state and exits, so that the same command can resume it."""

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

ECHO_SECONDS = 1.0  # a cluster, a terminal and the parent process may each deliver the same request


@contextmanager
def handle_stop_signals(take: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call ``take`` in the main thread for each stop signal within the block, and restore the handlers afterwards.

    A signal within ``ECHO_SECONDS`` of the last one taken is ignored as a repetition. Signals that the process was
    started to ignore (SIGHUP under nohup, Ctrl-C in a background job) stay ignored. Outside of the main thread this
    does nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
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
    """Make Ctrl-C end the process at once, wherever it is, except within ``handle_stop_signals``.

    Python's KeyboardInterrupt is lost where no exception can be raised, and prints a traceback during imports.
    """

    def leave(_number: int, _frame: FrameType | None) -> None:
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)


@contextmanager
def hard_exit_if_distributed() -> Iterator[None]:
    """End a process of a distributed run with ``os._exit`` after the block, with its exit code.

    This skips Python's finalisation, during which threads of PyTorch's gloo free their last tensors. They live as long
    as anything refers to their process group. Python ends such a thread, which aborts the process: it happened in one
    of ten processes, after all work was done.
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
    """Return the exit code of a process that a signal has stopped."""
    return EXIT_INTERRUPTED if asked is signal.SIGINT else EXIT_STOPPED
