"""Output on the standard streams, with and without a reader."""

import subprocess
import sys

import pytest

from isda_repro.console import ignore_broken_pipe, say, warn


def test_a_text_goes_to_standard_output_and_a_warning_to_standard_error(capsys):
    say("one")
    warn("two")
    said = capsys.readouterr()
    assert said.out == "one\n"
    assert said.err.strip().endswith("two")
    assert "one" not in said.err


def test_an_error_that_is_not_the_streams_is_raised():
    with pytest.raises(ValueError, match="other"), ignore_broken_pipe(sys.stdout):
        raise ValueError("other")


def test_a_program_whose_reader_is_gone_goes_on_to_its_end(root, tmp_path):
    """The pipe is closed before the program writes; neither its writes nor Python's flush at exit may fail."""
    code = (
        "import sys; sys.stdin.read(); from isda_repro.console import say\n"
        "for line in range(3): say('x' * 70_000)\n"
        "open(sys.argv[1], 'w').write('done')"
    )
    path = tmp_path / "outcome"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        program.stdout.close()
        program.stdin.close()  # the program starts writing now
        assert program.stderr.read() == ""
        assert program.wait(timeout=120) == 0
    assert path.read_text() == "done"
