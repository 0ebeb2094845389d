"""Any file in place of a checkpoint or of weights is read, or refused in a sentence, and no code in it is run."""

import collections
import copy
import io
import os
import pickle
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from isda_repro.inert_pickle import Inert, PickleError, read_pickle
from isda_repro.models import ResNet
from isda_repro.models.weights import WeightsError, load_weights
from isda_repro.torch_files import open_torch_file
from isda_repro.training.checkpoint import CheckpointError, load

pytestmark = pytest.mark.slow

NETWORK = ResNet(8, num_classes=3)
STATE = {"epoch": 1, "step": 3, "network": NETWORK.state_dict(), "random": torch.arange(9), "classes": ["a", "b", "c"]}


def written(name):
    """Return the bytes of a file of weights in one of the three formats."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        if name == "safetensors":
            save_file(NETWORK.state_dict(), path)
        else:
            torch.save(STATE, path, _use_new_zipfile_serialization=name == "now")
        return path.read_bytes()


FILES = {name: written(name) for name in ("now", "older", "safetensors")}


class Damaged(bytes):
    """Bytes that are shown as the changes that led to them."""

    def __repr__(self):
        return f"{len(self)} bytes after {self.changes}"


@st.composite
def damaged(draw, content):
    """Return the bytes with a few of them changed, taken out, put in or moved, mostly where the structure is."""
    body, changes = bytearray(content), []
    for _ in range(draw(st.integers(1, 3))):
        ends = st.one_of(
            st.integers(0, 3000), st.integers(max(0, len(body) - 9000), len(body)), st.integers(0, len(body))
        )
        where = min(draw(ends), len(body))
        changes.append((draw(st.sampled_from(["flip", "cut", "insert", "end", "copy"])), where))
        match changes[-1][0]:
            case "flip" if where < len(body):
                body[where] ^= draw(st.integers(1, 255))
            case "cut":
                del body[where : where + draw(st.integers(1, 100))]
            case "insert":
                body[where:where] = draw(st.binary(min_size=1, max_size=20))
            case "end":
                del body[where:]
            case "copy":
                start = draw(st.integers(0, len(body)))
                body[where:where] = body[start : start + draw(st.integers(1, 3000))]
    made = Damaged(body)
    made.changes = changes
    return made


def read(content, suffix=".pt"):
    """Read bytes as a checkpoint and as weights: each gives a result or one sentence, and weights all or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file{suffix}")
        path.write_bytes(content)
        network = copy.deepcopy(NETWORK)
        for weight in network.parameters():
            weight.data.fill_(0.25)
        before = copy.deepcopy(network.state_dict())
        try:
            state = load(path)
            assert {"epoch", "network"} <= state.keys()
        except CheckpointError as error:
            one_sentence(error, path)
        try:
            load_weights(network, path, new_head=False)
        except WeightsError as error:
            one_sentence(error, path)
            assert all(map(torch.equal, before.values(), network.state_dict().values()))


def one_sentence(error, path=""):
    assert str(path) in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_any_damaged_file_is_read_or_refused(name, data):
    read(data.draw(damaged(FILES[name])), ".safetensors" if name == "safetensors" else ".pt")


def archive(pickled, storage=bytes(64)):
    """Return a file in PyTorch's format with this pickle and one storage."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/data/0", storage)
    return file.getvalue()


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


WITNESS = Path(tempfile.gettempdir(), f"isda_repro-witness-{os.getpid()}")
WORDS = ["epoch", "network", "stem.0.weight", "storage", "0", "cpu", "posix", "mkdir", str(WITNESS), "builtins", "exec"]
PARTS = [
    *map(text, WORDS),
    *(bytes([code]) for code in b"()]}0123Nabdeghlopqrstu.\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x81Q"),
    *(b"K" + bytes([number]) for number in (0, 1, 3, 255)),
    *(b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"G\x7f\xf0\0\0\0\0\0\0", b"I01\n"),
    *(b"h\x00", b"h\x01", b"q\x00", b"q\x01", b"j\0\0\0\0", b"X\xff\xff\xff\xff", b"B\xff\xff\xff\x7f", b"\x80\x02"),
    *(f"c{name}\n".encode() for name in ("torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage", "posix\nmkdir")),
    *(f"c{name}\n".encode() for name in ("collections\nOrderedDict", "torch\nSize", "builtins\neval", "os\nsystem")),
    *(f"i{name}\n".encode() for name in ("posix\nmkdir", "builtins\nset")),
    b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x03tQ",
    b"cposix\nmkdir\n" + text(str(WITNESS)) + b"\x85R",
    b"(" + text(f"__import__('os').mkdir({str(WITNESS)!r})") + b"ibuiltins\neval\n",
]


@given(st.lists(st.sampled_from(PARTS), max_size=40), st.booleans())
def test_any_program_in_a_pickle_is_read_or_refused_and_runs_nothing(parts, is_wrapped):
    program = b"".join(parts)
    if is_wrapped:  # as one value of what otherwise is a checkpoint
        program = b"}(" + text("epoch") + b"K\x01" + text("network") + b"}" + text("x") + program + b"u."
    read(archive(b"\x80\x04" + program + b"."))
    assert not WITNESS.exists()
    try:
        read_pickle(io.BytesIO(program), lambda name, _: Inert(name), lambda _: None)
    except PickleError as error:
        one_sentence(error)


SIZES = st.one_of(st.integers(-2, 20), st.sampled_from([2**31, 2**62, 2**63, 2**70]))


@given(st.lists(SIZES, max_size=4), st.lists(SIZES, max_size=4), SIZES, SIZES)
def test_any_claims_of_a_tensor_are_true_or_refused(shape, stride, offset, stated):
    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (STORAGE, offset, tuple(shape), tuple(stride), False, None)

    class Pickler(pickle._Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", stated) if thing is STORAGE else None

    STORAGE = object()
    file = io.BytesIO()
    Pickler(file, 2).dump({"epoch": 1, "network": {"w": Tensor()}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.pt")
        path.write_bytes(archive(file.getvalue()))
        try:
            weight = load(path)["network"]["w"]
        except CheckpointError as error:
            one_sentence(error, path)
            return
        assert weight.numel() <= stated <= 16
        assert not weight.any()


NUMBERS = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False))
SCALARS = st.one_of(st.none(), NUMBERS, st.text(max_size=9), st.binary(min_size=1, max_size=9))


@st.composite
def tensors(draw):
    """Return a tensor that may be a view of a larger one."""
    shape = draw(st.sampled_from([(12,), (3, 4), (2, 3, 2), (1, 12, 1, 1)]))
    kind = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8]))
    turned = torch.arange(12).to(kind).reshape(shape).permute(draw(st.permutations(range(len(shape)))))
    return turned[draw(st.integers(0, 2)) :] if draw(st.booleans()) else turned.flatten()[3]


TREES = st.recursive(
    st.one_of(SCALARS, tensors()),
    lambda below: st.one_of(
        st.lists(below, max_size=4),
        st.lists(below, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=9), st.integers()), below, max_size=4),
        st.dictionaries(st.text(max_size=9), below, max_size=4).map(collections.OrderedDict),
    ),
    max_leaves=12,
)


def assert_same(read, saved):
    if isinstance(saved, torch.Tensor):
        assert (read.dtype, read.shape, read.stride()) == (saved.dtype, saved.shape, saved.stride())
        assert torch.equal(read, saved)
    elif isinstance(saved, dict):
        assert read.keys() == saved.keys()
        for key, value in saved.items():
            assert_same(read[key], value)
    elif isinstance(saved, list | tuple):
        assert (type(read), len(read)) == (type(saved), len(saved))
        for one, other in zip(read, saved, strict=True):
            assert_same(one, other)
    else:
        assert read == saved
        assert type(read) is type(saved)


@given(TREES, st.booleans(), st.sampled_from([2, 3, 4, 5]))
def test_whatever_was_saved_is_read_as_it_was(tree, is_new, protocol):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.pt")
        torch.save(tree, path, _use_new_zipfile_serialization=is_new, pickle_protocol=protocol)
        with open_torch_file(path) as file:
            assert_same(file.read(file.content), tree)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: "_orig_mod." not in name)
BESIDE = st.sampled_from([torch.ones(2), torch.ones(()), None, "x", Path("p"), {1: torch.ones(1)}])


@given(st.lists(NAMES, max_size=3), st.dictionaries(NAMES, BESIDE, max_size=3))
def test_under_any_prefix_and_beside_anything_the_network_is_found(parts, beside):
    prefix = "".join(f"{part}." for part in parts)
    state = {prefix + name: one for name, one in NETWORK.state_dict().items()}
    beside = {name: one for name, one in beside.items() if prefix and not name.startswith(prefix)}
    network = copy.deepcopy(NETWORK)
    for weight in network.parameters():
        weight.data.zero_()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.ckpt")
        torch.save({"state_dict": {**state, **beside}, "hyper_parameters": beside}, path)
        said = load_weights(network, path, new_head=False)
    assert all(map(torch.equal, network.state_dict().values(), NETWORK.state_dict().values()))
    assert ("left out" in said) == bool(beside)
    assert "\n" not in said
