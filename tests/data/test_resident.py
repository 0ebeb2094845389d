"""Batches as functions of (seed, epoch, position) alone."""

import pytest
import torch

from isda_repro.data import AutoAugment, Chain, Cutout, DataError, PadCropFlip, ResidentLoader, Split, resident
from isda_repro.errors import UserError

CPU = torch.device("cpu")
N = 150  # batches of 32: four whole ones and one of 22
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # normalised floats are the pixel values


@pytest.fixture(scope="module")
def split():
    images = torch.randint(0, 256, (N, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(N))  # the label names the image


def loader(split, *, seed=0, **options):
    options = {"batch_size": 32, "augmentation": PadCropFlip(), "shuffle": True, "device": CPU, **IDENTITY} | options
    return ResidentLoader(split, seed=seed, **options)


def same(batches, others):
    batches, others = list(batches), list(others)
    return len(batches) == len(others) and all(
        torch.equal(a, b) for one, other in zip(batches, others, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_every_sample_once_and_the_last_batch_is_partial(split):
    batches = list(loader(split).epoch(0))
    assert [len(targets) for _, targets in batches] == [32, 32, 32, 32, 22]
    assert loader(split).steps_per_epoch == len(batches)
    assert loader(split).num_samples == N
    targets = torch.cat([targets for _, targets in batches])
    assert not torch.equal(targets, torch.arange(N))
    assert torch.equal(targets.sort().values, torch.arange(N))
    assert all(images.dtype == torch.float32 and targets.dtype == torch.int64 for images, targets in batches)


def test_images_belong_to_their_labels(split):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for images, targets in loader(split, augmentation=None, memory_format=memory_format).epoch(0):
            torch.testing.assert_close(images, split.images[targets].float())


def test_augmented_images_are_the_augmentation_of_the_images_in_order(split):
    # Written out with the streams' names: these are part of what a committed result means.
    from isda_repro.randomness import stream_seed

    order = torch.randperm(N, generator=torch.Generator().manual_seed(stream_seed(7, "order", 3)))
    augmentation = PadCropFlip()
    generator = torch.Generator().manual_seed(stream_seed(7, "augmentation", 3))
    expected = augmentation.apply(split.images[order], augmentation.draw(N, (16, 16), generator))
    batches = list(loader(split, seed=7).epoch(3))
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), expected.float())
    assert torch.equal(torch.cat([targets for _, targets in batches]), order)


def test_an_epoch_of_several_passes_has_each_image_once_a_pass_in_another_order(split):
    several = loader(split, passes=3)
    targets = torch.cat([targets for _, targets in several.epoch(1)])
    assert several.num_samples == 3 * N
    assert several.steps_per_epoch == -(-3 * N // several.batch_size)
    passes = targets.view(3, N)
    assert all(torch.equal(one.sort().values, split.targets.sort().values) for one in passes)
    assert not torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[1], passes[2])
    one = torch.cat([targets for _, targets in loader(split).epoch(1)])
    assert torch.equal(passes[0], one)  # the first pass is that of an epoch of one
    assert same(list(several.epoch(1))[4:], several.epoch(1, 4))


def test_same_seed_same_batches_other_epoch_or_seed_other_batches(split):
    assert same(loader(split).epoch(2), loader(split).epoch(2))
    used = loader(split)
    list(used.epoch(0))
    assert same(used.epoch(2), loader(split).epoch(2))  # nothing that happened before matters
    assert not same(loader(split).epoch(2), loader(split).epoch(1))
    assert not same(loader(split).epoch(2), loader(split, seed=1).epoch(2))


@pytest.mark.parametrize("fill", ["mean", "black"])
def test_windows_of_batches_change_nothing(split, fill, monkeypatch):
    chain = Chain(crop=PadCropFlip(), policy=AutoAugment(), cutout=Cutout(8, fill))
    options = {"augmentation": chain, "seed": 3, "std": (0.2, 0.3, 0.4), "mean": (0.5, 0.4, 0.3)}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        monkeypatch.setattr(resident, "WINDOW_BYTES", 1)
        batches = list(loader(split, memory_format=memory_format, **options).epoch(1))
        for window in (3 * 32 * 3 * 256, 2**24):  # three batches, the whole epoch
            monkeypatch.setattr(resident, "WINDOW_BYTES", window)
            windowed = loader(split, memory_format=memory_format, **options)
            assert same(windowed.epoch(1), batches)
            for first_step in (1, 2, 4, 5):
                assert same(windowed.epoch(1, first_step), batches[first_step:])
        assert all(images.is_contiguous(memory_format=memory_format) for images, _ in batches)


def test_global_generator_is_neither_used_nor_moved(split):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = list(loader(split).epoch(0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert same(loader(split).epoch(0), first)


def test_augmentation_does_not_change_the_order(split):
    plain = [targets for _, targets in loader(split, augmentation=None).epoch(1)]
    augmented = [targets for _, targets in loader(split).epoch(1)]
    assert all(torch.equal(a, b) for a, b in zip(plain, augmented, strict=True))


@pytest.mark.parametrize("first_step", range(6))
def test_from_the_middle_of_an_epoch(split, first_step):
    assert same(loader(split).epoch(4, first_step), list(loader(split).epoch(4))[first_step:])


@pytest.mark.parametrize("augmentation", [None, PadCropFlip(), PadCropFlip(padding_mode="reflect")])
def test_channels_last_is_the_same_numbers(split, augmentation):
    options = {"augmentation": augmentation, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
    contiguous = list(loader(split, **options).epoch(0))
    channels_last = list(loader(split, memory_format=torch.channels_last, **options).epoch(0))
    assert same(contiguous, channels_last)
    assert all(images.is_contiguous() for images, _ in contiguous)
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in channels_last)


def test_evaluation_is_in_natural_order_with_a_batch_of_any_size(split):
    for batch_size in (1, 64, N, 10 * N):
        batches = list(loader(split, batch_size=batch_size, shuffle=False, augmentation=None).epoch(0))
        assert len(batches) == -(-N // batch_size)
        assert torch.equal(torch.cat([targets for _, targets in batches]), split.targets)
        torch.testing.assert_close(torch.cat([images for images, _ in batches]), split.images.float())


def test_resident_images_survive_what_is_done_to_a_batch(split):
    before = split.images.clone()
    evaluation = loader(split, shuffle=False, augmentation=None)
    for images, targets in evaluation.epoch(0):
        images.zero_()
        assert targets is not split.targets
    assert torch.equal(split.images, before)
    torch.testing.assert_close(next(iter(evaluation.epoch(0)))[0], split.images[:32].float())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_on_a_gpu_the_batches_are_the_same_and_nothing_waits(split, memory_format, mode):
    options = {"augmentation": PadCropFlip(padding_mode=mode), "memory_format": memory_format}
    batches = loader(split, device=torch.device("cuda"), **options).epoch(0)
    on_gpu = [next(batches)]  # moves the epoch's order and draws
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu += list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, targets), (expected, labels) in zip(on_gpu, loader(split, **options).epoch(0), strict=True):
        assert images.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(images.cpu(), expected)
        assert torch.equal(targets.cpu(), labels)


def test_bad_arguments_are_one_sentence(split):
    with pytest.raises(DataError, match=r"^The batch size 151 is larger than the 150 training images .*\.$"):
        loader(split, batch_size=N + 1)
    with pytest.raises(DataError, match=r"^A batch must hold at least one image, but the batch size is 0\.$"):
        loader(split, batch_size=0)
    with pytest.raises(UserError, match=r"^The images have 3 channels, but mean and std have 1\.$"):
        loader(split, mean=(0.5,), std=(0.5,))
    for first_step in (-1, 6):
        with pytest.raises(ValueError, match=rf"^first_step={first_step} is outside the epoch's 5 steps\.$"):
            loader(split).epoch(0, first_step)
