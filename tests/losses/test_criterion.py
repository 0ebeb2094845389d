"""What every loss keeps to: evaluation, ignored samples, bad labels, devices that run behind, state, half precision."""

import copy
import io
import pickle
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

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
WITH_SIGMA2 = ["isda", "isda_diagonal", "isda_shared", "isda_identity", "isda_packed"]


def make(name, size=24, classes=7, width=5, dtype=torch.float64, **options):
    torch.manual_seed(0)
    criterion = MAKERS[name](classes, width, **options).to(dtype)
    head = nn.Linear(width, classes, bias=criterion.uses_head_bias).to(dtype)
    features = torch.randn(size, width, dtype=dtype).relu().requires_grad_()
    return criterion, head, features, torch.randint(classes - 1, (size,))


def step(criterion, head, features, targets, progress=0.7):
    """Loss, its gradients and the state after it, on copies."""
    criterion, head = copy.deepcopy(criterion), copy.deepcopy(head)
    features = features.detach().clone().requires_grad_()
    criterion.begin_step(0, 10, torch.Generator().manual_seed(0))
    loss = criterion(features, head(features), targets, head=head, progress=progress)
    loss.backward()
    gradients = {name: one.grad for name, one in (*head.named_parameters(), *criterion.named_parameters())}
    return loss.detach(), features.grad, gradients, dict(criterion.named_buffers())


@contextmanager
def unchanged(criterion):
    before = copy.deepcopy(criterion.state_dict())
    yield
    assert_same(criterion.state_dict(), before, tolerance=0)


def assert_same(found, expected, tolerance=1e-11):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MAKERS)
def test_loss_in_evaluation_is_cross_entropy_and_changes_no_state(name):
    criterion, head, features, targets = make(name)
    criterion(features, head(features), targets, head=head, progress=1.0)
    with unchanged(criterion):
        loss = criterion.eval()(features, head(features), targets, head=head, progress=1.0)
    assert torch.equal(loss, F.cross_entropy(head(features), targets))


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_order_of_samples_does_not_matter(name):
    criterion, head, features, targets = make(name)
    order = torch.randperm(len(targets))
    loss, of_features, gradients, state = step(criterion, head, features, targets)
    permuted = step(criterion, head, features[order], targets[order])
    assert_same(permuted, (loss, of_features[order], gradients, state))


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
@pytest.mark.parametrize("samples", [24, 4])
def test_accelerators_way_gives_the_same(name, samples, accelerator, monkeypatch):
    results = []
    for _ in range(2):
        criterion, head, features, targets = make(name, samples)
        earlier = features.detach().flip(0) + 0.1
        criterion(earlier, head(earlier), targets, head=head, progress=0.5)
        results.append(step(criterion, head, features, targets))
        monkeypatch.undo()  # the second time as on a CPU
    assert_same(*results)


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
    request.getfixturevalue("accelerator")
    assert_same(step(criterion, head, poisoned, masked), (loss, expected, gradients, state))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("form", ["none", "ignored", "ignored, on a device"])
def test_batch_without_a_sample_has_loss_0_and_changes_no_state(name, form, request):
    if form.endswith("device"):
        if name == "isda_sampled":
            pytest.skip("it makes the host wait anyway")
        request.getfixturevalue("accelerator")
    criterion, head, features, targets = make(name, size=0 if form == "none" else 3, ignore_index=-100)
    with unchanged(criterion):
        loss = criterion(features, head(features), torch.full_like(targets, -100), head=head, progress=1.0)
    loss.backward()
    assert loss == 0
    assert all(weight.grad is None or (weight.grad == 0).all() for weight in (*head.parameters(), features))


@pytest.mark.parametrize("bad", [7, -1, -100])
@pytest.mark.parametrize("name", MAKERS)
def test_bad_label_on_a_cpu_is_refused_before_anything_is_learnt(name, bad):
    criterion, head, features, targets = make(name)
    targets[3] = bad
    with unchanged(criterion), pytest.raises(ValueError, match=f" {bad}"):
        criterion(features, head(features), targets, head=head, progress=1.0)


@pytest.mark.parametrize("bad", [7, -1, -100, 10**12])
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "isda_sampled"])
def test_bad_label_on_an_accelerator_makes_the_loss_nan_and_reaches_nothing_else(name, bad, accelerator):
    criterion, head, features, targets = make(name)
    targets[3] = bad
    loss, of_features, gradients, state = step(criterion, head, features, targets)
    assert loss.isnan()
    assert all(one is None or one.isfinite().all() for one in (of_features, *gradients.values()))
    assert all(one.isfinite().all() for one in state.values())
    if "statistics.count" in state:
        assert state["statistics.count"].sum() == 23


@pytest.mark.parametrize(
    ("change", "error", "token"),
    [
        (lambda f, z, t, head: (f, z, t.int(), head), TypeError, "int32"),
        (lambda f, z, t, head: (f, z, F.one_hot(t, 7), head), TypeError, r"\[24, 7\]"),
        (lambda f, z, t, head: (f[:, :4], z, t, head), ValueError, r"\[24, 4\]"),
        (lambda f, z, t, head: (f[:3], z, t, head), ValueError, r"\[3, 5\]"),
        (lambda f, z, t, head: (f, z[:3], t, head), ValueError, r"\[3, 7\]"),
        (lambda f, z, t, head: (f, z, t, nn.Linear(5, 8)), ValueError, r"\[8, 5\]"),
        (lambda f, z, t, head: (f, z[:, :4], t, head), ValueError, r"\[24, 4\]"),
        (lambda f, z, t, head: (f, z, t, nn.Linear(4, 7)), ValueError, r"\[7, 4\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_anything_is_learnt(change, error, token):
    criterion, head, features, targets = make("isda")
    *inputs, head = change(features, head(features), targets, head)
    with pytest.raises(error, match=token):
        criterion(*inputs, head=head, progress=0.5)
    assert criterion.statistics.count.sum() == 0


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("ce", "classes", [0]),
        ("ce", "width", [0]),
        ("ce", "ignore_index", [1.5, True]),
        *((name, "process_group", [3]) for name in ("isda", "center", "isda_sampled")),
        ("isda", "lambda_0", [-0.5, float("nan"), float("inf"), "1"]),
        ("isda_sampled", "lambda_0", [-0.5]),
        *((name, "lambda_schedule", ["cosine"]) for name in ("isda", "isda_sampled")),
        ("isda", "covariance", ["banana"]),
        ("isda", "packed", ["yes"]),
        ("isda_diagonal", "packed", [True]),
        ("isda_sampled", "samples", [0, 1.5, True]),
        ("focal", "alpha", [0]),
        ("focal", "gamma", [-1]),
        ("lq", "q", [0, 1.5]),
        ("lq", "truncation", [0, 1]),
        ("lq", "truncation_start", [2]),
        ("center", "weight", [-1, float("nan")]),
        ("center", "centers_lr", [-0.5]),
        ("large_margin", "margin", [0, 2.5, True]),
        ("large_margin", "lowest_beta", [-1]),
        ("disturb_label", "alpha", [-0.1, 1.1, float("nan")]),
    ],
)
def test_option_that_cannot_be_is_refused_by_name(name, key, values):
    called = {"classes": "num_classes", "width": "feature_dim"}.get(key, key)
    for value in values:
        with pytest.raises(ValueError, match=f"{called}.*{value}" if name != "isda_diagonal" else "packed.*diagonal"):
            make(name, **{key: value})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("focal", {"alpha": 0.5, "gamma": 1.0}),
        ("lq", {"q": 0.4, "truncation": None}),
        ("center", {"weight": 0.003, "centers_lr": 0.5}),
        ("large_margin", {"margin": 2, "lowest_beta": 0.0}),
        ("disturb_label", {"alpha": 0.05}),
        ("isda", {"lambda_0": 0.5, "covariance": "full", "lambda_schedule": "linear"}),
        ("isda_sampled", {"samples": 10, "lambda_0": 0.5, "lambda_schedule": "linear"}),
    ],
)
def test_options_that_are_left_out_are_the_papers(name, options):
    criterion, head, features, targets = make(name, size=200)
    chosen = make(name, size=200, **options)[0]
    assert_same(*(step(one, head, features, targets) for one in (criterion, chosen)), tolerance=0)
    assert_same(*([group["lr"] for group in one.parameter_groups()] for one in (criterion, chosen)))


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
def test_head_in_bf16_gets_its_gradient_from_a_loss_in_float32(name):
    criterion, head, features, targets = make(name, dtype=torch.float32)
    head.bfloat16()
    features = features.detach().bfloat16().requires_grad_()
    loss = criterion(features, head(features), targets, head=head, progress=1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert head.weight.grad.dtype == features.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", MAKERS)
def test_progress_may_be_a_tensor_and_the_backward_pass_may_be_run_twice(name):
    criterion, head, features, targets = make(name)
    loss, once, _, _ = step(criterion, head, features, targets)
    criterion.begin_step(0, 10, torch.Generator().manual_seed(0))
    again = criterion(features, head(features), targets, head=head, progress=torch.tensor(0.7, dtype=torch.float64))
    again.backward(retain_graph=True)
    again.backward()
    assert_same((again.detach(), features.grad), (loss, 2 * once))


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
def test_head_may_be_any_linear_layer(name):
    """Weight-normalised, so that its weight is computed anew from parameters of its own; frozen; without a bias."""
    criterion, head, features, targets = make(name)
    bare = nn.Linear(5, 7, bias=False).double()
    bare.weight.data.copy_(head.weight)
    if head.bias is not None:
        head.bias.data.zero_()
    normed = nn.utils.parametrizations.weight_norm(copy.deepcopy(head))
    for one in (normed, copy.deepcopy(head).requires_grad_(False), bare):
        twin = copy.deepcopy(criterion)
        twin.begin_step(0, 10, torch.Generator().manual_seed(0))
        loss = twin(features, one(features), targets, head=one, progress=0.7)
        loss.backward()
        assert_same(loss.detach(), step(criterion, head, features, targets)[0])
    assert normed.parametrizations.weight.original1.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_shared", "isda_packed"])
def test_features_without_variance_give_cross_entropy_for_3000_classes(name):
    """Each class seen once or a few times, most never."""
    criterion, head, _, _ = make(name, classes=3000, width=4, dtype=torch.float32)
    constant, targets = torch.ones(40, 4), torch.arange(40) % 4
    loss, of_features, gradients, state = step(criterion, head, constant, targets)
    for tensor in (of_features, *gradients.values(), *state.values()):
        assert tensor.isfinite().all()
    torch.testing.assert_close(loss, F.cross_entropy(head(constant), targets))


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_two_batches_before_one_backward_pass_give_the_gradients_of_two_passes(name):
    """Nothing that the first batch saves for its gradient is changed by the second."""
    together, apart = (make(name, size=64) for _ in range(2))  # enough for all classes to be taken at once
    losses = []
    for (criterion, head, features, targets), is_apart in ((together, False), (apart, True)):
        for part, labels in zip(features.split(32), targets.split(32), strict=True):
            losses.append(criterion(part, head(part), labels, head=head, progress=0.5) / 2)
            if is_apart:
                losses.pop().backward()
    sum(losses).backward()
    for one, other in zip(together[1].parameters(), apart[1].parameters(), strict=True):
        assert_same(one.grad, other.grad)


@pytest.mark.parametrize("name", ["disturb_label", "isda_sampled"])
def test_draws_of_a_part_are_those_of_its_samples_in_the_whole_batch(name):
    criterion = make(name)[0]
    draw = lambda count: torch.rand(count, 2, generator=criterion.draws)  # noqa: E731
    parts = []
    for part, samples in ((None, 24), ((0, 24), 5), ((5, 24), 16), ((21, 24), 3)):
        criterion.begin_step(0, 10, torch.Generator().manual_seed(0), part)
        parts.append(criterion.own_draws(draw, samples))
    assert torch.equal(torch.cat(parts[1:]), parts[0])


@pytest.mark.parametrize(
    ("name", "samples"),
    [(name, 4) for name in ("isda", "isda_diagonal", "isda_packed")]
    + [(name, 24) for name in (*(name for name in WITHOUT_DRAWS if name not in WITH_SIGMA2), "isda_shared")]
    + [pytest.param(name, 24, marks=pytest.mark.slow) for name in ("isda", "isda_identity", "isda_packed")],
)
def test_loss_compiles_into_one_graph_that_takes_any_progress(name, samples):
    torch._dynamo.reset()
    criterion, head, features, targets = make(name, samples, ignore_index=2)
    eager = copy.deepcopy(criterion)
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(criterion, fullgraph=True, backend=graphs)
    for progress in (torch.tensor(share).double() for share in (0.2, 0.4, 0.6)):
        losses, gradients = [], []
        for function in (compiled, eager):
            head.zero_grad()
            features.grad = None
            loss = function(features, head(features), targets, head=head, progress=progress)
            loss.backward()
            losses.append(loss.detach())
            gradients.append([features.grad, head.weight.grad])
        assert_same(*losses, tolerance=1e-10)
        assert_same(*gradients, tolerance=1e-10)
    assert graphs.frame_count <= 2, "not one for each value"
    assert_same(dict(criterion.named_buffers()), dict(eager.named_buffers()), tolerance=1e-10)


def test_a_progress_that_is_a_number_is_compiled_twice():
    """Dynamo sees that it changes; AOTAutograd of PyTorch 2.11 specialises on it all the same."""
    torch._dynamo.reset()
    criterion, head, features, targets = make("isda", 4)
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(criterion, fullgraph=True, backend=graphs)
    for progress in (0.2, 0.4, 0.6, 0.8):
        compiled(features, head(features), targets, head=head, progress=progress)
    assert graphs.frame_count == 2


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_derivatives_equal_finite_differences_or_are_refused(name, monkeypatch):
    """The second ones too; of ISDA for the features alone, and where the head's weight is involved they are refused."""
    criterion, head, features, targets = make(name, size=8)
    features = (features.detach() + 0.1).requires_grad_()  # away from the origin, where an angle has no derivative
    criterion(features, head(features), targets, head=head, progress=0.7)
    if getattr(criterion, "statistics", None) is not None:  # constants, as the gradient takes them
        monkeypatch.setattr(criterion.statistics, "update", lambda features, targets: None)

    def value(features, weight):
        stand_in = nn.Linear(*weight.shape[::-1], bias=head.bias is not None).double()
        del stand_in.weight
        stand_in.weight = weight
        logits = F.linear(features, weight, head.bias)
        return criterion(features, logits, targets, head=stand_in, progress=0.7)

    weight = head.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (features, weight))
    if name not in WITH_SIGMA2:
        assert torch.autograd.gradgradcheck(value, (features, weight))
        return
    assert torch.autograd.gradgradcheck(lambda features: value(features, head.weight.detach()), (features,))
    (gradient,) = torch.autograd.grad(value(features, weight), weight, create_graph=True)
    for again in (
        lambda: torch.autograd.grad(gradient.square().sum(), [features, weight], retain_graph=True),
        lambda: torch.autograd.grad(gradient.square().sum(), features, retain_graph=True),
        lambda: gradient.square().sum().backward(),
    ):
        with pytest.raises(NotImplementedError):
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


@pytest.mark.gpu
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_a_gpu_gives_the_cpus_numbers_and_the_host_never_waits(name):
    criterion, head, features, targets = make(name, size=64, dtype=torch.float32, ignore_index=2)
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
@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_shared", "isda_identity"])
def test_a_cuda_graph_replays_it(name):
    criterion, head, features, targets = make(name, size=16, dtype=torch.float32)
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
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_a_bad_label_on_a_gpu_does_not_end_the_process(name):
    criterion, head, features, targets = make(name, dtype=torch.float32)
    targets[0] = 7
    tensors = [one.cuda() for one in (features, head(features), targets)]
    loss = criterion.cuda()(*tensors, head=head.cuda(), progress=1.0)
    assert loss.isnan()
    torch.cuda.synchronize()
