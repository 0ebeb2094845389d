"""ISDALoss against its definition: value, gradients, bound, limits, state and refusals."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference import equation_4, merge
from torch import nn

from isda_repro.losses import CrossEntropy, ISDALoss
from isda_repro.losses.batch_classes import BatchClasses, classes_present, rows_of_fixed_number
from isda_repro.losses.quadratic import add_half_sigma2, sigma2


def example(samples=12, classes=6, width=5, dtype=torch.float64, lambda_0=1.5, seed=0):
    torch.manual_seed(seed)
    head = nn.Linear(width, classes).to(dtype)
    criterion = ISDALoss(num_classes=classes, feature_dim=width, lambda_0=lambda_0).to(dtype)
    features = torch.randn(samples, width, dtype=dtype).relu().requires_grad_()
    targets = torch.randint(classes - 1, (samples,))  # the last class is absent
    return head, criterion, features, targets


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("shape", [(12, 6, 5), (40, 4, 3), (5, 9, 4), (1, 3, 2)])
def test_value_and_gradients_are_those_of_a_double_loop(shape):
    head, criterion, features, targets = example(*shape)
    state = tuple(getattr(criterion.statistics, name).double() for name in ("mean", "covariance", "count"))
    for step in range(3):
        features = torch.randn_like(features).relu().requires_grad_()
        head.zero_grad()
        loss = criterion(features, head(features), targets, head=head, progress=0.3 + 0.1 * step)
        loss.backward()
        state = merge(*state, features.detach(), targets)
        copies = [tensor.detach().clone().requires_grad_() for tensor in (features, head.weight, head.bias)]
        expected = equation_4(*copies, targets, state[1], 1.5 * (0.3 + 0.1 * step))
        expected.backward()
        assert relative(loss, expected) <= 1e-10
        for found, copied in zip((features, head.weight, head.bias), copies, strict=True):
            assert relative(found.grad, copied.grad) <= 1e-10
    assert abs(expected - F.cross_entropy(head(features), targets)) > 1e-3 or shape == (1, 3, 2)


def test_gradcheck():
    head, _, _, targets = example()
    covariance = torch.randn(6, 5, 5).double()
    covariance = covariance @ covariance.mT
    logits = torch.randn(12, 6).double().requires_grad_()
    weight = head.weight.detach().requires_grad_()

    def augmented(logits, weight):
        return add_half_sigma2(logits, weight, covariance, classes_present(targets, 6), 0.7)

    assert torch.autograd.gradcheck(augmented, (logits, weight))


def test_sigma2_is_zero_at_the_own_class_never_negative_and_precise_for_close_weights():
    torch.manual_seed(0)
    classes, width = 20, 64
    weight = torch.randn(1, width) / 8 + 1e-3 * torch.randn(classes, width) / 8
    root = torch.randn(classes, width, width) / 8
    root[0] = 0
    covariance = root @ root.mT
    found, _ = sigma2(weight, covariance, BatchClasses(None, torch.arange(classes)))
    assert (found.diagonal() == 0).all()
    assert (found >= 0).all()
    differences = weight.double()[None] - weight.double()[:, None]
    expected = torch.einsum("cja,cab,cjb->cj", differences, covariance.double(), differences)
    off = ~torch.eye(classes, dtype=torch.bool)
    off[0] = False
    assert ((found - expected).abs() / expected)[off].max() <= 1e-4


def test_sigma2_is_not_negative_where_rounding_would_make_it_so():
    torch.manual_seed(0)
    direction = torch.randn(8, 64)
    covariance = direction[:, :, None] * direction[:, None, :]  # one direction of variance
    weight = torch.randn(8, 64)
    weight -= (weight @ direction[0] / direction[0].square().sum())[:, None] * direction[0]  # orthogonal to class 0's
    found, products = sigma2(weight, covariance, BatchClasses(torch.arange(8), torch.arange(8)))
    unclamped = ((weight - weight[:, None]) * products).sum(-1)
    assert unclamped.min() < 0, "this case must be one in which it happens"
    assert found.min() == 0


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_chunks_do_not_change_the_result(rows, monkeypatch):
    head, criterion, features, targets = example(dtype=torch.float64)
    criterion(features, head(features), targets, head=head, progress=0.5)
    results = []
    for limit in (2**30, rows * criterion.statistics.covariance[0].nbytes):
        monkeypatch.setattr("isda_repro.losses.quadratic.CPU_CHUNK_BYTES", limit)
        head.zero_grad()
        twin = copy.deepcopy(criterion)
        loss = twin(features, head(features), targets, head=head, progress=0.5)
        loss.backward()
        results.append((loss.detach(), head.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("samples", "classes"), [(12, 6), (4, 9), (9, 9), (1, 3), (40, 3)])
def test_the_accelerators_rows_point_to_the_same_classes(samples, classes):
    for seed in range(20):
        targets = torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(seed))
        for batch in (rows_of_fixed_number(targets, classes), classes_present(targets, classes)):
            of_rows = batch.take(torch.arange(classes))
            assert torch.equal(of_rows[batch.row_N], targets)
        fixed = rows_of_fixed_number(targets, classes)
        assert len(fixed.take(torch.arange(classes))) == min(samples, classes)


def test_the_accelerators_path_gives_the_same_loss(monkeypatch):
    head, criterion, features, targets = example(samples=4, classes=9)
    other = copy.deepcopy(criterion)
    losses = []
    for twin in (criterion, other):
        for step in range(3):
            head.zero_grad()
            loss = twin(features + step, head(features + step), targets, head=head, progress=0.5)
            loss.backward()
        losses.append((loss.detach(), head.weight.grad.clone(), twin.statistics.covariance))
        monkeypatch.setattr("isda_repro.losses.isda.is_asynchronous", lambda tensor: True)
        monkeypatch.setattr("isda_repro.losses.statistics.is_asynchronous", lambda tensor: True)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-11, atol=1e-13)


def test_it_bounds_the_expected_cross_entropy_from_above():
    """Proposition 1, by Monte-Carlo over equation 3: the estimate may not exceed the bound by more than its noise."""
    head, criterion, features, targets = example(samples=6, lambda_0=3.0)
    with torch.no_grad():
        for _ in range(20):
            criterion.statistics.update(torch.randn(12, 5).double() * 2, torch.randint(6, (12,)))
        bound = criterion(features, head(features), targets, head=head, progress=1.0)
        covariance = criterion.statistics.covariance
        estimates = []
        for a, y in zip(features, targets.tolist(), strict=True):
            noise = torch.distributions.MultivariateNormal(torch.zeros(5).double(), 3.0 * covariance[y])
            augmented = a + noise.sample((20_000,))
            estimates.append(F.cross_entropy(head(augmented), torch.full((20_000,), y), reduction="none"))
        samples = torch.stack(estimates).mean(0)
    error = samples.std() / len(samples) ** 0.5
    assert samples.mean() + 4 * error < bound, "the gap is wide here, so noise cannot hide a violation"
    assert samples.mean() > F.cross_entropy(head(features), targets), "the augmentation must matter in this test"


@pytest.mark.parametrize(("lambda_0", "progress"), [(0.0, 1.0), (1.5, 0.0)])
def test_at_lambda_zero_it_is_cross_entropy_and_still_learns_statistics(lambda_0, progress):
    head, criterion, features, targets = example(lambda_0=lambda_0)
    loss = criterion(features, head(features), targets, head=head, progress=progress)
    assert torch.equal(loss, F.cross_entropy(head(features), targets))
    assert criterion.statistics.count.sum() == len(targets)


def test_progress_may_be_a_tensor():
    head, criterion, features, targets = example()
    values = [
        copy.deepcopy(criterion)(features, head(features), targets, head=head, progress=progress)
        for progress in (0.5, torch.tensor(0.5, dtype=torch.float64))
    ]
    torch.testing.assert_close(*values)


def test_statistics_are_updated_before_they_are_used_and_are_constants():
    head, criterion, features, targets = example()
    loss = criterion(features, head(features), targets, head=head, progress=1.0)
    assert not torch.isclose(loss, F.cross_entropy(head(features), targets)), "the first batch counts already"
    assert not criterion.statistics.covariance.requires_grad
    assert list(criterion.parameters()) == []
    plain = F.cross_entropy(head(features), targets)
    through_logits = torch.autograd.grad(loss, features, retain_graph=True)[0]
    assert through_logits.abs().sum() > 0
    assert plain is not loss


@pytest.mark.parametrize("make", [CrossEntropy, ISDALoss])
def test_eval_is_plain_cross_entropy_and_changes_nothing(make):
    head, _, features, targets = example(dtype=torch.float32)
    criterion = make(num_classes=6, feature_dim=5)
    criterion(features, head(features), targets, head=head, progress=1.0)
    before = copy.deepcopy(criterion.state_dict())
    criterion.eval()
    loss = criterion(features, head(features), targets, head=head, progress=1.0)
    assert torch.equal(loss, F.cross_entropy(head(features), targets))
    for name, tensor in criterion.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_and_with_half_inputs_it_computes_in_fp32(dtype):
    head, criterion, features, targets = example(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        loss = criterion(features.to(dtype), head(features), targets, head=head, progress=0.5)
    assert loss.dtype == torch.float32
    assert criterion.statistics.covariance.dtype == torch.float32
    twin = ISDALoss(num_classes=6, feature_dim=5, lambda_0=1.5)
    reference = twin(features, head(features), targets, head=head, progress=0.5)
    torch.testing.assert_close(loss, reference, rtol=0.02, atol=0.0)
    loss.backward()


def test_a_head_in_bf16_gives_a_loss_in_fp32_and_gets_its_gradient():
    head, criterion, features, targets = example(dtype=torch.float32)
    head.bfloat16()
    loss = criterion(features, head(features.bfloat16()), targets, head=head, progress=1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert head.weight.grad.dtype == torch.bfloat16


def test_large_features_do_not_overflow():
    head, criterion, features, targets = example(dtype=torch.float32)
    loss = criterion(features * 1e4, head(features * 1e4), targets, head=head, progress=1.0)
    loss.backward()
    assert loss.isfinite()
    assert head.weight.grad.isfinite().all()


def test_the_state_survives_state_dict_deepcopy_and_pickle():
    head, criterion, features, targets = example()
    criterion(features, head(features), targets, head=head, progress=0.2)
    fresh = ISDALoss(num_classes=6, feature_dim=5, lambda_0=1.5).double()
    fresh.load_state_dict(criterion.state_dict())
    twins = [fresh, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))]
    expected = criterion(features, head(features), targets, head=head, progress=0.5)
    for twin in twins:
        assert torch.equal(twin(features, head(features), targets, head=head, progress=0.5), expected)
    assert set(criterion.state_dict()) == {"statistics.mean", "statistics.covariance", "statistics.count"}


def test_the_backward_pass_may_be_run_twice():
    head, criterion, features, targets = example()
    loss = criterion(features, head(features), targets, head=head, progress=0.5)
    loss.backward(retain_graph=True)
    once = head.weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(head.weight.grad, 2 * once)


def test_a_head_without_bias():
    head, criterion, features, targets = example()
    head.bias = None
    assert criterion(features, head(features), targets, head=head, progress=0.5).isfinite()


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda f, z, t: (f, z, t.double()), TypeError, "takes class numbers, int64"),
        (lambda f, z, t: (f, z, F.one_hot(t, 6)), TypeError, "soft targets"),
        (lambda f, z, t: (f, z, t + 5), ValueError, r"targets go from \d to \d+, and must be in \[0, 6\)"),
        (lambda f, z, t: (f, z, t - 1), ValueError, "targets go from -1"),
        (lambda f, z, t: (f[:, :4], z, t), ValueError, r"needs \[12, 5\] and \[12, 6\]"),
        (lambda f, z, t: (f, z[:, :4], t), ValueError, r"needs \[12, 5\] and \[12, 6\]"),
        (lambda f, z, t: (f[:3], z, t), ValueError, r"needs \[12, 5\] and \[12, 6\]"),
    ],
)
def test_what_does_not_fit_is_one_clear_sentence(change, error, sentence):
    head, criterion, features, targets = example()
    targets[0] = 0
    with pytest.raises(error, match=sentence) as caught:
        criterion(*change(features, head(features), targets), head=head, progress=0.5)
    assert "\n" not in str(caught.value)
    assert criterion.statistics.count.sum() == 0, "nothing was learnt from it"


def test_a_head_of_another_size_is_refused():
    _, criterion, features, targets = example()
    with pytest.raises(ValueError, match=r"head.weight is \[7, 5\] and must be \[6, 5\]"):
        criterion(features, torch.zeros(12, 6).double(), targets, head=nn.Linear(5, 7).double(), progress=0.5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lambda_0": -0.5}, "lambda_0=-0.5 must be"),
        ({"lambda_0": float("nan")}, "lambda_0=nan must be"),
        ({"covariance": "banana"}, "there is no covariance='banana'; it can be full"),
        ({"num_classes": 0}, "must both be at least 1"),
    ],
)
def test_what_cannot_be_built_is_one_clear_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ISDALoss(**{"num_classes": 3, "feature_dim": 2, **options})


def test_the_plain_form_gives_the_same_numbers(load_script):
    plain_module = load_script("plain_isda")
    head, criterion, features, targets = example()
    plain = plain_module.PlainISDALoss(6, 5, lambda_0=1.5).double()
    for step in range(4):
        batch = (features + step).detach()
        found, expected = (loss(batch, head(batch), targets, head=head, progress=0.5) for loss in (criterion, plain))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(criterion.statistics.covariance, plain.covariance, rtol=1e-11, atol=1e-13)


def test_importing_it_imports_torch_and_nothing_else_of_weight():
    code = "import sys, torch; before = set(sys.modules); from isda_repro.losses import ISDALoss; "
    code += "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert set(shown.stdout.split()) <= {"isda_repro", "torch"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_cpus_numbers_and_the_host_never_waits():
    head, criterion, features, targets = example(samples=64, classes=6, dtype=torch.float32)
    other = copy.deepcopy(criterion).cuda()
    head_gpu, features_gpu, targets_gpu = copy.deepcopy(head).cuda(), features.detach().cuda(), targets.cuda()
    for _ in range(3):
        expected = criterion(features, head(features), targets, head=head, progress=0.5)
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = other(features_gpu, head_gpu(features_gpu), targets_gpu, head=head_gpu, progress=0.5)
            found.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other.statistics.covariance.cpu(), criterion.statistics.covariance, rtol=1e-4, atol=1e-5)
