"""Mixup: mixtures follow from (seed, epoch, position) alone, whichever process or loader makes them."""

import pytest
import torch
from batches import same
from pictures import make_folder

from isda_repro.data import (
    AutoAugment,
    Chain,
    Crop,
    Cutout,
    InMemoryLoader,
    Mixup,
    PadCropFlip,
    Share,
    Split,
    StreamingLoader,
    load_folder,
)
from isda_repro.randomness import stream_seed

CPU = torch.device("cpu")
N, CLASSES, BATCH = 75, 5, 32  # batches of 32, 32 and 11
MIXUP = Mixup(0.4, CLASSES)


@pytest.fixture(scope="module")
def split():
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, 16, 16), dtype=torch.uint8, generator=draws)
    return Split(images, torch.randint(CLASSES, (N,), generator=draws))


def loader(split, **options):
    crop_and_cutout = Chain(crop=PadCropFlip(), cutout=Cutout(4))
    options = {"augmentation": crop_and_cutout, "mixup": MIXUP, "shuffle": True, "seed": 3} | options
    return InMemoryLoader(split, batch_size=BATCH, mean=(0.5,) * 3, std=(0.2,) * 3, device=CPU, **options)


def joined(parts, step):
    return [torch.cat(tensors) for tensors in zip(*(part[step] for part in parts), strict=True)]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_have_the_moments_of_the_beta_distribution_and_partners_are_a_permutation(alpha):
    draws = Mixup(alpha, CLASSES).draw(40_001, 4, seed=1)
    shares = draws["mixup_share"][:-1].view(-1, 4)
    assert draws["mixup_share"].dtype == torch.float32
    assert (shares == shares[:, :1]).all(), "one share for each batch, as in the authors' code"
    assert shares.double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares[:, 0].double().var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    partners = draws["mixup_partner"][:-1].view(-1, 4)
    assert (partners.sort(1).values == torch.arange(4)).all()
    assert len(partners.unique(dim=0)) == 24
    assert draws["mixup_partner"][-1] == 0, "the last batch has one sample"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batches_are_mixtures_of_the_batches_without_mixup(split, memory_format):
    plain = list(loader(split, mixup=None).epoch(2))
    draws = MIXUP.draw(N, BATCH, stream_seed(3, "mixup", 2))
    used = loader(split, memory_format=memory_format)
    for step, (images, targets) in enumerate(used.epoch(2)):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        share, partner = draws["mixup_share"][rows].double(), draws["mixup_partner"][rows]
        pixels, labels = plain[step]
        others, classes = pixels.double()[partner], torch.eye(CLASSES, dtype=torch.float64)
        mixed = share[:, None, None, None] * pixels.double() + (1 - share)[:, None, None, None] * others
        torch.testing.assert_close(images.double(), mixed, rtol=1e-6, atol=1e-6)
        expected = share[:, None] * classes[labels] + (1 - share)[:, None] * classes[labels[partner]]
        torch.testing.assert_close(targets.double(), expected, rtol=1e-6, atol=1e-7)
        assert targets.dtype == torch.float32
        assert images.is_contiguous(memory_format=memory_format)
    for first_step in (1, 2, 3):
        assert same(used.epoch(2, first_step), list(used.epoch(2))[first_step:])
    assert not same(used.epoch(2), used.epoch(1))


def test_batches_of_a_captured_step_are_those_of_the_epoch(split):
    used = loader(split)
    assert used.has_static_batches
    numbers = list(used.numbers_of_batches(1, 1))
    assert all(one.dtype == torch.int64 for one in numbers)
    assert same(map(used.batch_from, numbers), used.epoch(1, 1))


@pytest.mark.parametrize("world_size", [2, 3, 40])
def test_batches_of_several_processes_are_those_of_one(split, world_size):
    for augmentation in (PadCropFlip(), Chain(policy=AutoAugment(), cutout=Cutout(4))):
        whole = list(loader(split, augmentation=augmentation).epoch(1, 1))
        shares = [Share(rank, world_size) for rank in range(world_size)]
        loaders = [loader(split, share=share, augmentation=augmentation) for share in shares]
        parts = [list(one.epoch(1, 1)) for one in loaders]
        for step, batch in enumerate(whole):
            assert same([joined(parts, step)], [batch])
            assert loaders[-1].part_of(step + 1) == (len(batch[0]) - len(parts[-1][step][1]), len(batch[0]))


# -------------------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "pets", train=13)  # 39 images: batches of 8, the last of 7


def streaming(root, workers=0, **options):
    files = load_folder("pets", root, image_size=12).train
    options = {"mixup": Mixup(1.0, 3), "augmentation": Chain(policy=AutoAugment("imagenet")), "seed": 5} | options
    constants = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    of_files = {"crop": Crop(12, flip=True), "workers": workers, "batch_size": 8, "shuffle": True, "device": CPU}
    return StreamingLoader(files, **of_files, **constants, **options)


def test_files_are_mixed_as_images_in_memory_are(root):
    plain = list(streaming(root, mixup=None).epoch(0))
    draws = Mixup(1.0, 3).draw(39, 8, stream_seed(5, "mixup", 0))
    for step, (images, targets) in enumerate(streaming(root).epoch(0)):
        here = {name: numbers[8 * step : 8 * step + 8] for name, numbers in draws.items()}
        assert same([(images, targets)], [Mixup(1.0, 3).mix(*plain[step], here, len(images))])


@pytest.mark.parametrize(("world_size", "workers"), [(2, 2), (3, 0), (8, 1)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_streamed_batches_of_several_processes_are_those_of_one(root, world_size, workers):
    whole = list(streaming(root).epoch(1, 2))
    parts = [list(streaming(root, workers, share=Share(rank, world_size)).epoch(1, 2)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        assert same([joined(parts, step)], [batch])


def test_an_image_whose_partner_cannot_be_read_stays_as_it_is(tmp_path):
    root = make_folder(tmp_path / "pets", train=13)
    whole, plain = list(streaming(root).epoch(0)), list(streaming(root, mixup=None).epoch(0))
    for name in ("ant/0.jpg", "bee/7.jpg", "cat/12.jpg"):
        (root / "train" / name).write_bytes(b"text, not an image")
    skipping = streaming(root, unreadable="skip")
    found, files = list(skipping.epoch(0)), load_folder("pets", root, image_size=12).train
    is_bad = [files.where(index) in skipping.unreadable for index in skipping._order(0).tolist()]
    assert sum(is_bad) == 3
    partners = Mixup(1.0, 3).draw(39, 8, stream_seed(5, "mixup", 0))["mixup_partner"].tolist()
    unmixed = 0
    for step, (images, targets) in enumerate(found):
        rows = range(8 * step, min(8 * step + 8, 39))
        kept = [row for row in rows if not is_bad[row]]
        assert len(images) == len(kept)
        for image, target, row in zip(images, targets, kept, strict=True):
            place, is_alone = row - rows.start, is_bad[rows.start + partners[row]]
            unmixed += int(is_alone)
            pixels, expected = (plain if is_alone else whole)[step][0][place], whole[step][1][place]
            if is_alone:
                expected = torch.eye(3)[plain[step][1][place]]
            torch.testing.assert_close(image, pixels, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(target, expected)
    assert unmixed == 3
    several = [list(streaming(root, share=Share(rank, 2), unreadable="skip").epoch(0)) for rank in range(2)]
    for step, batch in enumerate(found):
        assert same([joined(several, step)], [batch])
