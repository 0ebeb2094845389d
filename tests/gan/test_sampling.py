import pytest
import torch

from isda_repro.gan import Cgan, ImageGenerator, Shape, Wgan
from isda_repro.gan.pictures import grid
from isda_repro.gan.sampling import pixels

SHAPE = Shape(num_classes=3, image_size=8, channels=3)
LABELS = torch.tensor([2, 0, 1, 1, 2, 0, 2])


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[Wgan(width=16), Cgan(width=16)], ids=["one for each class", "one for all"])
def generator(request):
    torch.manual_seed(0)
    count = 3 if request.param.one_for_each_class else 1
    return ImageGenerator(request.param, [request.param.generator(SHAPE) for _ in range(count)], SHAPE)


def test_the_same_draws_make_the_same_images(generator):
    first, second = (generator.sample(LABELS, draws()) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, generator.sample(LABELS, draws(1)))
    assert first.shape == (7, 3, 8, 8)
    assert first.dtype == torch.uint8


def test_an_image_depends_on_its_own_noise_and_label_alone(generator):
    noise, codes = generator.game.draw(7, draws())
    together = generator.made_from(noise, codes, LABELS)
    alone = torch.cat([generator.made_from(noise[i : i + 1], codes[i : i + 1], LABELS[i : i + 1]) for i in range(7)])
    assert (together.int() - alone.int()).abs().max() <= 1, "but for rounding"
    other = generator.made_from(noise, codes, (LABELS + 1) % 3)
    assert (together != other).flatten(1).any(1).all()


def test_of_no_labels_there_are_no_images(generator):
    assert generator.sample(torch.empty(0, dtype=torch.int64), draws()).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes(generator, label):
    with pytest.raises(ValueError, match=r"labels must be among \[0, 1, 2\]"):
        generator.sample(torch.tensor([0, label]), draws())


def test_each_class_has_the_generator_of_its_own():
    torch.manual_seed(0)
    game = Wgan(width=16)
    networks = [game.generator(SHAPE) for _ in range(3)]
    generator = ImageGenerator(game, networks, SHAPE)
    noise, codes = game.draw(7, draws())
    images = generator.made_from(noise, codes, LABELS)
    for index, network in enumerate(networks):
        rows = index == LABELS
        with torch.no_grad():
            assert torch.equal(images[rows], pixels(network(noise[rows])))


def test_images_are_the_pixels_before_they_are_rounded_and_let_gradients_through(generator):
    noise, codes = generator.game.draw(7, draws())
    images = generator.images(noise.requires_grad_(), codes, LABELS)
    assert torch.equal(pixels(images), generator.made_from(noise, codes, LABELS))
    (gradient,) = torch.autograd.grad(images[3].square().sum(), noise)
    assert gradient[3].any()
    assert not gradient[[0, 1, 2, 4, 5, 6]].any(), "of its own noise alone"


def test_generators_of_some_classes_make_those_and_no_others():
    torch.manual_seed(0)
    game = Wgan(width=16)
    of_all = [game.generator(SHAPE) for _ in range(3)]
    some = ImageGenerator(game, [of_all[2], of_all[0]], SHAPE, classes=[2, 0])
    noise, codes = game.draw(4, draws())
    labels = torch.tensor([0, 2, 2, 0])
    assert torch.equal(
        some.made_from(noise, codes, labels), ImageGenerator(game, of_all, SHAPE).made_from(noise, codes, labels)
    )
    with pytest.raises(ValueError, match=r"labels must be among \[2, 0\]"):
        some.sample(torch.tensor([0, 1]), draws())


def test_one_generator_for_all_is_asked_for_no_class():
    torch.manual_seed(0)
    game = Wgan(width=16, one_for_all=True)
    generator = ImageGenerator(game, [game.generator(SHAPE)], SHAPE)
    noise, codes = game.draw(2, draws())
    one, other = (generator.made_from(noise, codes, torch.full((2,), label)) for label in (0, 2))
    assert torch.equal(one, other)
    assert not generator.asked_for_classes
    picture = grid(generator, 0)
    side = picture.shape[1] // 3
    assert not torch.equal(picture[:, :side], picture[:, side : 2 * side]), "each row has noise of its own"


def test_no_labels_no_images(generator):
    assert generator.sample(torch.tensor([], dtype=torch.int64), draws()).shape[0] == 0


def test_pixels():
    assert pixels(torch.tensor([-1.0, -0.999, 0.0, 1.0])).tolist() == [0, 0, 128, 255]
