"""Choice of the point that a run starts from: its last usable checkpoint, or the beginning.

1. A run with a result is finished and does not start at all (``session.earlier_result`` checks this first).
2. Otherwise it continues from its newest checkpoint that is undamaged, belongs to this run, and whose lines of
   ``metrics.jsonl`` are all there.
3. Without such a checkpoint it starts from the beginning.

Lines of ``metrics.jsonl`` that are newer than the checkpoint are dropped, because their steps are taken again. If
lines of ``metrics.jsonl`` are lost but a checkpoint is undamaged, its weights are not discarded: the run stops with an
error, and the user decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig

from isda_repro.config import build
from isda_repro.console import warn
from isda_repro.data import FIXED_DATA, DataError, MissingDataError, Source
from isda_repro.errors import UserError
from isda_repro.files import rename_aside
from isda_repro.runs.records import AnyRecord, RecordError, read_lines
from isda_repro.runs.run_directory import RunDirectory, read_environment
from isda_repro.training.builders import normalisation_constants
from isda_repro.training.checkpoint import CheckpointError, Checkpoints, load
from isda_repro.training.distributed import Processes

DATA_KEY = "data"
CONSTANTS = ("mean", "std")  # keys of cfg.dataset and of the record


def describe_data(source: Source) -> dict[str, Any]:
    """Return what a run records about its data: class names, numbers of images, and digests of the image files.

    The digests are of names and sizes, so that a copy elsewhere has the same. Images in memory have none.
    """
    digests = {"train_digest": source.train.digest, "test_digest": source.test.digest}
    return {
        "classes": list(source.class_names),
        "train_images": len(source.train),
        "test_images": len(source.test),
        **{name: digest for name, digest in digests.items() if digest is not None},
    }


def record_of_data(cfg: DictConfig, source: Source) -> dict[str, Any]:
    """Return ``describe_data``, with the normalisation constants if they were computed from the training images."""
    if "auto" not in map(cfg.dataset.get, CONSTANTS):  # a generator's configuration has none
        return describe_data(source)
    mean, std = normalisation_constants(cfg, source)
    return {**describe_data(source), "mean": list(mean), "std": list(std)}


WORDS = {
    "train_images": "training images",
    "test_images": "images to evaluate",
    "train_digest": "training images of other names or sizes",
    "test_digest": "images to evaluate of other names or sizes",
}


def data_difference(then: Mapping[str, Any], source: Source) -> str | None:
    """Return a phrase that says how the data differs from what a run has recorded, or None if it does not.

    Args:
        then: what ``describe_data`` returned. Older versions recorded less, and what is missing is not compared.
        source: the data now.
    """
    now = describe_data(source)
    classes = then.get("classes")
    if isinstance(classes, list) and classes != now["classes"]:
        return _class_difference(classes, now["classes"])
    for key, what in WORDS.items():
        if key in then and key in now and then[key] != now[key]:
            return what if key.endswith("digest") else f"{then[key]} {what}, and now there are {now[key]}"
    return None


def _class_difference(then: list[Any], now: list[str]) -> str:
    differing = next((i for i, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now)))
    was, is_now = (names[differing] if differing < len(names) else "none" for names in (then, now))
    return f"{len(then)} classes, and now there are {len(now)}; class {differing} was {was} and is {is_now} now"


def check_classes(data: Mapping[str, Any], source: Source, path: Path) -> None:
    """Check that the data has the classes that the weights in ``path`` were trained on.

    Args:
        data: what the file has of its data. Older versions recorded no classes, and pass.
        source: the data now.
        path: the file, which the error names.

    Raises:
        DataError: the classes differ.
    """
    then, now = data.get("classes"), list(source.class_names)
    if then is None or then == now:
        return
    raise DataError(
        f"{path} was trained on other classes than those of {source.name}: {_class_difference(then, now)}: give the "
        "folder it was trained on, or begin a run with another name (dataset.name=)"
    )


def check_same_data(state: Mapping[str, Any], source: Source, path: Path) -> None:
    """Check that the data is the same as when ``state`` was saved: classes, and numbers, names and sizes of images.

    Raises:
        DataError: something has changed.
    """
    data = state.get(DATA_KEY, {})
    check_classes(data, source, path)
    if difference := data_difference(data, source):
        raise DataError(
            f"{path} is of a run on other data than {source.name} is now ({difference}): put the data back as it was, "
            "or delete the run's folder to begin anew"
        )


def check_same_on_all(source: Source, processes: Processes) -> None:
    """Check that all processes of a run have read the same data, as copies of it on several hosts may not be.

    Raises:
        DataError: something differs.
    """
    if found := processes.first_difference(describe_data(source)):
        what = WORDS.get(found.name, found.name)
        raise DataError(
            f"{source.name} has other {what} on rank {found.rank} than on rank 0: copy the data again, or give a "
            "folder that all hosts share"
        )


def check_finished_data(directory: RunDirectory, result: Any, source: Source | None) -> None:
    """Check that a finished run was trained on this data, so that its result answers this request.

    Args:
        directory: the run directory.
        result: its result, whose numbers of images are compared if an older version has recorded nothing else.
        source: the data now; None: there is nothing to compare.

    Raises:
        DataError: something has changed.
    """
    recorded = read_environment(directory.environment).get(DATA_KEY)
    if not isinstance(recorded, dict):
        recorded = {key: getattr(result, key) for key in ("train_images", "test_images") if hasattr(result, key)}
    if source is not None and (difference := data_difference(recorded, source)):
        raise DataError(
            f"{directory.path} has finished on other data than {source.name} is now ({difference}): give another "
            "runs_dir= to train on this data, or force=true, which keeps the finished run under another name"
        )


def data_to_compare(cfg: DictConfig) -> Source | None:
    """Return the data, or None if a finished run's result is shown without it.

    That is so if the data is not on this machine, or if it is the same wherever it is.
    """
    if cfg.dataset.source._target_ in FIXED_DATA:
        return None
    try:
        return cast(Source, build(cfg.dataset.source))
    except (MissingDataError, FileNotFoundError) as error:
        warn(f"a finished run is shown without comparing its data, which is not here: {error}")
        return None


ALWAYS_NEEDED = frozenset({"step", "epoch", "metrics_bytes"})


class Start(NamedTuple):
    """The point that a run starts from.

    Attributes:
        path: the checkpoint; None at the beginning.
        state: its content; None at the beginning.
        records: the records of the epochs that are done.
        metrics_bytes: length of ``metrics.jsonl`` to keep.
    """

    path: Path | None
    state: dict[str, Any] | None
    records: list[Any]
    metrics_bytes: int


def find_start(
    checkpoints: Checkpoints, metrics: Path, run_id: str, needed: Set[str], epoch_record: type[AnyRecord]
) -> Start:
    """Return where the run starts from, by the rule of this module.

    Checkpoints that cannot be used are renamed, with a warning for each.

    Args:
        checkpoints: the checkpoints of the run.
        metrics: the run's ``metrics.jsonl``.
        run_id: the run's name, which the checkpoint must bear.
        needed: keys that the state must have.
        epoch_record: record type of the lines of ``metrics`` that describe epochs.

    Raises:
        UserError: ``metrics.jsonl`` lacks lines of every undamaged checkpoint.
        OSError, MemoryError: a file could not be read this time; nothing has been changed.
    """
    checkpoints.clear_unfinished()
    unusable: dict[Path, UserError] = {}
    for path in checkpoints.newest_first():
        try:
            state = load(path)
            if state.get("run_id") != run_id:
                raise CheckpointError(f"{path} belongs to another run, {state.get('run_id')}")
            if missing := (needed | ALWAYS_NEEDED) - state.keys():
                raise CheckpointError(f"{path} is of another version of this program: no {', '.join(sorted(missing))}")
            start = Start(path, state, _records(metrics, state, epoch_record), state["metrics_bytes"])
        except (CheckpointError, RecordError) as error:
            unusable[path] = error
        else:
            _set_aside(unusable, f"goes on from {path.name}")
            return start
    lost_lines = next((error for error in unusable.values() if isinstance(error, RecordError)), None)
    if lost_lines is not None:
        raise UserError(f"{lost_lines}; restore that file, or delete the checkpoints beside it to begin anew")
    _set_aside(unusable, "begins anew")
    if unusable and metrics.exists():
        rename_aside(metrics, "damaged")
    return Start(None, None, [], 0)


def _set_aside(unusable: Mapping[Path, UserError], what_now: str) -> None:
    """Rename unusable checkpoints and print why, so that the user can inspect them."""
    for path, error in unusable.items():
        aside = rename_aside(path, "damaged")
        warn(f"{error}; it is now {aside.name}, and the run {what_now}")


def _records(metrics: Path, state: dict[str, Any], epoch_record: type[AnyRecord]) -> list[Any]:
    """Return the records of the epochs up to the checkpoint."""
    size = metrics.stat().st_size if metrics.exists() else 0
    if size < state["metrics_bytes"]:
        raise RecordError(f"{metrics} has {size} bytes, and had {state['metrics_bytes']} when a checkpoint was written")
    lines = read_lines(metrics, epoch_record, length=state["metrics_bytes"])
    return [record for record in lines if isinstance(record, epoch_record)]
