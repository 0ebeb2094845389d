"""The two commands as a user starts them: from the repository root, each a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isda_repro import config
from isda_repro.tables.render import FORMATS

ROOT = config.CONF_DIR.parent


@pytest.fixture
def script():
    def start(name, *arguments, cwd=ROOT):
        command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    return start


def test_tables_prints_the_table_alone_and_says_the_rest_elsewhere(demo, finish, curves, tmp_path, script):
    runs = [run for runs in demo[1].values() for run in runs]
    for run in runs[:5]:
        finish(run, *curves(run.seed, 2.0))
    (tmp_path / "runs" / runs[5].run_id).mkdir()
    (tmp_path / "runs" / runs[5].run_id / "result.json").write_text("{}")
    folders = (f"runs_dir={tmp_path}/runs", f"results_dir={tmp_path}/results")
    shown = script("tables", "table=demo", *folders)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("## ResNet-20 on handwritten digits")
    assert "(n = 2 of 3)" in shown.stdout
    assert (tmp_path / "runs" / "demo.png").exists()
    assert (tmp_path / "runs" / "demo.svg").exists()
    passed_over, curves_at = shown.stderr.splitlines()
    assert passed_over.startswith(f"passed over: {tmp_path}/runs/{runs[5].run_id}/result.json: schema None")
    assert curves_at == f"error curves: {tmp_path}/runs/demo.png"

    written = script("tables", "table=demo", *folders, "format=all", f"output={tmp_path}/tables", "figure=null")
    assert written.stdout == "".join(f"wrote {tmp_path}/tables/demo.{suffix}\n" for suffix in FORMATS)
    assert (tmp_path / "tables" / "demo.md").read_text() == shown.stdout

    same_runs = script("tables", "table=demo", *folders, "set=[tracking=none]", "figure=null")
    assert same_runs.stdout.split("Not run")[0] == shown.stdout.split("Not run")[0], "no other runs, so nothing reduced"

    kept = script("tables", "export", "table=demo", *folders)
    assert kept.returncode == 0
    assert kept.stdout.splitlines()[-1] == "5 new or changed, 0 kept already, 1 passed over"
    assert (tmp_path / "results" / "demo" / "resnet-20-on-digits--isda" / "1.json").exists()


def test_status_from_the_command_line(tmp_path, script):
    shown = script("sweep", "status", "table=demo", f"runs_dir={tmp_path}")
    assert shown.stdout.splitlines()[0] == "table=demo: 0 of 6 runs done"
    assert shown.returncode == 0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sweep", ["table=tabel2"], "error: there is no table=tabel2; table= can be "),
        ("sweep", ["table=demo", "cluster=sge"], "error: there is no cluster=sge; cluster= can be local, slurm"),
        (
            "sweep",
            ["table=demo", "cluster=slurm", "time=soon"],
            "error: time=soon must be a time limit as sbatch takes it",
        ),
        ("sweep", ["table=demo", "set=[recipee.epochs=2]"], "error: unknown setting 'recipee.epochs'"),
        (
            "tables",
            ["table=demo", "format=docx"],
            "error: there is no format=docx; format= can be md, tex, csv, html, all",
        ),
        ("tables", ["table=demo", "format=all"], "error: format=all writes several files: name a folder for them"),
        ("tables", ["table=demo", "format=all", "output=a.md"], "error: format=all writes several files"),
        (
            "tables",
            ["table=demo", "source=cloud"],
            "error: there is no source=cloud; source= can be runs, wandb",
        ),
        ("tables", ["table=demo", "source=wandb"], "error: source=wandb needs entity="),
        ("tables", ["table=demo", "runs_dir=rums"], "error: runs_dir=rums is no folder"),
        ("sweep", ["table=demo", "results_dir=rums"], "error: results_dir=rums is no folder"),
        ("sweep", ["status", "table=demo", "results_dir=rums"], "error: results_dir=rums is no folder"),
        ("tables", ["table=demo", "source=offline", "runs_dir=docs"], "error: runs_dir=docs holds no W&B offline run"),
        ("tables", ["table=demo", "figure=a.gif"], "error: figure=a.gif must be a file that ends in .png or .svg"),
        ("tables", ["export", "table=demo", "runs_dir=rums"], "error: runs_dir=rums is no folder"),
        ("sweep", ["status", "table=demo", "runs_dir=rums"], "error: runs_dir=rums is no folder"),
        ("report", ["table=demo", "runs_dir=rums"], "error: runs_dir=rums is no folder"),
        ("tables", ["table=all", "figure=a.png"], "error: figure=a.png is one file: give it with one table"),
        ("tables", ["export", "table=demo", "set=[recipe.epochs=2]"], "error: unknown option set=; there are table="),
    ],
)
def test_a_mistake_is_one_sentence(name, arguments, message, script):
    shown = script(name, *arguments)
    assert shown.returncode == 2
    assert shown.stderr.startswith(message)
    assert shown.stderr.count("\n") == 1


def test_help_is_what_a_script_says_of_itself(script):
    for name, arguments in (("tables", ["--help"]), ("sweep", ["status", "-h"]), ("tables", ["export", "--help"])):
        shown = script(name, *arguments)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert f"python scripts/{name}.py table=demo" in shown.stdout


def test_an_output_that_is_a_folder_is_named_as_it_was_given(tmp_path, script):
    (tmp_path / "page.md").mkdir()
    shown = script("tables", "table=demo", f"output={tmp_path}/page.md", "figure=null")
    assert (shown.returncode, shown.stderr) == (2, f"error: Is a directory: {tmp_path}/page.md\n")
    assert list(tmp_path.rglob("*")) == [tmp_path / "page.md"], "nothing is left behind"


def test_a_sweep_belongs_in_the_repository_root(tmp_path, script):
    shown = script("sweep", "table=demo", cwd=tmp_path)
    assert shown.returncode == 2
    assert shown.stderr == "error: train.py is not here: run this from the repository root\n"


def test_several_tables_are_one_file_or_a_file_each(layouts):
    spec = importlib.util.spec_from_file_location("tables_script", ROOT / "scripts" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    sys.modules["tables_script"] = tables  # where dataclasses look for their types
    spec.loader.exec_module(tables)
    several = [layouts["columns"], layouts["rows"]]
    ((path, text),) = tables.files(Path("all.csv"), ["csv"], several)
    assert path == Path("all.csv")
    assert text.count("table,reduced,row") == 1
    assert {line.split(",")[0] for line in text.splitlines()} == {"table", "columns", "rows"}
    written = dict(tables.files(Path("folder"), ["md", "csv"], several))
    assert [str(path) for path in written] == [
        "folder/columns.md",
        "folder/columns.csv",
        "folder/rows.md",
        "folder/rows.csv",
    ]
    assert written[Path("folder/rows.md")] == FORMATS["md"]([layouts["rows"]])
