"""``scripts/data.py``: what is on disk, and what an augmentation makes of it."""

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from isda_repro.config import build, compose
from isda_repro.data import ResidentLoader
from isda_repro.errors import UserError


@pytest.fixture(scope="module")
def data(load_script):
    return load_script("data")


def test_show_draws_what_training_sees(data, tmp_path, capsys):
    file = tmp_path / "new" / "sheet.png"
    settings = ["dataset=digits", "augmentation=autoaugment", "augmentation.cutout.fill=black", "seed=3"]
    data.main(["show", *settings, f"output={file}"])
    assert "10 images, each as it is on disk and 10 times" in capsys.readouterr().out
    sheet, scale = pil_to_tensor(Image.open(file)), 8
    assert sheet.shape == (3, scale * (10 * 10 + 2), scale * (11 * 10 + 2 + 4))
    small = sheet[:, ::scale, ::scale]
    assert torch.equal(small.repeat_interleave(scale, 1).repeat_interleave(scale, 2), sheet)

    cfg = compose(settings)
    train = build(cfg.dataset.source).train
    chosen = train.select(torch.tensor([int((train.targets == label).nonzero()[0]) for label in range(10)]))
    pixels = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "device": torch.device("cpu")}
    loader = ResidentLoader(
        chosen, batch_size=10, augmentation=build(cfg.augmentation), shuffle=False, seed=3, **pixels
    )
    columns = [chosen.images.float(), *(next(loader.epoch(epoch))[0] for epoch in range(10))]
    for column, images in enumerate(columns):
        left = 2 + 10 * column + (4 if column else 0)
        for row, image in enumerate(images):
            top = 2 + 10 * row
            assert torch.equal(small[:, top : top + 8, left : left + 8], image.round().to(torch.uint8)), (row, column)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], r"verify\|show"),
        (["look"], r"verify\|show"),
        (["show", "dataset=digits", "output=sheet.jpg"], "must end with .png"),
        (["show", "dataset=digits", "augmentation=mixup"], "augmentation= can be autoaugment, baseline, cutout, none"),
        (["verify", "dataset=mnist"], "nothing to verify for 'mnist'"),
        (["verify"], "dataset= is missing"),
    ],
)
def test_what_cannot_be_is_one_sentence(data, arguments, words):
    with pytest.raises(UserError, match=words):
        data.main(arguments)


def test_verify_counts_the_classes(data, capsys):
    data.main(["verify", "dataset=digits"])
    out = capsys.readouterr().out
    assert "1437 training and 360 test images" in out
    assert out.endswith("digits is whole\n")
