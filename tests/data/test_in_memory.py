"""Batches of images in memory depend on (seed, epoch, position) alone."""

import pytest
import torch
from batches import same

from isda_repro.data import AutoAugment, Chain, Cutout, DataError, InMemoryLoader, PadCropFlip, Share, Split, in_memory
from isda_repro.errors import UserError
from isda_repro.randomness import stream_seed

CPU = torch.device("cpu")
N = 150  # four batches of 32, and one of 22
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # normalised values equal the pixels


@pytest.fixture(scope="module")
def split():
    images = torch.randint(0, 256, (N, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(N))  # the label identifies the image


def loader(split, *, seed=0, **options):
    options = {"batch_size": 32, "augmentation": PadCropFlip(), "shuffle": True, "device": CPU, **IDENTITY} | options
    return InMemoryLoader(split, seed=seed, **options)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("augmentation", [None, PadCropFlip(), PadCropFlip(padding_mode="reflect")])
def test_batches_are_the_augmented_images_in_the_order_of_the_epoch(split, memory_format, augmentation):
    """The expected batches use the streams' names, on which committed results depend."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(stream_seed(7, "order", 3)))
    expected = split.images[order]
    if augmentation is not None:
        generator = torch.Generator().manual_seed(stream_seed(7, "augmentation", 3))
        expected = augmentation.apply(expected, augmentation.draw(N, (16, 16), generator))
    used = loader(split, seed=7, augmentation=augmentation, memory_format=memory_format)
    batches = list(used.epoch(3))
    assert [len(targets) for _, targets in batches] == [32, 32, 32, 32, 22]
    assert (used.steps_per_epoch, used.num_samples) == (5, N)
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), expected.float())
    assert torch.equal(torch.cat([targets for _, targets in batches]), order)
    for images, targets in batches:
        assert (images.dtype, targets.dtype) == (torch.float32, torch.int64)
        assert images.is_contiguous(memory_format=memory_format)
    for first_step in range(6):
        assert same(used.epoch(3, first_step), batches[first_step:])


def test_epoch_of_several_passes_has_each_image_once_a_pass_in_another_order(split):
    several = loader(split, passes=3)
    targets = torch.cat([targets for _, targets in several.epoch(1)])
    assert several.num_samples == 3 * N
    assert several.steps_per_epoch == -(-3 * N // several.batch_size)
    passes = targets.view(3, N)
    assert all(torch.equal(one.sort().values, split.targets.sort().values) for one in passes)
    assert not torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[1], passes[2])
    one = torch.cat([targets for _, targets in loader(split).epoch(1)])
    assert torch.equal(passes[0], one)  # the first pass equals an epoch of one pass
    assert same(list(several.epoch(1))[4:], several.epoch(1, 4))


def test_batches_depend_on_seed_and_epoch_and_on_nothing_that_happened_before(split):
    used = loader(split)
    list(used.epoch(0))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches = list(used.epoch(2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert same(loader(split).epoch(2), batches)
    assert not same(loader(split).epoch(1), batches)
    assert not same(loader(split, seed=1).epoch(2), batches)


@pytest.mark.parametrize("fill", ["mean", "black"])
def test_augmenting_several_batches_at_once_changes_nothing(split, fill, monkeypatch):
    chain = Chain(crop=PadCropFlip(), policy=AutoAugment(), cutout=Cutout(8, fill))
    options = {"augmentation": chain, "seed": 3, "std": (0.2, 0.3, 0.4), "mean": (0.5, 0.4, 0.3)}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        monkeypatch.setattr(in_memory, "WINDOW_BYTES", 1)
        batches = list(loader(split, memory_format=memory_format, **options).epoch(1))
        for window in (3 * 32 * 3 * 256, 2**24):  # three batches; the whole epoch
            monkeypatch.setattr(in_memory, "WINDOW_BYTES", window)
            windowed = loader(split, memory_format=memory_format, **options)
            assert windowed._steps_at_once == window // (32 * 3 * 256)
            assert same(windowed.epoch(1), batches)
            for first_step in (1, 2, 4, 5):
                assert same(windowed.epoch(1, first_step), batches[first_step:])
        assert all(images.is_contiguous(memory_format=memory_format) for images, _ in batches)


def test_evaluation_has_the_natural_order_at_any_batch_size(split):
    for batch_size in (1, 64, N, 10 * N):
        batches = list(loader(split, batch_size=batch_size, shuffle=False, augmentation=None).epoch(0))
        assert len(batches) == -(-N // batch_size)
        assert torch.equal(torch.cat([targets for _, targets in batches]), split.targets)
        torch.testing.assert_close(torch.cat([images for images, _ in batches]), split.images.float())


def test_images_survive_what_is_done_to_a_batch(split):
    before = split.images.clone()
    evaluation = loader(split, shuffle=False, augmentation=None)
    for images, targets in evaluation.epoch(0):
        images.zero_()
        assert targets is not split.targets
    assert torch.equal(split.images, before)
    torch.testing.assert_close(next(iter(evaluation.epoch(0)))[0], split.images[:32].float())


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_on_a_gpu_the_batches_are_the_same_and_nothing_waits(split, memory_format, mode):
    options = {"augmentation": PadCropFlip(padding_mode=mode), "memory_format": memory_format}
    batches = loader(split, device=torch.device("cuda"), **options).epoch(0)
    on_gpu = [next(batches)]  # copies the epoch's order and draws to the GPU
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu += list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, targets), (expected, labels) in zip(on_gpu, loader(split, **options).epoch(0), strict=True):
        assert images.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(images.cpu(), expected)
        assert torch.equal(targets.cpu(), labels)


@pytest.mark.parametrize("crop", [None, PadCropFlip()])
@pytest.mark.parametrize("world_size", [2, 3, 50])
def test_batches_of_several_processes_are_those_of_one(split, world_size, crop):
    augmentation = Chain(crop=crop, cutout=Cutout(4)) if crop else Chain(policy=AutoAugment(), cutout=Cutout(4))
    for shuffle in (True, False):
        options = {"augmentation": augmentation, "shuffle": shuffle}
        whole = list(loader(split, **options).epoch(1, 2))
        loaders = [loader(split, share=Share(rank, world_size), **options) for rank in range(world_size)]
        parts = [list(one.epoch(1, 2)) for one in loaders]
        for step, (pixels, targets) in enumerate(whole):
            assert torch.equal(torch.cat([part[step][0] for part in parts]), pixels)
            assert torch.equal(torch.cat([part[step][1] for part in parts]), targets)
            sizes = [len(part[step][1]) for part in parts]
            assert max(sizes) - min(sizes) <= 1
            places = [(sum(sizes[:rank]), len(targets)) for rank in range(world_size)]
            assert [one.part_of(step + 2) for one in loaders] == places


@pytest.mark.parametrize(
    ("options", "error", "tokens"),
    [
        ({"batch_size": N + 1}, DataError, ["151", "150"]),
        ({"batch_size": 0}, DataError, ["0"]),
        ({"mean": (0.5,), "std": (0.5,)}, UserError, ["3", "1"]),
    ],
)
def test_bad_settings_of_a_loader_are_named(split, options, error, tokens):
    with pytest.raises(error) as caught:
        loader(split, **options)
    assert all(token in str(caught.value) for token in tokens)


@pytest.mark.parametrize("first_step", [-1, 6])
def test_step_outside_the_epoch_is_refused(split, first_step):
    with pytest.raises(ValueError, match=f"first_step={first_step}"):
        loader(split).epoch(0, first_step)
