"""The two commands as a user starts them: from the repository root, each a process of its own."""

import os
import subprocess
import sys

import pytest

from isda_repro import config

ROOT = config.CONF_DIR.parent


@pytest.fixture
def script():
    def start(name, *arguments, cwd=ROOT):
        command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    return start


def test_tables_prints_the_table_and_ends_with_the_picture(demo, finish, curves, tmp_path, script):
    runs = [run for runs in demo[1].values() for run in runs]
    for run in runs[:5]:
        finish(run, *curves(run.seed, 2.0))
    (tmp_path / "runs" / runs[5].run_id).mkdir()
    (tmp_path / "runs" / runs[5].run_id / "result.json").write_text("{}")
    folders = (f"runs_dir={tmp_path}/runs", f"results_dir={tmp_path}/results")
    output = tmp_path / "results" / "tables" / "demo.md"
    shown = script("tables", "table=demo", *folders, f"output={output}")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == f"error curves: {tmp_path}/runs/demo.png"
    assert "(n = 2 of 3)" in shown.stdout
    assert output.read_text() in shown.stdout
    assert (tmp_path / "runs" / "demo.png").exists()
    assert (tmp_path / "runs" / "demo.svg").exists()
    assert (
        shown.stderr == f"passed over: {tmp_path}/runs/{runs[5].run_id}/result.json: schema None, this code reads 1\n"
    )

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
        ("tables", ["table=demo", "format=docx"], "error: there is no format=docx; format= can be md"),
        ("tables", ["export", "table=demo", "set=[recipe.epochs=2]"], "error: unknown option set=; there are table="),
    ],
)
def test_a_mistake_is_one_sentence(name, arguments, message, script):
    shown = script(name, *arguments)
    assert shown.returncode == 2
    assert shown.stderr.startswith(message)
    assert shown.stderr.count("\n") == 1


def test_a_sweep_belongs_in_the_repository_root(tmp_path, script):
    shown = script("sweep", "table=demo", cwd=tmp_path)
    assert shown.returncode == 2
    assert shown.stderr == "error: train.py is not here: run this from the repository root\n"
