"""Prove on one GPU that the project is correct there, measure it, and fill cells of Table 2 in the time that is left.

    make gpu MINUTES=9                                   # or: python benchmarks/gpu/gpu.py minutes=9 data_dir=data
    make gpu-rehearsal                                   # the same code, smaller, on a CPU
    python benchmarks/gpu/gpu.py minutes=2 only=[rates]      # some of the sections

The sections run one after another, each in a process of its own with a time limit:

- `machine`: versions, and the card's peak rates
- `tests`: `pytest -m gpu`, among them a group of one rank by NCCL
- `runs`: every loss, stop and resume, bitwise repetition, waits of the host
- `rates`: images/s, kernels and host time of a step, memory
- `forms`: ISDA with labels, class probabilities and pixels, against float64; the first call, and a summary
- `loader`: images/s of batches on the device
- `cells`: Table 2 by scripts/sweep.py, for all of the time that is left

The JSON file `<output>/<card>-<date>.json` and a summary in Markdown beside it are written again after each section.
Nothing is downloaded. The exit status is 0 if everything that ran was right.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import site
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_summary import summary

from isda_repro.config.options import parse_options
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.files import write_output
from isda_repro.runs.run_directory import provenance

ROOT = Path(__file__).resolve().parents[2]
SECONDS = {
    "machine": 15,
    "tests": 90,
    "runs": 110,
    "rates": 115,
    "forms": 40,
    "loader": 20,
}  # limit of each, if minutes=9
SECTIONS = (*SECONDS, "cells")
REHEARSED_SECONDS = 300.0  # limit of each section on a CPU, where nothing should be cut short
MAY_BE_CUT = ("rates", "forms", "loader")  # a partial result of these is still valid
LAST_WORDS = 5  # seconds between SIGINT and SIGKILL when a section's time is up
WITH_GPU_TESTS = (
    "tests/gpu",
    "tests/losses/test_kernels_on_gpu.py",
    "tests/losses/test_criterion_devices.py",
    "tests/data/test_in_memory.py",
)
AT_LEAST = 60  # seconds; with less time left, cells are skipped
CELLS = ["ResNet-32", "ResNet-110", "CIFAR-10", "CIFAR-100"]


@dataclass
class Options:
    """Options of the command line."""

    minutes: float = 9
    only: list[str] = field(default_factory=list)
    rehearse: bool = False
    data_dir: str = "data"
    runs_dir: str = "runs"
    output: str = "results/gpu"
    cells: list[str] = field(default_factory=lambda: list(CELLS))
    seeds: list[int] = field(default_factory=list)
    runs_per_gpu: int = 1


def limits(options: Options) -> dict[str, float]:
    """Return the time limit of each selected section in seconds; `cells` has none and gets the time that is left."""
    chosen = options.only or SECTIONS
    if unknown := set(chosen) - set(SECTIONS):
        raise UserError(f"only={sorted(unknown)} is no section; there are {', '.join(SECTIONS)}")
    if not options.minutes > 0:
        raise UserError(f"minutes={options.minutes} must be above 0")
    scale = 60 * options.minutes / (9 * 60)
    return {name: REHEARSED_SECONDS if options.rehearse else s * scale for name, s in SECONDS.items() if name in chosen}


def environment(folder: Path, options: Options) -> dict[str, str]:
    """Return the environment of the sections: temporary caches, no network, no W&B, and in a rehearsal no GPU."""
    caches = {name: str(folder / "cache") for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    hidden = {"CUDA_VISIBLE_DEVICES": "", "ISDA_REHEARSE_GPU": "1", "TRITON_INTERPRET": "1"} if options.rehearse else {}
    quiet = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    packages = {  # sections must import the packages that this process imports, although HOME changes
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUSERBASE": site.getuserbase(),
    }
    # The loopback interface may be the only one.
    here = {} if options.rehearse else {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    return {**here, **os.environ, **caches, **hidden, **quiet, **packages}


def ended(command: list[str], seconds: float, variables: dict[str, str], log: Path) -> tuple[int, float]:
    """Run a command in its own process group, stop the group at the time limit, and return (status, seconds).

    The status is 124 if the command ran out of time.
    """
    begin = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = 124
            os.killpg(process.pid, signal.SIGINT)  # pytest then lists failed tests; the rest print a traceback
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS)
        finally:
            with contextlib.suppress(ProcessLookupError):  # children that outlived it, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status, time.monotonic() - begin


def section(name: str, seconds: float, options: Options, folder: Path) -> dict[str, Any]:
    """Run one section and return its findings, which include what it had measured when its time was up."""
    found, log = folder / f"{name}.json", folder / f"{name}.log"
    if name == "tests":
        several = ["-n", "4"] if options.rehearse is False and _has_xdist() else []
        chosen = (
            ["-m", "gpu", *WITH_GPU_TESTS]
            if not options.rehearse
            else ["-m", "gpu", "tests/gpu", "-k", "resumed or isda"]
        )
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *several, *chosen]
    else:
        command = [sys.executable, str(Path(__file__).with_name("gpu_sections.py")), name, str(found)]
        command += ["rehearse"] if options.rehearse else []
    status, took = ended(command, seconds, environment(folder, options), log)
    body: dict[str, Any] = json.loads(found.read_text()) if found.exists() else {}
    said = log.read_text(errors="replace").strip().splitlines()
    if name == "tests" and said:
        body["said"] = said[-1]
    if status == 124 and name in MAY_BE_CUT:
        body["said"], status = "cut short by its time limit", 0
    if status:
        body["failed"] = said[-200:]
    return {**body, "status": status, "seconds": round(took, 1)}


def cells(seconds: float, options: Options, folder: Path) -> dict[str, Any]:
    """Run cells of Table 2 for ``seconds``; unfinished runs stay in ``runs_dir`` and resume at the next call."""
    data = Path(options.data_dir)
    if options.rehearse:
        more = ["table=demo", "seeds=[0]", "set=[recipe.epochs=1]", f"runs_dir={folder / 'runs'}"]
    elif not any((data / name).is_dir() for name in ("cifar-10-batches-py", "cifar-100-python")):
        return {"status": 0, "skipped": f"no CIFAR under {data}: data_dir= says where it is"}
    else:
        chosen = f"only=[{','.join(options.cells)}]"
        seeds = [f"seeds={options.seeds}".replace(" ", "")] if options.seeds else []
        more = ["table=table2", chosen, *seeds, f"runs_dir={options.runs_dir}", f"data_dir={data}"]
        more.append(f"runs_per_gpu={options.runs_per_gpu}")
    log = folder / "cells.log"
    command = [sys.executable, "scripts/sweep.py", *more, f"minutes={seconds / 60:.2f}"]
    status, took = ended(command, seconds + 60, environment(folder, options), log)
    said = log.read_text(errors="replace").strip().splitlines()
    unfinished = status == 75
    return {"status": 0 if unfinished else status, "unfinished": unfinished, "said": said[-12:], "seconds": round(took)}


def _has_xdist() -> bool:
    from importlib.util import find_spec

    return find_spec("xdist") is not None


def written(report: dict[str, Any], options: Options) -> Path:
    """Write the report as JSON and its summary as Markdown, and return the path of the JSON file."""
    folder = Path(options.output)
    card = re.sub(r"[^A-Za-z0-9]+", "-", report["card"]).strip("-").lower()
    path = folder / f"{card}-{report['date']}.json"
    write_output(path, json.dumps(report, indent=1, sort_keys=True) + "\n")
    write_output(path.with_suffix(".md"), summary(report))
    return path


def main() -> int:
    """Run the selected sections and return the exit status: 0 if everything that ran was right."""
    options = parse_options(Options, sys.argv[1:])
    chosen = limits(options)
    begin = time.monotonic()
    if not options.rehearse and not torch.cuda.is_available():
        raise UserError("PyTorch sees no GPU here; rehearse=true runs the same code on a CPU")
    origin = provenance()
    report: dict[str, Any] = {
        "card": "rehearsal" if options.rehearse else torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": origin["versions"]["torch"],
        "python": origin["python"],
        "revision": origin["git_revision"],
        "clean": origin["git_clean"],
        **{name: {} for name in ("rates", "isda_over_ce", "syncs_per_step", "graph_equals_eager")},
        "sections": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, seconds in chosen.items():
            report["sections"][name] = found = section(name, seconds, options, folder)
            for key in ("rates", "isda_over_ce", "syncs_per_step", "graph_equals_eager"):
                report[key].update(found.pop(key, {}))
            path = written(report, options)
            print(f"{name}: status {found['status']}, {found['seconds']:g} s", file=sys.stderr, flush=True)
        left = 60 * options.minutes - (time.monotonic() - begin)
        if not options.only or "cells" in options.only:
            enough = options.rehearse or left >= AT_LEAST
            too_late = {"status": 0, "skipped": f"{left:.0f} s were left"}
            found = cells(max(left, AT_LEAST), options, folder) if enough else too_late
            report["sections"]["cells"] = found
            path = written(report, options)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(path)
    wrong = [name for name, found in report["sections"].items() if found["status"] or found.get("wrong")]
    if wrong:
        print(f"not right: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    with one_sentence_errors():
        sys.exit(main())
