"""The page as a file: complete, reproducible, and safe against scripts in the contents of files."""

import base64
import dataclasses
import gzip
import hashlib
import html
import json
import re
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from isda_repro.errors import UserError
from isda_repro.experiments.plan import Run
from isda_repro.experiments.specification import load_table, table_names
from isda_repro.report.evidence import Shown, evidence
from isda_repro.report.page import _plotly, page
from isda_repro.report.table_progress import petaflop_of
from isda_repro.tables.aggregate import FilledTable


def numbers_of(text):
    """Return the numbers in the first sentence of the page."""
    lead = html.unescape(re.search(r'<p class="lead">(.*?)</p>', text, re.S)[1])
    return [int(number) for number in re.findall(r"\d+", lead)]


def data_of(text):
    packed = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', text)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


@pytest.fixture
def done(tmp_path, runs, leave):
    """Return a folder with some runs of the table."""
    for (row, column, seed), run in runs.items():
        if row != "ResNet-32" and not (column == "ISDA" and seed == 2):
            leave(tmp_path, run)
    return tmp_path


def test_the_same_results_give_the_same_bytes_at_any_time(done, rendered, monkeypatch):
    before = rendered(done)
    _plotly.cache_clear()
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert rendered(done) == before


def test_every_finished_run_is_there_with_its_cell(done, rendered, runs):
    data = data_of(rendered(done))
    assert {run["id"] for run in data["runs"]} == {
        run.run_id for (row, column, seed), run in runs.items() if row != "ResNet-32" and (column, seed) != ("ISDA", 2)
    }
    cell = data["cells"]["networks/resnet-20--isda"]
    assert [data["runs"][number]["seed"] for number in cell["runs"]] == [0, 1]
    assert cell["missing"] == [2]
    assert (cell["table"], cell["name"]) == ("networks", "ResNet-20, ISDA")
    assert cell["command"] == "python train.py dataset=digits model=resnet20 loss=isda"
    assert data["cells"]["networks/resnet-32--ce"]["missing"] == [0, 1, 2]
    assert data["tables"] == {"networks": "Networks on <digits>"}


def test_a_cell_of_shorter_runs_is_apart_and_lacks_nothing(tmp_path, rendered, shorter):
    run = shorter(tmp_path, "model=resnet8", "loss=ce")
    data = data_of(rendered(tmp_path))
    cells = {key: cell for key, cell in data["cells"].items() if cell["runs"]}
    assert list(cells) == ["networks/reduced-0/resnet-8--ce"]
    (cell,) = cells.values()
    assert cell["missing"] == []
    assert cell["name"] != data["cells"]["networks/resnet-8--ce"]["name"] == "ResNet-8, CE"
    assert data["cells"]["networks/resnet-8--ce"]["missing"] == [0, 1, 2]
    assert data["runs"][0]["id"] == run.run_id


def test_a_run_of_no_table_is_there_without_a_cell(tmp_path, rendered, composed, leave):
    cfg = composed(["dataset=digits", "model=resnet110", "loss=focal"])
    leave(tmp_path, Run(0, cfg.run_id, OmegaConf.to_container(cfg)))
    text = rendered(tmp_path)
    data = data_of(text)
    assert [run["id"] for run in data["runs"]] == [cfg.run_id]
    assert not any(cell["runs"] for cell in data["cells"].values())
    assert numbers_of(text)[:3] == [0, 18, 1]  # finished runs, planned runs, runs of no table


def test_the_page_counts_runs_and_what_is_left_and_names_the_hardware_once(done, rendered, runs):
    text = rendered(done)
    assert numbers_of(text)[:2] == [10, 18]
    assert re.search(r"<title>\D*10\D+18\D*</title>", html.unescape(text))
    lead = re.search(r'<p class="lead">(.*?)</p>', text, re.S)[1]
    assert lead.count("a processor") == 1
    left = [run for (row, column, seed), run in runs.items() if row == "ResNet-32" or (column, seed) == ("ISDA", 2)]
    assert f" {petaflop_of(left):.2g} " in lead


def test_runs_that_diverged_are_named_and_not_left(tmp_path, rendered, runs, leave, diverge):
    leave(tmp_path, runs["ResNet-20", "CE", 0])
    diverge(runs["ResNet-20", "ISDA", 1])
    text = rendered(tmp_path)
    left = [run for key, run in runs.items() if key not in (("ResNet-20", "CE", 0), ("ResNet-20", "ISDA", 1))]
    assert f" {petaflop_of(left):.2g} " in re.search(r'<p class="lead">(.*?)</p>', text, re.S)[1]
    (cell,) = (cell for cell in data_of(text)["cells"].values() if cell["name"] == "ResNet-20, ISDA")
    assert (cell["diverged"], cell["missing"]) == (["seed 1: diverged in epoch 29"], [0, 2])


def test_runs_of_the_papers_tables_are_counted_apart_and_once(tmp_path, table, composed, leave, runs):
    ours = tmp_path / "ours.yaml"
    text = Path(table).read_text().partition("paper:")[0]
    ours.write_text(text.replace("ResNet-32: model=resnet32", "ResNet-110: model=resnet110"))
    both = evidence([table, str(ours)], composed, tmp_path / "runs", tmp_path / "results")
    own = [run for run in both.runs.values() if run.settings["choice"]["model"] == "resnet110"]
    for run in (runs["ResNet-8", "CE", 0], runs["ResNet-32", "CE", 0], own[0]):
        leave(tmp_path, run)
    both = evidence([table, str(ours)], composed, tmp_path / "runs", tmp_path / "results")
    text = page(both, tmp_path / "runs", tmp_path / "results")
    assert numbers_of(text)[:4] == [2, 18, 1, 6], "12 of its 18 runs are of both tables"
    assert "reproduced" not in text[: text.index("</h1>")]


def test_the_papers_tables_and_figures_are_told_from_ours():
    def is_of_paper(name):
        table = load_table(name)
        return Shown({}, FilledTable(table, {}, "test", ()), table.name).is_of_paper

    of_paper = {name for name in table_names() if is_of_paper(name)}
    assert of_paper == {name for name in table_names() if name.startswith(("table", "figure"))}
    assert {"table1", "table5", "figure2", "figure6"} <= of_paper < set(table_names())


def test_the_policy_allows_our_scripts_alone(done, rendered):
    text = rendered(done)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    library = re.search(r'id="library">([^<]*)<', text)[1]
    scripts.append(gzip.decompress(base64.b64decode(library)).decode())
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy.split("script-src ")[1].split() == [f"'sha256-{digest}'" for digest in digests]


def test_the_page_refers_to_nothing_outside_itself(done, rendered):
    text = re.sub(r'id="library">[^<]*<', "", rendered(done))
    assert not re.findall(r"""(?:src|action)=|@import|url\(""", text)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', text))


def test_what_files_say_is_shown_as_text(tmp_path, rendered):
    damaged = tmp_path / "results" / "<img src=x onerror=alert(1)>" / "cell" / "0.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{}")
    text = rendered(tmp_path)
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;/cell/0.json" in text
    assert "Networks on <digits>" not in text
    assert "Networks on &lt;digits&gt;" in text


def test_a_page_without_results_has_the_command_that_begins_and_no_curves(tmp_path, rendered, table):
    text = rendered(tmp_path)
    assert f"scripts/sweep.py table={table}" in text
    assert f"results_dir={tmp_path / 'results'}" in text
    assert f"runs_dir={tmp_path / 'runs'}" in text
    assert 'class="panels"' not in text


@pytest.mark.parametrize(("module", "named"), [("plotly.offline", "plotly"), ("jinja2", "jinja2")])
def test_a_package_that_is_not_installed_is_named(done, rendered, monkeypatch, module, named):
    monkeypatch.setitem(sys.modules, module, None)
    _plotly.cache_clear()
    with pytest.raises(UserError, match=named):
        rendered(done)


def test_names_that_cannot_be_encoded_do_not_stop_the_page(done, gathered):
    found = gathered(done)
    shown = found.tables[0]
    table = dataclasses.replace(shown.filled.table, title="\ud800", notes=("\udcff",))
    filled = dataclasses.replace(shown.filled, table=table, problems=("\udc80",))
    odd = dataclasses.replace(found, tables=(dataclasses.replace(shown, filled=filled),), problems=("\udc80",))
    text = page(odd, done / "runs", done / "results")
    assert text.encode()
    assert data_of(text)["runs"]
