"""``weight``, ``reduction`` and ``label_smoothing`` of cross-entropy and ISDA, against PyTorch and double loops."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from criteria import WITH_SIGMA2, as_function, assert_same, make, step
from float64_reference import loss_with_label, reduced, two_pass
from torch import nn

from isda_repro.losses import CrossEntropy, ISDALoss

WEIGHT = [0.5, 2.0, 0.25, 1.0, 3.0, 0.0, 1.5]
COMBINATIONS = list(itertools.product([None, WEIGHT], ["mean", "sum", "none"], [0.0, 0.25]))
COMBINED = pytest.mark.parametrize(("weight", "reduction", "label_smoothing"), COMBINATIONS)


def arguments(weight, reduction, label_smoothing):
    return {"weight": weight, "reduction": reduction, "label_smoothing": label_smoothing}


def torchs(weight, reduction, label_smoothing):
    """Return PyTorch's loss with the same arguments."""
    tensor = None if weight is None else torch.tensor(weight).double()
    return nn.CrossEntropyLoss(tensor, reduction=reduction, label_smoothing=label_smoothing)


def ignoring(targets):
    """Return targets whose samples 0, 5, 10, ... are ignored."""
    return targets.masked_fill(torch.arange(len(targets)) % 5 == 0, -100)


def gradients(loss, *inputs):
    """Return the gradients of a loss that may be one number for each sample, whose factors are then all different."""
    factors = torch.arange(1, loss.numel() + 1).to(loss.dtype).view_as(loss)
    return torch.autograd.grad((loss * factors).sum(), inputs, retain_graph=True)


@COMBINED
@pytest.mark.parametrize("name", ["ce", "isda", "isda_shared"])
@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_at_lambda_zero_and_in_evaluation_it_is_torchs_loss(name, way, weight, reduction, label_smoothing, request):
    options = {} if name == "ce" else {"lambda_0": 0.0}
    criterion, head, features, targets = make(name, **options, **arguments(weight, reduction, label_smoothing))
    if way == "accelerator":
        request.getfixturevalue("accelerator")
    if way == "cpu":  # equal to the bit where no sample is left out of a sum
        found = criterion.eval()(features, head(features), targets, head=head, progress=1.0)
        assert torch.equal(found, torchs(weight, reduction, label_smoothing)(head(features), targets))
    targets, inputs = ignoring(targets), (features, head.weight, head.bias)
    expected = torchs(weight, reduction, label_smoothing)(head(features), targets)
    for is_training in (True, False):
        criterion.train(is_training)
        loss = criterion(features, head(features), targets, head=head, progress=1.0)
        assert loss.shape == expected.shape
        assert_same(loss, expected, tolerance=1e-13)
        assert_same(gradients(loss, *inputs), gradients(expected, *inputs), tolerance=1e-13)


@COMBINED
@pytest.mark.parametrize("name", ["isda", "isda_diagonal"])
@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_value_and_gradients_equal_those_of_a_double_loop(name, way, weight, reduction, label_smoothing, request):
    """The statistics take each sample whole, whatever its weight and however its label is smoothed."""
    options = arguments(weight, reduction, label_smoothing)
    criterion, head, features, targets = make(name, size=11, **options, lambda_0=1.5)
    if way == "accelerator":
        request.getfixturevalue("accelerator")
    masked, kept = ignoring(targets), [i for i in range(11) if i % 5]
    loss = criterion(features, head(features), masked, head=head, progress=0.8)
    mean, covariance = two_pass(features.detach()[kept], targets[kept], 7)
    if name == "isda_diagonal":
        covariance = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
    class_weight = WEIGHT if weight else [1.0] * 7
    of_sample = (head.weight, head.bias, covariance, 1.5 * 0.8, class_weight, label_smoothing)
    losses = [loss_with_label(features[i], targets[i].item(), *of_sample) for i in kept]
    expected = reduced(losses, targets[kept].tolist(), class_weight, reduction)
    if reduction == "none":
        expected = torch.zeros(11).double().index_copy(0, torch.tensor(kept), expected)
    inputs = features, head.weight, head.bias
    assert_same(loss, expected)
    assert_same(gradients(loss, *inputs), gradients(expected, *inputs))
    assert_same(criterion.statistics.mean, mean)


@pytest.mark.parametrize("name", WITH_SIGMA2)
def test_gradients_are_derivatives(name, monkeypatch):
    options = arguments(WEIGHT[:4], "none", 0.3)
    criterion, head, features, targets = make(name, size=6, classes=4, width=3, **options)
    criterion(features, head(features), targets, head=head, progress=1.0)
    if name != "isda_identity":  # the gradient treats statistics as constants
        monkeypatch.setattr(criterion.statistics, "update", lambda features, targets: None)

    inputs = (one.detach().clone().requires_grad_() for one in (features, head.weight, head.bias))
    assert torch.autograd.gradcheck(as_function(criterion), (*inputs, targets))


def test_smoothed_loss_bounds_the_expectation_where_smoothed_augmented_logits_would_not():
    """Monte Carlo estimates of the expected smoothed cross-entropy of each sample, as for equation 4."""
    draws, smoothing = 20_000, 0.4
    criterion, head, features, targets = make("isda", lambda_0=2.0, label_smoothing=smoothing, reduction="none")
    features = features.detach()
    loss = criterion(features, head(features), targets, head=head, progress=1.0).detach()
    means, errors, naive = [], [], []
    with torch.no_grad():
        for a, y in zip(features, targets.tolist(), strict=True):
            root = torch.linalg.cholesky(2.0 * criterion.statistics.covariance[y] + 1e-12 * torch.eye(5))
            sampled = a + torch.randn(draws, 5).double() @ root.T
            of_draws = F.cross_entropy(
                head(sampled), torch.full((draws,), y), reduction="none", label_smoothing=smoothing
            )
            means.append(of_draws.mean())
            errors.append(of_draws.std() / draws**0.5)
            difference = head.weight - head.weight[y]
            raised = head(a) + (difference @ criterion.statistics.covariance[y] * difference).sum(1)
            naive.append(F.cross_entropy(raised, torch.tensor(y), label_smoothing=smoothing))
        mean, error = torch.stack(means), torch.stack(errors)
        plain = F.cross_entropy(head(features), targets, reduction="none", label_smoothing=smoothing)
    assert (mean - 5 * error < loss).all()
    assert (loss > plain - 1e-12).all()
    assert (loss - mean > 5 * error).any(), "the augmentation matters here"
    assert (torch.stack(naive) < mean - 5 * error).any()


@pytest.mark.parametrize("ignore_index", [-100, 2, None])
@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_mean_times_the_total_weight_is_the_sum(way, ignore_index, request):
    if way == "accelerator":
        request.getfixturevalue("accelerator")
    losses, makes = {}, {"weight": WEIGHT, "ignore_index": ignore_index}
    for reduction in ("mean", "sum"):
        criterion, head, features, targets = make("ce", **makes, reduction=reduction)
        targets = targets if ignore_index is None else targets.masked_fill(torch.arange(24) % 5 == 0, ignore_index)
        losses[reduction] = criterion(features, head(features), targets, head=head, progress=1.0)
    assert_same(losses["mean"] * criterion.total_weight(targets), losses["sum"])
    assert_same(criterion.total_weight(targets.view(4, 6)), criterion.total_weight(targets))
    assert make("ce")[0].total_weight(targets) is None


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["ce", "isda"])
@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_batch_without_a_sample_that_counts_has_loss_0(name, way, reduction, request):
    if way == "accelerator":
        request.getfixturevalue("accelerator")
    for size in (0, 3):
        criterion, head, features, targets = make(name, size=size, **arguments(WEIGHT, reduction, 0.1))
        loss = criterion(features, head(features), torch.full_like(targets, -100), head=head, progress=1.0)
        loss.sum().backward()
        assert loss.shape == ((size,) if reduction == "none" else ())
        assert (loss == 0).all()
        assert all((one.grad == 0).all() for one in (features, *head.parameters()))


@COMBINED
@pytest.mark.parametrize("name", ["ce", "isda"])
def test_bad_label_on_an_accelerator_gives_nan(name, weight, reduction, label_smoothing, accelerator):
    criterion, head, features, targets = make(name, **arguments(weight, reduction, label_smoothing))
    expected = criterion(features, head(features), targets, head=head, progress=0.0).detach()
    targets[3] = 7
    loss = criterion(features, head(features), targets, head=head, progress=0.0)
    if reduction == "none":
        assert torch.equal(loss.isnan(), torch.arange(24) == 3)
        assert_same(loss[4:].detach(), expected[4:])
    else:
        assert loss.isnan()
    loss.sum().backward()
    assert all(one.grad.isfinite().all() for one in (features, head.weight))


@pytest.mark.parametrize(
    ("name", "reduction"),
    [("ce", "mean")]
    + [pytest.param(*one, marks=pytest.mark.slow) for one in (("isda_diagonal", "mean"), ("isda_diagonal", "none"))],
)
def test_all_arguments_compile_into_one_graph(name, reduction):
    from torch._dynamo.testing import CompileCounterWithBackend  # slow to import, which each process would do

    torch._dynamo.reset()
    criterion, head, features, targets = make(name, **arguments(WEIGHT, reduction, 0.1))
    eager, graphs = copy.deepcopy(criterion), CompileCounterWithBackend("aot_eager")
    compiled, targets = torch.compile(criterion, fullgraph=True, backend=graphs), ignoring(targets)
    for progress in (torch.tensor(share).double() for share in (0.2, 0.4)):
        losses = [one(features, head(features), targets, head=head, progress=progress) for one in (compiled, eager)]
        assert_same(*losses, tolerance=1e-10)
        assert_same(*(gradients(one, features, head.weight) for one in losses), tolerance=1e-10)
    assert graphs.frame_count <= 2


def test_weights_are_no_part_of_the_state_and_keep_their_precision():
    tensor = torch.tensor(WEIGHT).double() / 3
    criterion = ISDALoss(7, 5, weight=tensor)
    assert criterion.state_dict().keys() == ISDALoss(7, 5).state_dict().keys()
    assert torch.equal(criterion.weight, tensor)
    assert criterion.half().weight.dtype == torch.float32
    tensor.zero_()
    assert criterion.weight.sum() > 0, "the caller's tensor is copied"
    assert CrossEntropy(2, 5, weight=torch.tensor([1, 2])).weight.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["ce", "isda"])
@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("weight", [[1.0] * 6, [1.0] * 6 + [-1.0], [1.0] * 6 + [float("nan")], "balanced", 3.0, torch.ones(7, 1)]),
        ("reduction", ["average", None, 1]),
        ("label_smoothing", [-0.1, 1.1, float("nan"), "much", None]),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(name, key, values):
    for value in values:
        with pytest.raises(ValueError, match=key):
            make(name, **{key: value})


def test_step_without_new_arguments_is_the_same_to_the_bit():
    """All weights 1 divide by the same count."""
    criterion, head, features, targets = make("isda", dtype=torch.float32)
    other = make("isda", dtype=torch.float32, weight=None, reduction="mean", label_smoothing=0)[0]
    assert_same(step(criterion, head, features, targets), step(other, head, features, targets), tolerance=0)
