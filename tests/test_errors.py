"""Exit codes and messages of processes that end by an error or a signal."""

import os
import signal
import subprocess
import sys

import pytest

from isda_repro import stopping
from isda_repro.errors import (
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    STOP_SIGNALS,
    StoppedError,
    UserError,
    is_out_of_memory,
    one_sentence_errors,
)


@pytest.fixture(autouse=True)
def _signals_restored():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("error", "code", "token"),
    [
        (UserError("wrong: recipe.lr"), 2, "recipe.lr"),
        (OSError(28, "No space left on device", "/some/file"), 2, "/some/file"),
        (
            OSError("Caught in a worker\n  Traceback\nOSError: [Errno 24] Too many: '/a'\n"),
            2,
            "[Errno 24] Too many: '/a'",
        ),
        (MemoryError("words"), 2, "words"),
        (RuntimeError("[enforce fail] can't allocate memory: 9 bytes\nmore"), 2, "9 bytes"),
        (StoppedError("saved after step 7", 75), 75, "step 7"),
        (StoppedError("", 130), 130, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_error_of_the_user_is_one_line_and_an_exit_code(capsys, error, code, token):
    with pytest.raises(SystemExit) as left, one_sentence_errors():
        raise error
    said = capsys.readouterr().err
    assert left.value.code == code
    assert token in said
    assert said.strip().count("\n") == 0
    assert said.startswith("error: ") == (code == EXIT_USER_ERROR)
    if isinstance(error, StoppedError):  # a repeated signal must not change the exit code
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in STOP_SIGNALS)


@pytest.mark.parametrize("error", [RuntimeError("a defect"), KeyError("a defect")])
def test_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)), one_sentence_errors():
        raise error


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, is_one):
    assert is_out_of_memory(error) is is_one


@pytest.mark.parametrize("error", ["UserError('x')", "StoppedError('x', 75)", "OSError(5, 'x')", "KeyboardInterrupt()"])
def test_exit_code_does_not_depend_on_a_reader(error):
    reader, writer = os.pipe()
    os.close(reader)  # before the process starts
    code = f"from isda_repro.errors import *\nwith one_sentence_errors(): raise {error}"
    process = subprocess.run([sys.executable, "-c", code], stderr=writer, timeout=60)
    os.close(writer)
    assert process.returncode == {"S": EXIT_STOPPED, "K": EXIT_INTERRUPTED}.get(error[0], EXIT_USER_ERROR)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_is_heeded_once_and_its_echo_is_not(monkeypatch, number):
    now, taken = 100.0, []
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now)
    before = signal.getsignal(number)
    with stopping.handle_stop_signals(taken.append):
        signal.raise_signal(number)
        now += 0.9
        signal.raise_signal(number)
        assert taken == [number]
        now += 0.2
        signal.raise_signal(number)
    assert taken == [number, number]
    assert signal.getsignal(number) == before
    assert stopping.exit_code(number) == (130 if number == signal.SIGINT else 75)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_ignored_signal_stays_ignored(number):
    """A process under nohup, or in a shell's background, inherits ignored signals."""
    signal.signal(number, signal.SIG_IGN)
    taken = []
    with stopping.handle_stop_signals(taken.append):
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
    stopping.exit_on_interrupt()
    signal.raise_signal(number)
    assert taken == [signal.SIGTERM]
    assert signal.getsignal(number) == signal.SIG_IGN


def test_interrupt_leaves_at_once(capfd, monkeypatch):
    class LeftError(BaseException):
        pass

    def leave(code):
        raise LeftError(code)

    monkeypatch.setattr(os, "_exit", leave)
    stopping.exit_on_interrupt()
    with pytest.raises(LeftError) as left:
        signal.raise_signal(signal.SIGINT)
    assert left.value.args == (EXIT_INTERRUPTED,)
    assert capfd.readouterr().err.strip().count("\n") == 0


@pytest.mark.parametrize(("leaving", "code"), [("pass", 0), ("sys.exit(3)", 3), ("sys.exit('words')", 1)])
def test_process_of_several_leaves_with_its_code_after_its_last_words(leaving, code):
    """A process of several exits before ``threading._shutdown``, so that Python's finalisation is not reached."""
    program = (
        "import atexit, sys, threading; from isda_repro.stopping import hard_exit_if_distributed\n"
        "threading._register_atexit(lambda: print('finalised', flush=True))\n"
        "atexit.register(lambda: print('registered'))\n"
        f"with hard_exit_if_distributed():\n    print('done')\n    {leaving}\n"
    )
    for world, said in (("2", ["done", "registered"]), ("1", ["done", "finalised", "registered"])):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "WORLD_SIZE": world},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout.split()) == (code, said), done.stderr


ELSEWHERE = """
import signal, sys
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGKILL"):
    delattr(signal, name)
sys.modules.update(dict.fromkeys(("fcntl", "pwd", "grp", "resource", "termios")))  # importing them fails
import isda_repro.losses, isda_repro.models, isda_repro.config
import runpy
sys.argv = ["train.py", "model=resnet8"]
runpy.run_path("train.py", run_name="__main__")
"""


def test_losses_and_models_are_for_every_platform_and_commands_say_theirs(root):
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_USER_ERROR, 1), done.stderr
    assert "Linux" in done.stderr
    assert "SIGUSR1" in done.stderr


NAMELESS = """
import os, pwd, sys
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
from isda_repro.errors import check_installation
check_installation()
from isda_repro.files import cache_folder
print(os.environ["HOME"], cache_folder())
"""


def test_a_user_without_a_home_and_a_name_gets_a_private_folder(root, tmp_path):
    def ran():
        environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", NAMELESS]
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)

    home = tmp_path / f"isda_repro-{os.getuid()}"
    for _ in range(2):
        assert ran().stdout.split() == [str(home), str(home / ".cache" / "isda_repro")]
    assert home.stat().st_mode & 0o077 == 0
    home.chmod(0o777)
    assert ran().returncode == EXIT_USER_ERROR
    home.rmdir()
    home.symlink_to("/")
    assert ran().returncode == EXIT_USER_ERROR


def test_an_error_is_one_line_whatever_it_quotes(capsys):
    assert str(UserError("a\nb\x1b[2J\u2028фото")) == "a\\nb\\x1b[2J\\u2028фото"
    with pytest.raises(SystemExit), one_sentence_errors():
        raise OSError(2, "No such file", "a\nb")
    assert capsys.readouterr().err.count("\n") == 1
