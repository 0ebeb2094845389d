"""Reading files of ``torch.save`` from strangers: no code is run, and nothing is believed that the file does not hold.

``torch.load(weights_only=True)`` runs no code either. But it hashes whatever a pickle uses as a key, so that nested
tuples crash the process or occupy it for ever, which cannot be prevented without reading the pickle as is done here. It
calls functions that make gigabytes of a few bytes (``bytearray`` of a size, one codec after another), reads a part of
an archive again for each spelling of its name, and refuses a whole file because of one class of ``os`` in it. Here each
tensor is a ``StoredTensor`` until it is read: a place in a storage that was checked to be in the file.
So memory is bounded by the size of the file, and tensors that are not asked for cost nothing.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from isda_repro.console import one_line
from isda_repro.errors import first_line, is_out_of_memory
from isda_repro.files import named, open_regular
from isda_repro.inert_pickle import Inert, PickleError, read_pickle

MOST_PICKLE_BYTES = 64 * 2**20  # of the part that describes the tensors; ResNet-110 and its momentum take 0.1 MB
MOST_ENTRIES = 1_000_000  # parts of an archive: one for each tensor
MOST_DIMENSIONS = 64
MOST_DEPTH = 50  # of containers in containers
MOST_NODES = 1_000_000  # containers and what is in them
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # two pickles at the beginning of files of PyTorch before 1.6
PIECE = 16 * 2**20  # bytes that are copied at once

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class TorchFileError(PickleError):
    """The file is damaged, or not one that ``torch.save`` wrote. The message is a clause about it, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@dataclass(frozen=True)
class Storage:
    """Memory that tensors share."""

    key: str
    dtype: torch.dtype
    first: int  # in elements: where this part of the memory begins
    size: int  # in elements

    @property
    def nbytes(self) -> int:
        """Size in bytes from the beginning of the memory."""
        return (self.first + self.size) * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read: its place in a storage. Those of one file are equal if they are the same."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchFile:
    """An open file of ``torch.save``.

    Attributes:
        content: what was saved. Tensors are ``StoredTensor``; what is neither a container, text, a number nor a tensor
            is ``Inert``.
    """

    def __init__(self, path: Path, content: Any, read_storage: Callable[[Storage], Tensor]) -> None:
        self._path, self.content, self._read_storage = path, content, read_storage
        self._memory: dict[str, Tensor] = {}  # key -> bytes of a storage

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Read a tensor. Tensors that shared memory when they were saved share it again.

        Raises:
            TorchFileError: a checksum is wrong.
        """
        storage = stored.storage
        with _as_torch_file_errors(self._path):
            if storage.key not in self._memory:
                self._memory[storage.key] = self._read_storage(storage)
            whole, size = self._memory[storage.key], stored.dtype.itemsize
            flat = whole[: whole.numel() // size * size].view(stored.dtype)
            return flat.as_strided(stored.shape, stored.stride, storage.first + stored.offset)

    def read(self, part: Any) -> Any:
        """Return a part of ``content`` with its tensors.

        Raises:
            TorchFileError: a checksum is wrong, there is something else than tensors and plain containers, or these
                contain themselves or repeat without end.
        """
        nodes = itertools.count()

        def whole(node: Any, depth: int) -> Any:
            if depth > MOST_DEPTH or next(nodes) > MOST_NODES:
                raise TorchFileError("its containers are nested too deeply, or contain themselves")
            if isinstance(node, StoredTensor):
                return self.tensor(node)
            if isinstance(node, dict):
                return {key: whole(value, depth + 1) for key, value in node.items()}
            if isinstance(node, list | tuple):
                return type(node)(whole(value, depth + 1) for value in node)
            if isinstance(node, Inert | Storage):
                what = node.name if isinstance(node, Inert) else "a storage"
                raise TorchFileError(f"it holds {what[:100]}, and may only hold tensors, containers, numbers and text")
            return node

        return whole(part, 0)


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Open a file of ``torch.save``, in the format since PyTorch 1.6 or the one before.

    Raises:
        TorchFileError: it is another or a damaged file.
        OSError, MemoryError: the file could not be read this time; the error names it.
    """
    with ExitStack() as stack:
        with _as_torch_file_errors(path):
            file = stack.enter_context(open_regular(path))
            size = os.fstat(file.fileno()).st_size
            is_archive = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            if is_archive:
                content, read_storage = _of_archive(stack.enter_context(zipfile.ZipFile(file)), size)
            else:
                content, read_storage = _of_pickles(file, size)
        yield TorchFile(path, content, read_storage)


@contextmanager
def _as_torch_file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EINVAL:  # zipfile seeks to impossible places in a damaged archive
            raise TorchFileError(error.strerror or "it is damaged") from error
        raise named(error, path) from error
    except TorchFileError:
        raise
    except Exception as error:  # a damaged file makes zipfile and PyTorch raise many types
        if is_out_of_memory(error):
            raise
        raise TorchFileError(first_line(error)) from error


Content = tuple[Any, Callable[[Storage], Tensor]]  # what was saved, and what reads a storage


# ----------------------------------------------------------------------------------------- the format since PyTorch 1.6


def _of_archive(archive: zipfile.ZipFile, size: int) -> Content:
    entries = _entries(archive, size)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise TorchFileError("it is a zip archive that torch.save did not write")
    (pickled,) = pickles
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise TorchFileError("it is a TorchScript program: save the state_dict of its module instead")
    if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
        raise TorchFileError("it was written on a big-endian machine")
    if entries[pickled].file_size > MOST_PICKLE_BYTES:
        raise TorchFileError(f"its pickle has more than {MOST_PICKLE_BYTES:,} bytes")

    def read_storage(storage: Storage) -> Tensor:
        entry = entries[f"{folder}data/{storage.key}"]
        with archive.open(entry) as part:
            memory = _read(cast(BinaryIO, part), entry.file_size)
            part.read()  # at the end zipfile compares the checksum
        return memory

    def check(storage: Storage) -> None:
        entry = entries.get(f"{folder}data/{storage.key}")
        if entry is None or entry.file_size < storage.nbytes:
            raise TorchFileError(f"its part data/{storage.key[:40]} has fewer bytes than its tensors")

    return _unpickled(io.BytesIO(archive.read(pickled)), check), read_storage


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the parts of the archive by name, all stored as they are and together no larger than the file."""
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES or len({entry.filename for entry in entries}) != len(entries):
        raise TorchFileError(f"its archive has a part twice, or more than {MOST_ENTRIES:,}")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise TorchFileError("its archive is compressed or encrypted, which torch.save's never are: unpack it first")
    if sum(entry.file_size for entry in entries) > size or any(e.file_size != e.compress_size for e in entries):
        raise TorchFileError("its archive states more bytes than the file has")
    return {entry.filename: entry for entry in entries}


# ---------------------------------------------------------------------------------------- the format before PyTorch 1.6


def _of_pickles(file: BinaryIO, size: int) -> Content:
    """Read the pickles of the machine, the content and the order of the storages; the storages follow them."""
    head = io.BytesIO(file.read(MOST_PICKLE_BYTES))
    try:
        is_ours = _plain(head) == MAGIC and _plain(head) == PROTOCOL
    except PickleError:
        is_ours = False
    if not is_ours:
        raise TorchFileError("it is no file that torch.save wrote")
    if _plain(head).get("little_endian") is not True:
        raise TorchFileError("it was written on a big-endian machine")
    storages: dict[str, Storage] = {}

    def note(storage: Storage) -> None:
        if storages.setdefault(storage.key, storage).dtype != storage.dtype:
            raise TorchFileError(f"its storage {storage.key[:40]} has two types")
        if storage.nbytes > storages[storage.key].nbytes:
            storages[storage.key] = storage

    content = _unpickled(head, note)
    places: dict[str, tuple[int, int]] = {}  # key -> first byte, number of bytes
    order = _plain(head)
    file.seek(head.tell())
    for key in order:
        if not isinstance(key, str) or key not in storages:  # hashing a nested tuple could crash or take for ever
            raise TorchFileError("it has a storage of a type that is not known")
        (count,) = struct.unpack("<q", file.read(8))
        start, nbytes = file.tell(), count * storages[key].dtype.itemsize
        if not storages[key].nbytes <= nbytes <= size - start:
            raise TorchFileError("it is cut short, or states more bytes than it has")
        places[key] = (start, nbytes)
        file.seek(start + nbytes)
    if places.keys() != storages.keys():
        raise TorchFileError("it lacks a storage")

    def read_storage(storage: Storage) -> Tensor:
        start, nbytes = places[storage.key]
        file.seek(start)
        return _read(file, nbytes)

    return content, read_storage


def _plain(file: BinaryIO) -> Any:
    return read_pickle(file, lambda name, _: Inert(name), lambda _: None)


def _read(file: BinaryIO, nbytes: int) -> Tensor:
    memory = torch.empty(nbytes, dtype=torch.uint8)
    view = memory.numpy()
    for start in range(0, nbytes, PIECE):
        piece = view[start : start + PIECE]
        if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
            raise TorchFileError("it is cut short")
    return memory


# -------------------------------------------------------------------------------------------------------------- tensors


def _unpickled(file: BinaryIO, check: Callable[[Storage], None]) -> Any:
    """Read the pickle with the content. ``check`` gets each storage and raises if it is not in the file."""

    def persistent(identity: Any) -> Any:
        kind, *rest = identity
        if kind == "module":  # a class with its source code
            return rest[0]
        if kind != "storage":
            raise TorchFileError("it refers to something that is no storage")
        made, key, _location, size, *view = rest
        dtype = DTYPES.get(made.name.rpartition(".")[2]) if isinstance(made, Inert) else None
        if dtype is None:
            return Inert("torch.UntypedStorage")  # of quantised numbers, for example
        if not isinstance(key, str | int):  # the text of lists in lists could be endless
            raise TorchFileError("it refers to a storage by what is no name")
        first = 0
        if view and view[0] is not None:
            _key, first, size = view[0]
        storage = Storage(str(key), dtype, _natural(first), _natural(size))
        check(storage)
        return storage

    return read_pickle(file, _constructed, persistent)


def _constructed(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return the tensor that a call of PyTorch's own functions would make; other calls remain inert."""
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        storage, offset, shape, stride, *rest = arguments
        if isinstance(storage, Storage) and not any(rest[2:]):  # rest: gradients, hooks, and flags such as "conjugate"
            return _stored(storage, storage.dtype, offset, shape, stride)
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return arguments[0]
    if name == "torch.Size":
        return tuple(arguments[0])
    return Inert(name)


def _stored(storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    if len(shape) != len(stride) or len(shape) > MOST_DIMENSIONS:
        raise TorchFileError("it has a tensor with impossible dimensions")
    stored = StoredTensor(storage, dtype, _natural(offset), tuple(map(_natural, shape)), tuple(map(_natural, stride)))
    elements, last = 1, stored.offset
    for length, step in zip(stored.shape, stored.stride, strict=True):
        elements, last = elements * length, last + (length - 1) * step
    if elements > storage.size or stored.offset > storage.size or (elements and last >= storage.size):
        raise TorchFileError("it has a tensor with more elements than are stored")
    return stored


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise TorchFileError("it has a tensor of an impossible size")
    return value
