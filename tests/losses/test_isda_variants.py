"""Table 5's variants, and equation 2 sampled: each against a literal form."""

import copy

import pytest
import torch
import torch.nn.functional as F
from reference import equation_4, two_pass
from torch import nn

from isda_repro.losses import ISDALoss, SampledISDALoss
from isda_repro.losses.batch_classes import BatchClasses
from isda_repro.losses.products import sigma2_common, sigma2_diagonal
from isda_repro.losses.sampled import covariance_root

KINDS = ["diagonal", "shared", "identity"]


def example(kind, samples=12, classes=6, width=5, **options):
    torch.manual_seed(0)
    criterion = ISDALoss(classes, width, lambda_0=1.5, covariance=kind, **options).double()
    return criterion, nn.Linear(width, classes).double()


def batch(step, samples=12, classes=6, width=5):
    torch.manual_seed(step)
    return torch.randn(samples, width).double().relu().requires_grad_(), torch.randint(classes - 1, (samples,))


def literal(kind, features, targets, classes):
    """The covariances [C, A, A] that a variant means, from all samples so far at once."""
    width = features.shape[1]
    if kind == "identity":
        return torch.eye(width, dtype=torch.float64).expand(classes, width, width)
    if kind == "shared":
        return two_pass(features, torch.zeros_like(targets), 1)[1].expand(classes, width, width)
    covariance = two_pass(features, targets, classes)[1]
    return torch.diag_embed(covariance.diagonal(dim1=1, dim2=2)) if kind == "diagonal" else covariance


@pytest.mark.parametrize("shape", [(12, 6, 5), (40, 4, 3), (5, 9, 4), (1, 3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_those_of_a_double_loop(kind, shape):
    criterion, head = example(kind, *shape)
    seen = []
    for step in range(4):
        features, targets = batch(step, *shape)
        seen.append((features.detach(), targets))
        head.zero_grad()
        loss = criterion(features, head(features), targets, head=head, progress=0.3 + 0.1 * step)
        loss.backward()
        covariance = literal(kind, *(torch.cat(parts) for parts in zip(*seen, strict=True)), shape[1])
        copies = [tensor.detach().clone().requires_grad_() for tensor in (features, head.weight, head.bias)]
        expected = equation_4(*copies, targets, covariance, 1.5 * (0.3 + 0.1 * step))
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        for found, copied in zip((features, head.weight, head.bias), copies, strict=True):
            torch.testing.assert_close(found.grad, copied.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["full", *KINDS])
def test_a_constant_lambda_is_the_linear_one_at_the_end_of_training(kind):
    constant, head = example(kind, lambda_schedule="constant")
    linear, _ = example(kind)
    features, targets = batch(0)
    at_the_start = constant(features, head(features), targets, head=head, progress=0.0)
    at_the_end = linear(features, head(features), targets, head=head, progress=1.0)
    assert torch.equal(at_the_start, at_the_end)
    assert not torch.isclose(at_the_start, F.cross_entropy(head(features), targets))


@pytest.mark.parametrize("kind", KINDS)
def test_at_lambda_zero_each_is_cross_entropy(kind):
    criterion, head = example(kind)
    features, targets = batch(0)
    loss = criterion(features, head(features), targets, head=head, progress=0.0)
    assert torch.equal(loss, F.cross_entropy(head(features), targets))


def test_the_diagonal_forms_statistics_are_those_of_one_pass():
    criterion, head = example("diagonal")
    seen = [batch(step) for step in range(30)]
    for features, targets in seen:
        features = features + 100
        criterion(features, head(features), targets, head=head, progress=0.5)
    features, targets = (torch.cat(parts) for parts in zip(*seen, strict=True))
    mean, covariance = two_pass(features + 100, targets, 6)
    statistics = criterion.statistics
    torch.testing.assert_close(statistics.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(statistics.variance, covariance.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=1e-12)
    assert torch.equal(statistics.count, torch.bincount(targets, minlength=6))
    assert (statistics.variance[5] == 0).all(), "a class never seen"


def test_an_absent_class_keeps_its_very_bits_in_the_diagonal_form(monkeypatch):
    for asynchronous in (False, True):
        monkeypatch.setattr("isda_repro.losses.variances.is_asynchronous", lambda _, value=asynchronous: value)
        statistics = ISDALoss(3, 4, covariance="diagonal").statistics
        statistics.update(torch.randn(49, 4), torch.arange(49) % 3)
        before = statistics.mean[2].clone(), statistics.variance[2].clone()
        statistics.update(torch.randn(2, 4), torch.arange(2))
        assert torch.equal(statistics.mean[2], before[0])
        assert torch.equal(statistics.variance[2], before[1])


def test_20000_small_batches_in_float32_stay_close_to_float64_in_the_diagonal_form():
    torch.manual_seed(0)
    features, targets = (torch.randn(20_000, 4, 6) + 2).relu(), torch.randint(3, (20_000, 4))
    statistics = ISDALoss(3, 6, covariance="diagonal").statistics
    for one, labels in zip(features, targets, strict=True):
        statistics.update(one, labels)
    _, covariance = two_pass(features.flatten(0, 1), targets.flatten(), 3)
    expected = covariance.diagonal(dim1=1, dim2=2)
    assert ((statistics.variance - expected).abs() / expected).max() < 1e-4  # measured: 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_precise_for_close_weights_and_zero_at_the_own_class(kind):
    """Weights that differ in their third digit: multiplied out as they are, nothing of sigma2 would be left."""
    torch.manual_seed(0)
    classes, width = 20, 64
    weight = torch.randn(1, width) / 8 + 1e-3 * torch.randn(classes, width) / 8
    every = BatchClasses(None, torch.arange(classes))
    some = BatchClasses(torch.tensor([3, 7, 7]), torch.arange(3))
    factor = torch.randn(width, width) / 8
    covariance, variance = factor @ factor.T, torch.rand(classes, width)
    differences = weight.double()[None] - weight.double()[:, None]
    matrices = {"shared": covariance.double(), "identity": torch.eye(width).double()}
    if kind == "diagonal":
        expected = torch.einsum("cja,ca,cja->cj", differences, variance.double(), differences)
        found = [sigma2_diagonal(weight, variance, rows) for rows in (every, some)]
    else:
        expected = torch.einsum("cja,ab,cjb->cj", differences, matrices[kind], differences)
        found = [sigma2_common(weight, covariance if kind == "shared" else None, rows) for rows in (every, some)]
    for values, of_rows in zip(found, (torch.arange(classes), some.classes_U), strict=True):
        own = torch.arange(classes) == of_rows[:, None]
        assert (values[own] == 0).all()
        assert (values >= 0).all()
        assert ((values - expected[of_rows]).abs() / expected[of_rows].clamp(min=1e-30))[~own].max() <= 1e-4


def test_the_same_products_with_one_covariance_for_all_are_the_full_form():
    """Shared, full and diagonal agree where they mean the same: one class's samples, and uncorrelated features."""
    torch.manual_seed(0)
    head = nn.Linear(4, 3).double()
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).double()
    features = torch.cat([signs, -signs]) * torch.tensor([1.0, 2, 3, 4])  # mean zero, covariance diagonal
    targets = torch.zeros(8, dtype=torch.int64)
    losses = {}
    for kind in ("full", "shared", "diagonal"):
        criterion = ISDALoss(3, 4, lambda_0=2.0, covariance=kind).double()
        losses[kind] = criterion(features, head(features), targets, head=head, progress=1.0)
    torch.testing.assert_close(losses["full"], losses["shared"], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses["full"], losses["diagonal"], rtol=1e-12, atol=0)


def test_the_plain_diagonal_form_gives_the_same_numbers(load_script):
    criterion, head = example("diagonal")
    plain = load_script("plain_isda").PlainDiagonalISDALoss(6, 5, lambda_0=1.5).double()
    for step in range(4):
        features, targets = batch(step)
        found, expected = (
            one(features, head(features), targets, head=head, progress=0.5) for one in (criterion, plain)
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(criterion.statistics.variance, plain.variance, rtol=1e-11, atol=1e-13)


def test_the_formula_of_the_packed_forms_costs(load_script):
    cost = load_script("packed_cost")
    square, packed = cost.gigabytes(1000, 2048)
    assert (round(square, 1), round(packed, 1)) == (16.8, 8.4), "the figures of the paper's setting"
    assert cost.classes_in_batch(64, 1000) == pytest.approx(1000 * (1 - 0.999**64))
    assert cost.multiply_adds(1, 1, 10) == pytest.approx((1 + 2) * 100)
    samples = cost.multiply_adds(64, 1000, 2048) / (cost.classes_in_batch(64, 1000) * 1000 * 2048**2)
    assert samples == pytest.approx(1, abs=0.003), "the product with W is nearly all of it"


# ------------------------------------------------------------------------------------------------------- equation 2


def sampled(samples, lambda_0=1.5):
    torch.manual_seed(0)
    criterion, head = SampledISDALoss(6, 5, samples=samples, lambda_0=lambda_0).double(), nn.Linear(5, 6).double()
    for step in range(10):
        criterion.statistics.update(*(one.detach() for one in batch(step)))
    return criterion, head


def test_sampled_isda_tends_to_the_expectation_and_stays_below_the_bound():
    """Equation 3 by independent means: the expectation of each sample by draws of a library's normal distribution."""
    features, targets = batch(99)
    criterion, head = sampled(40_000)
    with torch.no_grad():
        found = criterion(features, head(features), targets, head=head, progress=1.0)
        means, errors = [], []
        for a, y in zip(features, targets.tolist(), strict=True):
            covariance = 1.5 * criterion.statistics.covariance[y]
            normal = torch.distributions.MultivariateNormal(a, covariance)
            labels = torch.full((40_000,), y)
            losses = F.cross_entropy(head(normal.sample((40_000,))), labels, reduction="none")
            means.append(losses.mean())
            errors.append(losses.var() / 40_000)
        expected, error = torch.stack(means).mean(), torch.stack(errors).sum().sqrt() / len(means)
        assert (found - expected).abs() < 5 * error
        closed = ISDALoss(6, 5, lambda_0=1.5).double()
        closed.load_state_dict(criterion.state_dict())
        before = copy.deepcopy(closed.statistics.covariance)
        bound = equation_4(features, head.weight, head.bias, targets, before, 1.5)
        assert found < bound
        assert found > F.cross_entropy(head(features), targets) + 10 * error, "the augmentation matters here"


def test_its_gradients_are_those_of_the_samples_it_drew(monkeypatch):
    features, targets = batch(99)
    criterion, head = sampled(3)
    noise = torch.randn(12, 3, 5).double()
    monkeypatch.setattr(criterion, "_noise", lambda targets, dtype: noise)
    criterion(features, head(features), targets, head=head, progress=0.6).backward()
    twin, twin_head = features.detach().clone().requires_grad_(), copy.deepcopy(head)
    twin_head.zero_grad()
    total = 0
    for i, y in enumerate(targets.tolist()):
        for k in range(3):
            augmented = twin[i] + (0.6 * 1.5) ** 0.5 * noise[i, k]
            total = total + F.cross_entropy(twin_head(augmented[None]), torch.tensor([y])) / 3
    (total / 12).backward()
    torch.testing.assert_close(features.grad, twin.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(head.weight.grad, twin_head.weight.grad, rtol=1e-10, atol=1e-12)


def test_sampled_at_lambda_0_is_cross_entropy_and_draws_from_its_generator():
    features, targets = batch(99)
    criterion, head = sampled(4, lambda_0=0.0)
    loss = criterion(features, head(features), targets, head=head, progress=1.0)
    torch.testing.assert_close(loss, F.cross_entropy(head(features), targets), rtol=1e-12, atol=0)
    losses = []
    for seed in (0, 0, 1):
        criterion, head = sampled(4)
        criterion.begin_step(0, 10, torch.Generator().manual_seed(seed))
        losses.append(criterion(features, head(features), targets, head=head, progress=1.0).item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("options", [{"packed": False}, {"packed": True}, *({"covariance": kind} for kind in KINDS)])
def test_the_covariance_of_a_class_is_the_one_that_the_loss_uses(options):
    criterion = ISDALoss(6, 5, **options).double()
    head, (features, targets) = nn.Linear(5, 6).double(), batch(0)
    criterion(features, head(features), targets, head=head, progress=1.0)
    expected = literal(options.get("covariance", "full"), features.detach(), targets, 6)
    for label in range(6):
        torch.testing.assert_close(criterion.class_covariance(label).double(), expected[label], rtol=1e-10, atol=1e-12)
    for label in (-1, 6):
        with pytest.raises(IndexError, match=rf"class {label} is not in \[0, 6\)"):
            criterion.class_covariance(label)


@pytest.mark.parametrize("rank", [0, 1, 3, 8])
def test_roots_are_roots_also_of_singular_covariances(rank):
    torch.manual_seed(0)
    factor = torch.randn(4, 8, rank)
    covariance = (factor @ factor.mT).float()
    found = covariance_root(covariance)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].double()
    assert found.isfinite().all()
    assert ((found @ found.mT - covariance).abs() <= 3e-7 * trace).all()


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": 1.5}, {"lambda_0": -1}, {"lambda_schedule": "cosine"}])
def test_what_cannot_be_sampled_is_refused(options):
    with pytest.raises(ValueError, match=r"must be|there is no lambda_schedule='cosine'; it can be linear, constant"):
        SampledISDALoss(3, 2, **options)
