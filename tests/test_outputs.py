"""Files that ``output=`` and ``figure=`` name: somebody else's is refused before the work, and ours is replaced."""

import re
import subprocess
import sys

import pytest

from isda_repro.config import CONF_DIR
from isda_repro.errors import UserError
from isda_repro.measurements import conclude, output_argument, output_path

THEIRS = b"my paper\n"
ROOT = CONF_DIR.parent
MAKEFILE = (ROOT / "Makefile").read_text().replace("\\\n", "")
BENCHMARKS = re.search(r"^BENCHMARKS = (.*)", MAKEFILE, re.MULTILINE)[1].split()


@pytest.mark.parametrize(
    ("script", "arguments", "name"),
    [
        ("tables", ["table=demo", "format=tex", "figure=null", "output=paper.tex"], "paper.tex"),
        ("tables", ["table=demo", "format=all", "figure=null", "output=folder"], "folder/demo.csv"),
        ("tables", ["table=demo", "figure=a.png"], "a.png"),
        ("tables", ["table=demo", "figure=a.png"], "a.svg"),
        ("report", ["table=demo", "output=x.html"], "x.html"),
        ("data", ["show", "dataset=digits", "output=a.png"], "a.png"),
        ("gan_gallery", ["runs=[nowhere]", "output=a.md"], "a.md"),
        ("gan_quality", ["generator=run", "classifier=nowhere"], "run/quality.json"),
        ("dashboard", ["dry_run=true", "table=demo"], "runs/dashboards/workspace.json"),
    ],
)
def test_file_of_somebody_else_is_refused(tmp_path, monkeypatch, load_script, script, arguments, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(THEIRS)
    with pytest.raises(UserError, match=path.name) as caught:
        load_script(script).main(arguments)
    assert "\n" not in str(caught.value)
    assert {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()} == {path: THEIRS}


def test_output_of_a_benchmark_is_refused_before_it_begins(tmp_path, capsys):
    path = tmp_path / "a.md"
    assert output_argument([f"output={path}"]) == output_path(str(path)) == path
    for _ in range(2):
        conclude(["# a", "text"], [], path)
        assert output_path(str(path)) == path
        assert path.read_text().startswith(capsys.readouterr().out)
    path.write_bytes(THEIRS)
    with pytest.raises(UserError, match=r"a\.md"):
        output_argument([f"output={path}"])
    with pytest.raises(UserError, match=r"a\.md"):
        conclude(["# a"], [], path)
    assert path.read_bytes() == THEIRS
    assert output_argument([]) is output_path(None) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_begins_as_its_documentation_says(name, tmp_path):
    """In a process of its own, whose path has nothing but the benchmark's folder."""
    (tmp_path / "a.md").write_bytes(THEIRS)
    command = [sys.executable, ROOT / f"benchmarks/{name}.py", f"output={tmp_path / 'a.md'}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "a.md" in ended.stderr


@pytest.mark.parametrize("name", ["r.MD", "r.Html"])
def test_report_is_written_again_whatever_the_case_of_its_suffix(tmp_path, name):
    for _ in range(2):
        conclude(["# a"], [], output_path(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("script", "option"),
    [
        *((None, f"output={name}") for name in ("r", "r.txt", "r.markdown", "r.json", "r.csv", "r.png")),
        ("gan_gallery", "output=r.txt"),
        ("models", "output=r.txt"),
        ("models", "data=r.md"),
    ],
)
def test_suffix_whose_files_cannot_be_marked_is_refused_by_name(tmp_path, monkeypatch, load_script, script, option):
    monkeypatch.chdir(tmp_path)
    arguments = [option, *(["runs=[nowhere]"] if script == "gan_gallery" else [])]
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    main = output_argument if script is None else load_script(script).main
    with pytest.raises(UserError, match=r"must end in .*\.(md|html|json)") as caught:
        main(*([] if script == "models" else [arguments]))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["costs.md", "costs.json"])
def test_counting_of_the_models_is_refused_before_it_begins(tmp_path, monkeypatch, load_script, name):
    (tmp_path / name).write_bytes(THEIRS)
    option = "data" if name.endswith("json") else "output"
    monkeypatch.setattr(sys, "argv", ["models.py", f"{option}={tmp_path / name}"])
    with pytest.raises(UserError, match=name):
        load_script("models").main()
    assert (tmp_path / name).read_bytes() == THEIRS


@pytest.mark.parametrize("again", [["table=demo", "output=x.html"]])
def test_report_is_written_again(tmp_path, monkeypatch, load_script, again):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for _ in range(2):
        load_script("report").main(again)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.html"]


def test_of_several_files_none_is_written_if_one_is_not_ours(tmp_path):
    from isda_repro.files import folder_for
    from isda_repro.plotting import write_figure

    (tmp_path / "a.svg").write_text("somebody else's")
    with pytest.raises(UserError, match=r"a\.svg"):
        write_figure(tmp_path / "a.png", lambda: pytest.fail("it was drawn"))
    with pytest.raises(UserError, match=r"a\.svg"):
        folder_for(tmp_path, "a.png", "a.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
