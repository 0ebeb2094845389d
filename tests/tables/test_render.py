"""Each output format against its golden files, and parsed as its consumers would.

After an intended change, run ``GOLDEN=write python -m pytest tests/tables/test_render.py`` and review the difference.
"""

import csv
import io
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from isda_repro.runs.result_index import index_results
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.layout import layout
from isda_repro.tables.render import FORMATS, html, latex, markdown

GOLDEN = Path(__file__).parent / "golden"
FILES = {"columns": ["columns"], "rows": ["rows", "odd"], "costs": ["costs"]}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", FILES)
def test_golden(name, suffix, layouts):
    path, text = GOLDEN / f"{name}.{suffix}", FORMATS[suffix]([layouts[one] for one in FILES[name]])
    if os.environ.get("GOLDEN") == "write":
        path.write_bytes(text.encode())
    assert text.encode() == path.read_bytes()


def entries(layout):
    """Return the lines of a table and of the reduced tables behind it."""
    return [line for one in (layout, *layout.reduced) for block in one.blocks for line in block.lines]


def test_markdown_says_what_the_layout_says_whatever_characters_it_has(layouts):
    layout = layouts["columns"]
    tokens = MarkdownIt().enable("table").parse(markdown(layout))
    fields = [
        "".join(part.content for part in tokens[i + 1].children)
        for i, token in enumerate(tokens)
        if token.type == "td_open"
    ]
    expected = [
        text
        for one in (layout, *layout.reduced)
        for block in one.blocks
        for number, line in enumerate(block.lines)
        for text in (
            ", ".join(block.row) if number == 0 else "", *[line.label] * one.has_kinds, *(e.text for e in line.entries)
        )
    ]  # fmt: skip
    assert fields == expected
    bold = [token.children for token in tokens if any(part.type == "strong_open" for part in token.children or ())]
    assert len(bold) == sum(entry.bold for line in entries(layout) for entry in line.entries)
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert [heading.replace("\\", "") for heading in headings] == [layout.title, layout.reduced[0].title]


def test_a_command_with_backticks_stays_a_command_in_markdown(layouts):
    assert "<code>python scripts/sweep.py 'a`b'</code>" in MarkdownIt().render(markdown(layouts["odd"]))


class Reader(HTMLParser):
    """A parser that collects the elements of an HTML fragment, and fails if an end tag does not match."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.elements = [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", "within": list(self.open), **dict(attributes)})
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.elements:
            self.elements[-1]["text"] += data


@pytest.mark.parametrize("name", ["columns", "rows", "odd", "costs"])
def test_html_is_whole_in_ascii_and_has_what_a_script_sorts_by(layouts, name):
    layout = layouts[name]
    fragment, reader = html(layout), Reader()
    reader.feed(fragment)
    assert reader.open == []
    assert fragment.isascii()
    assert not any(element["tag"] in ("b", "script", "style", "html") for element in reader.elements)
    cells = [element for element in reader.elements if "data-column" in element]
    expected = [(number, entry) for line in entries(layout) for number, entry in enumerate(line.entries)]
    assert [(element["data-column"], element.get("data-value")) for element in cells] == [
        (str(number), None if entry.number is None else repr(entry.number)) for number, entry in expected
    ]
    lines = [element["class"] for element in reader.elements if element["tag"] == "tr" and "class" in element]
    assert lines == [line.kind for line in entries(layout)]
    slugs = {element["data-cell"] for element in cells if "data-cell" in element}
    assert slugs == {cell.slug for cell in layout.filled.table.cells}


def test_tex_leaves_out_a_label_that_stands_right_above(layouts):
    layout = layouts["columns"]
    names = [("x", "a"), ("x", "b"), ("y", "b"), ("y", "c")]
    blocks = tuple(replace(block, row=row) for block, row in zip(layout.blocks, names, strict=True))
    lines = latex(replace(layout, blocks=blocks, reduced=())).splitlines()
    labels = [tuple(line.split(" & ")[:2]) for line in lines if " & ours & " in line]
    assert labels == [("x", "a"), ("", "b"), ("y", "b"), ("", "c")]


STRANGE = {
    "ACGAN": "=HYPERLINK(1)",
    "Basic": "@x\n# y",
    "Basic + Dropout": "имя 名 😀 ąßé",
    "ISDA": "-a \x1b[2J \ud800",
    "ResNet-110": "=1+1",
    "Wide-ResNet-28-10": "$x_{%#&~^",
}


@pytest.fixture(scope="module")
def strange(layouts):
    """Return the layout of a table that names things as nobody should."""
    filled = layouts["rows"].filled

    def renamed(label):
        return tuple(STRANGE.get(part, part) for part in label)

    table = replace(
        filled.table,
        name="st}r%ange",
        title="[click](https://example.org) # \n<b> 1.\\\ttitle",
        rows=tuple(map(renamed, filled.table.rows)),
        columns=tuple(map(renamed, filled.table.columns)),
        cells=tuple(replace(one, row=renamed(one.row), column=renamed(one.column)) for one in filled.table.cells),
        notes=("\u2028 </script> \\input{x}",),
    )
    plan = dict(zip(table.cells, layouts["rows"].plan.values(), strict=True))
    return layout(aggregate(table, plan, index_results([])), plan, "python scripts/sweep.py")


def test_no_name_is_a_formula_of_a_spreadsheet(strange):
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"]([strange]), newline="")))
    texts = [line[field] for line in lines for field in ("table", "row", "column", "baseline")]
    assert not [text for text in texts if text[:1] in ("=", "+", "-", "@")]
    assert "'=HYPERLINK(1)" in texts
    assert len({line["row"] for line in lines}) == len(strange.blocks)


def test_no_name_breaks_its_line_or_becomes_markup(strange):
    texts = {suffix: render([strange]) for suffix, render in FORMATS.items()}
    for text in texts.values():
        text.encode()
        assert not {"\x1b", "\u2028", "\t"} & set(text)
    tokens = MarkdownIt().enable("table").parse(texts["md"])
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h2"]
    assert not [part for token in tokens for part in token.children or () if part.type in ("link_open", "html_inline")]
    assert len([token for token in tokens if token.type == "tr_open"]) == 1 + len(entries(strange))
    assert "<b>" not in texts["html"]
    assert "</script>" not in texts["html"]
    assert r"\label{tab:st-r-ange}" in texts["tex"]
    assert not re.search(r"\\input\{", texts["tex"].partition(r"\begin{table}")[2])


@pytest.mark.slow
@pytest.mark.parametrize("program", ["pdflatex", "lualatex"])
def test_every_name_compiles(strange, tmp_path, program):
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    (tmp_path / "table.tex").write_text(FORMATS["tex"]([strange]))
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:]
