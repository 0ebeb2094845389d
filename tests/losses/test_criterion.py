"""What every loss keeps to: evaluation, ignored samples, bad labels, devices that run behind, state, half precision."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isda_repro.losses import (
    CenterLoss,
    CrossEntropy,
    DisturbLabel,
    FocalLoss,
    ISDALoss,
    LargeMarginSoftmax,
    LqLoss,
    SampledISDALoss,
)

MAKERS = {
    "ce": CrossEntropy,
    "focal": FocalLoss,
    "lq": LqLoss,
    "center": CenterLoss,
    "large_margin": LargeMarginSoftmax,
    "disturb_label": DisturbLabel,
    "isda": ISDALoss,
    "isda_diagonal": lambda *sizes, **options: ISDALoss(*sizes, covariance="diagonal", **options),
    "isda_shared": lambda *sizes, **options: ISDALoss(*sizes, covariance="shared", **options),
    "isda_packed": lambda *sizes, **options: ISDALoss(*sizes, packed=True, **options),
    "isda_identity": lambda *sizes, **options: ISDALoss(*sizes, covariance="identity", **options),
    "isda_sampled": SampledISDALoss,
}
WITHOUT_DRAWS = [name for name in MAKERS if name not in ("disturb_label", "isda_sampled")]
ROOMS = ["batch_classes", "center", "criterion", "isda", "packed", "quadratic", "statistics", "variances"]


@pytest.fixture
def behind(monkeypatch):
    """Treat the CPU as an accelerator: no value may then be asked for, and here none need be."""
    for room in ROOMS:
        monkeypatch.setattr(f"isda_repro.losses.{room}.is_asynchronous", lambda tensor: True)


def make(name, samples=24, classes=7, width=5, dtype=torch.float64, **options):
    torch.manual_seed(0)
    criterion = MAKERS[name](classes, width, **options).to(dtype)
    head = nn.Linear(width, classes, bias=criterion.uses_head_bias).to(dtype)
    features = torch.randn(samples, width, dtype=dtype).relu().requires_grad_()
    return criterion, head, features, torch.randint(classes - 1, (samples,))


def step(criterion, head, features, targets, progress=0.7):
    """Loss, its gradients and the state after it, on copies."""
    criterion, head = copy.deepcopy(criterion), copy.deepcopy(head)
    features = features.detach().clone().requires_grad_()
    criterion.begin_step(0, 10, torch.Generator().manual_seed(0))
    loss = criterion(features, head(features), targets, head=head, progress=progress)
    loss.backward()
    gradients = {name: one.grad for name, one in (*head.named_parameters(), *criterion.named_parameters())}
    return loss.detach(), features.grad, gradients, dict(criterion.named_buffers())


def assert_same(found, expected, tolerance=1e-11):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MAKERS)
def test_in_evaluation_each_is_cross_entropy_and_changes_nothing(name):
    criterion, head, features, targets = make(name)
    criterion(features, head(features), targets, head=head, progress=1.0)
    before = copy.deepcopy(criterion.state_dict())
    loss = criterion.eval()(features, head(features), targets, head=head, progress=1.0)
    assert torch.equal(loss, F.cross_entropy(head(features), targets))
    for key, tensor in criterion.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_the_order_of_samples_does_not_matter(name):
    criterion, head, features, targets = make(name)
    order = torch.randperm(len(targets))
    loss, of_features, gradients, state = step(criterion, head, features, targets)
    permuted = step(criterion, head, features[order], targets[order])
    assert_same(permuted, (loss, of_features[order], gradients, state))


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
@pytest.mark.parametrize("samples", [24, 4])
def test_a_device_that_runs_behind_gives_the_same(name, samples, behind, monkeypatch):
    criterion, head, features, targets = make(name, samples)
    second = features.flip(0) + 0.1
    criterion(second, head(second), targets, head=head, progress=0.5)
    found = step(criterion, head, features, targets)
    monkeypatch.undo()
    criterion, head, features, targets = make(name, samples)
    criterion(second, head(second), targets, head=head, progress=0.5)
    assert_same(found, step(criterion, head, features, targets))


@pytest.mark.parametrize("ignored", [-100, 255, 3])
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_ignored_samples_count_for_nothing(name, ignored, request):
    criterion, head, features, targets = make(name, ignore_index=ignored)
    targets = targets.masked_fill(targets == 3, 2)
    places = torch.arange(0, 24, 5)
    poisoned = features.detach().clone()
    poisoned[places] = 1e30
    masked = targets.clone()
    masked[places] = ignored
    kept = torch.tensor([i for i in range(24) if i not in places.tolist()])
    loss, of_features, gradients, state = step(criterion, head, features[kept], targets[kept])
    expected = torch.zeros_like(features).index_copy(0, kept, of_features)
    assert_same(step(criterion, head, poisoned, masked), (loss, expected, gradients, state))
    evaluated = criterion.eval()(features, head(features), masked, head=head, progress=1.0)
    assert_same(evaluated, F.cross_entropy(head(features[kept]), targets[kept]))
    criterion.train()
    request.getfixturevalue("behind")
    assert_same(step(criterion, head, poisoned, masked), (loss, expected, gradients, state))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("form", ["none", "ignored", "ignored, on a device"])
def test_a_batch_without_a_sample_costs_nothing_and_leaves_no_trace(name, form, request):
    if form.endswith("device"):
        if name == "isda_sampled":
            pytest.skip("it makes the host wait anyway")
        request.getfixturevalue("behind")
    criterion, head, features, targets = make(name, samples=0 if form == "none" else 3, ignore_index=-100)
    before = copy.deepcopy(criterion.state_dict())
    loss = criterion(features, head(features), torch.full_like(targets, -100), head=head, progress=1.0)
    loss.backward()
    assert loss == 0
    assert all(weight.grad is None or (weight.grad == 0).all() for weight in (*head.parameters(), features))
    for key, tensor in criterion.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("bad", [7, -1, -100])
@pytest.mark.parametrize("name", MAKERS)
def test_a_bad_label_is_one_clear_sentence(name, bad):
    criterion, head, features, targets = make(name)
    targets[3] = bad
    before = copy.deepcopy(criterion.state_dict())
    with pytest.raises(ValueError, match=rf"targets go from -?\d+ to \d+, and must be in \[0, 7\)"):  # noqa: F541
        criterion(features, head(features), targets, head=head, progress=1.0)
    for key, tensor in criterion.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("bad", [7, -1, -100, 10**12])
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "isda_sampled"])
def test_a_bad_label_on_a_device_makes_the_loss_nan_and_reaches_nothing(name, bad, behind):
    criterion, head, features, targets = make(name)
    targets[3] = bad
    loss, of_features, gradients, state = step(criterion, head, features, targets)
    assert loss.isnan()
    assert all(one is None or one.isfinite().all() for one in (of_features, *gradients.values()))
    assert all(one.isfinite().all() for one in state.values())
    if "statistics.count" in state:
        assert state["statistics.count"].sum() == 23


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MAKERS)
def test_under_autocast_each_computes_in_float32(name, dtype):
    criterion, head, features, targets = make(name, dtype=torch.float32)
    reference = step(criterion, head, features.to(dtype).float(), targets)
    criterion.begin_step(0, 10, torch.Generator().manual_seed(0))
    half = features.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        logits = head(half)
        loss = criterion(half, logits, targets, head=head, progress=0.7)
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), reference[0], rtol=0.02, atol=0.01)
    (loss * 1024).backward()  # as a gradient scaler would
    assert half.grad.isfinite().all()
    for key, tensor in criterion.named_buffers():
        torch.testing.assert_close(tensor, reference[3][key])


@pytest.mark.parametrize("name", MAKERS)
def test_features_of_10000_do_not_overflow(name):
    criterion, head, features, targets = make(name, dtype=torch.float32)
    loss, of_features, gradients, state = step(criterion, head, features * 1e4, targets, progress=1.0)
    assert loss.isfinite()
    for tensor in (of_features, *gradients.values(), *state.values()):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("name", MAKERS)
def test_state_goes_through_state_dict_deepcopy_and_pickle(name):
    criterion, head, features, targets = make(name)
    criterion.begin_step(0, 10, torch.Generator().manual_seed(5))
    criterion(features, head(features), targets, head=head, progress=1.0)
    saved = io.BytesIO()
    torch.save(criterion.state_dict(), saved)
    saved.seek(0)
    fresh = make(name)[0]
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    expected = step(criterion, head, features + 1, targets)
    for twin in (fresh, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert_same(step(twin, head, features + 1, targets), expected, tolerance=0)


@pytest.mark.parametrize("name", MAKERS)
def test_a_head_is_any_linear_layer(name):
    """Weight-normalised, so that its weight is computed anew from parameters of its own; and frozen."""
    criterion, head, features, targets = make(name)
    normed = nn.utils.parametrizations.weight_norm(copy.deepcopy(head))
    for one in (normed, copy.deepcopy(head).requires_grad_(False)):
        twin = copy.deepcopy(criterion)
        twin.begin_step(0, 10, torch.Generator().manual_seed(0))
        loss = twin(features, one(features), targets, head=one, progress=0.7)
        loss.backward()
        assert_same(loss.detach(), step(criterion, head, features, targets)[0])
    assert normed.parametrizations.weight.original1.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in MAKERS if name.startswith("isda") and name != "isda_sampled"])
def test_a_head_with_or_without_bias(name):
    criterion, head, features, targets = make(name)
    head.bias.data.zero_()
    without = nn.Linear(5, 7, bias=False).double()
    without.weight.data.copy_(head.weight)
    assert_same(step(criterion, head, features, targets)[0], step(criterion, without, features, targets)[0])


@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_shared", "isda_identity"])
def test_three_thousand_classes_and_constant_features(name):
    """A class seen once, most never, and features without any variance: all finite, and then cross-entropy."""
    criterion, head, features, targets = make(name, samples=40, classes=3000, width=4, dtype=torch.float32)
    step(criterion, head, features, targets)
    constant = torch.ones(40, 4)
    loss, of_features, gradients, state = step(criterion, head, constant, torch.arange(40) % 4)
    for tensor in (loss, of_features, *gradients.values(), *state.values()):
        assert tensor.isfinite().all()
    if name != "isda_identity":
        torch.testing.assert_close(loss, F.cross_entropy(head(constant), torch.arange(40) % 4))


@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_shared"])
def test_statistics_see_batches_split_or_doubled_as_they_should(name):
    """Split batches give the same statistics; each sample twice gives the same ones with double counts."""
    criterion, head, features, targets = make(name)
    whole = step(criterion, head, features, targets)[3]
    split = copy.deepcopy(criterion)
    for part in range(0, 24, 7):
        few, labels = features[part : part + 7].detach(), targets[part : part + 7]
        split(few, head(few), labels, head=head, progress=0.5)
    assert_same(dict(split.named_buffers()), whole)
    doubled = step(criterion, head, features.repeat(2, 1), targets.repeat(2))[3]
    assert torch.equal(doubled.pop("statistics.count"), 2 * whole.pop("statistics.count"))
    assert_same(doubled, whole)


@pytest.mark.parametrize("name", ["isda", "isda_diagonal"])
def test_a_class_doubled_changes_no_other_class(name):
    criterion, head, features, targets = make(name)
    extra = targets == 0
    once = step(criterion, head, features, targets)[3]
    twice = step(criterion, head, torch.cat([features, features[extra]]), torch.cat([targets, targets[extra]]))[3]
    assert twice["statistics.count"][0] == 2 * once["statistics.count"][0] > 0
    for buffer in ("mean", "covariance" if name == "isda" else "variance"):
        assert_same(twice[f"statistics.{buffer}"], once[f"statistics.{buffer}"])


@pytest.mark.parametrize("name", MAKERS)
def test_micro_batches_of_a_loop_that_accumulates_gradients(name):
    """Two backward passes before a step of the optimiser: nothing saved by the first is changed by the second."""
    criterion, head, features, targets = make(name)
    losses = [
        criterion(part, head(part), labels, head=head, progress=0.5) / 2
        for part, labels in zip(features.split(12), targets.split(12), strict=True)
    ]
    sum(losses).backward()
    together = {key: one.grad.clone() for key, one in head.named_parameters()}
    torch.manual_seed(0)
    criterion, head, features, targets = make(name)
    for part, labels in zip(features.split(12), targets.split(12), strict=True):
        (criterion(part, head(part), labels, head=head, progress=0.5) / 2).backward()
    if name in WITHOUT_DRAWS:
        assert_same({key: one.grad for key, one in head.named_parameters()}, together)


@pytest.mark.parametrize("samples", [24, 4])
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_each_compiles_into_one_graph(name, samples):
    torch._dynamo.reset()
    criterion, head, features, targets = make(name, samples, ignore_index=2)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for progress in (0.2, 0.4, 0.6, 0.8):  # a number may change without a graph for each
        losses, gradients = [], []
        for function in (compiled, eager):
            head.zero_grad()
            features.grad = None
            loss = function(features, head(features), targets, head=head, progress=progress)
            loss.backward()
            losses.append(loss.detach())
            gradients.append([features.grad, head.weight.grad])
        assert_same(losses[0], losses[1], tolerance=1e-10)
        assert_same(gradients[0], gradients[1], tolerance=1e-10)
    assert_same(dict(criterion.named_buffers()), dict(eager.named_buffers()), tolerance=1e-10)


WITH_SIGMA2 = ["isda", "isda_diagonal", "isda_shared", "isda_identity", "isda_packed"]


@pytest.mark.parametrize("name", [name for name in WITHOUT_DRAWS if name not in WITH_SIGMA2])
def test_second_derivatives(name):
    criterion, head, features, targets = make(name, samples=5)
    features = (features.detach() + 0.1).requires_grad_()  # away from the origin, where an angle has no derivative

    def value(features, weight):
        with torch.no_grad():
            head.weight.copy_(weight)
        logits = F.linear(features, weight, head.bias)
        stand_in = nn.Linear(*weight.shape[::-1], bias=head.bias is not None).double()
        del stand_in.weight
        stand_in.weight = weight
        return criterion(features, logits, targets, head=stand_in, progress=0.7)

    assert torch.autograd.gradgradcheck(value, (features, head.weight.detach().clone().requires_grad_()))


@pytest.mark.parametrize("name", WITH_SIGMA2)
def test_second_derivatives_of_isda_are_right_or_refused(name, monkeypatch):
    criterion, head, features, targets = make(name)
    criterion(features, head(features), targets, head=head, progress=0.7)
    for room, kind in (("statistics", "Class"), ("variances", "Class"), ("packed", "Packed")):
        statistics = f"isda_repro.losses.{room}.{kind}{'Variances' if room == 'variances' else 'Statistics'}"
        monkeypatch.setattr(f"{statistics}.update", lambda *arguments: None)  # constants, as the gradient takes them

    def value(features):
        return criterion(features, head(features), targets, head=head, progress=0.7)

    assert torch.autograd.gradgradcheck(value, (features,))

    loss = criterion(features, head(features), targets, head=head, progress=0.7)
    (gradient,) = torch.autograd.grad(loss, head.weight, create_graph=True)
    for again in (
        lambda: torch.autograd.grad(gradient.square().sum(), [features, head.weight], retain_graph=True),
        lambda: torch.autograd.grad(gradient.square().sum(), features, retain_graph=True),
        lambda: gradient.square().sum().backward(),
    ):
        with pytest.raises(NotImplementedError, match="second derivative of ISDA"):
            again()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["isda", "isda_diagonal"])
def test_inductor_compiles_isda(name):
    torch._dynamo.reset()
    criterion, head, features, targets = make(name, dtype=torch.float32)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True)
    for progress in (0.2, 0.4, 0.6):
        found = compiled(features, head(features), targets, head=head, progress=progress)
        expected = eager(features, head(features), targets, head=head, progress=progress)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_a_gpu_gives_the_cpus_numbers_and_the_host_never_waits(name):
    criterion, head, features, targets = make(name, samples=64, dtype=torch.float32, ignore_index=2)
    expected = step(criterion, head, features, targets)
    criterion, head, features, targets = criterion.cuda(), head.cuda(), features.detach().cuda(), targets.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = criterion(features, head(features), targets, head=head, progress=0.7)
        found.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu().detach(), expected[0], rtol=1e-5, atol=1e-6)
    for key, tensor in criterion.named_buffers():
        torch.testing.assert_close(tensor.cpu(), expected[3][key], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_shared", "isda_identity"])
def test_a_cuda_graph_replays_it(name):
    criterion, head, features, targets = make(name, samples=16, dtype=torch.float32)
    criterion, head, features, targets = criterion.cuda(), head.cuda(), features.detach().cuda(), targets.cuda()
    progress, eager = torch.tensor(0.5, device="cuda"), copy.deepcopy(criterion)
    twin = copy.deepcopy(criterion.state_dict())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # a warm-up, as capturing wants
        for _ in range(3):
            criterion(features, head(features), targets, head=head, progress=progress).backward()
    torch.cuda.current_stream().wait_stream(stream)
    criterion.load_state_dict(twin)
    graph = torch.cuda.CUDAGraph()
    head.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        captured = criterion(features, head(features), targets, head=head, progress=progress)
        captured.backward()
    for value in (0.1, 0.9):
        progress.fill_(value)
        features.normal_().relu_()
        graph.replay()
        expected = eager(features, head(features), targets, head=head, progress=value)
        torch.testing.assert_close(captured, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_a_bad_label_on_a_gpu_does_not_end_the_process(name):
    criterion, head, features, targets = make(name, dtype=torch.float32)
    targets[0] = 7
    loss = criterion.cuda()(
        *(one.cuda() for one in (features, head(features), targets)), head=head.cuda(), progress=1.0
    )
    assert loss.isnan()
    torch.cuda.synchronize()
