"""Any command line, frozen file, table and name gives a configuration or one sentence, and runs and writes nothing."""

import copy
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from isda_repro.config import CONF_DIR, compose, compose_generator, naming, read_frozen_run, run_id
from isda_repro.config.checks import check
from isda_repro.config.composing import _known_keys
from isda_repro.config.generator import generator_id
from isda_repro.config.options import parse_options
from isda_repro.config.plain_yaml import UnreadableError, parse_plain
from isda_repro.config.quoting import literal, quoted
from isda_repro.errors import UserError
from isda_repro.experiments.specification import load_table
from isda_repro.experiments.table import Table
from isda_repro.sweeps.sweep import SweepOptions

pytestmark = pytest.mark.slow

BASE = ["model=resnet8", "dataset=digits", "loss=isda"]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.kill",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
)
EVENTS += ("os.truncate", "os.link", "os.symlink", "os.chmod", "subprocess.Popen", "socket.connect", "shutil.rmtree")
watching: list[list[object]] = []


def note(event, arguments):
    """Audit hook, which cannot be removed: note what ``untouched`` must not see."""
    if not watching:
        return
    is_writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
    if event in EVENTS or (is_writing and ".pyc" not in str(arguments[0]) and arguments[0] != os.devnull):
        watching[-1].append((event, arguments))


@pytest.fixture(scope="module", autouse=True)
def _audited():
    sys.addaudithook(note)


def check_sentence(error):
    assert 0 < len(str(error)) < 5000
    assert str(error).isprintable() or not re.search("[\x00-\x1f\x7f-\x9f]", str(error))


@contextmanager
def untouched():
    """Check that nothing is executed, written or deleted in the block, and that an error is one of the user's."""
    watching.append([])
    try:
        yield
    except UserError as error:
        check_sentence(error)
    finally:
        seen = watching.pop()
    assert seen == []


grammar = st.text("=,()[]{}'\"\\$:~!@#%&*|<>? \tab10.-_/é\n", max_size=20)
odd = st.sampled_from(
    ["${oc.env:HOME}", "${seed}", "???", "null", "1e999", ".nan", "-0", "9" * 400, "../../a", "_target_"]
)
texts = st.one_of(st.text(max_size=30), grammar, odd, st.text(st.characters(categories=["Cs", "Cc", "Lo"]), max_size=5))


@pytest.fixture(scope="module")
def classifier():
    return OmegaConf.to_container(compose(BASE))


@pytest.fixture(scope="module")
def generator():
    return OmegaConf.to_container(compose_generator(["gan=acgan", "dataset=digits"]))


KEYS = sorted({*_known_keys(), "hydra.run.dir", "loss._target_", "loss._args_"} - {""})


plain = st.sampled_from(
    ["1", "0", "-1", "1.5", "true", "null", "[1,2]", "[]", "{a:1}", "{a:{b:1}}", "{}", "a", "1e400"]
)
settings = st.tuples(st.sampled_from(["", "", "+", "++", "~"]), st.sampled_from(KEYS), st.just("="), plain | texts).map(
    "".join
)


@given(argument=st.one_of(settings, settings, texts))
def test_any_argument(argument):
    with untouched():
        assert isinstance(compose([*BASE, argument]), DictConfig)


@given(value=texts)
@example("a\\'")
@example("\\")
@example("NULL")
def test_any_path_is_taken_as_it_is_typed(value):
    assume("${" not in value and not re.search(r"""["'\\]""", value) and value not in ("", "null"))
    assume(not value.startswith("~"))
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    assert parser.parse_override(literal(f"data_dir={value}")).value() == value
    assert parser.parse_override(f"data_dir={quoted(value)}").value() == value


values = st.recursive(
    st.one_of(texts, st.integers(), st.floats(), st.booleans(), st.none(), st.integers(10**300, 10**310)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=4,
)
targets = st.sampled_from(
    ["os.system", "torch.load", "isda_repro.data.Crop", "isda_repro.losses.ISDALoss", "builtins.eval"]
)


@st.composite
def damaged(draw, settings):
    """Return settings with a few values replaced, added or left out, at any depth."""
    plain = copy.deepcopy(settings)
    for _ in range(draw(st.integers(1, 3))):
        node = plain
        while True:
            below = [key for key, value in node.items() if isinstance(value, dict) and value]
            if not below or draw(st.booleans()):
                break
            node = node[draw(st.sampled_from(below))]
        match draw(st.integers(0, 3)):
            case 0:
                node.pop(draw(st.sampled_from(list(node))))
                if not node:
                    break
            case 1:
                node[draw(st.sampled_from(list(node)))] = draw(values)
            case 2:
                node[draw(texts)] = draw(values)
            case _:
                node[draw(st.sampled_from(["_target_", "_args_", "_partial_", "_convert_"]))] = draw(targets)
    return plain


@pytest.mark.parametrize("kind", ["classifier", "generator"])
@given(data=st.data())
def test_any_frozen_file(request, tmp_path, kind, data):
    plain = data.draw(damaged(request.getfixturevalue(kind)))
    body = {key: value for key, value in plain.items() if key not in ("run_id", "numerics_version")}
    try:  # most readers only ask whether the file was edited; a stranger would write the right name
        plain["run_id"] = (generator_id if kind == "generator" else run_id)(body)
    except Exception:
        assume("run_id" in plain)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.dump(plain, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    with untouched():
        cfg = read_frozen_run(path)
        assert Path(cfg.run_id).name == cfg.run_id
        assert len(cfg.run_id.encode()) < 250
        assert cfg.runs_dir == "runs"


@given(content=st.one_of(st.binary(max_size=60), st.text("&*[]{}:,!?-#|>'\"%@\n ab1<=", max_size=60).map(str.encode)))
@example(b"a: &a [1]\nb: *a")
def test_any_bytes_as_a_frozen_file(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with untouched():
        read_frozen_run(path)
        raise AssertionError("this is no run")


@given(text=st.one_of(st.text(max_size=60), st.text("&*[]{}:,!?-#|>'\"%@\n ab1<=", max_size=60)))
def test_any_yaml_is_read_as_omegaconf_reads_it_or_is_refused(text):
    try:
        found = parse_plain(text)
    except UnreadableError as error:
        check_sentence(error)
        return
    assert repr(found) == repr(OmegaConf.to_container(OmegaConf.create(text)))


TABLES = [yaml.safe_load(path.read_text()) for path in sorted((CONF_DIR / "table").glob("*.yaml"))]


@given(data=st.data())
def test_any_table(tmp_path, data):
    path = tmp_path / "mine.yaml"
    spec = data.draw(damaged(data.draw(st.sampled_from(TABLES))))
    path.write_text(yaml.dump(spec, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    with untouched():
        assert isinstance(load_table(str(path)), Table)


@given(override=st.one_of(settings, texts))
def test_any_override_in_a_table(tmp_path, override):
    path = tmp_path / "mine.yaml"
    spec = {
        "title": "a",
        "metric": "test_error_last10",
        "seeds": [0],
        "rows": [{"a": override}],
        "columns": [{"b": BASE}],
    }
    path.write_text(yaml.dump(spec, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    with untouched():
        (cell,) = load_table(str(path)).cells
        assert isinstance(compose(cell.overrides), DictConfig)


@given(name=texts, model=texts, loss=texts, seed=st.integers(0, 2**63 - 1))
def test_any_names_give_a_run_id_that_is_a_file_name(classifier, name, model, loss, seed):
    plain = copy.deepcopy(classifier)
    plain["seed"], plain["dataset"]["name"], plain["model"]["name"] = seed, name, model
    plain["choice"] |= {"dataset": "folder", "model": "timm", "loss": loss}
    found = run_id(plain)
    assert Path(found).name == found
    assert not found.startswith(".")
    assert naming.UNSAFE.search(found) is None
    assert len(found.encode()) < 255
    with untouched():
        check(plain)


@given(key=st.sampled_from(["table", "runs_dir", "jobs", "set", "only", "minutes", "slurm", "time"]), value=texts)
def test_any_option_of_a_script(key, value):
    with untouched():
        options = parse_options(SweepOptions, ["table=demo", f"{key}={value}"])
        assert isinstance(options, SweepOptions)
        assert "\n" not in repr(options)
