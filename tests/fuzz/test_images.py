"""Images and names of files from anywhere: pixels or one sentence, within bounds of time and memory."""

import os
import resource
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pictures import PECULIAR, SMOOTH, content, picture, saved

from isda_repro.console import one_line
from isda_repro.data import Crop, DataError, Packing, load_folder, load_packed, pack
from isda_repro.data.decode import MAX_PIXELS, UnreadableError, decoded, peculiarities

pytestmark = pytest.mark.slow

KINDS = {kind: saved(SMOOTH, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")}
SEEDS = [*KINDS.values(), *PECULIAR.values(), content(picture(1), progressive=True)]
SECONDS, BYTES = 10, 2**31  # for one image: the limit of pixels allows 1.5 GB, and a busy machine some seconds
NUMBERS = [0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**16, 12000, MAX_PIXELS]


@st.composite
def mutated(draw):
    """Return the bytes of a small image, some of which are changed, mostly in its header."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        end = len(data) if draw(st.booleans()) else min(len(data), 200)
        at = draw(st.integers(0, max(0, end - 1)))
        change = draw(st.sampled_from(["byte", "number", "cut", "insert", "repeat"]))
        if change == "byte":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif change == "number":
            width = draw(st.sampled_from([2, 4]))
            number = draw(st.sampled_from(NUMBERS)) % 256**width
            data[at : at + width] = number.to_bytes(width, draw(st.sampled_from(["little", "big"])))
        elif change == "cut":
            del data[at : at + draw(st.integers(1, 200))]
        elif change == "insert":
            data[at:at] = draw(st.binary(max_size=40))
        else:
            data[at:at] = data[at : at + 60] * draw(st.integers(1, 50))
    return bytes(data)


def check_sentence(error):
    """Check that an error has a message of one line, without an address in memory."""
    assert str(error).strip()
    assert len(str(error).splitlines()) == 1
    assert " at 0x" not in str(error)


def check(data):
    """Decode as a run and ``verify`` do; there are pixels that can be cropped, or a reason in one line."""
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of much that it then reads
        for of in (bytes, bytearray):
            try:
                peculiarities(of(data))
                pixels = decoded(of(data))
                assert pixels.dtype == torch.uint8
                assert pixels.dim() == 3
                assert pixels.shape[2] == 3
                assert 0 < pixels[:, :, 0].numel() <= MAX_PIXELS
                for kind in ("random_resized", "center"):
                    Crop(8, kind)(pixels, torch.Generator())
            except UnreadableError as error:
                check_sentence(error)
    assert time.perf_counter() - begin < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MEMORY_BEFORE + BYTES


MEMORY_BEFORE = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@given(mutated())
def test_mutated_images_are_decoded_or_refused(data):
    check(data)


@given(
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from([data[:12] for data in SEEDS]).flatmap(
            lambda begin: st.binary(max_size=200).map(begin.__add__)
        ),
    )
)
@example(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
@example(b"P6 99999999999999999999 1 255\n")
@example(b"P5\n1 1\n0\n\0")
def test_bytes_are_decoded_or_refused(data):
    check(data)


@given(
    st.sampled_from(["PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM"]),
    st.sampled_from(["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr", "HSV", "LAB"]),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
def test_images_of_all_modes_are_decoded_or_refused_and_not_black(kind, mode, height, width, seed):
    """An image that has more than one level does not become one of a single colour without a word."""
    from PIL import Image

    random = np.random.default_rng(seed)
    if mode in ("I;16", "I", "F"):
        levels = random.integers(0, 2 ** int(random.integers(1, 17)), (height, width))
        image = Image.fromarray(levels.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        bands = len(Image.new(mode, (1, 1)).getbands())
        pixels = random.integers(0, 256, (height, width, bands), dtype=np.uint8)
        flat = Image.frombytes("L", (width * bands, height), pixels.reshape(height, -1).tobytes())
        image = flat.convert("1") if mode == "1" else Image.frombytes(mode, (width, height), pixels.tobytes())
    try:
        data = saved(image, kind)
    except (OSError, ValueError, KeyError, TypeError):
        return  # Pillow does not write this mode in this format
    check(data)
    is_deep = mode in ("I;16", "I", "F") and kind in ("PNG", "TIFF", "PPM")  # Pillow cuts to 8 bits for the others
    if is_deep and len(np.unique(np.asarray(image))) > 1:
        try:
            pixels = decoded(data)
        except UnreadableError:
            return
        assert pixels.max() > 0


names = st.binary(min_size=1, max_size=40).filter(
    lambda name: not set(name) & {0, ord("/")} and name not in (b".", b"..")
)


@given(st.dictionaries(names, st.lists(names, min_size=1, max_size=3, unique=True), min_size=2, max_size=3))
def test_names_of_any_bytes_are_read_or_passed_over(tmp_path_factory, monkeypatch, classes):
    root = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    image = content(picture(1))
    for part in ("train", "val"):
        for name, files in classes.items():
            folder = root / "pets" / part / os.fsdecode(name)
            folder.mkdir(parents=True)
            for file in files:
                (folder / os.fsdecode(file + b".jpg")).write_bytes(image)
    before = sorted(os.walk(root / "pets"))
    try:
        source = load_folder("pets", root / "pets", image_size=8)
        pack(source, root / "out", Packing(size=8), workers=0, skip_unreadable=False, report=str.encode)
        packed = load_packed("pets", root / "out", image_size=8)
    except DataError as error:
        check_sentence(error)
        hidden = [
            name for name in classes if name.startswith(b".") or all(file.startswith(b".") for file in classes[name])
        ]
        assert hidden or any(name.lower() in LITTER for name in classes)
    else:
        assert packed.class_names == source.class_names
        assert torch.equal(packed.train.targets, source.train.targets)
        for split in (source.train, packed.train):
            for index in range(len(split)):
                assert split.where(index).isprintable()
                assert decoded(split.read(index)).shape[2] == 3
    assert sorted(os.walk(root / "pets")) == before


LITTER = (b"#recycle", b"@recycle", b"@eadir")


@given(st.text())
def test_printable_text_is_utf_8_on_one_line(text):
    shown = one_line(text)
    assert len(shown.encode().splitlines()) <= 1
    assert shown.isprintable()
    assert one_line(shown) == shown


def test_memory_of_a_refused_image_is_that_of_its_file():
    data = bytearray(KINDS["JPEG"])
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"  # 65500 x 65500
    tracemalloc.start()
    with pytest.raises(UnreadableError):
        decoded(bytes(data))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
