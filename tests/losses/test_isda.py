"""ISDA with each kind of covariance, and its sampled form, against their definitions in equations 1 to 4."""

import copy

import pytest
import torch
import torch.nn.functional as F
from float64_reference import equation_4, two_pass
from torch import nn

from isda_repro.losses import ISDALoss, PackedStatistics, SampledISDALoss, covariance_root
from isda_repro.losses.batch_classes import BatchClasses, classes_present, rows_of_fixed_number
from isda_repro.losses.covariances.packed import pack
from isda_repro.losses.covariances.packed_quadratic import add_half_sigma2_packed
from isda_repro.losses.covariances.quadratic import sigma2, sigma2_common, sigma2_diagonal

KINDS = {
    "full": {"packed": False},
    "packed": {"packed": True},
    **{kind: {"covariance": kind} for kind in ("diagonal", "shared", "identity")},
}


def make(kind, shape=(12, 6, 5), lambda_0=1.5, **options):
    torch.manual_seed(0)
    _, classes, width = shape
    loss = SampledISDALoss if kind == "sampled" else ISDALoss
    criterion = loss(classes, width, lambda_0=lambda_0, **KINDS.get(kind, {}), **options)
    return criterion.double(), nn.Linear(width, classes).double()


def batch(step, samples=12, classes=6, width=5):
    """Return random features and targets; the last class is absent."""
    torch.manual_seed(step)
    return torch.randn(samples, width).double().relu().requires_grad_(), torch.randint(classes - 1, (samples,))


def literal(kind, features, targets, classes):
    """Return the covariances [C, A, A] that a kind stands for, from all samples so far at once."""
    width = features.shape[1]
    if kind == "identity":
        return torch.eye(width, dtype=torch.float64).expand(classes, width, width)
    if kind == "shared":
        return two_pass(features, torch.zeros_like(targets), 1)[1].expand(classes, width, width)
    covariance = two_pass(features, targets, classes)[1]
    return torch.diag_embed(covariance.diagonal(dim1=1, dim2=2)) if kind == "diagonal" else covariance


@pytest.mark.parametrize("shape", [(12, 6, 5), (40, 4, 3), (5, 9, 4), (1, 3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_equal_those_of_a_double_loop(kind, shape):
    """Each of the batches enters the statistics before they are used for its loss."""
    criterion, head = make(kind, shape)
    seen = []
    for step in range(4):
        features, targets = batch(step, *shape)
        seen.append((features.detach(), targets))
        head.zero_grad()
        progress = 0.3 + 0.1 * step
        loss = criterion(features, head(features), targets, head=head, progress=progress)
        loss.backward()
        covariance = literal(kind, *(torch.cat(parts) for parts in zip(*seen, strict=True)), shape[1])
        copies = [tensor.detach().clone().requires_grad_() for tensor in (features, head.weight, head.bias)]
        expected = equation_4(*copies, targets, covariance, 1.5 * progress)
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        for found, copied in zip((features, head.weight, head.bias), copies, strict=True):
            torch.testing.assert_close(found.grad, copied.grad, rtol=1e-9, atol=1e-11)
        for label in range(shape[1]):
            torch.testing.assert_close(criterion.class_covariance(label).double(), covariance[label])
    for label in (-1, shape[1]):
        with pytest.raises(IndexError, match=str(label)):
            criterion.class_covariance(label)
    assert not any(one.requires_grad for one in criterion.state_dict(keep_vars=True).values())


@pytest.mark.parametrize(("lambda_0", "progress"), [(0.0, 1.0), (1.5, 0.0)])
@pytest.mark.parametrize("kind", [*KINDS, "sampled"])
def test_at_lambda_zero_it_is_cross_entropy_and_still_learns_statistics(kind, lambda_0, progress):
    criterion, head = make(kind, lambda_0=lambda_0)
    features, targets = batch(0)
    loss = criterion(features, head(features), targets, head=head, progress=progress)
    torch.testing.assert_close(loss, F.cross_entropy(head(features), targets), rtol=1e-12, atol=0)
    assert kind == "identity" or criterion.statistics.count.sum() == 12


@pytest.mark.parametrize("kind", [*KINDS, "sampled"])
def test_constant_lambda_is_the_linear_one_at_the_end_of_training(kind):
    (constant, head), (linear, _) = make(kind, lambda_schedule="constant"), make(kind)
    features, targets = batch(0)
    losses = []
    for criterion, progress in ((constant, 0.0), (linear, 1.0)):
        criterion.begin_step(torch.Generator().manual_seed(0))
        losses.append(criterion(features, head(features), targets, head=head, progress=progress))
    assert torch.equal(*losses)
    assert not torch.isclose(losses[0], F.cross_entropy(head(features), targets))


@pytest.mark.parametrize(
    ("kind", "plain", "buffer"), [("full", "", "covariance"), ("diagonal", "Diagonal", "variance")]
)
def test_plain_form_gives_the_same_numbers(load_script, kind, plain, buffer):
    """The benchmarks compare ISDA with this form, so that it must compute the same loss."""
    criterion, head = make(kind)
    other = getattr(load_script("benchmarks/reference/plain_isda"), f"Plain{plain}ISDALoss")(
        6, 5, lambda_0=1.5
    ).double()
    for step in range(4):
        features, targets = batch(step)
        found, expected = (
            one(features, head(features), targets, head=head, progress=0.5) for one in (criterion, other)
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(getattr(criterion.statistics, buffer), getattr(other, buffer), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("kind", "plain"), [("full", ""), ("diagonal", "Diagonal")])
def test_statistics_of_the_authors_code_can_be_taken_over(kind, plain, load_script):
    """As docs/loss.md shows it: their counts are floats."""
    criterion, head = make(kind)
    fresh = make(kind)[0]
    other = getattr(load_script("benchmarks/reference/plain_isda"), f"Plain{plain}ISDALoss")(6, 5, lambda_0=1.5)
    other = other.double()
    features, targets = batch(0)
    other(features, head(features), targets, head=head, progress=0.2)
    criterion.statistics.load_state_dict(dict(other.named_buffers()))
    features, targets = batch(1)
    found, expected, without = (
        one(features, head(features), targets, head=head, progress=0.5) for one in (criterion, other, fresh)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert (without - expected).abs() > 1e-3


# ------------------------------------------------------------------------------------------------------------ sigma2


def packed_sigma2(weight, covariance, rows):
    """Return sigma2 of packed covariances, as the part that is added to zero logits."""
    targets = torch.arange(len(weight)) if rows.classes_U is None else rows.classes_U
    statistics = PackedStatistics(len(weight), weight.shape[1])
    statistics.packed.copy_(pack(covariance))
    return add_half_sigma2_packed(
        weight.new_zeros(len(targets), len(weight)), targets, weight, statistics, targets, 2.0
    )


SIGMA2 = {
    "full": lambda weight, covariance, rows: sigma2(weight, covariance, rows)[0],
    "packed": packed_sigma2,
    "diagonal": lambda weight, covariance, rows: sigma2_diagonal(weight, covariance.diagonal(dim1=1, dim2=2), rows),
    "shared": lambda weight, covariance, rows: sigma2_common(weight, covariance[0], rows),
    "identity": lambda weight, covariance, rows: sigma2_common(weight, None, rows),
}
CLASSES, WIDTH = 20, 64
EVERY, SOME = BatchClasses(None, torch.arange(CLASSES)), BatchClasses(torch.tensor([3, 7, 7]), torch.arange(3))


@pytest.mark.parametrize("kind", SIGMA2)
def test_sigma2_is_precise_for_close_weights_and_zero_at_the_own_class(kind):
    """The weights differ in their third digit only, so that an expanded product would cancel."""
    torch.manual_seed(0)
    weight = torch.randn(1, WIDTH) / 8 + 1e-3 * torch.randn(CLASSES, WIDTH) / 8
    if kind in ("full", "packed"):
        root = torch.randn(CLASSES, WIDTH, WIDTH) / 8
        covariance = root @ root.mT
    elif kind == "diagonal":
        covariance = torch.diag_embed(torch.rand(CLASSES, WIDTH))
    else:
        root = torch.randn(WIDTH, WIDTH) / 8 if kind == "shared" else torch.eye(WIDTH)
        covariance = (root @ root.T).expand(CLASSES, WIDTH, WIDTH)
    differences = weight.double()[None] - weight.double()[:, None]
    expected = torch.einsum("cja,cab,cjb->cj", differences, covariance.double(), differences)
    for rows, of_rows in ((EVERY, torch.arange(CLASSES)), (SOME, SOME.classes_U)):
        found = SIGMA2[kind](weight, covariance, rows)
        own = torch.arange(CLASSES) == of_rows[:, None]
        assert (found[own] == 0).all()
        assert ((found - expected[of_rows]).abs() / expected[of_rows])[~own].max() <= 1e-4


@pytest.mark.parametrize("kind", ["full", "packed", "shared", "diagonal"])
def test_sigma2_is_not_negative_where_rounding_would_make_it_so(kind):
    """The only direction with variance is orthogonal to all differences of weights, up to rounding."""
    torch.manual_seed(0)
    direction = torch.zeros(WIDTH).index_fill(0, torch.tensor(5), 3.0) if kind == "diagonal" else torch.randn(WIDTH)
    covariance = (direction[:, None] * direction).expand(CLASSES, WIDTH, WIDTH)
    weight = torch.randn(CLASSES, WIDTH)
    weight -= (weight @ direction / direction.square().sum())[:, None] * direction
    weight += 0.1 * direction
    for rows in (EVERY, SOME):  # computed in several pieces, and in one
        found = SIGMA2[kind](weight, covariance, rows)
        assert found.min() == 0
        assert found.max() < 1e-4


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_chunks_do_not_change_the_result(rows, monkeypatch):
    criterion, head = make("full")
    features, targets = batch(0)
    results = []
    for limit in (2**30, rows * criterion.statistics.covariance[0].nbytes):
        monkeypatch.setattr("isda_repro.losses.covariances.quadratic.CPU_CHUNK_BYTES", limit)
        head.zero_grad()
        loss = copy.deepcopy(criterion)(features, head(features), targets, head=head, progress=0.5)
        loss.backward()
        results.append((loss.detach(), head.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("samples", "classes"), [(12, 6), (4, 9), (9, 9), (1, 3), (40, 3)])
def test_rows_point_to_the_classes_of_the_samples(samples, classes):
    for seed in range(20):
        targets = torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(seed))
        fixed, present = rows_of_fixed_number(targets, classes), classes_present(targets, classes)
        for rows in (fixed, present):
            assert torch.equal(rows.take(torch.arange(classes))[rows.row_N], targets)
        assert len(fixed.take(torch.arange(classes))) == min(samples, classes)
        if present.classes_U is not None:
            assert torch.equal(present.classes_U, targets.unique()), "no class twice, and none that is absent"


# ---------------------------------------------------------------------------------------------------- the sampled form


def sampled(draws):
    """Return the sampled loss and a head after ten batches, so that no covariance is singular."""
    criterion, head = make("sampled", samples=draws)
    for step in range(10):
        criterion.statistics.update(*(one.detach() for one in batch(step)))
    return criterion, head


def test_sampled_loss_tends_to_the_expectation_which_isda_bounds_from_above():
    """Proposition 1; a library's normal distribution gives the expectation of each sample by Monte Carlo."""
    draws = 20_000
    features, targets = batch(99)
    criterion, head = sampled(draws)
    closed, _ = make("full")
    closed.load_state_dict(criterion.state_dict())
    found, bound = (one(features, head(features), targets, head=head, progress=1.0) for one in (criterion, closed))
    with torch.no_grad():
        means, errors = [], []
        for a, y in zip(features, targets.tolist(), strict=True):
            normal = torch.distributions.MultivariateNormal(a, 1.5 * criterion.statistics.covariance[y])
            losses = F.cross_entropy(head(normal.sample((draws,))), torch.full((draws,), y), reduction="none")
            means.append(losses.mean())
            errors.append(losses.var() / draws)
        expected, error = torch.stack(means).mean(), torch.stack(errors).sum().sqrt() / len(means)
        plain = F.cross_entropy(head(features), targets)
    assert (found - expected).abs() < 5 * error
    assert expected + 4 * error < bound
    assert found < bound
    assert found > plain + 10 * error, "the augmentation matters here"


def test_sampled_losses_value_and_gradients_equal_those_of_the_samples_that_it_drew(monkeypatch):
    features, targets = batch(99)
    criterion, head = sampled(3)
    standard = torch.randn(12, 3, 5).double()
    monkeypatch.setattr(criterion, "own_draws", lambda draw, samples: standard)
    loss = criterion(features, head(features), targets, head=head, progress=0.6)
    loss.backward()
    root = covariance_root(criterion.statistics.covariance)
    twin, twin_head = features.detach().clone().requires_grad_(), copy.deepcopy(head)
    twin_head.zero_grad()
    total = 0
    for i, y in enumerate(targets.tolist()):
        for k in range(3):
            augmented = twin[i] + (0.6 * 1.5) ** 0.5 * root[y] @ standard[i, k]
            total = total + F.cross_entropy(twin_head(augmented[None]), torch.tensor([y])) / 3 / 12
    total.backward()
    torch.testing.assert_close(loss, total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(features.grad, twin.grad, rtol=1e-10, atol=1e-12)
    for found, expected in zip(head.parameters(), twin_head.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 3, 8])
@pytest.mark.parametrize("below", [0.0, 1.5e-7])
def test_roots_are_roots_also_of_covariances_that_are_singular_or_rounded_below_that(rank, below):
    torch.manual_seed(0)
    factor = torch.randn(4, 8, rank)
    covariance = (factor @ factor.mT).double()
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    covariance -= below * trace * torch.eye(8)
    found = covariance_root(covariance.float())
    assert found.isfinite().all()
    assert ((found @ found.mT - covariance).abs() <= 3e-7 * trace).all()
