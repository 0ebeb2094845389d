"""The losses of each game against the equations of its paper, written out in float64."""

import math

import pytest
import torch

from isda_repro.errors import UserError
from isda_repro.gan import Acgan, Cgan, InfoGan, Judgement, Shape, Wgan

N, C = 7, 4
DRAWS = torch.Generator().manual_seed(3)


def numbers(*shape):
    return torch.randn(*shape, generator=DRAWS, dtype=torch.float64)


TARGETS = torch.arange(N) % C
CODES = numbers(N, 2)
REAL, FAKE = (Judgement(numbers(N), numbers(N, C), numbers(N, 2)) for _ in range(2))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def mean(tensor):
    return sum(tensor.tolist()) / len(tensor)


def binary(scores, real):
    """Return the loss of Goodfellow et al. 2014: the mean of -log D, or of -log(1 - D)."""
    return sum(-math.log(sigmoid(x) if real else 1 - sigmoid(x)) for x in scores.tolist()) / len(scores)


def named(judged):
    """Return the negative of L_C of Odena et al. 2017 for the true classes: the mean of -log P(C = c)."""
    rows = judged.classes.tolist()
    return sum(math.log(sum(map(math.exp, row))) - row[c] for row, c in zip(rows, TARGETS.tolist(), strict=True)) / N


def guessed(judged):
    """Return the mean squared error of the codes over images and codes."""
    return sum((a - b) ** 2 for a, b in zip(judged.codes.flatten().tolist(), CODES.flatten().tolist(), strict=True)) / (
        2 * N
    )


SOURCE, FOOLED = (binary(REAL.source, True) + binary(FAKE.source, False)) / 2, binary(FAKE.source, True)
PROBABILITIES = {name: mean(one.source.sigmoid()) for name, one in (("real_score", REAL), ("fake_score", FAKE))}
CRITIC = {name: mean(one.source) for name, one in (("real_score", REAL), ("fake_score", FAKE))}
EXPECTED = {
    Wgan(): ({"loss": mean(FAKE.source) - mean(REAL.source), **CRITIC}, -mean(FAKE.source)),
    Cgan(): ({"loss": SOURCE, **PROBABILITIES}, FOOLED),
    Acgan(class_weight=0.7): (
        {
            "loss": SOURCE + 0.7 * (named(REAL) + named(FAKE)) / 2,
            **PROBABILITIES,
            "real_class_loss": named(REAL),
            "fake_class_loss": named(FAKE),
        },
        FOOLED + 0.7 * named(FAKE),
    ),
    InfoGan(code_weight=0.3): (
        {"loss": SOURCE + 0.3 * guessed(FAKE) / 2, **PROBABILITIES, "code_loss": guessed(FAKE)},
        FOOLED + 0.3 * guessed(FAKE),
    ),
}


@pytest.mark.parametrize("game", EXPECTED, ids=lambda game: type(game).__name__)
def test_losses_are_those_of_the_paper(game):
    of_discriminator, of_generator = EXPECTED[game]
    found = game.discriminator_losses(REAL, FAKE, TARGETS, CODES)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(of_discriminator)
    assert float(game.generator_losses(FAKE, TARGETS, CODES)["loss"]) == pytest.approx(of_generator)


def test_losses_are_finite_where_a_discriminator_is_certain():
    certain = Judgement(torch.full((N,), 500.0), None, None)
    for losses in (
        Cgan().discriminator_losses(certain, certain, TARGETS, CODES),
        Cgan().generator_losses(Judgement(-certain.source, None, None), TARGETS, CODES),
    ):
        assert all(bool(value.isfinite()) for value in losses.values())


def test_critic_takes_the_steps_of_algorithm_1_and_of_the_released_code():
    """n_critic is 5; the released code takes 100 steps before each of the first 25 and before each 500th."""
    game = Wgan()
    steps = [game.discriminator_steps(taken) for taken in (0, 24, 25, 26, 499, 500, 501, 1000)]
    assert steps == [100, 100, 5, 5, 5, 100, 5, 100]
    assert [Cgan().discriminator_steps(taken) for taken in (0, 500)] == [1, 1]


def test_each_class_has_a_pair_only_in_wgan_and_not_with_one_for_all():
    games = [Wgan(), Wgan(one_for_all=True), Cgan(), Acgan(), InfoGan()]
    assert [game.one_for_each_class for game in games] == [True, False, False, False, False]


def test_generator_is_given_noise_then_the_class_then_the_codes():
    noise, codes = InfoGan().draw(3, torch.Generator().manual_seed(0))
    assert (noise.shape, codes.shape) == ((3, 100), (3, 2))
    targets = torch.tensor([2, 0, 1])
    inputs = InfoGan().inputs(noise, targets, codes, 4)
    assert torch.equal(inputs, torch.cat([noise, torch.eye(4)[targets], codes], dim=1))
    assert torch.equal(Wgan().inputs(noise, targets, codes[:, :0], 4), noise)


def test_noise_is_standard_normal_and_codes_are_uniform():
    noise, codes = InfoGan().draw(20000, torch.Generator().manual_seed(0))
    assert abs(noise.mean()) < 0.01
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert -1 <= codes.min() < -0.99 < 0.99 < codes.max() <= 1
    assert codes.std() == pytest.approx(1 / math.sqrt(3), abs=0.01)


@pytest.mark.parametrize(
    ("game", "key", "value"),
    [
        (Wgan, "clip", 0),
        (Wgan, "critic_steps", 0),
        (Wgan, "critic_steps", 2.5),
        (Wgan, "settling_steps", 0),
        (Wgan, "settling_for", None),
        (Wgan, "settling_every", 0),
        (Wgan, "one_for_all", "yes please"),
        (Wgan, "one_for_all", False),
        (Wgan, "one_for_all", 1),
        (Cgan, "noise_dim", 0),
        (Cgan, "width", True),
        (Acgan, "class_weight", "abc"),
        (Acgan, "class_weight", -1),
        (Acgan, "dropout", 1.0),
        (InfoGan, "code_weight", math.nan),
    ],
)
def test_setting_that_cannot_be_is_named_with_its_value(game, key, value):
    with pytest.raises(UserError, match=rf"gan\.game\.{key}={value}"):
        game(**{key: value})


def test_clipping_holds_for_every_weight():
    critic = Wgan(width=16).discriminator(Shape(2, 8, 3))
    Wgan(clip=0.01).after_discriminator_step(critic)
    assert max(float(weight.detach().abs().max()) for weight in critic.parameters()) == pytest.approx(0.01)
    assert min(float(weight.detach().min()) for weight in critic.parameters()) == pytest.approx(-0.01)
