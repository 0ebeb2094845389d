"""What people see: pictures, the table of an inversion, its progress."""

import io

import pytest
import torch
from toys import pixels_at_random

from isda_repro.gan.pictures import GAP, arranged
from isda_repro.inversion import Distances, Inversion, Settings
from isda_repro.inversion.pictures import FRAME, MARGIN, TEXT, titled
from isda_repro.inversion.progress import InversionProgress
from isda_repro.inversion.report import folder_for, numbers_of, page, sheet, table

ENLARGED = 8  # of images of 8 pixels
TOP = TEXT + 2 * MARGIN
PITCH = (8 + GAP) * ENLARGED


def corner(picture, sheet, row, column):
    """Where an image begins in a titled picture."""
    left = picture.shape[2] - sheet.shape[2]
    return TOP + GAP * ENLARGED + row * PITCH, left + GAP * ENLARGED + column * PITCH


def test_a_titled_picture_has_the_images_in_their_places():
    images = pixels_at_random(6).unflatten(0, (2, 3))
    picture, plain = titled(images, ["a", "", "b"], ["first", "second"]), arranged(images)
    assert picture.dtype == torch.uint8
    assert torch.equal(picture[:, -plain.shape[1] :, -plain.shape[2] :], plain)
    for row in range(2):
        for column in range(3):
            y, x = corner(picture, plain, row, column)
            shown = picture[:, y : y + 8 * ENLARGED : ENLARGED, x : x + 8 * ENLARGED : ENLARGED]
            assert torch.equal(shown, images[row, column])


def test_names_are_over_their_columns_and_beside_their_rows():
    images = torch.full((2, 3, 3, 8, 8), 255, dtype=torch.uint8)
    picture, plain = titled(images, ["a", "", "b"], ["first", ""]), arranged(images)
    dark = picture[0] < 128
    _, first = corner(picture, plain, 0, 0)
    columns = dark[:TOP].any(0).nonzero()[:, 0]
    assert columns.min() >= first
    assert not dark[:TOP, first + PITCH : first + 2 * PITCH].any(), "the second has no name"
    assert dark[:TOP, first + 2 * PITCH :].any()
    y, _ = corner(picture, plain, 1, 0)
    assert dark[TOP : y - GAP, : first - GAP * ENLARGED].any()
    assert not dark[y:, : first - GAP * ENLARGED].any(), "the second row has no name"


def test_frames_are_around_their_images_and_hide_nothing():
    images = torch.full((2, 3, 3, 8, 8), 200, dtype=torch.uint8)
    framed = torch.tensor([[False, True, False], [False, False, True]])
    picture, plain = titled(images, ["", "", ""], ["", ""], framed), arranged(images)
    for row in range(2):
        for column in range(3):
            y, x = corner(picture, plain, row, column)
            side = 8 * ENLARGED
            assert (picture[:, y : y + side, x : x + side] == 200).all()
            for around in (picture[:, y - FRAME, x : x + side], picture[:, y : y + side, x + side + FRAME - 1]):
                assert (around == (0 if framed[row, column] else 255)).all()


def known():
    """Of one image with two augmentations."""
    return Inversion(
        reconstructions=pixels_at_random(1, seed=1),
        augmentations=pixels_at_random(2, seed=2)[None],
        start=Distances(torch.tensor([50.0]), torch.tensor([400.0])),
        found=Distances(torch.tensor([2.0]), torch.tensor([30.0])),
        moved=torch.tensor([[7.0, 8.0]]),
        before=torch.tensor([[9.0, 10.0]]),
        after=torch.tensor([[0.5, 0.25]]),
    )


def test_a_sheet_is_original_reconstruction_augmentations():
    originals, inversion = pixels_at_random(1, seed=9), known()
    shown = sheet(originals, inversion)
    expected = [originals[0], inversion.reconstructions[0], *inversion.augmentations[0]]
    assert torch.equal(shown, torch.stack(expected)[None])


def test_the_table_says_how_far_both_objectives_fell():
    record = numbers_of(known(), Settings(eta=0.1, strength=0.5), [{"index": 12, "class": "cat"}])
    assert table(record)[2] == "| cat 12 | 90 → 5 | 50 → 2 | 400 → 30 | 9 → 0.5, 10 → 0.25 | 7, 8 |"
    about = {"generator": "G", "classifier": "C", "error": 12.5, "evaluated_on": "holdout", "part": "train"}
    text = page({**record, **about, "seconds": 3.0}, "python scripts/invert.py", ["here."])
    assert "rates 10 and 1" in text
    assert "error on its holdout set 12.50%" in text


def test_progress_in_a_log_is_a_line_a_minute(monkeypatch):
    stream, clock = io.StringIO(), iter([0.0, 30.0, 90.0, 100.0, 151.0])
    monkeypatch.setattr("isda_repro.inversion.progress.time.perf_counter", lambda: next(clock))
    with InversionProgress(1000, stream) as bar:
        for _ in range(4):
            bar(50, torch.tensor([1.0, 3.0]))
    assert stream.getvalue() == " 20%: objective 2, 6:00 left\n 40%: objective 2, 3:46 left\n"


def test_a_folder_is_tried_before_hours_are_spent(tmp_path):
    assert list(folder_for(tmp_path / "new" / "one").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        folder_for(tmp_path / "file")
