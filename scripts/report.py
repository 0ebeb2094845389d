"""Write one HTML page with all tables, their curves and every run; it works offline. From the repository root:

python scripts/report.py                                          # runs/report.html
python scripts/report.py table=small_data,lambda_small_data output=results/report.html     # only these tables
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

from isda_repro.config import compose
from isda_repro.config.options import parse_options
from isda_repro.experiments.compose_cache import ComposeCache
from isda_repro.experiments.specification import table_names
from isda_repro.files import cache_folder, check_output, write_output
from isda_repro.report.evidence import Evidence, evidence
from isda_repro.report.page import page
from isda_repro.runs.sources import results_folder, runs_folder

ALL = "all"


@dataclass
class ReportOptions:
    """Options of this script; ``table=``: all, or one or more names separated by commas."""

    table: str = ALL
    runs_dir: str = "runs"
    results_dir: str = "results"
    output: str = "${runs_dir}/report.html"


def write(options: ReportOptions) -> tuple[Path, Evidence]:
    """Collect the results, render the page and write it to ``options.output``.

    Returns:
        path of the page, and the evidence that it shows.

    Raises:
        UserError: an unknown table, no such folder of runs, or a file in place of the page that is not ours.
    """
    output = Path(options.output)
    check_output(output)
    names = _all_tables() if options.table == ALL else list(dict.fromkeys(options.table.split(",")))
    remembered = ComposeCache(compose, cache_folder())
    found = evidence(names, remembered, runs_folder(options.runs_dir), results_folder(options.results_dir))
    remembered.keep()
    text = page(found, Path(options.runs_dir), Path(options.results_dir))
    write_output(output, text)
    return output, found


def _all_tables() -> list[str]:
    """Return the names of all tables: the paper's tables first, then its figures, then the rest."""
    return sorted(table_names(), key=lambda name: (not name.startswith("table"), not name.startswith("figure"), name))


def main(arguments: list[str]) -> None:
    """Write the page; print its path and size, and what could not be used."""
    options = parse_options(ReportOptions, arguments)
    if not options.output.endswith((".html", ".htm")):
        raise UserError(f"output={options.output} must end in .html")
    output, found = write(options)
    print(*found.problems, sep="\n", end="\n" if found.problems else "", file=sys.stderr)
    runs = len(found.results)
    print(f"{output}: {runs} finished run{'s' if runs != 1 else ''}, {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
