"""The CPU rehearsal of ``make gpu``: every section runs, and the report is complete."""

import json
import subprocess
import sys

import pytest


def started(root, *arguments):
    command = [sys.executable, str(root / "benchmarks" / "gpu" / "gpu.py"), *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.mark.slow
def test_the_rehearsal_runs_every_section_and_reports_it(root, tmp_path):
    done = started(root, "rehearse=true", f"output={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("rehearsal-*.json")
    report = json.loads(path.read_text())
    assert list(report["sections"]) == ["cells", "forms", "loader", "machine", "rates", "runs", "tests"]
    assert not any("skipped" in found for found in report["sections"].values())
    assert {"resnet8/isda/graph", "resnet8/ce/eager", "resnet8/isda/compiled"} <= report["rates"].keys()
    assert all(rate > 0 for rate in report["rates"].values())
    assert set(report["isda_over_ce"]) == {"resnet8/100", "resnet8/100/eager", "resnet8/100/compiled"}
    assert set(report["graph_equals_eager"].values()) == {0.0}
    assert set(report["syncs_per_step"].values()) == {0.0}
    assert report["torch"]
    page = path.with_suffix(".md").read_text()
    assert all(f"| {name} |" in page for name in report["sections"])


@pytest.mark.parametrize(
    ("arguments", "token"), [(["minutes=9"], "rehearse=true"), (["only=[rats]"], "rats"), (["minutes=0"], "minutes=0")]
)
def test_a_mistake_is_named(root, arguments, token):
    done = started(root, *arguments)
    assert done.returncode == 2
    assert token in done.stderr
