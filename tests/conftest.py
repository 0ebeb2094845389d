"""Fixtures and hooks that the tests of several packages use."""

import dataclasses
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ["OMP_NUM_THREADS"] = "1"  # for workers and for child processes; must be set before torch is imported
os.environ["WANDB_MODE"] = "offline"  # no test may use the network
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, before a run could set it


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs unless ``-m gpu`` selects GPU tests, because all other tests pin results of a CPU."""
    if not _selects_gpu(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip GPU tests unless ``-m gpu`` selects them and there is a GPU.

    ISDA_REHEARSE_GPU=1 runs tests/gpu on a CPU as well, which rehearses them.
    """
    import torch

    if not (_selects_gpu(config) and torch.cuda.is_available()):
        if os.environ.get("ISDA_REHEARSE_GPU") == "1":
            items = [item for item in items if item.path.parent.name != "gpu"]
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and is run by pytest -m gpu"))


def _selects_gpu(config: pytest.Config) -> bool:
    return re.search(r"(?<!not )\bgpu\b", config.option.markexpr) is not None


def _load_script(name: str) -> ModuleType:
    """Import ``scripts/<name>.py``, or ``<name>.py`` of another folder, together with the modules beside it."""
    path = ROOT / (name if "/" in name else f"scripts/{name}")
    spec = importlib.util.spec_from_file_location(path.name, path.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Return an importer: ``load_script("tables")`` for scripts/tables.py, or ``load_script("benchmarks/loss")``."""
    return _load_script


@pytest.fixture(autouse=True, scope="session")
def _signals_as_in_a_terminal() -> None:
    """Restore the default handlers of SIGINT and SIGHUP.

    A background job of a shell and nohup ignore some of them, and our programs respect that.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def cifar_dir() -> Path:
    """Return the folder with real CIFAR, from the environment variable ISDA_DATA; skip the test without it."""
    folder = Path(os.environ.get("ISDA_DATA", "data"))
    if not (folder / "cifar-10-batches-py").is_dir() or not (folder / "cifar-100-python").is_dir():
        pytest.skip(f"no CIFAR under {folder} (set ISDA_DATA)")
    return folder


@pytest.fixture(scope="session")
def demo():
    """Return the table ``demo`` and its plan."""
    from isda_repro import config
    from isda_repro.experiments.plan import plan_runs
    from isda_repro.experiments.specification import load_table

    table = load_table("demo")
    return table, plan_runs(table, config.compose)


@pytest.fixture
def finish(tmp_path):
    """Return ``finish(run, error)``, which writes a finished run's result under tmp_path/runs, as the trainer would."""
    from synthetic import make_result

    from isda_repro.runs.records import write_result

    def write(run, *errors: float, path: Path | None = None, **changed: object) -> Path:
        path = path or tmp_path / "runs" / run.run_id / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_result(path, dataclasses.replace(make_result(run, errors), **changed))
        return path

    return write


@pytest.fixture
def diverge(tmp_path):
    """Return ``diverge(run)``, which writes under tmp_path/runs that a run diverged, as the trainer would."""
    from synthetic import make_diverged

    from isda_repro.runs.records import write_result

    def write(run, path: Path | None = None, **changed: object) -> Path:
        path = path or tmp_path / "runs" / run.run_id / "diverged.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_result(path, dataclasses.replace(make_diverged(run), **changed))
        return path

    return write


@pytest.fixture
def there(tmp_path):
    """Return ``there()``, which indexes all results under tmp_path/runs and tmp_path/results."""
    from isda_repro.runs.result_index import index_results
    from isda_repro.runs.sources import results_on_disk

    return lambda: index_results(results_on_disk(tmp_path / "runs", tmp_path / "results"))
