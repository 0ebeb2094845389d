"""Finished runs of a table, and the report of them."""

import dataclasses
import textwrap

import pytest
from omegaconf import OmegaConf
from synthetic import make_result, plausible_errors

from isda_repro import config
from isda_repro.experiments.plan import Run, plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.report.evidence import evidence
from isda_repro.report.page import page
from isda_repro.runs.records import write_result

BEST = {"resnet8": 9.0, "resnet20": 3.0, "resnet32": 5.0}  # errors of CE; ISDA's are half a point lower

TABLE = textwrap.dedent("""
    title: Networks on <digits>
    metric: test_error_final
    baseline: CE
    seeds: [0, 1, 2]
    set: [dataset=digits]
    rows:
      - {ResNet-8: model=resnet8, ResNet-20: model=resnet20, ResNet-32: model=resnet32}
    columns:
      - {CE: loss=ce, ISDA: loss=isda}
    paper:
      ResNet-20: [[4.0, 0.2], [3.0, 0.1]]
""")


@pytest.fixture(scope="session")
def composed():
    """Return ``config.compose`` with a cache, because composing takes a quarter of a second."""
    known = {}

    def compose(overrides=()):
        key = tuple(overrides)
        if key not in known:
            known[key] = config.compose(list(overrides))
        return known[key]

    return compose


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """Return the ``table=`` of a table of three networks with CE and ISDA and three seeds."""
    path = tmp_path_factory.mktemp("table") / "networks.yaml"
    path.write_text(TABLE)
    return str(path)


@pytest.fixture(scope="session")
def runs(table, composed):
    """Return the runs of the table by (row, column, seed)."""
    plan = plan_runs(load_table(table), composed)
    return {(cell.row[0], cell.column[0], run.seed): run for cell, listed in plan.items() for run in listed}


def _finished(run, **changed):
    choice = run.settings["choice"]
    best = BEST.get(choice["model"], 2.0) - 0.5 * (choice["loss"] == "isda")
    return dataclasses.replace(make_result(run, plausible_errors(run.seed, best)), **changed)


@pytest.fixture(scope="session")
def finished():
    """Return ``finished(run, field=value)``, which makes a result as the trainer would write it."""
    return _finished


@pytest.fixture(scope="session")
def result(runs):
    """Return the result of one run."""
    return _finished(runs["ResNet-20", "CE", 0])


@pytest.fixture(scope="session")
def leave():
    """Return ``leave(folder, run)``, which writes the result of a run where the trainer would."""

    def write(folder, run, **changed):
        path = folder / "runs" / run.run_id / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_result(path, _finished(run, **changed))
        return path

    return write


@pytest.fixture(scope="session")
def shorter(composed, leave):
    """Return ``shorter(folder, override, ...)``, which writes the result of a run of 12 epochs on digits."""

    def write(folder, *overrides):
        cfg = composed(["dataset=digits", "recipe.epochs=12", *overrides])
        run = Run(0, cfg.run_id, OmegaConf.to_container(cfg))
        curves = {name: values[:12] for name, values in _finished(run).curves.items()}
        errors = curves["test_error"]
        last = {
            "test_error_final": errors[-1],
            "test_error_best": min(errors),
            "test_error_last10": sum(errors[2:]) / 10,
        }
        leave(folder, run, epochs=12, curves=curves, **last)
        return run

    return write


@pytest.fixture(scope="session")
def gathered(table, composed):
    """Return ``gathered(folder)``, the evidence of the table from its runs/ and results/."""
    return lambda folder: evidence([table], composed, folder / "runs", folder / "results")


@pytest.fixture(scope="session")
def rendered(gathered):
    """Return ``rendered(folder)``, the page as HTML."""
    return lambda folder: page(gathered(folder), folder / "runs", folder / "results")
