"""The commands of ``scripts/data.py``: checks of data on disk, sheets of augmented images, packing into archives."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import PECULIAR, make_folder
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from isda_repro.config import build, compose
from isda_repro.data import InMemoryLoader, packing, verify
from isda_repro.data.decode import RULES, decoded
from isda_repro.errors import EXIT_USER_ERROR, UserError


@pytest.fixture(scope="module")
def data(load_script):
    return load_script("data")


@pytest.fixture
def pets(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_folder(tmp_path / "pets")


def without_gaps(sheet):
    """Return the images of a sheet without the gaps: rows and columns that are white throughout."""
    gaps = (sheet == 255).all(0)
    return sheet[:, ~gaps.all(1)][:, :, ~gaps.all(0)]


def test_show_draws_what_training_sees(data, tmp_path):
    file = tmp_path / "new" / "sheet.png"
    settings = ["dataset=digits", "augmentation=autoaugment", "augmentation.cutout.fill=black", "seed=3"]
    data.main(["show", *settings, f"output={file}"])
    sheet, scale = pil_to_tensor(Image.open(file)), 8
    small = sheet[:, ::scale, ::scale]
    assert torch.equal(small.repeat_interleave(scale, 1).repeat_interleave(scale, 2), sheet)

    cfg = compose(settings)
    train = build(cfg.dataset.source).train
    chosen = train.select(torch.tensor([int((train.targets == label).nonzero()[0]) for label in range(10)]))
    pixels = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "device": torch.device("cpu")}
    loader = InMemoryLoader(
        chosen, batch_size=10, augmentation=build(cfg.augmentation), shuffle=False, seed=3, **pixels
    )
    columns = [chosen.images, *(next(loader.epoch(epoch))[0].round().to(torch.uint8) for epoch in range(10))]
    expected = torch.stack(columns).permute(2, 1, 3, 0, 4).reshape(3, 10 * 8, 11 * 8)  # image x version
    assert torch.equal(without_gaps(small), expected)


def test_show_draws_images_in_files(data, pets, tmp_path):
    """Images of 64 pixels keep their size, those of 224 are halved."""
    shown = {}
    for size in (64, 224):
        file = tmp_path / f"{size}.png"
        settings = ["dataset=folder", f"data_dir={pets}", "model=resnet50", f"dataset.image_size={size}"]
        data.main(["show", *settings, "augmentation=none", f"output={file}"])
        shown[size] = without_gaps(pil_to_tensor(Image.open(file))).shape
    assert shown[64] == (3, 3 * 64, 11 * 64)
    assert shown[224][1] == pytest.approx(3 * 112, abs=6)
    assert shown[224][2] == pytest.approx(11 * 112, abs=12)


def test_verify_counts_the_classes(data, capsys):
    data.main(["verify", "dataset=digits"])
    out = capsys.readouterr().out
    assert "1437" in out
    assert "360" in out


def test_verify_decodes_every_image_of_a_folder(data, pets, capsys):
    arguments = ["verify", "dataset=folder", f"data_dir={pets}", "workers=0"]
    data.main(arguments)
    found = verify("folder", pets)
    assert (found.ok, found.name, found.files) == (True, "pets", ())
    assert (found.class_names, found.train_counts, found.test_counts) == (("ant", "bee", "cat"), (8,) * 3, (4,) * 3)
    for name in ("train/bee/3.jpg", "val/cat/0.jpg"):
        (pets / name).write_bytes((pets / name).read_bytes()[:200])
    found = verify("folder", pets)
    assert not found.ok
    capsys.readouterr()
    with pytest.raises(UserError, match="folder"):
        data.main(arguments)
    out = capsys.readouterr().out
    for name, problem in zip(("train/bee/3.jpg", "val/cat/0.jpg"), found.problems, strict=True):
        assert str(pets / name) in problem
        assert problem in out


VERIFY = ["verify", "dataset=folder", "workers=0"]


def faults(data, root, *more):
    """Return the faults that ``verify`` lists; it ends with an error if and only if there are some."""
    found = verify("folder", root, holdout=4 if more else None)
    arguments = [*VERIFY, f"data_dir={root}", *more]
    if found.ok:
        data.main(arguments)
    else:
        with pytest.raises(UserError, match=str(len(found.problems))):
            data.main(arguments)
    return found.problems


def test_verify_reports_by_class_and_extension_what_is_not_used_and_why(data, pets, capsys):
    (pets / "train/ant/0.jpg").rename(pets / "train/ant/0.jfif")
    for name in ("train/ant/notes.txt", "train/ant/._0.jpg", "val/bee/Thumbs.db"):
        (pets / name).write_bytes(b"x")
    assert faults(data, pets) == ()
    out = capsys.readouterr().out.splitlines()
    (ant,) = (line for line in out if line.startswith("class   0"))
    assert all(token in ant for token in ("8 train", "4 test", "ant", "11 .jpg", "1 .jfif", "1 .txt", "1 hidden"))
    assert any("3" in line and "not used" in line for line in out)
    for number, name in ((1, "1.gif"), (2, "2.heic")):
        (pets / f"train/bee/{number}.jpg").rename(pets / "train/bee" / name)
    (pets / "train/loose.png").write_bytes(b"x")
    bee, loose = sorted(faults(data, pets), reverse=True)
    assert "1 .gif" in loose + bee
    assert "train/bee" in bee + loose
    assert "outside of the class folders" in bee + loose


def test_verify_counts_unusual_images_and_names_those_that_would_be_black(data, pets, capsys):
    for number, content in enumerate(PECULIAR.values()):
        (pets / f"train/cat/odd{number}.png").write_bytes(content)
    assert faults(data, pets) == ()
    out = capsys.readouterr().out
    for name in RULES:
        assert name in out
    (orientation,) = (line for line in out.splitlines() if "EXIF orientation" in line)
    assert orientation.split()[0] == "1"
    assert next(line for line in out.splitlines() if "name of another format" in line).split()[0] != "0"
    Image.fromarray(np.full((40, 40), 9, np.uint16)).save(pets / "val/cat/0.png")
    (dark,) = faults(data, pets)
    assert str(pets / "val/cat/0.png") in dark
    assert "black" in dark


def test_verify_finds_images_that_are_trained_and_evaluated_on(data, pets):
    shutil.copy(pets / "train/ant/3.jpg", pets / "val/bee/again.jpg")
    (pair,) = faults(data, pets)
    assert str(pets / "train/ant/3.jpg") in pair
    assert str(pets / "val/bee/again.jpg") in pair
    for number in range(4, 8):
        for name in ("ant", "bee", "cat"):
            shutil.copy(pets / f"train/{name}/{number}.jpg", pets / f"val/{name}/more{number}.jpg")
    assert len(faults(data, pets)) == 11
    shutil.copy(pets / "train/ant/3.jpg", pets / "train/ant/twice.jpg")
    assert len(faults(data, pets)) == 11


def test_verify_lists_every_copy_that_is_evaluated_on(data, pets):
    for name in ("again", "twice"):
        shutil.copy(pets / "train/ant/3.jpg", pets / f"val/bee/{name}.jpg")
    assert ["again" in fault for fault in faults(data, pets)] == [True, False]


@pytest.mark.parametrize("script", ["data", "tables"])
def test_help_whose_reader_has_gone_is_no_error(script):
    command = f"{sys.executable} -u scripts/{script}.py --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_home_folder_of_nobody_is_named(data):
    for dataset in ("folder", "cifar10"):
        with pytest.raises(UserError, match="~nobody-of-this-name/a"):
            data.main(["verify", f"dataset={dataset}", "data_dir=~nobody-of-this-name/a"])


def test_verify_takes_a_holdout_for_a_folder_with_train_alone(data, pets):
    shutil.rmtree(pets / "val")
    with pytest.raises(UserError, match=r"dataset\.holdout"):
        data.main([*VERIFY, f"data_dir={pets}"])
    assert faults(data, pets, "holdout=4") == ()


def test_verify_prints_names_of_any_bytes(root, pets, tmp_path):
    for part in ("train", "val"):
        (pets / part / "bee").rename(pets / part / os.fsdecode(b"caf\xe9\n"))
    for part in ("train", "val"):
        (pets / part / os.fsdecode(b"caf\xe9\n") / os.fsdecode(b"\xff.jpg")).write_bytes(b"no image")
        (pets / part / "cat").rename(pets / part / "größe")
    command = [sys.executable, root / "scripts/data.py", *VERIFY, f"data_dir={pets}"]
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii:strict"}
    ended = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, timeout=120)
    assert ended.returncode == EXIT_USER_ERROR
    assert b"gr\\xf6\\xdfe" in ended.stdout
    assert ended.stdout.count(b"caf\\xe9\\n/\\xff.jpg cannot be read") == 2


def test_verify_finds_an_imagenet_of_too_few_images(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make_folder(
        tmp_path / "imagenet", train=1, val=1, classes=[f"n{i:04}" for i in range(1000)], extension="png"
    )
    found = verify("imagenet", root)
    assert [problem.split()[0] for problem in found.problems] == ["train", "val"]
    assert not found.ok
    assert sum(found.train_counts) == 1000


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_packed_folder_is_trained_on_verified_and_mended(data, pets, tmp_path, capsys, kind):
    output = tmp_path / "packed" / "pets"
    (pets / "train/bee/3.jpg").write_bytes(b"no image")
    pack = ["pack", "dataset=folder", f"data_dir={pets}", f"output={output}", f"format={kind}", "size=32", "quality=50"]
    pack += ["images_per_archive=10", "workers=0", "unreadable=skip"]
    data.main(pack)
    assert len(list(output.glob("train-*.zip"))) == 3
    packed = build(compose(["dataset=folder", f"data_dir={output}", "model=resnet50"]).dataset.source).train
    assert len(packed) == 23
    assert min(decoded(packed.read(0)).shape[:2]) <= 32
    assert packed.where(0).endswith({"raw": ".ppm", "jpeg": ".jpg"}[kind])
    check = ["verify", "dataset=folder", f"data_dir={output}", "workers=0"]
    data.main(check)
    capsys.readouterr()

    archive = output / "train-00000.zip"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 255
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.zip"):
        data.main(check)
    archive.unlink()
    data.main(pack)
    data.main(check)


def test_speed_up_is_the_time_of_the_files_over_that_of_the_archives(monkeypatch):
    """A fake clock advances 3 s for each image in a file, and 1 s for each one in an archive."""

    class Images:
        def __init__(self, seconds):
            self.seconds = seconds

        def __len__(self):
            return 5

        def read(self, index):
            clock.append(clock[-1] + self.seconds)
            return b"P6 1 1 255 abc"

    clock = [0.0]
    monkeypatch.setattr(packing.time, "perf_counter", lambda: clock[-1])
    assert packing.speed_up(Images(3.0), Images(1.0), 8) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("arguments", "token"),
    [
        ([], "verify"),
        (["look"], "verify"),
        (["show", "dataset=digits", "output=sheet.jpg"], "sheet.jpg"),
        (["show", "dataset=digits", "augmentation=mixup"], "augmentation="),
        (["verify", "dataset=mnist"], "mnist"),
        (["verify"], "dataset="),
        (["pack", "dataset=cifar10"], "cifar10"),
        (["pack", "dataset=folder", "format=png"], "format=png"),
        (["pack", "dataset=folder", "quality=0"], "quality=0"),
        (["pack", "dataset=folder", "unreadable=ask"], "unreadable=ask"),
        (["pack", "dataset=folder", "sizes=3"], "sizes"),
        (["pack", "dataset=imagenet"], "1000"),
    ],
)
def test_bad_command_lines_end_with_the_status_of_a_user_error(
    pets, root, tmp_path, monkeypatch, arguments, token, capsys
):
    if arguments[:1] == ["pack"]:
        arguments = [*arguments, f"data_dir={pets}", f"output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["data.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(root / "scripts/data.py"), run_name="__main__")
    assert caught.value.code == EXIT_USER_ERROR
    assert token in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
