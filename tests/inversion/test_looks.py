"""Pictures, numbers and progress of an inversion."""

import io
import re
import time

import pytest
import torch
from toys import mosaic, pixels_at_random

from isda_repro.files import folder_for
from isda_repro.inversion import Distances, Inversion, Settings
from isda_repro.inversion.report import numbers_of, page, sheet, table, titled
from isda_repro.inversion.search_progress import InversionProgress
from isda_repro.sheets import arrange


def test_titled_picture_has_the_images_in_their_places():
    images = (pixels_at_random(6) // 2).unflatten(0, (2, 3))
    picture, plain = titled(images, ["a", "", "b"], ["first", "second"]), arrange(images)
    assert picture.dtype == torch.uint8
    assert torch.equal(picture[:, -plain.shape[1] :, -plain.shape[2] :], plain)
    assert torch.equal(mosaic(plain, 8, 3), images)
    framed = titled(images, ["a", "", "b"], ["first", "second"], torch.tensor([[False] * 3, [True, False, False]]))
    changed = (framed != picture).any(0)[-plain.shape[1] :, -plain.shape[2] :]
    assert changed.any()
    assert not (changed & (plain != 255).any(0)).any(), "a frame hides no image"


def known():
    """Return an inversion of one image with two augmentations."""
    return Inversion(
        reconstructions=pixels_at_random(1, seed=1),
        augmentations=pixels_at_random(2, seed=2)[None],
        start=Distances(torch.tensor([50.0]), torch.tensor([400.0])),
        found=Distances(torch.tensor([2.0]), torch.tensor([30.0])),
        moved=torch.tensor([[7.0, 8.0]]),
        before=torch.tensor([[9.0, 10.0]]),
        after=torch.tensor([[0.5, 0.25]]),
    )


def test_sheet_is_original_reconstruction_augmentations():
    originals, inversion = pixels_at_random(1, seed=9), known()
    expected = [originals[0], inversion.reconstructions[0], *inversion.augmentations[0]]
    assert torch.equal(sheet(originals, inversion), torch.stack(expected)[None])


def test_numbers_and_table_say_how_far_both_objectives_fell():
    """The record has equation 15 with eta 0.1 and its two terms, equation 16 for each augmentation, and distances."""
    record = numbers_of(known(), Settings(eta=0.1, strength=0.5, seed=4), [{"index": 12, "class": "cat"}])
    assert (record["eta"], record["lambda"], record["augmentations"], record["seed"]) == (0.1, 0.5, 5, 4)
    (image,) = record["images"]
    assert image["step_one"]["start"] == pytest.approx({"features": 50, "pixels": 400, "objective": 90})
    assert image["step_one"]["found"] == pytest.approx({"features": 2, "pixels": 30, "objective": 5})
    assert image["step_two"] == {"moved": [7, 8], "before": [9, 10], "after": [0.5, 0.25]}
    (row,) = (line for line in table(record) if "cat" in line)
    assert [float(number) for number in re.findall(r"[\d.]+", row)] == [
        *(12, 90, 5, 50, 2, 400, 30),
        *(9, 0.5, 10, 0.25, 7, 8),
    ]
    about = {"generator": "G", "classifier": "C", "error": 12.5, "evaluated_on": "holdout", "part": "train"}
    text = page({**record, **about, "seconds": 3.0}, "the command", ["the machine"])
    settings, _, numbers = text.partition(row)
    assert numbers.strip() == ""
    for named in ("`G`", "`C`", "12.50%", "holdout", "train", "0.1", "0.5", "10,000", "the command", "the machine"):
        assert named in settings


def test_progress_in_a_log_is_said_once_a_minute(monkeypatch):
    """A fifth of 1,000 iterations in 90 s leaves 360 s; two fifths in 151 s leave 226 s."""
    stream, clock = io.StringIO(), iter([0.0, 30.0, 90.0, 100.0, 151.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with InversionProgress(1000, stream) as bar:
        for _ in range(4):
            bar(50, torch.tensor([1.0, 3.0]))
    said = [re.findall(r"[\d:.]+\d|\d", line) for line in stream.getvalue().splitlines()]
    assert said == [["20", "2", "6:00"], ["40", "2", "3:46"]], "per cent, mean objective, time left"


def test_folder_is_made_and_left_empty_or_named(tmp_path):
    assert list(folder_for(tmp_path / "new" / "one").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"must be a folder.*file"):
        folder_for(tmp_path / "file")
