"""``scripts/data.py``: what is on disk, and what an augmentation makes of it."""

import re

import pytest
import torch
from pictures import make_folder
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


@pytest.fixture
def pets(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_folder(tmp_path / "pets")


def test_verify_decodes_every_image_of_a_folder(data, pets, capsys):
    arguments = ["verify", "dataset=folder", f"data_dir={pets}", "workers=0"]
    data.main(arguments)
    out = capsys.readouterr().out
    assert "pets: 24 training and 12 test images" in out
    assert "class   1       8 train       4 test  bee" in out
    for name in ("train/bee/3.jpg", "val/cat/0.jpg"):
        (pets / name).write_bytes((pets / name).read_bytes()[:200])
    with pytest.raises(UserError, match="has 2 faults, listed above: replace those images"):
        data.main(arguments)
    out = capsys.readouterr().out
    for name in ("train/bee/3.jpg", "val/cat/0.jpg"):
        assert f"{pets / name} cannot be read as an image: " in out


def test_show_draws_images_of_any_size(data, pets, tmp_path, capsys):
    file = tmp_path / "sheet.png"
    data.main(["show", "dataset=folder", f"data_dir={pets}", "model=resnet50", "augmentation=cutout", f"output={file}"])
    assert "3 images, each as it is on disk and 10 times" in capsys.readouterr().out
    height, width = 3 * (224 + 2) + 2, 11 * (224 + 2) + 2 + 4
    assert Image.open(file).size == (-(-width // 2), -(-height // 2))


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_pack_says_size_speed_and_caveat_and_what_it_writes_is_verified_and_found(data, pets, tmp_path, capsys, kind):
    output = tmp_path / "packed" / "pets"
    pack = ["pack", "dataset=folder", f"data_dir={pets}", f"output={output}", f"format={kind}", "size=32", "workers=2"]
    data.main(pack)
    out = capsys.readouterr().out
    assert "24 training and 12 evaluation images, 0.00 GB" in out
    assert re.search(r"is read \d+\.\d times faster, on one core", out)
    assert "training sees less detail" in out
    assert ("the same pixels" in out) == (kind == "raw")
    assert out.endswith(f"Train on it: dataset=folder data_dir={output}\n")

    cfg = compose(["dataset=folder", f"data_dir={output}", "model=resnet50", "dataset.image_size=28"])
    assert len(build(cfg.dataset.source).train) == 24
    check = ["verify", "dataset=folder", f"data_dir={output}", "workers=0"]
    data.main(check)
    out = capsys.readouterr().out
    assert re.search(r"ok +[\d,]+ bytes  sha256 [0-9a-f]{64}  train-00000\.zip", out)
    assert out.endswith("folder is whole\n")

    archive = output / "train-00000.zip"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 255
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.zip of folder: delete them and run the command that packed"):
        data.main(check)
    archive.unlink()
    data.main(pack)
    capsys.readouterr()
    data.main(check)
    assert capsys.readouterr().out.endswith("folder is whole\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset=cifar10"], "dataset=cifar10 has no files to pack; it can be imagenet or folder"),
        (["dataset=folder", "format=png"], "format=png must be raw or jpeg"),
        (["dataset=folder", "quality=0"], "quality=0 must be a number from 1 to 100"),
        (["dataset=folder", "unreadable=ask"], "unreadable=ask must be stop or skip"),
        (["dataset=folder", "sizes=3"], "sizes"),
        (["dataset=imagenet"], "imagenet has 1000 classes, but .* has 3: .* use dataset=folder"),
    ],
)
def test_what_cannot_be_packed_is_one_sentence(data, pets, tmp_path, arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        data.main(["pack", f"data_dir={pets}", f"output={tmp_path / 'out'}", *arguments])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
