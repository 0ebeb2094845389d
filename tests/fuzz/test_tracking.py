"""Names for W&B, and folders of runs that are sent there: any of them end in a record or in one sentence."""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import wandb
from hypothesis import example, given
from hypothesis import strategies as st
from wandb_runs import finished_run

from isda_repro.config.checks import check_tracking
from isda_repro.errors import UserError
from isda_repro.runs.to_wandb import Destination, send_run
from isda_repro.tracking.wandb_record import ID_BYTES, group_of, id_of, storable

pytestmark = pytest.mark.slow

TEXT = st.text(st.characters(codec=None), max_size=200) | st.text("/\\#?%:;,'\n\0\udc80 aф", max_size=150)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -1, 0, 1e308, True])
VALUES = st.recursive(
    st.none() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@contextlib.contextmanager
def one_sentence():
    """Allow errors of users in the block, if they are one line that can be printed."""
    said = "nothing"
    with contextlib.suppress(UserError):
        try:
            yield
        except UserError as error:
            said = str(error)
            raise
    assert len(said.splitlines()) == 1, said
    said.encode()


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("project", "entity", "group", "table_metric"), VALUES)))
@example({"project": "team/proj"})
@example({"project": "\udc80/a"})
def test_names_are_taken_by_wandb_or_refused_in_a_sentence(tracking):
    with one_sentence():
        check_tracking(tracking)
        wandb.Settings(project=tracking.get("project"), entity=tracking.get("entity"), run_group=tracking.get("group"))


@given(VALUES | st.lists(TEXT, max_size=3), VALUES | st.lists(TEXT, max_size=3))
def test_tags_are_taken_by_wandb_or_refused_in_a_sentence(tags, tables):
    with one_sentence():
        check_tracking({"tags": tags, "tables": tables})
        wandb.Settings(run_tags=tags)


@given(TEXT.filter(bool), TEXT.filter(bool))
def test_every_run_has_an_id_of_its_own_that_wandb_takes(one, other):
    wandb.Settings(run_id=id_of(one))
    assert len(id_of(one).encode()) <= ID_BYTES
    assert len(group_of(one)) <= 128
    assert (id_of(one) == id_of(other)) == (one == other)


@given(VALUES)
def test_everything_that_is_sent_is_unicode(value):
    json.dumps(storable(value), ensure_ascii=False).encode()


# ------------------------------------------------------------------------------------------------ folders of strangers


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("made"), "tracking=none")


@st.composite
def damages(draw):
    """Draw a change of one of a run's files: raw bytes, or a value in one of its JSON objects."""
    name = draw(st.sampled_from(["metrics.jsonl", "result.json", "environment.json", "config.yaml"]))
    if name == "config.yaml" or draw(st.integers(0, 9)) == 0:
        return name, draw(st.binary(max_size=60)), draw(st.floats(0, 1)), None
    keys = ["timing", "epoch", "test_error", "lr", "kind", "schema", "curves", "segments", "request", "epochs"]
    more = ["hardware", "git_revision", "test_error_last10", "run_id", "choices", "new", "step", "environment"]
    return name, draw(st.sampled_from(keys + more)), draw(st.integers(0, 4)), draw(VALUES)


def damage(folder, name, what, where, value):
    path = folder / name
    raw = path.read_bytes()
    if isinstance(what, bytes):
        at = int(where * len(raw))
        path.write_bytes(raw[:at] + what + raw[at + len(what) :])
        return
    lines = raw.decode().splitlines()
    at = where % len(lines)
    record = json.loads(lines[at])
    if what == "timing" and where:
        record.setdefault("timing", {})["train"] = value
    else:
        record[what] = value
    lines[at] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "wandb"}


@given(st.lists(damages(), min_size=1, max_size=2))
@example([("metrics.jsonl", "hardware", 0, "\ud800")])
@example([("metrics.jsonl", "hardware", 0, [float("inf")])])
@example([("metrics.jsonl", "step", 1, 10**400)])
@example([("metrics.jsonl", "epoch", 1, True)])
@example([("result.json", "curves", 0, {"test_error": [1, 2, 3], "\udc80": None})])
@example([("environment.json", "git_revision", 0, ["a"])])
def test_a_strangers_run_is_sent_or_refused_in_a_sentence(finished, changes):
    with tempfile.TemporaryDirectory() as made, pytest.MonkeyPatch.context() as patch:
        folder = shutil.copytree(finished, Path(made) / "runs" / finished.name)
        for change in changes:
            with contextlib.suppress(ValueError):  # the change before may have left no JSON
                damage(folder, *change)
        files = Path(made) / "files"
        files.mkdir()
        run = Mock(dir=str(files), resumed=False, summary={})
        patch.setattr(wandb, "init", Mock(return_value=run))
        before = contents(folder)
        with one_sentence():
            send_run(folder, Destination("offline"))
            sent = [call.args[0] for call in [*run.log.mock_calls, *run.config.update.mock_calls]]
            json.dumps([sent, run.summary, wandb.init.call_args.kwargs["config"]], allow_nan=False).encode()
        assert contents(folder) == before
