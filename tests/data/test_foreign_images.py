"""Folders and images as people have them: other formats, litter, odd names and depths, and false claims."""

import io
import os
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from pictures import CLASSES, GREY, PECULIAR, SMOOTH, content, make_folder, picture, saved, turned
from PIL import Image, PngImagePlugin

from isda_repro.console import one_line
from isda_repro.data import (
    Crop,
    DataError,
    MissingDataError,
    Packing,
    load_folder,
    load_packed,
    pack,
    stored_statistics,
)
from isda_repro.data import decode as decoding
from isda_repro.data.decode import FORMATS, RULES, UnreadableError, decoded, peculiarities
from isda_repro.data.source import counted


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "pets")


def load(root, **options):
    return load_folder("pets", root, image_size=16, **options)


# --------------------------------------------------------------------------------------------------- names and litter


@pytest.mark.parametrize("extension", [extension for extensions in FORMATS.values() for extension in extensions])
def test_every_extension_of_a_format_is_used(root, extension):
    kind = next(kind for kind, extensions in FORMATS.items() if extension in extensions)
    file = root / f"train/bee/new{extension.upper()}"
    file.write_bytes(content(picture(9), kind))
    source = load(root)
    assert (len(source.train), source.left_out) == (25, {})
    index = next(i for i in range(25) if source.train.where(i) == str(file))
    expected = Image.open(file).convert("RGB")
    assert torch.equal(decoded(source.train.read(index)), torch.from_numpy(np.array(expected)))


def test_whatever_is_left_out_is_counted_by_extension(root):
    for name in ("0.gif", "1.GIF", "2.avif", "3.heic", "notes.txt", "README"):
        (root / "train/bee" / name).write_bytes(b"x")
    (root / "val/ant/more").mkdir()
    (root / "val/ant/more/x.gif").write_bytes(b"x")
    (root / "train/loose.jpg").write_bytes(content(picture(9)))
    expected = {".gif": 3, ".avif": 1, ".heic": 1, ".txt": 1, "without an extension": 1, ".jpg": 1}
    for _ in range(2):  # scanned, and from the index
        source = load(root)
        assert (len(source.train), len(source.test), source.left_out) == (24, 12, expected)
    assert load(root, holdout=3).left_out[".gif"] == 2, "val is not looked at then"


def test_long_lists_of_kinds_are_cut():
    assert counted({f".{i}": i for i in range(1, 9)}) == "8 .8, 7 .7, 6 .6, 5 .5, 4 .4, 6 of other kinds"
    assert counted({".a\n": 1}) == "1 .a\\n"


LITTER = ["._0.jpg", ".hidden.png", ".DS_Store", "Thumbs.db", "desktop.ini", "THUMBS.DB"]
LITTER_FOLDERS = [".ipynb_checkpoints", "__MACOSX", "lost+found", "@eaDir", ".git", "$RECYCLE.BIN", "#recycle"]


@pytest.mark.parametrize("below", ["", "cat"])
def test_hidden_names_and_litter_are_passed_over_and_counted(root, below):
    for name in LITTER:
        (root / "train" / below / name).write_bytes(content(picture(1)))
    for name in LITTER_FOLDERS:
        (root / "train" / below / name).mkdir()
        (root / "train" / below / name / "0.jpg").write_bytes(content(picture(2)))
    source = load(root)
    assert source.class_names == CLASSES
    assert len(source.train) == 24
    ((kind, count),) = source.left_out.items()
    assert count == len(LITTER) + len(LITTER_FOLDERS)
    assert "hidden" in kind


def test_pipes_and_links_that_lead_round_are_left_out_and_links_to_nothing_are_named(root):
    os.mkfifo(root / "train/ant/pipe.jpg")
    (root / "train/bee/round").symlink_to(root / "train/bee")
    (root / "train/cat/gone.jpg").symlink_to(root / "nowhere.jpg")
    source = load(root)
    assert len(source.train) == 25
    assert sum(source.left_out.values()) == 2
    gone = next(i for i in range(25) if "gone" in source.train.where(i))
    with pytest.raises(OSError, match="gone"):
        source.train.read(gone)


NAMES = [
    b"caf\xe9",
    b"a b % # $x",
    b"new\nline",
    b"x" * 200,
    "фото \u2028".encode(),
    b"quote'\"`\\",
    b"[1] {2},=",
    b"\x1b[31m",
]


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_names_of_any_bytes_work_in_folders_and_archives(tmp_path, kind):
    for part in (b"train", b"val"):
        for number, name in enumerate(NAMES):
            folder = os.fsencode(tmp_path / "pets") + b"/" + part + b"/" + name
            os.makedirs(folder)  # noqa: PTH103
            for image in range(2):
                with open(folder + b"/" + name + b"%d.jpg" % image, "wb") as file:  # noqa: PTH123
                    file.write(content(picture(10 * number + image + 500 * (part == b"val"))))
    source = load(tmp_path / "pets")
    assert sorted(map(os.fsencode, source.class_names)) == sorted(NAMES)
    for index in range(len(source.train)):
        where = source.train.where(index)
        assert where.isprintable()
        where.encode()
        assert decoded(source.train.read(index)).shape == (40, 56, 3)
    assert len(load(tmp_path / "pets").train) == 2 * len(NAMES), "from the index"
    said = []
    pack(source, tmp_path / "out", Packing(size=32, format=kind), workers=0, skip_unreadable=True, report=said.append)
    packed = load_packed("pets", tmp_path / "out", image_size=16)
    assert packed.class_names == source.class_names
    assert torch.equal(packed.train.targets, source.train.targets)
    for index in range(len(packed.train)):
        assert packed.train.where(index).isprintable()
        assert min(decoded(packed.train.read(index)).shape[:2]) == 32
    stored_statistics(packed.train)


def test_printable_escapes_what_is_not_text_in_one_line():
    assert one_line("größe 'x'.jpg") == "größe 'x'.jpg"
    assert one_line(os.fsdecode(b"caf\xe9\n\x1b")) == "caf\\xe9\\n\\x1b"
    one_line("\ud800").encode()


# ------------------------------------------------------------------------------------------------------ train alone


def test_holdout_needs_no_folder_val(root):
    (root / "val").rename(root / "elsewhere")
    source = load(root, holdout=6)
    assert (len(source.train), len(source.test), source.evaluated_on) == (18, 6, "holdout")
    assert not {source.train.where(i) for i in range(18)} & {source.test.where(i) for i in range(6)}
    with pytest.raises(MissingDataError, match=r"dataset\.holdout="):
        load(root)
    (root / "elsewhere").rename(root / "val")
    (root / "val/ant").rename(root / "val/flat")  # not yet sorted, or of other classes
    again = load(root, holdout=6)
    (root / "val/flat").rename(root / "val/ant")
    assert (again.train.digest, again.test.digest) == (source.train.digest, source.test.digest)
    assert len(load(root).test) == 12


# ------------------------------------------------------------------------------------------- depths, modes, orientation


def png16(pixels, colour_type):
    """Return a PNG file with big-endian 16-bit levels, which Pillow cannot write in colour."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_levels_keep_their_upper_byte():
    expected = torch.from_numpy((GREY >> 8).astype(np.uint8))
    colour = np.stack([GREY, GREY[::-1], 65535 - GREY], axis=2)
    for data in (
        saved(Image.fromarray(GREY), "PNG"),
        saved(Image.fromarray(GREY), "TIFF"),
        saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
        saved(Image.fromarray(GREY.astype(np.int32)), "PPM"),
    ):
        assert torch.equal(decoded(data), expected[:, :, None].expand(-1, -1, 3))
        assert "16 bits per level" in peculiarities(data)[1]
    data = png16(colour, 2)
    assert torch.equal(decoded(data), torch.from_numpy((colour >> 8).astype(np.uint8)))
    assert peculiarities(data) == ("PNG", ["16 bits per level"])


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(GREY >> 4), "PNG"),
        saved(Image.fromarray(GREY >> 4), "TIFF"),
        png16(np.stack([GREY >> 4] * 3, axis=2), 2),
        saved(Image.fromarray(GREY.astype(np.int32) * 1000), "TIFF"),
        saved(Image.fromarray(-GREY.astype(np.int32)), "TIFF"),
        saved(Image.fromarray(GREY.astype(np.float32) / 65535), "TIFF"),
        saved(Image.merge("RGBA", [*Image.new("RGB", (56, 40)).split(), SMOOTH.convert("L")]), "PNG"),
        saved(Image.merge("LA", [Image.new("L", (56, 40)), SMOOTH.convert("L")]), "PNG"),
    ],
    ids=["12 of 16 bits", "the same TIFF", "the same RGB", "32 bits", "signed", "float", "drawn in alpha", "LA"],
)
def test_images_that_would_come_out_black_are_refused(data):
    with pytest.raises(UnreadableError) as caught:
        decoded(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RULES)
def test_each_peculiarity_is_recognised_and_read_by_its_rule(name):
    data = PECULIAR[name]
    assert name in peculiarities(data)[1]
    pixels = decoded(data)
    assert pixels.float().std() > 10
    if name != "16 bits per level":
        with Image.open(io.BytesIO(data)) as image:  # the first frame, as it is stored
            assert torch.equal(pixels, torch.from_numpy(np.array(image.convert("RGB"))))
    assert peculiarities(content(picture(1))) == ("JPEG", [])


def test_orientation_does_not_turn_pixels():
    """Published weights were trained on the pixels as they are stored; TIFF files are turned by Pillow itself."""
    assert decoded(turned("JPEG")).shape == decoded(turned("PNG")).shape == (40, 56, 3)
    assert decoded(turned("TIFF")).shape == (56, 40, 3)


# ---------------------------------------------------------------------------------------------- what claims to be one


def jpeg_of(width, height, kind):
    """Return a small JPEG file whose header states another size."""
    data = bytearray(content(picture(1), kind))
    at = next(i for i in range(len(data) - 1) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_of(width, height):
    data = bytearray(content(picture(1), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        *(jpeg_of(side, side, "JPEG") for side in (65500, 12000)),
        *(png_of(side, side) for side in (65500, 12000)),
        *(b"P6 %d %d 255\n" % (side, side) + b"x" * 99 for side in (65500, 12000)),
    ],
    ids=["JPEG", "smaller JPEG", "PNG", "smaller PNG", "PPM", "smaller PPM"],
)
def test_sizes_are_checked_before_memory_is_allocated(data, monkeypatch):
    monkeypatch.setattr("simplejpeg.decode_jpeg", None)
    monkeypatch.setattr(Image.Image, "load", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(UnreadableError, match="pixels"):
            decoded(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "PPM"])
def test_strips_that_scaling_would_make_fill_the_memory_are_refused(kind):
    for size in ((1001, 1), (1, 1001)):
        strip = content(np.zeros((*size, 3), np.uint8), kind)
        for of in (bytes, bytearray):  # a packed PPM file is read as a bytearray
            with pytest.raises(UnreadableError, match=r"1,001.*1,000 times"):
                decoded(of(strip))
    long = decoded(bytearray(content(np.zeros((1, 1000, 3), np.uint8), kind)))
    assert Crop(224, "center")(long, torch.Generator()).shape == (224, 224, 3)


def test_limit_of_pixels_is_above_what_cameras_take():
    assert 12000 * 9000 < decoding.MAX_PIXELS < 200_000_000


def test_jpeg_of_very_many_scans_is_refused_if_it_is_large(monkeypatch):
    data = content(picture(1), progressive=True)
    first = data.index(b"\xff\xda")
    many = data[:-2] + data[first:-2] * 60 + b"\xff\xd9"
    assert decoded(data).shape == (40, 56, 3)
    monkeypatch.setattr(decoding, "MAX_SCANNED", 60 * 40 * 56)
    assert decoded(data).shape == (40, 56, 3)
    with pytest.raises(UnreadableError, match="scans"):
        decoded(many)
    assert decoded(content(picture(1), "PNG") + many).shape == (40, 56, 3), "only JPEG files have scans"


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        *(saved(SMOOTH, kind) for kind in ("TGA", "ICO", "JPEG2000")),
        b"\xd7\xcd\xc6\x9a" + b"\0" * 60,
    ],
    ids=["EPS", "TGA", "ICO", "JPEG 2000", "WMF"],
)
def test_other_formats_reach_no_decoder(data, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", None)
    with pytest.raises(UnreadableError, match="JPEG, PNG"):
        decoded(data)


def test_formats_are_those_that_pillow_is_asked_for(monkeypatch):
    asked, opened = [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda *given, **named: asked.append(named["formats"]) or opened(*given, **named)
    )
    decoded(content(picture(1), "PNG"))
    assert asked == [tuple(FORMATS)]
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"}


def test_file_that_is_too_large_is_not_read(root):
    with (root / "train/ant/0.jpg").open("wb") as file:
        file.truncate(2**40)
    begin = time.perf_counter()
    with pytest.raises(OSError, match="limit"):
        load(root).train.read(0)
    assert time.perf_counter() - begin < 5


def test_text_in_a_png_cannot_inflate():
    info = PngImagePlugin.PngInfo()
    info.add_text("x", "y" * 3_000_000, zip=True)
    with pytest.raises(UnreadableError):
        decoded(saved(SMOOTH, "PNG", pnginfo=info))


def test_class_with_nothing_but_other_formats_says_so(root):
    for file in (root / "train/cat").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(DataError, match=r"cat .*8 \.heic"):
        load(root)
