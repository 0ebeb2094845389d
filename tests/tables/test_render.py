import shlex
import textwrap

import pytest

from isda_repro import config
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.plan import expand
from isda_repro.tables.render import markdown
from isda_repro.tables.specification import load_table


def test_golden_demo(demo, finish, there):
    ce, isda = demo[1].values()
    for run, error in zip(ce, (2.0, 3.0, 7.0), strict=True):
        finish(run, error)
    for run, error in zip(isda[1:], (1.0, 2.0), strict=True):
        finish(run, error)
    filled = aggregate(*demo, there())
    assert markdown(filled, "python scripts/sweep.py table=demo") == textwrap.dedent("""\
        ## ResNet-20 on handwritten digits, CE against ISDA

        |                     |                  CE |                     ISDA |              ISDA − CE |
        | ------------------- | ------------------: | -----------------------: | ---------------------: |
        | ResNet-20 on digits | 4.00 ± 2.65 (n = 3) | 1.50 ± 0.71 (n = 2 of 3) | −3.50 ± 2.12 (2 pairs) |

        Test error in %, mean of the last 10 epochs; mean ± sample standard deviation over n seeds. \
Differences are taken seed by seed: mean ± sample standard deviation over the pairs.

        Not run yet; `python scripts/sweep.py table=demo` runs all of it:

        - ResNet-20 on digits, ISDA, seed 0: `python train.py model=resnet20 dataset=digits loss=isda seed=0`
        """)


PAPER = """
title: With the paper
metric: test_error_final
baseline: Basic
seeds: [0]
rows:
  - {A | B: model=resnet20, C: model=resnet32}
columns:
  - {C10: dataset=cifar10, C100: dataset=cifar100}
  - {Basic: loss=ce, ISDA: loss=isda}
paper:
  A | B: [7.39, [7.09, 0.12], null, 30]
"""


@pytest.fixture
def papers_table(tmp_path):
    (tmp_path / "p.yaml").write_text(PAPER)
    return load_table("p", tmp_path)


def test_golden_paper_columns_missing_cells_and_nothing_run(papers_table, there):
    plan = expand(papers_table, config.compose, ["recipe.epochs=1"])
    filled = aggregate(papers_table, plan, there(), reduced=True)
    lines = markdown(filled, "SWEEP", ["recipe.epochs=1"]).splitlines()
    assert lines[2:7] == [
        "|                | C10, Basic |   C10, ISDA | ISDA − Basic | C100, Basic | C100, ISDA | ISDA − Basic |",
        "| -------------- | ---------: | ----------: | -----------: | ----------: | ---------: | -----------: |",
        r"| A \| B         |    not run |     not run |              |           – |    not run |              |",
        r"| A \| B (paper) |       7.39 | 7.09 ± 0.12 |        −0.30 |             |      30.00 |              |",
        "| C              |    not run |     not run |              |     not run |    not run |              |",
    ]
    assert "Reduced: every run has `recipe.epochs=1`." in lines
    assert lines[-1] == (
        "- C, C100, ISDA, seed 0: `python train.py model=resnet32 dataset=cifar100 loss=isda recipe.epochs=1 seed=0`"
    )


def test_one_seed_has_no_deviation_and_no_difference_no_sign(papers_table, finish, there):
    plan = expand(papers_table, config.compose)
    for cell, runs in plan.items():
        if cell.row == ("C",):
            finish(runs[0], 5.0 if cell.column == ("C100", "ISDA") else 4.0, evaluated_on="holdout")
    filled = aggregate(papers_table, plan, there())
    text = markdown(filled, "SWEEP")
    row = next(line for line in text.splitlines() if line.startswith("| C "))
    assert [field.strip() for field in row.strip("|").split("|")][1:] == [
        "4.00 (n = 1)", "4.00 (n = 1)", "0.00 (1 pair)", "4.00 (n = 1)", "5.00 (n = 1)", "+1.00 (1 pair)",
    ]  # fmt: skip
    assert "Holdout error in %, last epoch;" in text


def test_a_command_survives_the_shell(demo, there):
    odd = "data_dir='a b'"
    filled = aggregate(*demo, there())
    text = markdown(filled, "SWEEP", [odd])
    command = text.splitlines()[-1].split("`")[1]
    assert shlex.split(command) == [
        "python",
        "train.py",
        "model=resnet20",
        "dataset=digits",
        "loss=isda",
        odd,
        "seed=0",
    ]
