"""Runs that need what is not there: a sweep says so once and does the others; status says it of each cell."""

import pytest
from sweeps import started

from isda_repro import config
from isda_repro.tables.local import sweep_here
from isda_repro.tables.status import status
from isda_repro.tables.sweep import missing

LACK = "needs acgan's images, which this version cannot train on yet"


@pytest.fixture
def own(options, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("""
title: two of the rows cannot be run
metric: test_error_last10
seeds: [0, 1]
set: [model=resnet20, dataset=digits]
rows: [{Basic: loss=ce, ACGAN: [loss=ce, synthetic=acgan], Focal: loss=focal}]
columns: [{digits: []}]
cells:
  - {row: ACGAN, needs: {generator: acgan}}
  - {row: Focal, needs: {row: ACGAN}}
""")
    options.table = str(path)
    return options


def test_a_sweep_leaves_out_what_lacks_a_generator_and_what_waits_for_that(own, trainer, capfd):
    assert sweep_here(own, config.compose, trainer()) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[:2] == [
        f"table=own: 2 runs are left out: each {LACK}",
        "table=own: 2 runs are left out: each needs a run that cannot be run",
    ]
    assert out[-1] == "table=own: 2 of 2 runs done, 2 started now"
    assert [name.split("-")[3] for name in started(own)] == ["ce", "ce"]


def test_nothing_is_said_where_nothing_is_lacking(options, capfd):
    assert len(missing(options, config.compose).runs) == 6
    assert capfd.readouterr().out == ""


def test_status_says_it_in_place_of_how_far_they_are(own):
    lines = list(status(own, config.compose))
    assert lines[0] == "table=own: 0 of 4 runs done"
    assert [line.split("  ")[-1] for line in lines[1:]] == ["not started", LACK, "not started"]
