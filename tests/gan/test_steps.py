"""One step of each game against the same step written out, and the sums over the steps of an epoch."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from isda_repro.config import compose_generator
from isda_repro.gan import Acgan, Cgan, Game, InfoGan, Shape, Wgan
from isda_repro.gan.steps import Pair, Steps, Totals
from isda_repro.training.compute import resolve_compute
from isda_repro.training.distributed import SINGLE_PROCESS

SHAPE, RATES = Shape(num_classes=3, image_size=8, channels=3), (0.5, 0.25)
TARGETS = torch.tensor([2, 0, 1, 1, 2, 0])
REAL = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def compute():
    asked = compose_generator(["gan=cgan", "dataset=digits", "compute.device=cpu", "compute.precision=fp32"]).compute
    return resolve_compute({**asked, "channels_last": False})


@pytest.fixture
def drawn(monkeypatch):
    """Return a list that records the draws of all games, in order."""
    found, original = [], Game.draw

    def draw(self, *arguments):
        found.append(original(self, *arguments))
        return found[-1]

    monkeypatch.setattr(Game, "draw", draw)
    return found


def pair_of(game):
    torch.manual_seed(0)
    networks = game.generator(SHAPE), game.discriminator(SHAPE)
    optimizers = (torch.optim.SGD(one.parameters(), lr=lr) for one, lr in zip(networks, RATES, strict=True))
    return Pair(*networks, *optimizers)


def take(game, pair, compute, step=0, seed=0):
    totals = Totals(compute.device)
    Steps(game, 3, compute, seed, SINGLE_PROCESS).take(pair, REAL, TARGETS, (0, 6), step, totals)
    return totals.means()


def descended(network, loss, lr):
    weights = list(network.parameters())
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.data -= lr * gradient


def assert_same_weights(one, other):
    for found, expected in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "game",
    [Wgan(width=16, critic_steps=1, settling_for=0, clip=0.03), Cgan(width=16), Acgan(width=16), InfoGan(width=16)],
)
def test_step_is_gradient_descent_of_the_discriminator_and_then_of_the_generator(game, compute, drawn):
    """Both updates use the same classes and separate noise, and the generator sees the updated discriminator."""
    pair = pair_of(game)
    generator, discriminator = copy.deepcopy(pair.generator), copy.deepcopy(pair.discriminator)
    pair.generator_steps = 1  # before its first step, WGAN's critic would take 100 steps
    means = take(game, pair, compute)
    (noise, codes), (more_noise, more_codes) = drawn
    assert not torch.equal(noise, more_noise)

    fake = generator(game.inputs(noise, TARGETS, codes, 3)).detach()
    losses = game.discriminator_losses(discriminator(REAL, TARGETS), discriminator(fake, TARGETS), TARGETS, codes)
    descended(discriminator, losses["loss"], RATES[1])
    game.after_discriminator_step(discriminator)
    judged = discriminator(generator(game.inputs(more_noise, TARGETS, more_codes, 3)), TARGETS)
    loss = game.generator_losses(judged, TARGETS, more_codes)["loss"]
    descended(generator, loss, RATES[0])

    assert_same_weights(pair.discriminator, discriminator)
    assert_same_weights(pair.generator, generator)
    assert (pair.generator_steps, pair.since) == (2, 0)
    expected = {f"discriminator/{name}": value.item() for name, value in losses.items()}
    assert means == pytest.approx({**expected, "generator/loss": loss.item()}, rel=1e-4)


def test_generator_waits_until_its_critic_has_taken_its_steps(compute):
    game = Wgan(width=16, critic_steps=2, settling_steps=3, settling_for=1)
    pair, taken = pair_of(game), []
    for step in range(8):
        before = copy.deepcopy(pair.generator)
        take(game, pair, compute, step)
        moved = not all(map(torch.equal, before.parameters(), pair.generator.parameters()))
        taken.append((moved, pair.generator_steps, pair.since))
    assert taken == [
        *((False, 0, 1), (False, 0, 2), (True, 1, 0)),
        *((False, 1, 1), (True, 2, 0), (False, 2, 1), (True, 3, 0), (False, 3, 1)),
    ]


def test_draws_follow_from_seed_and_step_alone(compute, drawn):
    game = Cgan(width=16)
    for step, seed in ((0, 0), (1, 0), (0, 1), (0, 0)):
        take(game, pair_of(game), compute, step, seed)
    first, of_next_step, of_other_seed, again = (drawn[2 * i : 2 * i + 2] for i in range(4))
    for (noise, _), (other, _) in zip(first, again, strict=True):
        assert torch.equal(noise, other)
    assert len({tuple(noise[0].tolist()) for noise, _ in (*first, *of_next_step, *of_other_seed)}) == 6


def test_dropout_follows_from_the_step_and_not_from_what_was_drawn_before(compute):
    game, found = Acgan(width=16, dropout=0.5), []
    for step, before in ((3, 5), (3, 6), (4, 5)):
        pair = pair_of(game)
        torch.manual_seed(before)
        take(game, pair, compute, step)
        found.append((pair.discriminator.source.weight.detach(), torch.rand(1)))
    (weights, then), (weights_again, then_again), (_, after_other_step) = found
    assert torch.equal(weights, weights_again)
    assert then == then_again != after_other_step, "what is drawn goes on from there"


def test_totals_are_means_over_images_also_when_they_go_on_and_over_processes():
    cpu = torch.device("cpu")
    totals, more = Totals(cpu), Totals(cpu)
    totals.add("generator", {"loss": torch.tensor(2.0)}, 3)
    more.load_state_dict(totals.of_all(SINGLE_PROCESS))
    more.add("generator", {"loss": torch.tensor(4.0)}, 1)
    more.add("discriminator", {"loss": torch.tensor(7.0)}, 5)
    assert more.means() == pytest.approx({"generator/loss": 2.5, "discriminator/loss": 7.0})
    two = SimpleNamespace(all_gather=lambda own: [own, {"generator/loss": [10.0, 4.0]}])
    assert more.means(two) == pytest.approx({"generator/loss": 20 / 8, "discriminator/loss": 7.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_loss_that_is_not_finite_makes_the_totals_bad(bad):
    totals = Totals(torch.device("cpu"))
    totals.add("discriminator", {"loss": torch.tensor(1.0), "real_score": torch.tensor(2.0)}, 4)
    assert not totals.is_bad()
    assert totals.is_bad(SimpleNamespace(all_reduce_max=lambda own: max(own, 1))), "another process has one"
    totals.add("generator", {"loss": torch.tensor(bad)}, 4)
    assert totals.is_bad()
