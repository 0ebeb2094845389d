"""Gradient descent of Appendix C."""

import pytest
import torch
from toys import draws

from isda_repro.errors import UserError
from isda_repro.inversion import STEP_ONE, STEP_TWO, Descent, descend


def silent(iterations, objective):
    pass


def test_settings_are_those_of_appendix_c():
    assert (STEP_ONE.lr, STEP_TWO.lr) == (10, 1)
    for step in (STEP_ONE, STEP_TWO):
        assert (step.iterations, step.momentum, step.weight_decay) == (10_000, 0.9, 1e-4)


@pytest.mark.parametrize(("iterations", "quarter"), [(40, 10), (10, 3)])
def test_descent_has_momentum_weight_decay_and_three_drops_of_the_rate(iterations, quarter):
    """The objective |M z|^2 is minimised by hand: v <- 0.9 v + g + 1e-4 z, z <- z - lr v.

    The rate is divided by 10 after each quarter of the iterations, rounded up.
    """
    matrix = torch.randn(6, 4, generator=draws(), dtype=torch.float64) / 4
    start = torch.randn(3, 4, generator=draws(1), dtype=torch.float64)
    found = descend(start, lambda z: (z @ matrix.T).square().sum(1), Descent(lr=0.1, iterations=iterations), silent)
    z, v = start.clone(), torch.zeros_like(start)
    for iteration in range(iterations):
        lr = 0.1 * 0.1 ** (iteration // quarter)
        v = 0.9 * v + 2 * z @ matrix.T @ matrix + 1e-4 * z
        z = z - lr * v
    torch.testing.assert_close(found, z, rtol=1e-12, atol=0)


def test_each_row_descends_as_it_would_alone():
    start = torch.randn(5, 4, generator=draws(), dtype=torch.float64)

    def objective(z):
        return (z.sin() * torch.arange(1, 5)).sum(1)

    together = descend(start, objective, Descent(lr=0.1, iterations=50), silent)
    for row in range(5):
        alone = descend(start[row : row + 1], objective, Descent(lr=0.1, iterations=50), silent)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=0)
    assert torch.equal(start, torch.randn(5, 4, generator=draws(), dtype=torch.float64)), "it stays as it was"


def test_observer_is_told_of_every_iteration_once():
    told = []
    descend(torch.ones(2, 3), lambda z: z.square().sum(1), Descent(lr=0.1, iterations=250), lambda *it: told.append(it))
    assert [iterations for iterations, _ in told] == [100, 100, 50]
    assert all(objective.shape == (2,) and not objective.requires_grad for _, objective in told)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_row_that_diverges_stops_the_descent(bad):
    def objective(z):
        return torch.where(torch.arange(3) == 1, bad, 1.0) * z.square().sum(1)

    with pytest.raises(UserError, match=r"iteration 8.*eta=.*lambda="):
        descend(torch.ones(3, 2), objective, Descent(lr=0.1, iterations=8), silent)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"lr": 0.0}, "0.0"),
        ({"lr": float("nan")}, "nan"),
        ({"lr": 1, "iterations": 3}, "iterations=3"),
        ({"lr": 1, "iterations": True}, "iterations=True"),
    ],
)
def test_setting_that_cannot_be_is_named(wrong, named):
    with pytest.raises(UserError, match=named):
        Descent(**wrong)
