"""``python scripts/report.py``: what it writes, and what it says of a mistake."""

import pytest

from isda_repro.errors import UserError


@pytest.fixture
def report(load_script, monkeypatch, tmp_path):
    """``report(option, ...)`` runs it, with its caches under tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script = load_script("report")
    folders = [f"runs_dir={tmp_path}/runs", f"results_dir={tmp_path}/results"]
    return lambda *options: script.main([*folders, *options])


def test_it_says_where_the_page_is_and_what_it_could_not_use(report, table, runs, leave, tmp_path, capsys):
    leave(tmp_path, runs["ResNet-8", "CE", 0])
    damaged = leave(tmp_path, runs["ResNet-8", "CE", 1])
    damaged.write_text("{")
    report(f"table={table},{table}")
    said = capsys.readouterr()
    assert said.out.startswith(f"{tmp_path}/runs/report.html: 1 finished run, ")
    assert said.err.startswith(f"passed over: {damaged}: ")
    assert said.err.count("\n") == 1
    text = (tmp_path / "runs" / "report.html").read_text()
    assert text.count('id="table-networks"') == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("table=tabel2", "there is no table=tabel2; table= can be "),
        ("output=report.pdf", "output=report.pdf must end in .html"),
        ("format=html", "unknown option format="),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(report, option, message, tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=message):
        report(option)
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_papers_tables_come_first(load_script):
    names = load_script("report")._all_tables()
    assert names[:5] == ["table1", "table2", "table3", "table4", "table5"]
    assert names.index("figure2") < names.index("demo")
