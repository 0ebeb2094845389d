"""Any file in place of a record is read as a valid record or named in one line, and whatever is read can be shown."""

import base64
import copy
import gzip
import json
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from synthetic import SEGMENT, make_diverged, make_result, plausible_errors
from wandb_runs import epoch, result

from isda_repro import config
from isda_repro.config.naming import requested_run_id
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.report.evidence import evidence
from isda_repro.report.page import page
from isda_repro.runs import offline_runs
from isda_repro.runs.from_wandb import record_of, result_from
from isda_repro.runs.generator_records import GeneratorResult, read_generator_result
from isda_repro.runs.offline_runs import read_offline
from isda_repro.runs.records import RecordError, Result, as_json, read_metrics, read_result
from isda_repro.sweeps.run_progress import describe_progress
from isda_repro.tables.figures import draw_curves
from isda_repro.tables.layout import layout
from isda_repro.tables.render import FORMATS
from isda_repro.tracking.wandb_record import row_of, summary_of

pytestmark = pytest.mark.slow

KNOWN = {}


def compose(overrides=()):
    """Return the configuration of some overrides, composed once."""
    key = tuple(overrides)
    if key not in KNOWN:
        KNOWN[key] = config.compose(list(overrides))
    return KNOWN[key]


TABLE = load_table("demo")
PLAN = plan_runs(TABLE, compose)
RUN = next(iter(PLAN.values()))[0]
WHOLE = as_json(make_result(RUN, plausible_errors(0, 3.0)))

TEXTS = [
    "",
    "x",
    "\ud800",
    "a\nb",
    "\x00",
    "\x1b[2J",
    "</script><script>alert(1)</script>",
    "=1+1",
    "$x_{",
    "\\input{x}",
    "имя",
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 10, 2**53, 2**63, 2**64, 10**400]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([float("nan"), float("inf"), -0.0, 1e300, 100.0]),
    st.sampled_from([*TEXTS, "9" * 5000, "long " * 1000]),
    st.text(max_size=20),
    st.sampled_from([[], {}, [None], [[1]], {"a": None}, {"": {}}, [0.5] * 30, ["x"] * 30, [float("nan")] * 30]),
    st.integers(1, 40).map(lambda depth: json.loads("[" * depth + "]" * depth)),
).map(copy.deepcopy)


def containers(node):
    """Return all objects and lists of a tree."""
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    inside = [one for part in below for one in containers(part)]
    return [node, *inside] if isinstance(node, dict | list) and node else inside


@st.composite
def mutated(draw, whole):
    """Return a tree of JSON in which a few members were deleted, replaced, renamed or added."""
    tree = copy.deepcopy(whole)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(containers(tree)))
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        match draw(st.sampled_from(["delete", "replace", "replace", "replace", "add"])):
            case "delete":
                del place[key]
            case "replace":
                place[key] = draw(ODD)
            case "add" if isinstance(place, dict):
                place[draw(st.sampled_from(TEXTS))] = draw(ODD)
            case "add":
                place.append(draw(ODD))
        if not containers(tree):
            break
    return tree


def renamed(tree):
    """Return the tree with the run id that its settings have now, where they have one: a forger can compute it."""
    try:
        return {**tree, "run_id": requested_run_id(tree["request"], tree["choices"])}
    except Exception:
        return tree


def in_one_line(error, path=""):
    said = str(error)
    said.encode()
    assert str(path) in said
    assert "\n" not in said
    assert "\x1b" not in said
    assert len(said) < 2000


def json_of(text):
    def refused(constant):
        raise AssertionError(f"{constant} is no JSON for a browser")

    return json.loads(text, parse_constant=refused)


def show(folder):
    """Make every table, figure and page of the results in a folder; return how many runs were read."""
    found = evidence(["demo"], compose, folder / "runs", folder / "results")
    for problem in found.problems:
        in_one_line(problem)
    filled = found.tables[0].filled
    laid_out = layout(filled, PLAN, "python scripts/sweep.py table=demo")
    for render in FORMATS.values():
        render([laid_out]).encode()
    text = page(found, folder / "runs", folder / "results")
    text.encode()
    packed = re.search(r'<script type="[^"]*" id="data">([^<]*)</script>', text)
    assert len(json_of(gzip.decompress(base64.b64decode(packed[1])))["runs"]) == len(found.results)
    return len(found.results), len(found.problems), filled


def store(folder, content, name="cell"):
    path = folder / "results" / "demo" / name / "0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@given(mutated(WHOLE), st.booleans())
@example(WHOLE, False)
@example({**WHOLE, "timing": {"train": float("nan")}}, False)
@example({**WHOLE, "curves": {**WHOLE["curves"], "train_loss": None}}, False)
@example({**WHOLE, "test_images": 0}, False)
@example({**WHOLE, "request": {**WHOLE["request"], "compute": {"\n": "</script>", "x": "$a$"}}}, True)
@example({**WHOLE, "choices": {**WHOLE["choices"], "loss": "=cmd|' /C calc'!A0"}}, True)
def test_any_result_is_shown_or_named(tree, is_renamed):
    tree = renamed(tree) if is_renamed and isinstance(tree, dict) else tree
    with tempfile.TemporaryDirectory() as name:
        store(Path(name), json.dumps(tree).encode())
        runs, problems, filled = show(Path(name))
        assert runs <= 1
        assert runs or problems
        if tree == WHOLE:
            assert (runs, problems) == (1, 0)
            assert draw_curves(filled, Path(name) / "curves.png")


DIVERGED = as_json(make_diverged(RUN))


@given(mutated(DIVERGED), st.booleans())
@example(DIVERGED, False)
@example({**DIVERGED, "reason": "</script>"}, False)
@example({**DIVERGED, "epoch": 10**400}, False)
def test_any_record_of_a_divergence_is_shown_or_named(tree, is_renamed):
    tree = renamed(tree) if is_renamed and isinstance(tree, dict) else tree
    with tempfile.TemporaryDirectory() as name:
        store(Path(name), json.dumps(tree).encode())
        runs, problems, filled = show(Path(name))
        assert runs == 0
        assert problems or any(cell.diverged for cell in filled.cells.values())
        if tree == DIVERGED:
            assert problems == 0


@given(st.binary(max_size=40), st.integers(0, 6000), st.integers(0, 40))
def test_any_bytes_in_a_result_are_read_or_named(noise, start, gone):
    content = json.dumps(WHOLE).encode()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "result.json")
        path.write_bytes(content[:start] + noise + content[start + gone :])
        try:
            Result.from_json(as_json(read_result(path)))
        except RecordError as error:
            in_one_line(error, path)


LINES = [as_json(SEGMENT), *(epoch(number, 20.0 / number) for number in range(1, 4))]


@given(mutated(LINES), st.binary(max_size=10), st.integers(0, 10_000))
@example(LINES, b"\n" + b"[" * 4000, 10_000)
def test_any_metrics_are_read_up_to_a_named_line(lines, noise, where):
    content = "\n".join(json.dumps(line) for line in (lines if isinstance(lines, list) else [lines])).encode()
    content = content[:where] + noise + content[where:]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "metrics.jsonl")
        path.write_bytes(content)
        try:
            for record in read_metrics(path):
                type(record).from_json(as_json(record))
        except RecordError as error:
            in_one_line(error, path)
        said = describe_progress(Path(name), RUN)
        assert said is None or isinstance(said, str)


GENERATOR = as_json(
    GeneratorResult(
        run_id="g", request={"seed": 0}, choices={"gan": "acgan"}, epochs=2, steps=4, generator_steps=4, generators=1,
        parameters=10, train_images=100, curves={"generator_loss": [None, 1.0]}, timing={"train": 1.0},
        segments=[as_json(SEGMENT)], environment={},
    )
)  # fmt: skip


@given(mutated(GENERATOR))
def test_any_result_of_a_generator_is_read_or_named(tree):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "result.json")
        path.write_text(json.dumps(tree))
        try:
            read_generator_result(path)
        except RecordError as error:
            in_one_line(error, path)
        with pytest.raises(RecordError):
            read_result(path)


EPOCHS = [epoch(1, 20.0), epoch(2, 100 / 7), epoch(3, 8.0)]


def record_in_wandb(tree):
    """Return a result as the text in a summary of W&B, with the names of its curves."""
    if isinstance(tree, dict) and isinstance(tree.get("curves"), dict):
        tree = {**tree, "curves": list(tree["curves"])}
    return json.dumps(tree)


@given(mutated(result(EPOCHS)), mutated([row_of(record) for record in EPOCHS]))
@example({**result(EPOCHS), "curves": [[1]]}, [row_of(record) for record in EPOCHS])
def test_any_run_of_wandb_is_read_or_named(tree, rows):
    summary = {**summary_of(result(EPOCHS)), "record": record_in_wandb(tree)}
    try:
        found = result_from(record_of(summary), [row for row in rows if isinstance(row, dict)])
        assert Result.from_json(as_json(found)) == found
    except RecordError as error:
        in_one_line(error)


ITEMS = [{"type": "history", "history": {"item": {"epoch": 1}}}, {"type": "run", "run": {"job_type": "train"}}]


@given(st.lists(mutated(ITEMS), max_size=3))
def test_any_offline_file_is_read_or_named(lists):
    lines = [json.dumps(line) for one in lists if isinstance(one, list) for line in one]
    with pytest.MonkeyPatch.context() as patch, tempfile.NamedTemporaryFile() as file:
        patch.setattr(offline_runs.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="\n".join(lines)))
        try:
            read_offline(Path(file.name))
        except RecordError as error:
            in_one_line(error)
