"""Renderers of a layout: Markdown, LaTeX, CSV and HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isda_repro.tables.layout import Layout
from isda_repro.tables.render.html import html, page
from isda_repro.tables.render.latex import document, latex
from isda_repro.tables.render.markdown import markdown
from isda_repro.tables.render.tidy_csv import csv_file


def _markdown_file(layouts: Sequence[Layout]) -> str:
    return "\n".join(map(markdown, layouts))


FORMATS: dict[str, Callable[[Sequence[Layout]], str]] = {
    "md": _markdown_file,
    "tex": document,
    "csv": csv_file,
    "html": page,
}
"""File suffix -> function that renders several tables as the text of one file."""

__all__ = ["FORMATS", "html", "latex", "markdown"]
