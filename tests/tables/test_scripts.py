"""The commands ``tables`` and ``sweep``: the files they write, and their error messages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isda_repro.errors import UserError
from isda_repro.tables.render import FORMATS


@pytest.fixture
def script(load_script, root, tmp_path_factory, monkeypatch):
    """Return ``script(name, *arguments)``: a script's ``main`` in the repository root, with a cache of the session."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    return lambda name, *arguments: load_script(name).main(list(arguments))


def test_tables_shows_writes_and_draws_what_has_finished(demo, finish, curves, tmp_path, script, capsys):
    runs = [run for runs in demo[1].values() for run in runs]
    for run in runs[:5]:
        finish(run, *curves(run.seed, 2.0))
    damaged = tmp_path / "runs" / runs[5].run_id / "result.json"
    damaged.parent.mkdir()
    damaged.write_text("{}")
    (tmp_path / "results").mkdir()
    folders = (f"runs_dir={tmp_path}/runs", f"results_dir={tmp_path}/results")
    script("tables", "table=demo", *folders)
    shown, said = capsys.readouterr()
    assert "(n = 2 of 3)" in shown
    assert f"results_dir={tmp_path}/results" in shown, "the command of what is left counts what is kept there"
    assert str(damaged) in said
    assert f"{tmp_path}/runs/demo.png" in said
    assert {path.name for path in (tmp_path / "runs").glob("demo.*")} == {"demo.png", "demo.svg"}

    script("tables", "table=demo", *folders, "format=all", f"output={tmp_path}/tables", "figure=null")
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {f"demo.{suffix}" for suffix in FORMATS}
    assert (tmp_path / "tables" / "demo.md").read_text().startswith(shown)
    capsys.readouterr()
    script("tables", "table=demo", *folders, "set=[tracking=none]", "figure=null")
    assert capsys.readouterr().out.split("Not run")[0] == shown.split("Not run")[0], "no other runs, nothing reduced"

    script("tables", "export", "table=demo", *folders)
    kept = tmp_path / "results" / "demo"
    assert sorted(str(path.relative_to(kept)) for path in kept.glob("*/*")) == [
        *(f"resnet-20-on-digits--ce/{seed}.json" for seed in range(3)),
        *(f"resnet-20-on-digits--isda/{seed}.json" for seed in range(2)),
    ]
    (kept / "x.json").mkdir()
    script("tables", "import", f"from={tmp_path}/results", "table=demo", f"results_dir={tmp_path}/b")
    assert len(list(tmp_path.glob("b/demo/*/*.json"))) == 5
    shutil.copytree(kept, tmp_path / "c/heap")
    (tmp_path / "b/demo/resnet-20-on-digits--ce/0.json").write_text("other")
    capsys.readouterr()
    again = ("import", f"from={tmp_path}/c", "table=demo", f"results_dir={tmp_path}/b")
    script("tables", *again)
    assert "->" not in capsys.readouterr().out
    script("tables", *again, "overwrite=true")
    assert capsys.readouterr().out.count("->") == 1


COMMANDS = [
    ("sweep", ["status", "table=demo"], 0, "table=demo"),
    ("tables", ["export", "--help"], 0, "python scripts/tables.py"),
    ("tables", ["table=demo", "output=page.md", "figure=null"], 2, "page.md"),
    ("sweep", ["table=tabel2"], 2, "table=tabel2"),
    *(
        ("sweep", ["table=demo", f"minutes={value}"], 2, f"minutes={value}")
        for value in ("0", "-1", "nan", "inf", "soon")
    ),
]


@pytest.mark.parametrize(("name", "arguments", "code", "token"), COMMANDS)
def test_command_line_writes_to_one_stream_and_leaves_with_its_code(name, arguments, code, token, root, tmp_path):
    (tmp_path / "page.md").mkdir()
    (tmp_path / "train.py").touch()
    environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, str(root / "scripts" / f"{name}.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code
    said, silent = (done.stdout, done.stderr) if code == 0 else (done.stderr, done.stdout)
    assert (token in said, silent) == (True, "")
    assert code == 0 or said.count("\n") == 1
    assert not list(tmp_path.glob("page.md*/*")), "nothing is left behind"
    assert len(list(tmp_path.glob("page.md*"))) == 1


def test_sweep_whose_runs_fail_leaves_with_a_status_that_says_so(root, tmp_path):
    (tmp_path / "train.py").write_text("raise SystemExit(3)")
    environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, str(root / "scripts" / "sweep.py"), "table=demo", "seeds=[0]"]
    assert subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True).returncode == 1


@pytest.mark.parametrize(
    ("name", "arguments", "token"),
    [
        ("sweep", ["table=demo", "cluster=sge"], "cluster=sge"),
        ("sweep", ["table=demo", "set=[recipee.epochs=2]"], "recipee.epochs"),
        ("sweep", ["table=demo", "results_dir=rums"], "results_dir=rums"),
        ("sweep", ["table=demo", "cluster=slurm", "time=soon"], "time=soon"),
        ("sweep", ["status", "table=demo", "results_dir=rums"], "results_dir=rums"),
        ("sweep", ["status", "table=demo", "runs_dir=rums"], "runs_dir=rums"),
        ("sweep", ["cancel", "table=demo", "runs_dir=rums"], "runs_dir=rums"),
        ("tables", ["table=demo", "format=docx"], "format=docx"),
        ("tables", ["table=demo", "format=all"], "format=all"),
        ("tables", ["table=demo", "format=all", "output=a.md"], "format=all"),
        ("tables", ["table=demo", "source=cloud"], "source=cloud"),
        ("tables", ["table=demo", "source=wandb"], "entity="),
        ("tables", ["table=demo", "runs_dir=rums"], "runs_dir=rums"),
        ("tables", ["table=demo", "results_dir=rums"], "results_dir=rums"),
        ("report", ["table=demo", "results_dir=rums"], "results_dir=rums"),
        ("lambda_0", ["table=lambda_digits", "results_dir=rums"], "results_dir=rums"),
        ("lambda_0", ["table=lambda_digits", "runs_dir=rums"], "runs_dir=rums"),
        ("tables", ["table=demo", "source=offline", "runs_dir=docs"], "runs_dir=docs"),
        ("tables", ["table=demo", "figure=a.gif"], "figure=a.gif"),
        ("tables", ["table=all", "figure=a.png"], "figure=a.png"),
        ("tables", ["export", "table=demo", "runs_dir=rums"], "runs_dir=rums"),
        ("tables", ["export", "table=demo", "runs_dir=EMPTY"], "table=demo"),
        ("tables", ["export", "table=demo", "set=[recipe.epochs=2]"], "set="),
        ("tables", ["import"], "from="),
        ("tables", ["import", "from=nowhere"], "from=nowhere"),
        ("tables", ["import", "from=EMPTY", "table=demo"], "from="),
        ("tables", ["import", "from=EMPTY", "table=tabel"], "table=tabel"),
    ],
)
def test_mistake_is_named(name, arguments, token, script, tmp_path):
    with pytest.raises(UserError) as caught:
        script(name, *(argument.replace("EMPTY", str(tmp_path)) for argument in arguments))
    assert token in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sweep_belongs_in_the_repository_root(tmp_path, script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"train\.py"):
        script("sweep", "table=demo")


def test_several_tables_are_one_file_or_a_file_each(layouts, load_script):
    files, several = load_script("tables").files, [layouts["columns"], layouts["rows"]]
    ((path, text),) = files(Path("all.csv"), ["csv"], several)
    assert path == Path("all.csv")
    assert [line.split(",")[0] for line in text.splitlines()].count("table") == 1
    assert {line.split(",")[0] for line in text.splitlines()} == {"table", "columns", "rows"}
    written = dict(files(Path("folder"), ["md", "csv"], several))
    assert {str(path) for path in written} == {
        f"folder/{name}.{s}" for name in ("columns", "rows") for s in ("md", "csv")
    }
    assert written[Path("folder/rows.md")] == FORMATS["md"]([layouts["rows"]])
