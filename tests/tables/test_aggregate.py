import json

import pytest

from isda_repro import config
from isda_repro.errors import UserError
from isda_repro.tables.aggregate import aggregate, export
from isda_repro.tables.plan import expand
from isda_repro.tables.records import read_result
from isda_repro.tables.statistics import Summary, difference

CE, ISDA = (("ResNet-20 on digits",), ("CE",)), (("ResNet-20 on digits",), ("ISDA",))


@pytest.fixture
def cells(demo):
    """The runs of the two cells."""
    return list(demo[1].values())


@pytest.fixture
def fill(demo, tmp_path):
    def with_what_is_there(**options):
        return aggregate(*demo, tmp_path / "runs", tmp_path / "results", **options)

    return with_what_is_there


def test_cells_hold_the_values_of_their_own_runs(cells, finish, fill):
    for run, error in zip(cells[0], (2.0, 3.0, 7.0), strict=True):
        finish(run, error)
    for run, error in zip(cells[1][1:], (1.0, 2.0), strict=True):
        finish(run, error)
    filled = fill()
    assert filled.problems == ()
    assert filled.evaluated_on == "test"
    assert filled.cells[CE].values == {0: 2.0, 1: 3.0, 2: 7.0}
    assert filled.cells[CE].summary == Summary(3, 4.0, pytest.approx(7**0.5))
    assert filled.cells[CE].difference is None
    assert filled.cells[ISDA].missing == (0,)
    assert filled.cells[ISDA].difference == difference({1: 1.0, 2: 2.0}, {1: 3.0, 2: 7.0})


def test_an_empty_table_has_empty_cells(fill):
    filled = fill()
    assert filled.problems == ()
    assert [cell.summary for cell in filled.cells.values()] == [None, None]
    assert filled.cells[ISDA].missing == (0, 1, 2)


def test_the_tables_metric_is_what_enters(demo, cells, finish, tmp_path):
    finish(cells[0][0], 90.0, *[float(error) for error in range(10)])
    filled = aggregate(*demo, tmp_path / "runs", tmp_path / "results")
    assert filled.cells[CE].values == {0: 4.5}


def test_kept_results_count_and_the_local_run_wins(cells, finish, fill, tmp_path):
    finish(cells[0][0], 5.0, path=tmp_path / "results/demo/resnet-20-on-digits--ce/0.json")
    finish(cells[0][1], 6.0, path=tmp_path / "results/demo/a-cell-since-renamed/1.json")
    assert fill().cells[CE].values == {0: 5.0, 1: 6.0}
    finish(cells[0][0], 4.0)
    assert fill().cells[CE].values == {0: 4.0, 1: 6.0}


def test_a_run_with_one_other_setting_stays_out_and_is_named(demo, finish, fill, tmp_path):
    other = expand(demo[0], config.compose, ["recipe.lr=0.06"])
    finish(next(iter(other.values()))[0], 1.0, path=tmp_path / "results/demo/resnet-20-on-digits--ce/0.json")
    filled = fill()
    assert filled.cells[CE].values == {}
    assert len(filled.problems) == 1
    assert "results/demo/resnet-20-on-digits--ce/0.json" in filled.problems[0]
    assert "is no run of this table" in filled.problems[0]
    assert fill(reduced=True).problems == ()


def test_another_runs_result_in_a_runs_folder_stays_out(cells, finish, fill, tmp_path):
    finish(cells[1][0], 1.0, path=tmp_path / "runs" / cells[0][0].run_id / "result.json")
    filled = fill()
    assert [cell.values for cell in filled.cells.values()] == [{}, {}]
    assert "is no run of this table" in filled.problems[0]


def test_a_record_that_claims_a_run_id_with_other_settings_stays_out(cells, finish, fill):
    run = cells[0][0]
    settings = config.request(dict(run.settings))
    finish(run, 1.0, request={**settings, "recipe": {**settings["recipe"], "epochs": 300}})
    filled = fill()
    assert filled.cells[CE].values == {}
    assert "are not those of" in filled.problems[0]


def damage_cut(body):
    return json.dumps(body)[:100]


def damage_no_curves(body):
    return json.dumps({**body, "curves": {}})


def damage_short_curve(body):
    return json.dumps({**body, "epochs": 30})


def damage_nan(body):
    return json.dumps({**body, "test_error_last10": float("nan")})


def damage_type(body):
    return json.dumps({**body, "curves": None, "request": 3})


def damage_list(body):
    return json.dumps([body])


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_no_curves, damage_short_curve, damage_nan, damage_type, damage_list]
)
def test_a_damaged_file_is_named_and_passed_over(cells, finish, fill, tmp_path, damage):
    finish(cells[0][1], 2.0)
    for path in (None, tmp_path / "results/demo/x/0.json"):
        file = finish(cells[0][0], 1.0, path=path)
        file.write_text(damage(json.loads(file.read_text())))
    filled = fill()
    assert filled.cells[CE].values == {1: 2.0}
    assert len(filled.problems) == 2
    assert f"{cells[0][0].run_id}/result.json: " in filled.problems[0]
    assert "results/demo/x/0.json: " in filled.problems[1]


def test_export_keeps_what_aggregation_then_finds_without_the_runs(demo, cells, finish, tmp_path):
    table, plan = demo
    finish(cells[0][0], 3.0)
    finish(cells[1][2], 2.0)
    finish(cells[1][1], 2.0).write_text("{")
    results = tmp_path / "results"
    written, problems = export(table, plan, tmp_path / "runs", results)
    assert [path.relative_to(results).as_posix() for path in written] == [
        "demo/resnet-20-on-digits--ce/0.json",
        "demo/resnet-20-on-digits--isda/2.json",
    ]
    assert len(problems) == 1
    assert read_result(written[0]).test_error_last10 == 3.0
    assert export(table, plan, tmp_path / "runs", results)[0] == [], "nothing changed, nothing is written"
    filled = aggregate(table, plan, tmp_path / "nowhere", results)
    assert (filled.cells[CE].values, filled.cells[ISDA].values) == ({0: 3.0}, {2: 2.0})
    with pytest.raises(UserError, match=r"holds no run of table=demo: python scripts/sweep\.py table=demo"):
        export(table, plan, tmp_path / "nowhere", results)
