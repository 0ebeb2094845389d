r"""LaTeX renderer: a file that compiles alone, and as ``\input`` in a document that loads booktabs and graphicx.

A table that is wider than the line or higher than 0.8 of the page's text is scaled down. Commands can be copied from
the printed page.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from isda_repro.tables.formatting import one_line
from isda_repro.tables.layout import Block, Entry, Head, Layout, Line
from isda_repro.tables.missing import in_all

# Once a document class has been loaded, \documentclass is \@twoclasseserror; then the preamble is skipped.
HEAD = r"""% Compiles as it is, and as \input in a document with \usepackage{booktabs,graphicx}.
\expandafter\ifx\csname @twoclasseserror\endcsname\documentclass
  \let\isdareproend\relax
\else
  \documentclass{article}
  \usepackage[margin=2cm]{geometry}
  \usepackage{booktabs,graphicx}
  \def\isdareproend{\end{document}}
  \begin{document}
\fi
"""
NEXT = "\n\\clearpage\n"  # without it a large table could float behind the list of the next table
LIST = "\n\\begin{itemize}\\footnotesize\\raggedright\\itemsep0pt\\parskip0pt\n"
FOOT = "\\isdareproend\n"

TABLE = r"""\begin{table}[!htbp]
\centering
\caption{%(title)s}%(label)s
\sbox0{%%
%(tabular)s}
\ifdim\wd0>\linewidth\sbox0{\resizebox{\linewidth}{!}{\usebox0}}\fi
\ifdim\dimexpr\ht0+\dp0\relax>.8\textheight\sbox0{\resizebox{!}{.8\textheight}{\usebox0}}\fi
\usebox0
\par\medskip
\begin{minipage}{\linewidth}
\footnotesize %(caption)s
\end{minipage}
\end{table}
"""

SPECIAL = {
    **{character: f"\\{character}" for character in "#$%&_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{GREEK SMALL LETTER LAMDA}": r"$\lambda$",
    "\N{GREEK SMALL LETTER SIGMA}": r"$\sigma$",
    "\N{GREEK CAPITAL LETTER SIGMA}": r"$\Sigma$",
    "\N{SUBSCRIPT ZERO}": "$_0$",
    "\N{SUPERSCRIPT TWO}": "$^2$",
}
IN_A_COMMAND = {  # characters of the typewriter font, which can be copied from the page
    **{character: f"\\char{ord(character)} " for character in "\\_{}~^<>|"},
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
}
LATIN = "ßæøœłÆØŒŁ¡¿…‘’“”†‡§¶©"  # known to every TeX, besides letters with an accent
OGONEK = "\N{COMBINING OGONEK}"
SYMBOLS = {r"lambda\_0": r"$\lambda_0$", "(n = ": "($n$ = "}


def document(layouts: Sequence[Layout]) -> str:
    """Return a complete LaTeX file with these tables."""
    return f"{HEAD}\n{NEXT.join(map(latex, layouts))}{FOOT}"


def latex(layout: Layout) -> str:
    """Return one table as a float, followed by its notes, its missing runs and its reduced tables."""
    name = re.sub(r"[^\w+-]", "-", layout.filled.table.name)
    filling = {
        "title": _text(
            re.sub(r"^Table (\d+), (.*)", r"\2 (Table \1 of the paper)", layout.title)
        ),  # LaTeX assigns its own number
        "label": "" if layout.settings else f"\\label{{tab:{name}}}",
        "tabular": "\n".join(_tabular(layout)),
        "caption": _text(layout.caption),
    }
    below = "".join((*_notes(layout), *_missing(layout)))  # outside the float, so that page breaks are possible
    return TABLE % filling + below + "".join(f"\n{latex(one)}" for one in layout.reduced)


def _tabular(layout: Layout) -> Iterator[str]:
    names = len(layout.blocks[0].row) + layout.has_kinds
    yield f"\\begin{{tabular}}{{@{{}}{'l' * names}{'r' * len(layout.columns)}@{{}}}}"
    yield "\\toprule"
    for heads in layout.header:
        yield f"{' & ' * (names - 1)} & {' & '.join(map(_head, heads))} \\\\"
        if rules := "".join(_rules(heads, names)):
            yield rules
    yield "\\midrule"
    for number, block in enumerate(layout.blocks):
        if number and len(block.lines) > 1:
            yield "\\addlinespace"
        above = layout.blocks[number - 1].row if number else ()
        yield from _block(block, above, layout.has_kinds, layout.filled.table.baseline is not None)
    yield "\\bottomrule"
    yield "\\end{tabular}"


def _head(head: Head) -> str:
    return _text(head.text) if head.span == 1 else f"\\multicolumn{{{head.span}}}{{c}}{{{_text(head.text)}}}"


def _rules(heads: Sequence[Head], names: int) -> Iterator[str]:
    """Yield a rule below each head that spans several columns."""
    first = names + 1
    for head in heads:
        if head.span > 1 and head.text:
            yield f"\\cmidrule(lr){{{first}-{first + head.span - 1}}}"
        first += head.span


def _block(block: Block, above: Sequence[str], has_kinds: bool, is_paired: bool) -> Iterator[str]:
    """Yield the lines of a block. Row labels that repeat those of the row above are left out."""
    same = 0
    while same < len(block.row) - 1 and block.row[: same + 1] == tuple(above[: same + 1]):
        same += 1
    for number, line in enumerate(block.lines):
        labels = [_text(label) if number == 0 and i >= same else "" for i, label in enumerate(block.row)]
        kinds = [_text(line.label)] if has_kinds else []
        yield f"{' & '.join([*labels, *kinds, *_entries(line, is_paired)])} \\\\"


def _entries(line: Line, is_paired: bool) -> Iterator[str]:
    """Yield the entries of a line.

    Where columns are compared, a difference also takes the empty entry before it, which is the baseline's, because it
    is long.
    """
    entries = list(line.entries)
    while entries:
        entry = entries.pop(0)
        if is_paired and "difference" in line.kind and not entry.text and entries and entries[0].text:
            yield f"\\multicolumn{{2}}{{r}}{{{_entry(entries.pop(0))}}}"
        else:
            yield _entry(entry)


def _entry(entry: Entry) -> str:
    return f"\\textbf{{{_text(entry.text)}}}" if entry.bold else _text(entry.text)


def _notes(layout: Layout) -> Iterator[str]:
    if layout.notes:
        yield from (LIST, *(f"\\item[$\\cdot$] {_text(note)}\n" for note in layout.notes), "\\end{itemize}\n")


def _missing(layout: Layout) -> Iterator[str]:
    if not layout.missing:
        return
    yield f"\n{{\\raggedright\\noindent {_text(layout.title)}: not run yet ({_text(in_all(layout.missing))});\n"
    yield f"{_command(layout.sweep)} runs all of it:\\par}}\n"
    yield LIST
    for one in layout.missing:
        yield f"\\item[$\\cdot$] {_text(one.what)}: {_command(one.command)} ({_text(one.remark)})\n"
    yield "\\end{itemize}\n"


def _text(text: str) -> str:
    """Escape text for LaTeX.

    Characters of Latin scripts are unchanged, because every TeX knows them.
    """
    quoted = re.sub(r'"([^"]*)"', r"``\1''", one_line(text))
    escaped = "".join(SPECIAL.get(character) or _character(character) for character in quoted)
    for plain, symbol in SYMBOLS.items():
        escaped = escaped.replace(plain, symbol)
    return escaped


def _character(character: str) -> str:
    """Return a character for every TeX. pdfTeX, which stops at other than Latin scripts, prints its code point."""
    parts = unicodedata.normalize("NFD", character)  # the letter, and then its accents
    if (
        character.isascii()
        or (character < "\u0180" and parts[0].isascii() and OGONEK not in parts)
        or character in LATIN
    ):
        return character
    return f"{{\\ifdefined\\Umathcharnumdef {character}\\else\\texttt{{U+{ord(character):04X}}}\\fi}}"


def _command(text: str) -> str:
    """Escape a command. It may be broken at spaces, and after an equals sign, a comma or a slash."""
    special = {**SPECIAL, **IN_A_COMMAND}
    escaped = "".join(special.get(character) or _character(character) for character in one_line(text))
    breakable = re.sub(r"([=,/])", r"\1\\allowbreak{}", escaped)
    return f"\\texttt{{{breakable}}}"
