"""``python scripts/report.py``: the files it writes, and the errors it reports."""

import pytest

from isda_repro.config import CONF_DIR
from isda_repro.errors import UserError


@pytest.fixture
def report(load_script, monkeypatch, tmp_path):
    """Return ``report(option, ...)``, which runs the script with its caches under tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script = load_script("report")
    (tmp_path / "results").mkdir()
    folders = [f"runs_dir={tmp_path}/runs", f"results_dir={tmp_path}/results"]
    return lambda *options: script.main([*folders, *options])


def test_the_page_is_written_with_each_table_once_and_damaged_files_are_named(
    report, table, runs, leave, tmp_path, capsys
):
    leave(tmp_path, runs["ResNet-8", "CE", 0])
    damaged = leave(tmp_path, runs["ResNet-8", "CE", 1])
    damaged.write_text("{")
    report(f"table={table},{table}")
    said = capsys.readouterr()
    assert f"{tmp_path}/runs/report.html" in said.out
    (problem,) = said.err.splitlines()
    assert str(damaged) in problem
    assert (tmp_path / "runs" / "report.html").read_text().count('id="table-networks"') == 1
    report(f"table={table}", f"output={tmp_path}/deep/er/page.htm")
    assert (tmp_path / "deep/er/page.htm").read_bytes() == (tmp_path / "runs" / "report.html").read_bytes()


@pytest.mark.parametrize("option", ["table=tabel2", "output=report.pdf", "format=html"])
def test_a_wrong_option_is_named_and_nothing_is_written(report, option, tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=option.partition("=")[0]):
        report(option)
    assert list((tmp_path / "runs").iterdir()) == []


def test_all_tables_are_shown_and_the_papers_come_first(load_script):
    names = load_script("report")._all_tables()
    assert names[:5] == ["table1", "table2", "table3", "table4", "table5"]
    assert names.index("figure2") < names.index("demo")
    assert sorted(names) == sorted(path.stem for path in (CONF_DIR / "table").glob("*.yaml"))
