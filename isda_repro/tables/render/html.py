"""HTML renderer: a table as an ASCII fragment to embed, with attributes for sorting, and a page of such fragments.

Each row of the table is a ``<tbody>``, so that its lines stay together when rows are sorted. Each ``<tr>`` has the kind
of its line as its class. A ``<td>`` has these attributes:

- ``data-column``: its column, counted from 0;
- ``data-value``, if there is a number behind it: that number, unrounded;
- ``data-cell``, in our line: the folder of the cell under ``results/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from isda_repro.tables.cost_columns import CostColumn
from isda_repro.tables.formatting import without_breaks
from isda_repro.tables.layout import Block, Head, Layout, Line
from isda_repro.tables.missing import in_all

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 110em; padding: 0 2em }}
.scroll {{ overflow-x: auto }}
table {{ border-collapse: collapse; white-space: nowrap; font-variant-numeric: tabular-nums }}
caption {{ caption-side: bottom; text-align: left; white-space: normal; padding-top: .6em }}
th, td {{ padding: .15em .7em; text-align: right }}
tbody th, .kind {{ text-align: left; font-weight: normal; vertical-align: top }}
thead, tbody {{ border-bottom: 1px solid #8888 }}
thead th[colspan] {{ text-align: center }}
tr:not(.ours) {{ opacity: .75 }}
code {{ overflow-wrap: anywhere }}
</style>
</head>
<body>
{body}</body>
</html>
"""


def page(layouts: Sequence[Layout]) -> str:
    """Return a complete HTML file with these tables."""
    title = layouts[0].title if len(layouts) == 1 else "Tables"
    return PAGE.format(title=_escaped(title), body="\n".join(map(html, layouts)))


def html(layout: Layout, level: int = 2) -> str:
    """Return one table as a ``<section>`` with heading, notes, missing runs and reduced tables.

    Args:
        layout: the table.
        level: heading level; reduced tables are one level lower.
    """
    name = _escaped(layout.filled.table.name)
    kind = f' class="reduced" data-settings="{_escaped("; ".join(layout.settings))}"' if layout.settings else ""
    parts = [f'<section{kind} data-table="{name}">', f"<h{level}>{_escaped(layout.title)}</h{level}>"]
    parts += ['<div class="scroll" tabindex="0">', *_table(layout), "</div>"]
    if layout.notes:
        parts += ['<ul class="notes">', *(f"<li>{_escaped(note)}</li>" for note in layout.notes), "</ul>"]
    if layout.missing:
        parts += _missing(layout)
    return "\n".join([*parts, *(html(one, level + 1).rstrip() for one in layout.reduced), "</section>", ""])


def _table(layout: Layout) -> Iterator[str]:
    yield "<table>"
    yield f"<caption>{_escaped(layout.caption)}</caption>"
    names = len(layout.blocks[0].row) + layout.has_kinds
    yield "<thead>"
    for heads in layout.header[:-1]:
        yield f"<tr>{'<td></td>' * names}{''.join(map(_group, heads))}</tr>"
    axes = '<th scope="col"></th>' * names
    yield f"<tr>{axes}{''.join(_column(head) for head in layout.header[-1])}</tr>"
    yield "</thead>"
    for block in layout.blocks:
        yield f'<tbody data-row="{_escaped(" / ".join(block.row))}">'
        for number, line in enumerate(block.lines):
            yield "".join(_line(layout, block, line, is_first=number == 0))
        yield "</tbody>"
    yield "</table>"


def _group(head: Head) -> str:
    if not head.text:
        return f'<td colspan="{head.span}"></td>' if head.span > 1 else "<td></td>"
    return f'<th scope="colgroup" colspan="{head.span}">{_escaped(head.text)}</th>'


def _column(head: Head) -> str:
    return f'<th scope="col">{_escaped(head.text)}</th>'


def _line(layout: Layout, block: Block, line: Line, is_first: bool) -> Iterator[str]:
    yield f'<tr class="{line.kind}">'
    if is_first:
        rows = f' rowspan="{len(block.lines)}"' if len(block.lines) > 1 else ""
        scope = "rowgroup" if rows else "row"
        yield from (f'<th scope="{scope}"{rows}>{_escaped(label)}</th>' for label in block.row)
    if layout.has_kinds:
        yield f'<th scope="row" class="kind">{_escaped(line.label)}</th>'
    for number, (column, entry) in enumerate(zip(layout.columns, line.entries, strict=True)):
        data = f' data-column="{number}"'
        if entry.number is not None:
            data += f' data-value="{entry.number!r}"'
        cell = None if isinstance(column, CostColumn) else layout.filled.cells.get((block.row, column))
        if cell is not None and line.kind == "ours":
            data += f' data-cell="{_escaped(cell.cell.slug)}"'
        text = _escaped(entry.text)
        yield f"<td{data}>{f'<strong>{text}</strong>' if entry.bold else text}</td>"
    yield "</tr>"


def _missing(layout: Layout) -> Iterator[str]:
    yield f"<details><summary>Not run yet: {_escaped(in_all(layout.missing))}</summary>"
    yield f"<p><code>{_escaped(layout.sweep)}</code> runs all of it.</p>"
    yield '<ul class="missing">'
    for one in layout.missing:
        yield f"<li>{_escaped(one.what)}: <code>{_escaped(one.command)}</code> ({_escaped(one.remark)})</li>"
    yield "</ul></details>"


def _escaped(text: str) -> str:
    """Escape text for HTML, in ASCII, so that a fragment is valid in a page of any encoding."""
    return escape(without_breaks(text)).encode("ascii", "xmlcharrefreplace").decode()
