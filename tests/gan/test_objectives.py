"""Each game's losses, against the equations of its paper written out in float64."""

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


def binary(scores, real):
    """Goodfellow et al. 2014: -log D or -log(1 - D)."""
    return sum(-math.log(sigmoid(x) if real else 1 - sigmoid(x)) for x in scores.tolist()) / len(scores)


def named(judged):
    """Odena et al. 2017, L_C, negative: the mean of -log P(C = c)."""
    rows = judged.classes.tolist()
    return sum(math.log(sum(map(math.exp, row))) - row[c] for row, c in zip(rows, TARGETS.tolist(), strict=True)) / N


def guessed(judged):
    return sum((a - b) ** 2 for a, b in zip(judged.codes.flatten().tolist(), CODES.flatten().tolist(), strict=True)) / (
        2 * N
    )


def test_wgan_is_the_difference_of_the_critics_means():
    losses = Wgan().discriminator_losses(REAL, FAKE, TARGETS, CODES)
    assert float(losses["loss"]) == pytest.approx(float(FAKE.source.mean() - REAL.source.mean()))
    assert float(losses["real_score"]) == pytest.approx(float(REAL.source.mean()))
    assert float(Wgan().generator_losses(FAKE, TARGETS, CODES)["loss"]) == pytest.approx(-float(FAKE.source.mean()))


def test_cgan():
    losses = Cgan().discriminator_losses(REAL, FAKE, TARGETS, CODES)
    assert float(losses["loss"]) == pytest.approx((binary(REAL.source, True) + binary(FAKE.source, False)) / 2)
    assert float(losses["fake_score"]) == pytest.approx(sum(map(sigmoid, FAKE.source.tolist())) / N)
    loss = Cgan().generator_losses(FAKE, TARGETS, CODES)["loss"]
    assert float(loss) == pytest.approx(binary(FAKE.source, True))


def test_acgan_names_the_class_of_both_kinds():
    game = Acgan(class_weight=0.7)
    losses = game.discriminator_losses(REAL, FAKE, TARGETS, CODES)
    source = (binary(REAL.source, True) + binary(FAKE.source, False)) / 2
    assert float(losses["loss"]) == pytest.approx(source + 0.7 * (named(REAL) + named(FAKE)) / 2)
    assert float(losses["fake_class_loss"]) == pytest.approx(named(FAKE))
    loss = game.generator_losses(FAKE, TARGETS, CODES)["loss"]
    assert float(loss) == pytest.approx(binary(FAKE.source, True) + 0.7 * named(FAKE))


def test_infogan_guesses_the_codes_of_generated_images():
    game = InfoGan(code_weight=0.3)
    losses = game.discriminator_losses(REAL, FAKE, TARGETS, CODES)
    source = (binary(REAL.source, True) + binary(FAKE.source, False)) / 2
    assert float(losses["loss"]) == pytest.approx(source + 0.3 * guessed(FAKE) / 2)
    assert float(losses["code_loss"]) == pytest.approx(guessed(FAKE))
    loss = game.generator_losses(FAKE, TARGETS, CODES)["loss"]
    assert float(loss) == pytest.approx(binary(FAKE.source, True) + 0.3 * guessed(FAKE))


def test_losses_stay_finite_where_a_discriminator_is_certain():
    certain = Judgement(torch.full((N,), 500.0), None, None)
    for losses in (
        Cgan().discriminator_losses(certain, certain, TARGETS, CODES),
        Cgan().generator_losses(Judgement(-certain.source, None, None), TARGETS, CODES),
    ):
        assert all(bool(value.isfinite()) for value in losses.values())


def test_how_often_the_critic_goes_first():
    """Algorithm 1's n_critic; the released code's 100 for the first 25 and each 500th."""
    game = Wgan()
    steps = [game.discriminator_steps(taken) for taken in (0, 24, 25, 26, 499, 500, 501, 1000)]
    assert steps == [100, 100, 5, 5, 5, 100, 5, 100]
    assert [Cgan().discriminator_steps(taken) for taken in (0, 500)] == [1, 1]


def test_what_a_generator_is_given():
    noise, codes = InfoGan().draw(3, torch.Generator().manual_seed(0))
    assert (noise.shape, codes.shape) == ((3, 100), (3, 2))
    inputs = InfoGan().inputs(noise, torch.tensor([2, 0, 1]), codes, 4)
    assert torch.equal(inputs[:, :100], noise)
    assert torch.equal(inputs[:, 100:104], torch.eye(4)[[2, 0, 1]])
    assert torch.equal(inputs[:, 104:], codes)
    assert torch.equal(Wgan().inputs(noise, torch.tensor([2, 0, 1]), codes[:, :0], 4), noise)


def test_noise_is_standard_normal_and_codes_are_uniform():
    noise, codes = InfoGan().draw(20000, torch.Generator().manual_seed(0))
    assert abs(noise.mean()) < 0.01
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert -1 <= codes.min() < -0.99 < 0.99 < codes.max() <= 1
    assert codes.std() == pytest.approx(1 / math.sqrt(3), abs=0.01)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Wgan(clip=0), "gan.game.clip=0 must be a number above 0"),
        (lambda: Wgan(critic_steps=0), "gan.game.critic_steps=0 must be a whole number from 1 on"),
        (lambda: Cgan(noise_dim=0), "gan.game.noise_dim=0 must be a whole number from 1 on"),
        (lambda: Wgan(critic_steps=2.5), "gan.game.critic_steps=2.5 must be a whole number from 1 on"),
        (lambda: Wgan(settling_for=None), "gan.game.settling_for=None must be a whole number from 0 on"),
        (lambda: Acgan(class_weight="abc"), "gan.game.class_weight=abc must be a number from 0 on"),
        (lambda: InfoGan(code_weight=math.nan), "gan.game.code_weight=nan must be a number from 0 on"),
        (lambda: Acgan(dropout=1.0), r"gan\.game\.dropout=1.0 must be a number in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_be(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_clipping_holds_for_every_weight():
    critic = Wgan(width=16).discriminator(Shape(2, 8, 3))
    Wgan(clip=0.01).after_discriminator_step(critic)
    assert max(float(weight.detach().abs().max()) for weight in critic.parameters()) == pytest.approx(0.01)
