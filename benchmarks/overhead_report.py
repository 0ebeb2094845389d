"""The results of ``overhead.py`` as a Markdown table and as JSON."""

import json
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isda_repro.files import write_output


@dataclass(frozen=True)
class Row:
    """Results for one network; the names are those of the JSON file.

    Percentages are relative to the step with CE in the same turn, unless a comment says otherwise.
    """

    model: str
    classes: int
    pixels: int
    batch_size: int
    turns: int
    ms_ce: float  # medians over the turns
    ms_isda: float
    inside_ce_percent: float
    inside_isda_percent: float  # relative to the step with ISDA
    added_percent: float  # time inside ISDA minus time inside CE: median and quartiles
    added_low: float
    added_high: float
    step_percent: float  # whole step with ISDA minus that with CE: median and quartiles
    step_low: float
    step_high: float
    mib_ce: float | None  # peak memory on a GPU
    mib_isda: float | None
    paper_percent: float | None

    def __str__(self) -> str:
        cells = [
            f"{self.model}, {self.classes:,} classes, {self.pixels} px, batch {self.batch_size}",
            *(f"{value:,.1f}" for value in (self.ms_ce, self.ms_isda)),
            f"{1000 * self.batch_size / self.ms_isda:,.3g}",
            f"{self.inside_isda_percent:.2f}%",
            f"{self.inside_ce_percent:.2f}%",
            f"{self.added_percent:+.2f}% ({self.added_low:+.2f} to {self.added_high:+.2f})",
            f"{self.step_percent:+.1f}% ({self.step_low:+.1f} to {self.step_high:+.1f})",
            *("" if value is None else f"{value:,.0f}" for value in (self.mib_ce, self.mib_isda)),
            "" if self.paper_percent is None else f"{self.paper_percent}%",
        ]
        return f"| {' | '.join(cells)} |"


HEADER = (
    "network",
    *("ms, CE", "ms, ISDA", "images/s", "inside ISDA", "inside CE", "beyond CE", "step over CE's"),
    *("MiB, CE", "MiB, ISDA", "paper"),
)


def above(typed: str, where: str, precision: str) -> list[str]:
    """Return the lines above the table; ``typed`` is the script's command line."""
    return [
        f"# ISDA's part of a training step, {where}, {precision}",
        "",
        f"`python benchmarks/overhead.py {typed}`: whole steps, medians; CE and ISDA take turns.",
        "Inside ISDA: its forward and backward pass and its statistics, as a share of the step with it; inside CE:",
        "CE's share of the step with CE. Beyond CE: the time inside ISDA less that inside CE, over the step with CE:",
        "all that ISDA adds; in brackets the quartiles over the turns. Step over CE's: whole steps likewise, with all",
        "by which the rest of a step varies from turn to turn.",
        "",
        f"| {' | '.join(HEADER)} |",
        "| --- |" + " ---: |" * (len(HEADER) - 1),
    ]


def write_json(path: Path, rows: list[Row], **about: Any) -> None:
    """Write the rows with ``about`` as the JSON file that isda_repro/tables/costs.py reads.

    ``about`` has ``accelerator``, ``hardware``, ``precision`` and ``clock``; the date and the version of torch are
    added.
    """
    listed = [{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()} for row in rows]
    about = {**about, "date": time.strftime("%Y-%m-%d"), "torch": version("torch"), "rows": listed}
    write_output(path, json.dumps(about, indent=1, sort_keys=True) + "\n")
