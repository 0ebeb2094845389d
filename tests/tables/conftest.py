"""What the tests of tables share."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from sweeps import TRAINER
from synthetic import make_result, plausible_errors

from isda_repro import config
from isda_repro.tables.gathered import gather
from isda_repro.tables.plan import Run, expand
from isda_repro.tables.records import write_result
from isda_repro.tables.sources import results_on_disk
from isda_repro.tables.specification import load_table
from isda_repro.tables.sweep import SweepOptions


@pytest.fixture(scope="session")
def demo():
    table = load_table("demo")
    return table, expand(table, config.compose)


@pytest.fixture
def finish(tmp_path):
    """``finish(run, error)`` leaves the result of a finished run under tmp_path/runs, as the trainer would."""

    def write(run: Run, *errors: float, path: Path | None = None, **changed: object) -> Path:
        path = path or tmp_path / "runs" / run.run_id / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_result(path, dataclasses.replace(make_result(run, errors), **changed))
        return path

    return write


@pytest.fixture
def curves():
    return plausible_errors


@pytest.fixture
def there(tmp_path):
    """``there()``: all results under tmp_path/runs and tmp_path/results, as aggregation takes them."""
    return lambda: gather(results_on_disk(tmp_path / "runs", tmp_path / "results"))


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A command that trains at once; "fails" in its name: seed 1 of CE fails, seed 2 leaves no result."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(config.CONF_DIR.parent)]))

    def command(name="works"):
        path = tmp_path / f"{name}.py"
        path.write_text(TRAINER)
        return [sys.executable, str(path)]

    return command


@pytest.fixture
def options(tmp_path):
    """A sweep of the demo into a folder whose name has oddities."""
    return SweepOptions(table="demo", runs_dir=str(tmp_path / "a 'run' folder"))
