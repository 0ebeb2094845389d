"""Generated images among real ones: their number, positions, classes and random draws."""

from fractions import Fraction
from itertools import chain

import pytest
import torch

from isda_repro.data import Cutout, InMemoryLoader, PadCropFlip, Share, Split, Synthetic
from isda_repro.errors import UserError

N, CLASSES = 53, 4


class Marks:
    """A source of grey images, one shade for each class, whose first pixel is random."""

    def __init__(self):
        self.asked = []

    def sample(self, labels, generator, part=slice(None)):
        self.asked.append(labels.tolist())
        images = (200 + 10 * labels).to(torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8)
        images[:, :, 0, 0] = torch.randint(100, (len(labels), 3), generator=generator).to(torch.uint8) + 100
        return images[part]


def split(samples=N):
    """Return dark images that contain their own index."""
    images = torch.zeros(samples, 3, 8, 8, dtype=torch.uint8)
    images[:] = torch.arange(samples)[:, None, None, None]
    return Split(images, torch.arange(samples) % CLASSES)


def loader(synthetic, *, batch_size=10, share=None, augmentation=None, **options):
    return InMemoryLoader(
        split(),
        batch_size=batch_size,
        mean=[0.0] * 3,
        std=[1 / 255] * 3,
        augmentation=augmentation,
        shuffle=True,
        seed=3,
        device=torch.device("cpu"),
        share=share or Share(),
        synthetic=synthetic,
        **options,
    )


def epoch(source, number=1, first=0):
    return [(images.round().long(), targets) for images, targets in source.epoch(number, first)]


def is_generated(images):
    return images[:, 0, 4, 4] >= 200


@pytest.mark.parametrize("size", [1, 6, 10, 12, 53])
@pytest.mark.parametrize("share", [1 / 6, 0.16666667, 0.5, 0.9])
def test_each_batch_has_its_share_and_the_epoch_exactly(size, share):
    """Batch t of size N has floor((t + 1) N f) - floor(t N f) generated images."""
    exact = Fraction(share).limit_denominator(1000)
    batches = epoch(loader(Synthetic(Marks(), share), batch_size=size))
    counts = [int(is_generated(images).sum()) for images, _ in batches]
    ends = [min((t + 1) * size, N) for t in range(len(batches))]
    assert counts == [
        int(end * exact) - int(max(0, end - len(b[0])) * exact) for end, b in zip(ends, batches, strict=True)
    ]
    assert sum(counts) == int(N * exact)
    assert int(Synthetic(Marks(), share).positions(N).sum()) == sum(counts)


def test_sixth_of_128_is_21_or_22():
    positions = Synthetic(Marks(), 0.16666667).positions(6 * 128)
    assert positions.reshape(6, 128).sum(1).tolist() == [21, 21, 22, 21, 21, 22]


def test_generated_image_has_the_class_of_the_real_one_in_whose_place_it_is():
    """The labels therefore equal those of a run without generated images, batch by batch."""
    source = Marks()
    mixed, real = epoch(loader(Synthetic(source, 1 / 6))), epoch(loader(None))
    for (images, targets), (others, other_targets) in zip(mixed, real, strict=True):
        assert torch.equal(targets, other_targets)
        made = is_generated(images)
        assert torch.equal(images[~made], others[~made])
        assert torch.equal(images[made][:, 0, 4, 4], 200 + 10 * targets[made])
    assert list(chain.from_iterable(source.asked)) == [int(t) for i, ts in mixed for t in ts[is_generated(i)]]


def test_each_epoch_replaces_others_and_draws_anew():
    source = loader(Synthetic(Marks(), 1 / 6))
    first, again, second = (epoch(source, number) for number in (1, 1, 2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    shown = [
        {int(i) for images, _ in one for i in images[~is_generated(images)][:, 0, 4, 4]} for one in (first, second)
    ]
    assert [len(one) for one in shown] == [N - N // 6] * 2
    assert shown[0] != shown[1]
    drawn = [torch.cat([images[is_generated(images)][:, :, 0, 0] for images, _ in one]) for one in (first, second)]
    assert not torch.equal(drawn[0], drawn[1])
    firsts = [tuple(images[is_generated(images)][0, :, 0, 0].tolist()) for images, _ in first[1:-1]]
    assert len(set(firsts)) == len(firsts)  # each step has its own draws


def test_covers_all_shows_every_real_image_and_takes_more_steps():
    source = loader(Synthetic(Marks(), 1 / 6, covers_all=True))
    assert source.num_samples == 63
    batches = epoch(source)
    assert sum(int(is_generated(images).sum()) for images, _ in batches) == 63 // 6 == 63 - N
    shown = sorted(int(i) for images, _ in batches for i in images[~is_generated(images)][:, 0, 4, 4])
    assert shown == list(range(N))


@pytest.mark.parametrize("share", [1 / 6, 2 / 7, 0.5, 0.9])
def test_epoch_that_covers_all_has_as_many_real_images_as_there_are(share):
    for real in range(1, 40):
        made = Synthetic(Marks(), share, covers_all=True)
        samples = made.samples_of_epoch(real)
        assert samples - int(made.positions(samples).sum()) == real
        assert Synthetic(Marks(), share).samples_of_epoch(real) == real


@pytest.mark.parametrize("world", [2, 3, 7])
@pytest.mark.parametrize("covers_all", [False, True])
def test_any_number_of_processes_has_the_images_of_one(world, covers_all):
    whole = epoch(loader(Synthetic(Marks(), 1 / 6, covers_all=covers_all)))
    parts = [
        epoch(loader(Synthetic(Marks(), 1 / 6, covers_all=covers_all), share=Share(rank, world)))
        for rank in range(world)
    ]
    for step, (images, targets) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), targets)


def test_epoch_begun_in_the_middle_goes_on_with_the_same_images():
    source = loader(Synthetic(Marks(), 1 / 6), augmentation=PadCropFlip())
    whole, rest = epoch(source), epoch(source, first=2)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[2:], rest, strict=True))


def test_generated_images_are_augmented_like_real_ones():
    """Cutout's hole is mean grey after normalisation, and 0 with the constants used here."""
    batches = epoch(loader(Synthetic(Marks(), 1 / 6), augmentation=Cutout(length=4)))
    for images, _ in batches:
        made = images[(images >= 200).flatten(1).any(1)]
        assert (made == 0).flatten(1).any(1).all()


def test_several_batches_at_a_time_are_the_same_and_the_stored_images_stay():
    source = loader(Synthetic(Marks(), 0.5))
    stored, one_by_one = source._stored.clone(), epoch(source)
    source._steps_at_once = 4
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one_by_one, epoch(source), strict=True))
    assert torch.equal(source._stored, stored)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1e-9, -0.5])
def test_share_that_is_none_or_all_is_named(fraction):
    with pytest.raises(UserError, match=rf"synthetic\.fraction={fraction}"):
        Synthetic(Marks(), fraction)
