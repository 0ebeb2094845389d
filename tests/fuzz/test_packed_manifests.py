"""Packed data from strangers: a data set or one sentence, within bounds of time and memory, and nothing changed."""

import json
import shutil
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import make_folder

from isda_repro.data import DataError, Packing, load_folder, load_packed, pack
from isda_repro.data.decode import UnreadableError, decoded

pytestmark = pytest.mark.slow

SECONDS, BYTES = 10, 2**28


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        source = load_folder("pets", make_folder(root / "pets"), image_size=8)
        pack(source, root / "out", Packing(size=8, images_per_archive=10), workers=0, skip_unreadable=False, report=len)
        yield root / "out"


numbers = st.one_of(st.integers(), st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30]), st.floats(), st.booleans())
values = st.recursive(
    st.one_of(st.none(), numbers, st.text(max_size=8), st.sampled_from(["ant", "bee", "cat", "../x", "\ud800"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["train", "val", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def check_sentence(error):
    """Check that an error has a message of one line."""
    assert str(error).strip()
    assert len(str(error).splitlines()) == 1


def check(folder):
    """Load the data and read all of it; there is a data set, or one sentence."""
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    begin = time.perf_counter()
    tracemalloc.start()
    try:
        source = load_packed("pets", folder, image_size=8)
        for split in (source.train, source.test):
            for index in range(len(split)):
                try:
                    decoded(split.read(index))
                except (UnreadableError, OSError) as error:
                    check_sentence(error)
    except DataError as error:
        check_sentence(error)
    finally:
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.perf_counter() - begin < SECONDS
    assert used < BYTES
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


def copy_of(packed, tmp_path_factory):
    return shutil.copytree(packed, tmp_path_factory.mktemp("copy") / "out")


KEYS = ["classes", "images", "images_per_archive", "size", "format", "name", "of", "other"]


@given(
    st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=3), st.sets(st.sampled_from(KEYS), max_size=1)
)
def test_manifests_with_other_values_are_read_or_refused(packed, tmp_path_factory, changed, removed):
    folder = copy_of(packed, tmp_path_factory)
    manifest = {**json.loads((folder / "packed.json").read_text()), **changed}
    (folder / "packed.json").write_text(
        json.dumps({key: value for key, value in manifest.items() if key not in removed})
    )
    check(folder)


@given(st.sampled_from(["packed.json", "SHA256SUMS", "train-00000.zip", "val-00001.zip"]), st.data())
def test_files_with_other_bytes_are_read_or_refused(packed, tmp_path_factory, name, data):
    folder = copy_of(packed, tmp_path_factory)
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        from_end = data.draw(st.booleans())  # where the directory of a ZIP archive is
        at = data.draw(st.integers(0, min(len(content), 1500) - 1))
        at = len(content) - 1 - at if from_end else at
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=8))
    (folder / name).write_bytes(content)
    check(folder)
