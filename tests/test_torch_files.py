"""Files of torch.save from strangers: nothing is run, nothing is believed, and memory is bounded by the file."""

import collections
import io
import multiprocessing
import os
import pickle
import resource
import socket
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from isda_repro import torch_files
from isda_repro.errors import UserError
from isda_repro.models import ResNet
from isda_repro.models.weights import load_weights
from isda_repro.torch_files import StoredTensor, TorchFileError, open_torch_file
from isda_repro.training import checkpoint

OLDER = {"_use_new_zipfile_serialization": False}


@pytest.mark.parametrize("older", [{}, OLDER], ids=["now", "before PyTorch 1.6"])
def test_tensors_and_containers_come_back_as_they_were_saved(tmp_path, older):
    weight = torch.randn(4, 5)
    tensors = [weight, weight.t(), weight[1:, ::2], torch.nn.Parameter(weight), torch.tensor(3), torch.zeros(0, 7)]
    tensors += [torch.randn(3).to(kind) for kind in (torch.bfloat16, torch.float16, torch.float64, torch.complex64)]
    tensors += [torch.arange(3).to(kind) for kind in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)]
    tensors += [torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)]
    plain = [1, -1, 10**30, 2.5, float("inf"), None, True, "x\n", (1, (2, [])), b"\x00\xff", [], {}, {3: {"a": 1}}]
    path = tmp_path / "file.pt"
    torch.save({"tensors": tensors, "plain": plain, "ordered": collections.OrderedDict(a=1)}, path, **older)
    with open_torch_file(path) as file:
        content = file.read(file.content)
    assert content["plain"] == plain
    assert content["ordered"] == {"a": 1}
    for read, saved in zip(content["tensors"], tensors, strict=True):
        assert torch.equal(read, saved)
        assert (read.stride(), read.dtype) == (saved.stride(), saved.dtype)
    assert content["tensors"][0].data_ptr() == content["tensors"][1].data_ptr(), "shared memory is shared again"
    content["tensors"][0].zero_()
    assert not content["tensors"][1].any()


class Code:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("older", [{}, OLDER], ids=["now", "before PyTorch 1.6"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_code_is_never_run(tmp_path, older, protocol):
    path, witness = tmp_path / "file.pt", tmp_path / "witness"
    source = f"import os; os.mkdir({str(witness)!r})"
    evil = [Code(os.mkdir, str(witness)), Code(exec, source), Code(open, str(witness), "w")]
    torch.save({"network": {"w": torch.ones(3)}, "epoch": evil}, path, pickle_protocol=protocol, **older)
    with open_torch_file(path) as file:
        assert file.tensor(file.content["network"]["w"]).tolist() == [1, 1, 1]
        with pytest.raises(TorchFileError, match=r"mkdir"):
            file.read(file.content)
    with pytest.raises(checkpoint.CheckpointError, match=r"file\.pt.*mkdir"):
        checkpoint.load(path)
    assert not witness.exists()


# ---------------------------------------------------------------------------------------------------- crafted archives


def archive(path, content, storages, compression=zipfile.ZIP_STORED):
    """Write a file in PyTorch's format by hand."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        for key, data in storages.items():
            file.writestr(f"archive/data/{key}", data)
        file.writestr("archive/version", b"3\n")


STORAGE = "the storage"
THREE = struct.pack("<3f", 1, 2, 3)


def crafted(size=(3,), stride=(1,), offset=0, stated=3, key="0", nested=lambda weight: weight):
    """Return the pickle of a checkpoint with a tensor of these claims."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, key, "cpu", stated) if thing is STORAGE else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (STORAGE, offset, size, stride, False, collections.OrderedDict())

    text = io.BytesIO()
    Pickler(text, 2).dump({"epoch": 1, "network": {"w": nested(Tensor())}})
    return text.getvalue()


def test_crafted_archive_without_false_claims_is_read(tmp_path):
    archive(tmp_path / "file.pt", crafted(), {"0": THREE})
    assert checkpoint.load(tmp_path / "file.pt")["network"]["w"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "claims",
    [
        {"stated": 10**12},
        {"stated": 4},
        {"stated": -1},
        {"stated": 2**70},
        {"stated": 3.0},
        {"size": (10**12,), "stride": (0,)},
        {"size": (4,)},
        {"size": (2,), "stride": (3,)},
        {"size": (2,), "stride": (-1,)},
        {"size": (3,), "offset": 1},
        {"size": (0,), "offset": 10**12},
        {"size": (3, 1)},
        {"size": 3},
        {"size": (1,) * 100, "stride": (1,) * 100},
        {"size": (2**62, 4), "stride": (0, 0)},
        {"key": "1"},
        {"key": "../../../etc/passwd"},
        {"key": 7},
    ],
    ids=str,
)
def test_sizes_that_the_file_does_not_hold_are_refused(tmp_path, claims):
    archive(tmp_path / "file.pt", crafted(**claims), {"0": THREE})
    with pytest.raises(checkpoint.CheckpointError, match=r"file\.pt"):
        checkpoint.load(tmp_path / "file.pt")
    with pytest.raises(UserError, match=r"file\.pt"):
        load_weights(ResNet(8, num_classes=10), tmp_path / "file.pt", new_head=True)


def test_later_and_larger_claim_about_a_storage_of_an_older_file_is_refused(tmp_path):
    path, weight = tmp_path / "file.pt", torch.ones(3)
    torch.save({"a": weight, "b": weight.view(3, 1)}, path, **OLDER)
    before, claim, after = path.read_bytes().rpartition(b"K\x03Nt")  # the number of its elements, and no view
    path.write_bytes(before + claim.replace(b"\x03", b"\x04") + after)
    with pytest.raises(TorchFileError), open_torch_file(path):
        pass


@pytest.mark.parametrize("flagged", [torch.ones(2, dtype=torch.complex64).conj(), torch._neg_view(torch.ones(2))])
def test_tensor_that_means_other_numbers_than_are_stored_is_refused(tmp_path, flagged):
    path = tmp_path / "file.pt"
    torch.save({"w": flagged}, path)
    with open_torch_file(path) as file, pytest.raises(TorchFileError, match="_rebuild_tensor_v2"):
        file.read(file.content)


def laughs(weight):
    """Return a tree of lists with 2**60 leaves."""
    for _ in range(60):
        weight = [weight, weight]
    return weight


def itself(weight):
    own = [weight]
    own.append(own)
    return own


@pytest.mark.parametrize(("nested", "depth"), [(laughs, 50), (itself, 50), (laughs, 100)])
def test_containers_without_end_are_refused(tmp_path, monkeypatch, nested, depth):
    monkeypatch.setattr(torch_files, "MOST_DEPTH", depth)
    monkeypatch.setattr(torch_files, "MOST_NODES", 10_000)
    archive(tmp_path / "file.pt", crafted(nested=nested), {"0": THREE})
    with pytest.raises(checkpoint.CheckpointError, match=r"file\.pt"):
        checkpoint.load(tmp_path / "file.pt")


def overlapping(path):
    """Write an archive of which a thousand parts are the same megabyte."""
    archive(path, crafted(), {"0": bytes(2**20)})
    content = path.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<II", content[end + 12 : end + 20])
    directory = content[start : start + size]
    second = directory.index(b"PK\x01\x02", 4)
    entry = directory[second : directory.index(b"PK\x01\x02", second + 4)]
    more = b"".join(entry.replace(b"data/0", b"%06d" % number) for number in range(1000))
    counts = struct.pack("<HHI", 1003, 1003, len(directory + more))
    path.write_bytes(content[:start] + directory + more + content[end : end + 8] + counts + content[end + 16 :])


MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
DEEP = b")" + b"\x85" * 4 * 10**5  # a tuple in a tuple, and so on: hashing it overflows the C stack
SHARED = b"N\x85q\x00" + b"h\x00\x86q\x00" * 60  # twice the same tuple, and so on: hashing it never ends
ENCODED = b"c_codecs\nencode\nq\x00X\0\0\x10\0%bq\x01X\6\0\0\0latin1q\x02\x86Rq\x03" % (b"x" * 2**20)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def storage(key):
    return b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + key + text(b"cpu") + b"K\x03tQ"


def copies(made, length):
    """Return a pickle that makes something a thousand times of one list, which has the same list as each item."""
    inner = b"]q\x00(" + b"N" * length + b"e"
    return b"](" + inner + b"]q\x01(" + b"h\x00" * length + b"e" + made + b"q\x02" + b"h\x02h\x01\x85R" * 1000 + b"e."


PROGRAMS = {  # that crash, occupy or exhaust a reader which hashes, calls or copies whatever it is told to
    "deep tuple as key": b"}" + DEEP + b"Ns.",
    "shared tuple as key": b"}" + SHARED + b"Ns.",
    "shared tuple as name of a storage": storage(SHARED) + b".",
    "spellings of a part": b"](" + b"".join(storage(text(b"0\0%d" % number)) for number in range(500)) + b"e.",
    "bytearray": b"cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 2**40) + b"\x85R.",
    "codec after codec": b"](" + ENCODED + b"h\x00h\x03X\3\0\0\0hex\x86Rq\x03" * 20 + b"e.",
    "text copied": b"](" + ENCODED + b"h\x00h\x01h\x02\x86R" * 2000 + b"e.",
    "name copied": b"](" + text(b"x" * 2**20) + b"q\x00" + b"h\x00h\x00\x93" * 2000 + b"e.",
    "lists copied": copies(b"cbuiltins\nset\n", 10**5),
    "pairs copied": copies(b"ccollections\nOrderedDict\n", 10**4),
}
BOMBS = {
    "compressed": lambda path: archive(path, crafted(), {"0": bytes(100 * 2**20)}, zipfile.ZIP_DEFLATED),
    "compressed pickle": lambda path: archive(path, b"(" * (100 * 2**20), {}, zipfile.ZIP_DEFLATED),
    "overlapping": overlapping,
    "marks": lambda path: archive(path, b"(" * (60 * 2**20), {}),
    "dictionaries": lambda path: archive(path, b"}" * (60 * 2**20), {}),
    "text without end": lambda path: archive(path, b"\x8d" + struct.pack("<Q", 2**40) + b"x", {}),
    "long number": lambda path: archive(path, b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x", {}),
    "digits": lambda path: archive(path, b"I" + b"9" * 10**6 + b"\n.", {}),
    "huge number as key": lambda path: torch.save({"model": {10**5000: None, "w": torch.ones(1)}}, path),
    "text after the magic number": lambda path: path.write_bytes(MAGIC + b"V" * 2**20),
    **{
        f"{tuples} tuple in the order of storages": lambda path, order=order: path.write_bytes(
            MAGIC + b"}" + text(b"little_endian") + b"\x88s.}.](" + order + b"e."
        )
        for tuples, order in {"deep": DEEP, "shared": SHARED}.items()
    },
    **{
        name: lambda path, program=program: archive(path, program, {"0": bytes(2**20)})
        for name, program in PROGRAMS.items()
    },
}
MIB = dict.fromkeys(BOMBS, 300) | {"compressed": 60, "compressed pickle": 60, "marks": 1200, "dictionaries": 1200}


def refuse(path, mib, results):
    """Try to read the file with only so much more memory than is in use, and send what became of it."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + mib * 2**20, used + mib * 2**20))
    for read in (checkpoint.load, lambda file: load_weights(ResNet(8, num_classes=10), file, new_head=True)):
        try:
            read(path)
            results.send("read")
        except Exception as error:
            results.send(type(error).__name__)


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_in_bounded_memory(tmp_path, bomb):
    path = tmp_path / "file.pt"
    BOMBS[bomb](path)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=refuse, args=(path, MIB[bomb], there), daemon=True)  # so that it never outlives us
    child.start()
    there.close()  # so that a crash of the child ends the wait
    assert here.poll(60), "it takes minutes"
    assert here.recv() == "CheckpointError"
    assert here.poll(60), "it takes minutes"
    assert here.recv() == "WeightsError"
    child.join()


def listening(path):
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)


def twice(path):
    archive(path, crafted(), {"0": THREE})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", b"")


ODD = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "socket": listening,
    "TorchScript": lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path),
    "tar": lambda path: path.write_bytes(b"storages".ljust(100, b"\0") + b"\0" * 1000),
    "plain zip": lambda path: zipfile.ZipFile(path, "w").close(),
    "a part twice": twice,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_of_torch_save_is_refused_at_once(tmp_path, monkeypatch, kind, suffix):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    path = tmp_path / f"file{suffix}"
    with suppress(OSError):
        ODD[kind](path)
    for read in (checkpoint.load, lambda file: load_weights(ResNet(8, num_classes=10), file, new_head=True)):
        with pytest.raises((UserError, OSError)) as caught:
            read(path)
        assert path.name in str(caught.value)


def test_tensors_that_are_not_asked_for_are_not_read(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"a": torch.ones(2), "b": torch.ones(10**5)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<f", 1) * 1000) + 100] ^= 1
    path.write_bytes(content)
    with open_torch_file(path) as file:
        assert isinstance(file.content["b"], StoredTensor)
        assert file.tensor(file.content["a"]).tolist() == [1, 1]
        with pytest.raises(TorchFileError, match="CRC"):
            file.tensor(file.content["b"])
