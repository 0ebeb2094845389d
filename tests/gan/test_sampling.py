"""Trained generators as a source of labelled images."""

import pytest
import torch

from isda_repro.gan import Cgan, ImageGenerator, Shape, Wgan
from isda_repro.gan import sampling as module
from isda_repro.gan.sampling import pixels

SHAPE = Shape(num_classes=3, image_size=8, channels=3)
LABELS = torch.tensor([2, 0, 1, 1, 2, 0, 2])


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def made(game, count, **more):
    torch.manual_seed(0)
    return ImageGenerator(game, [game.generator(SHAPE) for _ in range(count)], SHAPE, **more)


@pytest.fixture(params=[(Wgan(width=16), 3), (Cgan(width=16), 1)], ids=["one for each class", "one for all"])
def generator(request):
    return made(*request.param)


def test_images_follow_from_the_draws_and_a_part_is_the_same_as_in_the_whole(generator):
    whole = generator.sample(LABELS, draws())
    assert (whole.shape, whole.dtype) == ((7, 3, 8, 8), torch.uint8)
    assert torch.equal(whole, generator.sample(LABELS, draws()))
    assert not torch.equal(whole, generator.sample(LABELS, draws(1)))
    part = generator.sample(LABELS, draws(), slice(2, 5))
    assert (part.int() - whole[2:5].int()).abs().max() <= 1, "but for rounding"
    assert generator.sample(LABELS[:0], draws()).shape == (0, 3, 8, 8)


def test_image_depends_on_its_own_noise_and_label_alone(generator, monkeypatch):
    noise, codes = generator.game.draw(7, draws())
    together = generator.made_from(noise, codes, LABELS)
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 1)
    assert (together.int() - generator.made_from(noise, codes, LABELS).int()).abs().max() <= 1, "but for rounding"
    other = generator.made_from(noise, codes, (LABELS + 1) % 3)
    assert (together != other).flatten(1).any(1).all()


def test_gradient_of_an_image_reaches_its_own_noise_alone(generator):
    noise, codes = generator.game.draw(7, draws())
    images = generator.images(noise.requires_grad_(), codes, LABELS)
    assert torch.equal(pixels(images), generator.made_from(noise, codes, LABELS))
    (gradient,) = torch.autograd.grad(images[3].square().sum(), noise)
    assert gradient[3].any()
    assert not gradient[[0, 1, 2, 4, 5, 6]].any()


@pytest.mark.parametrize("classes", [None, [2, 0, 1]])
def test_each_class_is_made_by_the_generator_of_its_own(classes):
    generator = made(Wgan(width=16), 3, classes=classes)
    noise, codes = generator.game.draw(7, draws())
    for labels in (LABELS, torch.full((7,), 2)):
        images = generator.made_from(noise, codes, labels)
        for index, network in zip(classes or range(3), generator.generators, strict=True):
            with torch.no_grad():
                expected = pixels(network(noise[index == labels])) if (index == labels).any() else images[:0]
            assert torch.equal(images[index == labels], expected)


@pytest.mark.parametrize("label", [-1, 1, 3])
def test_label_of_a_class_that_is_not_made_is_refused(label):
    with pytest.raises(ValueError, match="labels"):
        made(Wgan(width=16), 2, classes=[2, 0]).sample(torch.tensor([0, label]), draws())


def test_generators_are_asked_for_classes_unless_one_that_is_told_none_makes_all():
    asked = [made(game, 1).asked_for_classes for game in (Wgan(width=16), Cgan(width=16))]
    alone = made(Wgan(width=16, one_for_all=True), 1)
    assert (asked, alone.asked_for_classes) == ([True, True], False)
    noise, codes = alone.game.draw(2, draws())
    one, other = (alone.made_from(noise, codes, torch.full((2,), label)) for label in (0, 2))
    assert torch.equal(one, other)


def test_pixels_are_rounded_and_stay_in_their_range():
    assert pixels(torch.tensor([-1.5, -1.0, -0.999, 0.0, 0.0079, 1.0, 1.5])).tolist() == [0, 0, 0, 128, 129, 255, 255]
