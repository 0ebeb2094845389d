"""Each format against its golden file, and read back as its readers do.

After a change that is meant: ``GOLDEN=write python -m pytest tests/tables/test_render.py``, and look at the difference.
"""

import csv as standard
import io
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from isda_repro.tables.render import FORMATS, csv, html, markdown
from isda_repro.tables.render.tidy_csv import FIELDS

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["columns", "rows"])
def test_golden(name, suffix, layouts):
    path, text = GOLDEN / f"{name}.{suffix}", FORMATS[suffix]([layouts[name]])
    if os.environ.get("GOLDEN") == "write":
        path.write_bytes(text.encode())
    assert text.encode() == path.read_bytes()


# ------------------------------------------------------------------------------------------------------------ markdown


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
    assert len(bold) == sum(
        entry.bold for one in (layout, *layout.reduced) for block in one.blocks for line in block.lines
        for entry in line.entries
    )  # fmt: skip
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert [heading.replace("\\", "") for heading in headings] == [layout.title, layout.reduced[0].title]


def test_markdown_lines_up_in_a_terminal(layouts):
    lines = markdown(layouts["columns"]).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = lines[start : start + 15]
    assert all(line.startswith("|") for line in table)
    assert len({len(line) for line in table}) == 1
    assert len(table[0]) <= 160


def test_a_command_with_backticks_stays_a_command(layouts):
    html = MarkdownIt().render(markdown(layouts["odd"]))
    assert "<code>python scripts/sweep.py 'a`b'</code>" in html


# ----------------------------------------------------------------------------------------------------------------- csv


def test_csv_has_a_line_for_each_cell_and_numbers_that_are_the_tables_own(layouts):
    layout = layouts["columns"]
    text = csv(layout)
    assert text.count("\r\n") == text.count("\n")
    lines = list(standard.DictReader(io.StringIO(text, newline="")))
    assert tuple(lines[0]) == FIELDS
    reduced = layout.reduced[0]
    assert len(lines) == len(layout.filled.cells) + len(reduced.filled.cells)
    for line, cell in zip(lines, layout.filled.cells.values(), strict=False):
        assert (line["row"], line["column"]) == (" / ".join(cell.cell.row), " / ".join(cell.cell.column))
        assert [int(seed) for seed in line["seeds"].split()] == sorted(cell.values)
        assert int(line["n"]) == len(cell.values)
        if cell.summary is not None:
            assert float(line["mean"]) == cell.summary.mean
            assert line["std"] == ("" if cell.summary.std is None else repr(cell.summary.std))
        assert float(line["paper_mean"]) == cell.cell.paper.mean
    assert {line["reduced"] for line in lines} == {"", "recipe.epochs=12 instead of 160"}


def test_csv_in_full(layouts):
    lines = {
        (line["row"], line["column"]): line
        for line in standard.DictReader(io.StringIO(csv(layouts["columns"]), newline=""))
        if not line["reduced"]
    }
    isda = lines["A | B <c> & D", "CIFAR-10 / ISDA"]
    assert float(isda["difference"]) == pytest.approx((7.0 - 7.3 + 7.15 - 7.5 + 7.12 - 7.4) / 3)
    assert (isda["pairs"], isda["verdict"], isda["paper_verdict"]) == ("3", "better", "better")
    assert float(isda["low"]) < float(isda["difference"]) < float(isda["high"]) < 0
    assert float(isda["paper_low"]) < -0.3 < float(isda["paper_high"]) < 0
    assert isda["baseline"] == "A | B <c> & D / CIFAR-10 / Basic"
    assert (isda["metric"], isda["evaluated_on"]) == ("test_error_last10", "test")
    assert isda["command"] == "python train.py model=resnet20 dataset=cifar10 loss=isda seed=0"
    assert (isda["petaflop_of_a_run"], isda["seeds_missing"]) == ("", "")
    single = lines["one_run~^\\", "CIFAR-10 / ISDA"]
    assert (single["paper_n"], single["paper_std"], single["paper_low"]) == ("1", "", "")
    assert (single["paper_verdict"], single["verdict"]) == ("unknown", "")
    assert (single["petaflop_of_a_run"], single["hours_of_a_run"], single["hours_on"]) == ("12.5", "3.0", "GTX 980")


# ---------------------------------------------------------------------------------------------------------------- html


class Reader(HTMLParser):
    """The elements of a fragment; ends that do not fit their beginnings are an error."""

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


def read(fragment):
    reader = Reader()
    reader.feed(fragment)
    assert reader.open == []
    return reader.elements


def test_html_is_whole_and_in_ascii(layouts):
    for layout in layouts.values():
        fragment = html(layout)
        assert fragment.isascii()
        elements = read(fragment)
        assert not any(element["tag"] in ("b", "script", "style", "html") for element in elements)
        for block in (e for e in elements if e["tag"] == "tbody"):
            assert block["data-row"] in {" / ".join(row) for row in layout.filled.table.rows}
    assert "<!doctype html>" in FORMATS["html"](list(layouts.values()))


def test_html_has_what_a_script_sorts_by(layouts):
    layout = layouts["columns"]
    elements = read(html(layout))
    cells = [element for element in elements if "data-column" in element]
    lines = [line for one in (layout, *layout.reduced) for block in one.blocks for line in block.lines]
    entries = [entry for line in lines for entry in line.entries]
    assert [element.get("data-value") for element in cells] == [
        None if entry.number is None else repr(entry.number) for entry in entries
    ]
    assert [element["class"] for element in elements if element["tag"] == "tr" and "class" in element] == [
        line.kind for line in lines
    ]
    slugs = {element["data-cell"] for element in cells if "data-cell" in element}
    assert slugs == {cell.slug for cell in layout.filled.table.cells}


def test_html_has_as_many_fields_in_each_line_as_there_are_heads(layouts):
    for layout in layouts.values():
        heads, *blocks = html(layout).split("<tbody")
        last = heads.split("<thead>")[1].split("<tr>")[-1]
        names = len(layout.blocks[0].row) + layout.has_kinds
        assert last.count('<th scope="col">') == names + len(layout.columns)
        for block, laid_out in zip(blocks, layout.blocks, strict=False):
            first, *others = block.split("</tbody>")[0].split("<tr ")[1:]
            assert len(others) + 1 == len(laid_out.lines)
            assert first.count("<th ") == names
            assert all(line.count("<th ") == 1 for line in others)
            assert all(line.count("<td ") == len(layout.columns) for line in (first, *others))
