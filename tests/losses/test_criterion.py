"""Properties of every loss: evaluation, defaults, half precision, heads, state, gradients."""

import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from criteria import MAKERS, WITH_SIGMA2, WITHOUT_DRAWS, assert_same, make, step, unchanged
from torch import nn


@pytest.mark.parametrize("off", [None, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", MAKERS)
def test_loss_in_evaluation_or_without_gradients_is_cross_entropy_and_changes_no_state(name, off):
    criterion, head, features, targets = make(name)
    criterion(features, head(features), targets, head=head, progress=1.0)
    draws = torch.Generator().manual_seed(0)
    criterion.begin_step(draws)
    before = draws.get_state()
    criterion.train(off is not None)
    with unchanged(criterion), nullcontext() if off is None else off():
        loss = criterion(features, head(features), targets, head=head, progress=1.0)
    assert torch.equal(loss, F.cross_entropy(head(features), targets))
    assert torch.equal(draws.get_state(), before), "nothing was drawn either"
    loss = criterion.train()(features, head(features), targets, head=head, progress=1.0)
    assert loss.requires_grad, "it goes on training"


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
        monkeypatch.undo()  # the second time takes the CPU's path
    assert_same(*results)


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
    criterion.begin_step(torch.Generator().manual_seed(0))
    half = features.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        logits = head(half)
        loss = criterion(half, logits, targets, head=head, progress=0.7)
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), reference[0], rtol=0.02, atol=0.01)
    (loss * 1024).backward()  # the scale of a gradient scaler
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
    criterion.begin_step(torch.Generator().manual_seed(0))
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
    criterion.begin_step(torch.Generator().manual_seed(5))
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
    """The heads are weight-normalised (the weight is recomputed from other parameters), frozen, and without a bias."""
    criterion, head, features, targets = make(name)
    bare = nn.Linear(5, 7, bias=False).double()
    bare.weight.data.copy_(head.weight)
    if head.bias is not None:
        head.bias.data.zero_()
    normed = nn.utils.parametrizations.weight_norm(copy.deepcopy(head))
    for one in (normed, copy.deepcopy(head).requires_grad_(False), bare):
        twin = copy.deepcopy(criterion)
        twin.begin_step(torch.Generator().manual_seed(0))
        loss = twin(features, one(features), targets, head=one, progress=0.7)
        loss.backward()
        assert_same(loss.detach(), step(criterion, head, features, targets)[0])
    assert normed.parametrizations.weight.original1.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["isda", "isda_packed"])
def test_frozen_head_costs_no_gradient_of_its_weight(name, monkeypatch):
    criterion, head, features, targets = make(name)
    _, expected, _, _ = step(copy.deepcopy(criterion), head, features, targets)
    monkeypatch.setattr("isda_repro.losses.covariances.quadratic._sums", None)
    monkeypatch.setattr("isda_repro.losses.covariances.packed_quadratic._of_weight", None)
    _, of_features, gradients, _ = step(criterion, copy.deepcopy(head).requires_grad_(False), features, targets)
    assert_same(of_features, expected)
    assert not gradients or all(one is None for one in gradients.values())


@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_shared", "isda_packed"])
def test_features_without_variance_give_cross_entropy_for_3000_classes(name):
    """Four classes are seen, ten times each; all others never."""
    criterion, head, _, _ = make(name, classes=3000, width=4, dtype=torch.float32)
    constant, targets = torch.ones(40, 4), torch.arange(40) % 4
    loss, of_features, gradients, state = step(criterion, head, constant, targets)
    for tensor in (of_features, *gradients.values(), *state.values()):
        assert tensor.isfinite().all()
    torch.testing.assert_close(loss, F.cross_entropy(head(constant), targets))


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_two_batches_before_one_backward_pass_give_the_gradients_of_two_passes(name):
    """The second batch must not change tensors that the first one saved for its gradient."""
    # 64 samples are enough for the path that handles all classes at once.
    together, apart = (make(name, size=64) for _ in range(2))
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
        criterion.begin_step(torch.Generator().manual_seed(0), part)
        parts.append(criterion.own_draws(draw, samples))
    assert torch.equal(torch.cat(parts[1:]), parts[0])


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_derivatives_equal_finite_differences_or_are_refused(name, monkeypatch):
    """Second derivatives are checked too.

    ISDA has them for the features alone; those that involve the head's weight raise an error.
    """
    criterion, head, features, targets = make(name, size=8)
    features = (features.detach() + 0.1).requires_grad_()  # away from the origin, where an angle has no derivative
    criterion(features, head(features), targets, head=head, progress=0.7)
    if getattr(criterion, "statistics", None) is not None:  # the gradient treats statistics as constants
        monkeypatch.setattr(criterion.statistics, "update", lambda features, targets: None)
    criterion.first_calls = None  # the heads below change, and centres do not

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
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            again()
