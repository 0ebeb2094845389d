"""Class probabilities as targets: the expected loss over the labels, and statistics with the weights p_c."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from criteria import MAKERS, WITH_PRIOR, WITH_SIGMA2, as_function, assert_same, make, unchanged
from float64_reference import loss_with_label, mixed_with_pooled, two_pass, two_pass_soft
from test_arguments import COMBINED, WEIGHT, arguments, gradients, torchs

from isda_repro.losses.soft_targets import LARGEST_EXPONENT, raised_by_labels

TAKING = ["ce", *WITH_SIGMA2]
WAYS = pytest.mark.parametrize("way", ["cpu", "accelerator"])


def mixed(samples, classes=7, seed=0):
    """Return probabilities of two classes for most samples, as mixup makes them, and of one for some; the last is 0."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(classes - 1, (2, samples), generator=generator)
    share = torch.rand(samples, 1, generator=generator).double()
    share[::4] = 1
    first, second = F.one_hot(pairs, classes).double()
    return share * first + (1 - share) * second


def dense(samples, classes=7, seed=0):
    """Return probabilities of all classes that do not even sum to 1."""
    return torch.rand(samples, classes, generator=torch.Generator().manual_seed(seed)).double()


def covariances(criterion):
    return torch.stack([criterion.class_covariance(label) for label in range(criterion.num_classes)]).double()


def call(criterion, head, features, targets, progress=0.8):
    return criterion(features, head(features), targets, head=head, progress=progress)


# ------------------------------------------------------------------------------------------------------------ the loss


@COMBINED
@pytest.mark.parametrize("name", ["ce", "isda", "isda_shared"])
@pytest.mark.parametrize("targets", [mixed(24), dense(24)], ids=["mixed", "dense"])
def test_at_lambda_zero_and_in_evaluation_it_is_torchs_loss(name, targets, weight, reduction, label_smoothing):
    options = {} if name == "ce" else {"lambda_0": 0.0}
    criterion, head, features, _ = make(name, **options, **arguments(weight, reduction, label_smoothing))
    expected = torchs(weight, reduction, label_smoothing)(head(features), targets)
    inputs = features, head.weight, head.bias
    for is_training in (True, False):
        loss = call(criterion.train(is_training), head, features, targets)
        assert loss.shape == expected.shape
        assert_same(loss, expected, tolerance=1e-13)
        assert_same(gradients(loss, *inputs), gradients(expected, *inputs), tolerance=1e-13)
    assert torch.equal(loss, expected), "in evaluation to the bit"


@pytest.mark.parametrize("way", ["cpu", "accelerator"], indirect=True)
@pytest.mark.parametrize("name", TAKING)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.25])
def test_one_hot_probabilities_are_the_hard_label(name, label_smoothing, way):
    """With weights, PyTorch's mean divides by N for probabilities; the sum is the same."""
    options = arguments(WEIGHT, "sum", label_smoothing)
    criterion, head, features, targets = make(name, **options)
    twin, inputs = copy.deepcopy(criterion), (features, head.weight, head.bias)
    for labels in (targets, targets.flip(0)):
        hard = call(criterion, head, features, labels)
        soft = call(twin, head, features, F.one_hot(labels, 7).double())
        assert_same(soft, hard)
        assert_same(gradients(soft, *inputs), gradients(hard, *inputs))
        assert_same(twin.state_dict(), criterion.state_dict())


def reference(features, head, probabilities, covariance, strength, weight, label_smoothing):
    """Return sum_c p_c loss(label c) of each sample."""
    rest = head.weight, head.bias, covariance, strength, weight, label_smoothing
    rows = zip(features, probabilities, strict=True)
    return torch.stack([sum(p * loss_with_label(a, c, *rest) for c, p in enumerate(row)) for a, row in rows])


@pytest.mark.parametrize("way", ["cpu", "accelerator"], indirect=True)
@pytest.mark.parametrize("name", WITH_SIGMA2)
@pytest.mark.parametrize(("weight", "label_smoothing"), [(None, 0.0), (WEIGHT, 0.25)])
def test_value_and_gradients_equal_those_of_a_double_loop(name, weight, label_smoothing, way):
    options = arguments(weight, "none", label_smoothing)
    criterion, head, features, _ = make(name, size=6, lambda_0=1.5, **options)
    earlier = features.detach() + 1
    call(criterion, head, earlier, mixed(6))
    targets = dense(6) / dense(6).sum(1, keepdim=True)
    loss = call(criterion, head, features, targets)
    all_features, all_targets = torch.cat((earlier, features.detach())), torch.cat((mixed(6), targets))
    covariance = {
        "isda_identity": lambda: torch.eye(5).double().expand(7, 5, 5),
        "isda_shared": lambda: two_pass(all_features, torch.zeros(12).long(), 1)[1].expand(7, 5, 5),
    }.get(name, lambda: two_pass_soft(all_features, all_targets)[1])()
    if "diagonal" in name:
        covariance = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
    if name in WITH_PRIOR:
        covariance = mixed_with_pooled(covariance, all_targets.sum(0), 3.0)
    assert_same(covariances(criterion), covariance)
    expected = reference(features, head, targets, covariance, 1.5 * 0.8, weight or [1.0] * 7, label_smoothing)
    inputs = features, head.weight, head.bias
    assert_same(loss, expected)
    assert_same(gradients(loss, *inputs), gradients(expected, *inputs))


@pytest.mark.parametrize("name", ["isda", "isda_shared"])
def test_mean_is_over_samples_and_shared_counts_each_once_also_if_rows_do_not_sum_to_1(name):
    targets = dense(24) * (torch.arange(24) > 2)[:, None]  # three samples have no class
    found = {}
    for reduction in ("mean", "sum", "none"):
        criterion, head, features, _ = make(name, reduction=reduction, lambda_0=1.5)
        found[reduction] = call(criterion, head, features, targets)
        assert_same(
            criterion.statistics.count.sum(), torch.tensor(21.0).double() if name == "isda_shared" else targets.sum()
        )
    assert_same(found["mean"], found["none"].mean())
    assert_same(found["sum"], found["none"].sum())


@pytest.mark.parametrize("name", WITH_SIGMA2)
def test_gradients_are_derivatives_also_for_the_probabilities(name, monkeypatch):
    options = arguments(WEIGHT[:4], "none", 0.3)
    criterion, head, features, _ = make(name, size=6, classes=4, width=3, **options)
    call(criterion, head, features, mixed(6, 4))
    if name != "isda_identity":  # the gradient treats statistics as constants
        monkeypatch.setattr(criterion.statistics, "update", lambda features, targets: None)

    value = as_function(criterion)
    inputs = [one.detach().clone().requires_grad_() for one in (features, head.weight, head.bias, dense(6, 4) + 0.1)]
    assert torch.autograd.gradcheck(value, inputs)
    fixed = (one.detach() for one in inputs[1:])
    assert torch.autograd.gradgradcheck(lambda one, rest=tuple(fixed): value(one, *rest), inputs[:1])


def test_probability_of_0_has_the_gradient_of_its_labels_loss():
    """Labels without a share are left out on a CPU, unless the probabilities get a gradient."""
    criterion, head, features, _ = make("isda", lambda_0=1.5, reduction="sum")
    call(criterion, head, features, dense(24))
    targets = mixed(24).requires_grad_()
    (found,) = torch.autograd.grad(call(criterion, head, features, targets), targets)
    rest = head.weight, head.bias, covariances(criterion), 1.5 * 0.8, [1.0] * 7, 0.0
    losses = [[loss_with_label(a, c, *rest).item() for c in range(7)] for a in features]
    assert_same(found, torch.tensor(losses, dtype=torch.float64))


def test_it_bounds_the_expectation_over_labels_and_augmented_features():
    """Monte Carlo estimates of each sample: a label is drawn, and then a feature with the covariance of that label."""
    draws = 40_000
    criterion, head, features, _ = make("isda", lambda_0=2.0, reduction="none")
    targets, features = mixed(24), features.detach()
    loss = call(criterion, head, features, targets, progress=1.0).detach()
    means, errors = [], []
    with torch.no_grad():
        roots = torch.linalg.cholesky(2.0 * covariances(criterion) + 1e-12 * torch.eye(5))
        for a, p in zip(features, targets, strict=True):
            labels = torch.multinomial(p, draws, replacement=True)
            noise = (roots[labels] @ torch.randn(draws, 5, 1).double())[:, :, 0]
            of_draws = F.cross_entropy(head(a + noise), labels, reduction="none")
            means.append(of_draws.mean())
            errors.append(of_draws.std() / draws**0.5)
    mean, error = torch.stack(means), torch.stack(errors)
    assert (mean - 5 * error < loss).all()
    assert (loss - mean > 5 * error).any(), "the augmentation matters here"
    assert ((mean - F.cross_entropy(head(features), targets, reduction="none")) > 5 * error).any()


def test_large_exponents_stay_finite_and_keep_their_gradient():
    half = torch.tensor([[0.0, 300.0, 1e7]], requires_grad=True)
    logits = torch.tensor([[200.0, -1000.0, 0.0], [0.0, 1.0, 2.0]], requires_grad=True)
    raised = raised_by_labels(logits, half)
    raised.sum().backward()
    exact = (logits.double() + half.clamp(max=LARGEST_EXPONENT)).logsumexp(1) - logits.double().logsumexp(1)
    assert_same(raised[:, 0].detach(), exact.detach(), tolerance=1e-10)
    assert half.grad[0, 2] > 1.9
    assert logits.grad.isfinite().all()


def test_float32_is_precise_where_the_added_term_is_small():
    logits, half = torch.randn(5, 7), 1e-6 * torch.rand(3, 7)
    exact = (logits.double()[:, None] + half.double()).logsumexp(2) - logits.double().logsumexp(1)[:, None]
    assert ((raised_by_labels(logits, half) - exact).abs() / exact).max() < 1e-7


# ---------------------------------------------------------------------------------------------- bad input, and devices


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", TAKING)
def test_bad_probability_on_a_cpu_is_refused_before_anything_is_learnt(name, bad):
    criterion, head, features, _ = make(name)
    targets = mixed(24)
    targets[3, 2] = bad
    with unchanged(criterion), pytest.raises(ValueError, match="sample 3"):
        call(criterion, head, features, targets)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", TAKING)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_bad_probability_on_an_accelerator_makes_the_loss_nan_and_reaches_nothing_else(
    name, reduction, bad, accelerator
):
    criterion, head, features, _ = make(name, reduction=reduction)
    targets = mixed(24)
    targets[3, 2] = bad
    loss = call(criterion, head, features, targets)
    assert loss.isnan().sum() == 1
    loss.sum().backward()
    assert all(one.grad.isfinite().all() for one in (features, *head.parameters()))
    assert all(one.isfinite().all() for one in criterion.state_dict().values())
    if name not in ("ce", "isda_identity"):
        assert abs(criterion.statistics.count.sum() - 23) < 1e-9


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in TAKING])
def test_other_losses_refuse_probabilities(name):
    criterion, head, features, _ = make(name)
    with unchanged(criterion), pytest.raises(TypeError, match="CrossEntropy and ISDALoss"):
        call(criterion, head, features, mixed(24))


@pytest.mark.parametrize("shape", [(24,), (24, 6), (24, 7, 2)])
def test_probabilities_of_another_shape_are_refused(shape):
    criterion, head, features, _ = make("isda")
    with pytest.raises(ValueError, match=r"\[N, 7\]"):
        call(criterion, head, features, torch.rand(shape))
    with pytest.raises(ValueError, match=r"\[23, 5\]"):
        call(criterion, head, features, torch.rand(23, 7))


@pytest.mark.parametrize("way", ["cpu", "accelerator"], indirect=True)
@pytest.mark.parametrize("name", TAKING)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("size", [0, 3])
def test_batch_without_a_share_has_loss_0_and_changes_no_state(name, size, label_smoothing, way):
    criterion, head, features, _ = make(name, size=size, label_smoothing=label_smoothing)
    with unchanged(criterion):
        loss = call(criterion, head, features, torch.zeros(size, 7).double())
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    criterion, head, features, _ = make("isda", dtype=torch.float32)
    targets = mixed(24).to(dtype)
    twin, expected_features = copy.deepcopy(criterion), features.detach().to(dtype).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = criterion(features.to(dtype), head(expected_features).float(), targets, head=head, progress=0.8)
        loss.backward()
    assert loss.dtype == torch.float32
    call(twin, head, expected_features, targets.float())
    assert_same(criterion.state_dict(), twin.state_dict(), tolerance=0)


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow) for one in ("ce", "isda", "isda_packed")] + ["isda_diagonal"]
)
def test_it_compiles_into_one_graph(name):
    from torch._dynamo.testing import CompileCounterWithBackend  # slow to import, which each process would do

    torch._dynamo.reset()
    criterion, head, features, _ = make(name, **arguments(WEIGHT, "mean", 0.1))
    eager, graphs = copy.deepcopy(criterion), CompileCounterWithBackend("aot_eager")
    compiled, targets = torch.compile(criterion, fullgraph=True, backend=graphs), mixed(24)
    for progress in (torch.tensor(share).double() for share in (0.2, 0.4)):
        losses = [call(one, head, features, targets, progress) for one in (compiled, eager)]
        assert_same(*losses, tolerance=1e-10)
        assert_same(*(gradients(one, features, head.weight) for one in losses), tolerance=1e-10)
    assert graphs.frame_count <= 2
    assert_same(dict(criterion.named_buffers()), dict(eager.named_buffers()), tolerance=1e-10)


# ---------------------------------------------------------------------------------------------------- several processes


def trained(name, sizes, rank, group):
    """Train on three batches; return losses and gradients summed over the processes, and the whole state."""
    criterion, head, _, _ = make(name, **({} if group is None else {"process_group": group}))
    trace = []
    for seed in range(3):
        torch.manual_seed(seed)
        features, targets = torch.randn(sum(sizes), 5).double().relu(), mixed(sum(sizes), seed=seed)
        part = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        own = features[part].requires_grad_()
        head.zero_grad()
        loss = call(criterion, head, own, targets[part]) * (sizes[rank] / sum(sizes))
        loss.backward()
        trace.append([loss.detach().clone(), head.weight.grad.clone(), head.bias.grad.clone()])
        for one in trace[-1] if group is not None else ():
            dist.all_reduce(one, group=group)
    return trace, criterion.whole_state_dict()


GROUPED = [("isda", "cpu"), ("isda_packed", "cpu"), ("isda_diagonal", "cpu"), ("isda_shared", "cpu")]
GROUPED += [("isda_packed_prior", "cpu")]
GROUPED += [(name, "accelerator") for name in ("isda_packed", "isda_packed_prior", "isda_identity")]


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    outcomes = []
    for name, way in GROUPED:
        torch.compiler.is_compiling = lambda way=way: way == "accelerator"
        outcomes += [trained(name, sizes, rank, dist.group.WORLD) for sizes in sizes_of(way)]
    if rank == 0:
        torch.save(outcomes, folder / "outcomes")
    dist.destroy_process_group()


def sizes_of(way):
    return [(6, 6)] if way == "accelerator" else [(5, 7), (12, 0)]


def test_two_processes_equal_one(tmp_path):
    """Covers uneven parts, and a process without a sample."""
    mp.spawn(one_of_two, (tmp_path,), nprocs=2)
    outcomes = iter(torch.load(tmp_path / "outcomes"))
    for name, way in GROUPED:
        for sizes in sizes_of(way):
            expected = trained(name, (sum(sizes),), 0, None)
            torch.testing.assert_close(
                next(outcomes), expected, rtol=1e-9, atol=1e-11, msg=lambda message, name=name: f"{name}: {message}"
            )
