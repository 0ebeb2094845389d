"""Sections `runs` and `rates` of ``benchmarks/gpu/gpu.py``: whole runs, and single steps of the trainer."""

from __future__ import annotations

import gc
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from measuring import Findings, random_source, wait

from isda_repro.config import CONF_DIR, compose
from isda_repro.training.compute import resolve_compute
from isda_repro.training.distributed import SINGLE_PROCESS
from isda_repro.training.run import build_trainer, run
from isda_repro.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 8  # steps: some before the graph is captured, the capture, and some replays
TURNS, TURN_SECONDS = 5, 0.25
PASSES = 25  # for epochs of 400 steps, as on CIFAR: the host waits for the GPU when an epoch begins
EXACT = ("compute.precision=fp32", "compute.tf32=false", "compute.deterministic=true")
EAGER, COMPILED = "compute.cuda_graph=false", "compute.compile=true"
DIGITS = ("dataset=digits", "model=resnet20", "model.depth=8", "recipe.batch_size=100", "tracking=none")
FEW = ("dataset.train_limit=100", "dataset.test_limit=20", "recipe.batch_size=50")


def runs(findings: Findings) -> None:
    """Train with every loss on digits; check determinism, resumption, waits of the host, and captured against eager."""
    asked = (*DIGITS, *(("compute=cpu", *FEW) if findings.rehearse else ("compute=gpu",)))
    with tempfile.TemporaryDirectory() as folder:
        epochs = 1 if findings.rehearse else 4
        for loss in sorted(path.stem for path in (CONF_DIR / "loss").glob("*.yaml")):
            cfg = compose([*asked, f"loss={loss}", f"recipe.epochs={epochs}", f"runs_dir={folder}/{loss}"])
            with waits_of_host(findings.device) as sites:
                result = run(cfg)
            findings.add("digits", loss, result.test_error_final)
            findings.add("sync_sites", f"a run of {loss}, {result.steps} steps", dict(sites))
        _waits(findings)
        for model in ("resnet8",) if findings.rehearse else ("resnet32", "wrn28_10"):
            for loss in ("ce", "isda"):
                difference = captured_against_eager(model, loss, findings)
                findings.add("graph_equals_eager", f"{model}/{loss}", difference)
                if difference > 1e-5:
                    findings.wrong(f"captured and eager steps of {model} with {loss} differ by {difference:.1e}")
        _the_same_bits(findings, asked, Path(folder))


def _the_same_bits(findings: Findings, asked: tuple[str, ...], folder: Path) -> None:
    """Compare three deterministic runs by the command line; one is stopped by SIGTERM and resumed."""
    epochs = 10 if findings.rehearse else 20
    more = [*EXACT, "loss=isda", "model.dropout=0.1", f"recipe.epochs={epochs}", "checkpoint.steps=1"]
    curves = []

    def started(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "train.py", *asked, *more, f"runs_dir={folder / name}"]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    processes = {name: started(name) for name in ("first", "again", "stopped")}  # all at once: start-up dominates
    stopped = processes["stopped"]
    while stopped.poll() is None and not list((folder / "stopped").glob("*/checkpoint-*.pt")):
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate()
    findings.add("digits", "status after SIGTERM", stopped.returncode)
    if stopped.returncode != 75:
        findings.wrong(f"a stopped run left with {stopped.returncode}, not with 75")
    processes["stopped"] = started("stopped")
    for name, process in processes.items():
        said, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the {name} run left with {process.returncode}: {said[-2000:]}")
        (result,) = (folder / name).glob("*/result.json")
        curves.append(json.loads(result.read_text())["curves"])
    for name, curve in zip(("again", "after a stop"), curves[1:], strict=True):
        if curve != curves[0]:
            findings.wrong(f"a deterministic run {name} has other curves")


def captured_against_eager(model: str, loss: str, findings: Findings) -> float:
    """Return the largest relative difference of the running loss in 20 deterministic steps of both forms."""
    curves = []
    for form in ((), (EAGER,)):
        gc.collect()
        trainer = trainer_of(model, loss, findings, *EXACT, *form, batch_size=16 if findings.rehearse else 128)
        steps, curve = taking(trainer), []
        for _ in range(4 if findings.rehearse else 20):
            next(steps)
            curve.append(trainer.running_means()[0])
        curves.append(torch.tensor(curve, dtype=torch.float64))
        del trainer, steps
    return float(((curves[0] - curves[1]) / curves[1]).abs().max())


@contextmanager
def waits_of_host(device: torch.device) -> Iterator[Counter[str]]:
    """Count, by line of code, the places within the block where the host waits for the GPU."""
    sites = Counter[str]()
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield sites
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "synchronizing" in str(one.message)]
    sites.update(f"{Path(one.filename).name}:{one.lineno}" for one in waits)


def _waits(findings: Findings) -> None:
    """Count waits of the host in consecutive steps, without those that read the loss every 50 steps."""
    model = "resnet8" if findings.rehearse else "resnet32"
    for loss in ("ce", "isda"):
        for name, form in (("graph", ()), ("eager", (EAGER,))):
            counted = 2 if findings.rehearse else 60
            batch_size = 16 if findings.rehearse else 128
            trainer = trainer_of(model, loss, findings, *form, batch_size=batch_size, steps=WARM_UP + counted)
            steps = taking(trainer)
            for _ in range(WARM_UP):
                next(steps)
            with waits_of_host(findings.device) as sites:
                for _ in range(counted):
                    next(steps)
            findings.add("sync_sites", f"{model}/{loss}/{name}", dict(sites))
            looks = sum(
                number for site, number in sites.items() if site.startswith("running_metrics.py")
            )  # every 50 steps
            waits = (sum(sites.values()) - looks) / counted
            findings.add("syncs_per_step", f"{model}/{loss}/{name}", waits)
            if waits:
                findings.wrong(f"the host waits {waits:g} times in each {name} step of {model} with {loss}")


def trainer_of(
    model: str, loss: str, findings: Findings, *more: str, classes: int = 100, batch_size: int = 128, steps: int = 16
) -> Trainer:
    """Build the trainer of `train.py` on random images; an epoch has ``steps`` batches. A CPU has no CUDA graph."""
    dataset, pixels = {10: ("cifar10", 32), 100: ("cifar100", 32), 1000: ("imagenet", 224)}[classes]
    where = "compute=cpu" if findings.rehearse else "compute=gpu"
    asked = [f"model={model}", f"dataset={dataset}", f"loss={loss}", f"recipe.batch_size={batch_size}", where, *more]
    cfg = compose(asked)
    compute = replace(resolve_compute(cfg.compute), cuda_graph=EAGER not in more)
    compute.apply()
    return build_trainer(cfg, random_source(classes, pixels, steps * batch_size), compute, SINGLE_PROCESS)


def taking(trainer: Trainer) -> Iterator[None]:
    """Return an iterator that takes a training step for each item; all batches are full."""
    trainer.network.train()
    trainer.criterion.train()
    epoch = 0
    while True:
        epoch += 1
        for batch in trainer.batches(epoch, 0):
            trainer.take_step(batch)
            yield


def milliseconds(steps: Iterator[None], device: torch.device, at_least: float = TURN_SECONDS) -> float:
    """Return the milliseconds of a step, averaged over one turn."""
    count, begin = 0, time.perf_counter()
    while not count or time.perf_counter() - begin < at_least:
        for _ in range(5 if device.type == "cuda" else 1):
            next(steps)
            count += 1
        if device.type == "cuda" and count % 20 == 0:
            wait(device)  # otherwise the host runs far ahead, and the clock measures the host alone
    wait(device)
    return 1000 * (time.perf_counter() - begin) / count


def rates(findings: Findings) -> None:
    """Record images/s, host time, kernels and memory of a step: CE and ISDA in turns, eager, captured and compiled."""
    cases = [("resnet32", 100), ("resnet32", 10), ("wrn28_10", 100), ("wrn28_10", 10), ("resnet110", 100)]
    cases += [("resnet50", 1000)]
    if findings.rehearse:
        cases = [("resnet8", 100)]
    for model, classes in cases:
        measured(findings, model, classes, "graph")
    for model, classes in cases:
        if classes != 10:
            measured(findings, model, classes, "eager", EAGER)
    for model in () if findings.rehearse else ("wrn28_10", "resnet32"):  # on a CPU there is nothing to turn off
        measured(findings, model, 100, "graph without kernels", "loss.kernels=false")
    for model in ("resnet8",) if findings.rehearse else ("resnet32", "wrn28_10"):
        measured(findings, model, 100, "compiled", COMPILED)


def measured(findings: Findings, model: str, classes: int, form: str, *more: str) -> None:
    """Measure CE and ISDA in turns; their ratio is the median of the ratios within a turn."""
    device, batch_size = findings.device, 8 if findings.rehearse else 128
    network = f"{model}-10" if classes == 10 else model  # without suffix: CIFAR-100 or ImageNet
    turns: dict[str, list[float]] = {}
    contenders = {}
    for loss in ("ce", "isda"):
        gc.collect()  # a trainer and its graph form a reference cycle that holds gigabytes
        if device.type == "cuda":
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
        own = [override for override in more if loss != "ce" or not override.startswith("loss.")]
        own.append(f"recipe.passes={1 if findings.rehearse else PASSES}")
        trainer = trainer_of(model, loss, findings, *own, classes=classes, batch_size=batch_size)
        contenders[loss] = steps = taking(trainer)
        for _ in range(WARM_UP):
            next(steps)
        wait(device)
        if device.type == "cuda":  # drop the workspaces of cuDNN's search; a graph's memory stays reserved
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        step = {"kernels": kernels(steps, device), "host_milliseconds": host_milliseconds(steps, device)}
        if device.type == "cuda":
            step["peak_mib"] = (torch.cuda.max_memory_reserved() - before) / 2**20
        findings.add("steps", f"{network}/{loss}/{form}", step)
        turns[loss] = []
    for _ in range(1 if findings.rehearse else TURNS):
        for loss, steps in contenders.items():
            turns[loss].append(milliseconds(steps, device, 0.0 if findings.rehearse else TURN_SECONDS))
    for loss, values in turns.items():
        name = f"{network}/{loss}/{form}"
        findings.body["steps"][name]["milliseconds"] = statistics.median(values)
        findings.add("rates", name, 1000 * batch_size / statistics.median(values))
    shares = [isda / ce - 1 for ce, isda in zip(turns["ce"], turns["isda"], strict=True)]
    name = f"{model}/{classes}" if form == "graph" else f"{model}/{classes}/{form}"
    findings.add("isda_over_ce", name, statistics.median(shares))


def host_milliseconds(steps: Iterator[None], device: torch.device) -> float:
    """Return the median milliseconds that the host spends on a step."""
    seconds = []
    for _ in range(1 if device.type == "cpu" else 10):
        wait(device)  # otherwise the GPU's queue fills up, and the host waits for it
        begin = time.perf_counter()
        next(steps)
        seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds)


def kernels(steps: Iterator[None], device: torch.device) -> int:
    """Return the number of kernels that the device runs in a step; on a CPU that of operators."""
    kind = torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        next(steps)
        wait(device)
    events = profile.events() or []
    if device.type == "cuda":
        return sum(event.device_type.name == "CUDA" for event in events)
    return sum(event.cpu_parent is None for event in events)
