"""The report of ``benchmarks/gpu/gpu.py`` as Markdown."""

from __future__ import annotations

from typing import Any


def summary(report: dict[str, Any]) -> str:
    """Return the report as Markdown: the status of each section, and tables of the figures."""
    revision = (report["revision"] or "unknown")[:12] + ("" if report["clean"] in (True, None) else ", with changes")
    lines = [
        f"# {report['card']}, {report['date']}",
        "",
        f"torch {report['torch']}, Python {report['python']}, revision {revision}. Written by `benchmarks/gpu/gpu.py`.",
        "",
        "| section | status | seconds | |",
        "| --- | ---: | ---: | --- |",
    ]
    for name, found in report["sections"].items():
        said = found.get("skipped") or "; ".join(found.get("wrong", [])) or found.get("said", "")
        text = said[-1] if isinstance(said, list) and said else said or ""
        lines.append(f"| {name} | {found['status']} | {found.get('seconds', '')} | {text} |")
    lines += [*_rates(report), *_checks(report), *_tables(report)]
    for name, found in report["sections"].items():
        if found.get("failed"):
            lines += ["", f"## The end of what {name} said", "", "```", *found["failed"][-25:], "```"]
    return "\n".join(lines) + "\n"


def _rates(report: dict[str, Any]) -> list[str]:
    if not report["rates"]:
        return []
    rows = report["sections"].get("rates", {}).get("steps", {})
    lines = ["", "## Training", "", "| model/loss/form | images/s | ms a step | host, ms | kernels | MiB |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, rate in report["rates"].items():
        step = rows.get(name, {})
        figures = [f"{step[key]:,.2f}" if key in step else "" for key in ("milliseconds", "host_milliseconds")]
        figures += [f"{step[key]:,.0f}" if key in step else "" for key in ("kernels", "peak_mib")]
        lines.append(f"| {name} | {rate:,.0f} | {' | '.join(figures)} |")
    lines += ["", "| model/classes | ISDA's step over CE's |", "| --- | ---: |"]
    return lines + [f"| {name} | {share:+.2%} |" for name, share in report["isda_over_ce"].items()]


def _checks(report: dict[str, Any]) -> list[str]:
    rows = [f"| captured against eager, {name} | {value:.1e} |" for name, value in report["graph_equals_eager"].items()]
    rows += [f"| host waits a step, {name} | {value:g} |" for name, value in report["syncs_per_step"].items()]
    return ["", "## Correctness", "", "| | |", "| --- | ---: |", *rows] if rows else []


def _tables(report: dict[str, Any]) -> list[str]:
    """Return a table for each section whose figures are a flat dictionary of numbers."""
    lines = []
    for name in ("machine", "forms", "loader"):
        rows = report["sections"].get(name, {}).get("figures", {})
        if rows:
            lines += ["", f"## {name}", "", "| | |", "| --- | ---: |"]
            lines += [f"| {key} | {value:,.4g} |" for key, value in rows.items()]
    return lines
