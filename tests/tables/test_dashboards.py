"""W&B dashboards as code: the JSON that would be sent, and sending it to a stand-in server."""

import json
import sys

import pytest
from wandb_runs import epoch, result
from wandb_server import ENTITY, WandbServer

from isda_repro.errors import UserError
from isda_repro.experiments.plan import Run
from isda_repro.experiments.specification import load_table
from isda_repro.runs.from_wandb import connect
from isda_repro.tables import dashboards
from isda_repro.tables.dashboards import Shown
from isda_repro.tables.formatting import NOT_RUN
from isda_repro.tracking.wandb_record import row_of, summary_of

TABLES = ("table2", "table4", "demo")


def shown(name):
    """Return a table and a plan whose runs need not be composed."""
    table = load_table(name)
    plan = {cell: tuple(Run(seed, f"{cell.slug}-s{seed}", {}) for seed in cell.seeds) for cell in table.cells}
    return Shown(table, plan, f"### {table.title}\n\n| a | b |\n| - | - |\n")


@pytest.fixture(scope="module")
def tables():
    return [shown(name) for name in TABLES]


@pytest.fixture(scope="module")
def logged():
    """Return all names that runs of these tables log to W&B, as panels refer to them."""
    history = row_of(epoch(1, 9.0), TABLES) | {"timing/peak_memory_mib": 1.0}
    summary = summary_of(result([epoch(1, 9.0)]), tables=TABLES)
    return set(history) | {f"summary_metrics.{name}" for name in summary}


def as_json(made, folder):
    return json.loads(dashboards.written(folder, made, "made").read_text())


def metrics_of(panel):
    config = panel["config"]
    return {*config.get("metrics", []), *([config["xAxis"]] if "xAxis" in config else [])}


def grouped(panel):
    return tuple(panel["config"][key] for key in ("groupBy", "groupAgg", "groupArea", "limit"))


def test_the_workspace_has_a_section_for_each_table_whose_panels_show_its_runs_alone(tables, logged, tmp_path):
    made = as_json(dashboards.workspace("us", "p", tables), tmp_path)
    section = made["spec"]["section"]
    *of_tables, of_all = section["panelBankConfig"]["sections"]
    for one, name in zip(of_tables, TABLES, strict=True):
        text, curves, bars = one["panels"]
        assert "| a | b |" in text["config"]["value"]
        assert metrics_of(curves) == {"epoch", f"{name}/test_error"}
        assert metrics_of(bars) == {f"summary_metrics.{name}/table_value"}
        assert grouped(curves) == ("group", "mean", "minmax", dashboards.MOST_RUNS), "a cell's seeds together"
        assert grouped(bars) == ("group", "mean", "stddev", dashboards.MOST_RUNS)
    panels = [panel for one in (*of_tables, of_all) for panel in one["panels"]]
    assert {name for panel in panels for name in metrics_of(panel)} <= logged
    (runs,) = section["runSets"]
    (ours,) = runs["filters"]["filters"]
    assert ours["key"] == {"section": "config", "name": "isda_repro_schema"}
    assert (ours["op"], ours["value"]) == ("=", 1)


def test_an_error_on_held_out_images_is_not_called_a_test_error(tables, tmp_path):
    held_out = shown("lambda_digits")
    settings = {"dataset": {"holdout": 437}}
    plan = {cell: tuple(Run(run.seed, run.run_id, settings) for run in runs) for cell, runs in held_out.plan.items()}
    of_both = [tables[0], Shown(held_out.table, plan, "")]
    for made in (dashboards.workspace("us", "p", of_both), dashboards.report("us", "p", of_both)):
        text = json.dumps(as_json(made, tmp_path))
        assert text.count('"error on held-out images (%)"') == text.count('"test error (%)"') == 1


def test_runs_that_two_cells_show_are_listed_once(tables):
    plan = dict.fromkeys(tables[0].plan, (Run(0, "first", {}), Run(1, "second", {})))
    assert Shown(tables[0].table, plan, "").run_ids == ["first", "second"]


def test_a_table_that_has_all_runs_of_another_shows_those_that_the_other_has_started(tables, tmp_path):
    table4 = next(one for one in tables if one.table.name == "table4")
    figure6 = Shown(load_table("figure6"), table4.plan, "")
    partly = Shown(load_table("table5"), {**tables[0].plan, **dict([*table4.plan.items()][:3])}, "")
    made = as_json(dashboards.workspace("us", "p", [*tables, partly, figure6]), tmp_path)
    names = {one["name"].split(":")[0]: one["panels"] for one in made["spec"]["section"]["panelBankConfig"]["sections"]}
    assert metrics_of(names["figure6"][1]) == {"epoch", "figure6/test_error", "table4/test_error"}
    assert metrics_of(names["figure6"][2]) == {f"summary_metrics.{name}/table_value" for name in ("figure6", "table4")}
    assert metrics_of(names["table2"][1]) == {"epoch", "table2/test_error"}


def test_the_report_has_each_table_over_the_curves_of_its_own_runs(tables, logged, tmp_path):
    made = as_json(dashboards.report("us", "p", tables), tmp_path)
    blocks = [block for block in made["spec"]["blocks"] if block["type"] != "paragraph"]
    for one, (_, text, grid) in zip(tables, zip(*[iter(blocks[1:])] * 3, strict=True), strict=True):
        assert text["content"] == one.text
        (runs,) = grid["metadata"]["runSets"]
        (of_table,) = runs["filters"]["filters"]
        assert (of_table["key"]["name"], of_table["op"]) == ("name", "IN")
        assert of_table["value"] == one.run_ids
        panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
        assert {name for panel in panels for name in metrics_of(panel)} <= logged


def test_a_dry_run_writes_what_would_be_sent_without_an_account(load_script, tmp_path, capsys, monkeypatch):
    script = load_script("dashboard")
    monkeypatch.setattr(script, "connect", lambda: pytest.fail("asked for an account"))
    script.main(["table=demo", "dry_run=true", f"runs_dir={tmp_path}", f"results_dir={tmp_path}"])
    folder, said = tmp_path / "dashboards", capsys.readouterr().out
    assert all(f"{folder / name}.json" in said for name in ("workspace", "report"))
    written = json.loads((folder / "workspace.json").read_text())
    section, _ = written["spec"]["section"]["panelBankConfig"]["sections"]
    assert section["panels"][0]["config"]["value"].count(NOT_RUN) == 2, "the table as it is"
    assert json.loads((folder / "report.json").read_text())["spec"]["blocks"]


def test_a_missing_package_and_a_dashboard_that_a_dry_run_would_not_look_at_are_named(monkeypatch, load_script):
    main = load_script("dashboard").main
    for kind in ("workspace", "report"):
        with pytest.raises(UserError, match=f"{kind}="):
            main(["dry_run=true", f"{kind}=https://example.org"])
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match="wandb-workspaces"):
        main(["dry_run=true"])


def test_what_is_sent_replaces_what_is_there(tables, monkeypatch, load_script, tmp_path):
    demo, first = tables[-1], tables[:1]
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        connect()
        urls = {
            kind: dashboards.sent(getattr(dashboards, kind)(ENTITY, "p", first)) for kind in ("workspace", "report")
        }
        assert len(server.views) == 2
        assert all(first[0].table.title in view["spec"] for view in server.views.values())
        options = [f"runs_dir={tmp_path}", f"results_dir={tmp_path}", *(f"{kind}={url}" for kind, url in urls.items())]
        load_script("dashboard").main([f"entity={ENTITY}", "project=p", "table=demo", "source=runs", *options])
        assert not server.unknown
        with pytest.raises(UserError, match=f"{ENTITY}/p"):
            dashboards.sent(dashboards.report(ENTITY, "p", first), "https://example.org/none")
    assert len(server.views) == 2, "in their places"
    for view in server.views.values():
        assert demo.table.title in view["spec"]
        assert first[0].table.title not in view["spec"]
