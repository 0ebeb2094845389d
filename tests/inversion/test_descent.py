import pytest
import torch
from toys import draws

from isda_repro.errors import UserError
from isda_repro.inversion import STEP_ONE, STEP_TWO, Descent, descend


def silent(iterations, objective):
    pass


def test_appendix_c():
    assert (STEP_ONE.lr, STEP_TWO.lr) == (10, 1)
    for step in (STEP_ONE, STEP_TWO):
        assert (step.iterations, step.momentum, step.weight_decay) == (10_000, 0.9, 1e-4)


def test_it_is_gradient_descent_with_momentum_decay_and_drops():
    """Of |M z|^2 by hand: v <- 0.9 v + g + 1e-4 z, z <- z - lr v, lr a tenth after each quarter."""
    matrix = torch.randn(6, 4, generator=draws(), dtype=torch.float64) / 4
    start = torch.randn(3, 4, generator=draws(1), dtype=torch.float64)
    found = descend(start, lambda z: (z @ matrix.T).square().sum(1), Descent(lr=0.1, iterations=40), silent)
    z, v = start.clone(), torch.zeros_like(start)
    for iteration in range(40):
        lr = 0.1 * 0.1 ** (iteration // 10)
        v = 0.9 * v + 2 * z @ matrix.T @ matrix + 1e-4 * z
        z = z - lr * v
    torch.testing.assert_close(found, z, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("iterations", "rates"), [(10_000, {2500: 0.1, 5000: 0.01, 7500: 0.001}), (10, {3: 0.1, 6: 0.01, 9: 0.001})]
)
def test_when_the_rate_drops(iterations, rates, monkeypatch):
    """Every 2,500 of 10,000; of another number each quarter, rounded up."""
    seen, step = [], torch.optim.SGD.step

    def watched(self, *arguments, **more):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    descend(torch.ones(1, 1), lambda z: 0 * z.sum(1), Descent(lr=1.0, iterations=iterations), silent)
    changes = {i: seen[i] for i in range(1, len(seen)) if seen[i] != seen[i - 1]}
    assert len(seen) == iterations
    assert changes.keys() == rates.keys()
    assert list(changes.values()) == pytest.approx(list(rates.values()))


def test_problems_do_not_know_of_each_other():
    start = torch.randn(5, 4, generator=draws(), dtype=torch.float64)

    def objective(z):
        return (z.sin() * torch.arange(1, 5)).sum(1)

    together = descend(start, objective, Descent(lr=0.1, iterations=50), silent)
    for row in range(5):
        alone = descend(start[row : row + 1], objective, Descent(lr=0.1, iterations=50), silent)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=0)
    assert torch.equal(start, torch.randn(5, 4, generator=draws(), dtype=torch.float64)), "it stays as it was"


def test_who_looks_on_is_told_of_every_iteration():
    told = []
    descend(torch.ones(2, 3), lambda z: z.square().sum(1), Descent(lr=0.1, iterations=250), lambda *it: told.append(it))
    assert [iterations for iterations, _ in told] == [100, 100, 50]
    assert all(objective.shape == (2,) and not objective.requires_grad for _, objective in told)


def test_what_diverges_is_one_sentence():
    with pytest.raises(UserError, match=r"an objective is no longer finite at iteration 100: lower eta= or lambda="):
        descend(torch.ones(2, 3), lambda z: z.pow(4).sum(1), Descent(lr=100.0, iterations=200), silent)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_image_of_many_is_enough(bad):
    def objective(z):
        return torch.where(torch.arange(3) == 1, bad, 1.0) * z.square().sum(1)

    with pytest.raises(UserError, match="no longer finite at iteration 8"):
        descend(torch.ones(3, 2), objective, Descent(lr=0.1, iterations=8), silent)


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"lr": float("nan")}, {"lr": 1, "iterations": 3}, {"lr": 1, "iterations": True}]
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(UserError, match=r"iterations=.* must be a whole number from 4 on|must be a number above 0"):
        Descent(**wrong)
