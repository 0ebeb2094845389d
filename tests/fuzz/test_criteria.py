"""Random batches for every loss: it equals its float64 reference or raises one error, and its state stays finite."""

import copy
from unittest import mock

import float64_reference as reference
import pytest
import torch
import torch.nn.functional as F
from criteria import MAKERS
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from isda_repro.losses import IGNORED

pytestmark = pytest.mark.slow

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ODD = [float("nan"), float("inf"), -float("inf"), 1e30, -1e19, 3e38, 2e15]

SHAPES = {
    "seed": st.integers(0, 2**20),
    "samples": st.integers(0, 40),
    "lopsided": st.booleans(),
    "ignored": st.floats(0, 1),
    "mean": st.sampled_from([0, 1, 5]),
}
ORDINARY = {"bad_label": st.none(), "odd": st.just([]), "magnitude": st.just(0), "progress": st.floats(0, 1)}
ANY = {
    "bad_label": st.sampled_from([None, None, -1, 255, -(2**40), 2**40]),
    "odd": st.lists(st.sampled_from(ODD), max_size=3),
    "magnitude": st.integers(-30, 38),
    "progress": st.one_of(st.floats(0, 1), st.floats(), st.sampled_from([None, "1"])),
}
batch = st.one_of(st.fixed_dictionaries({**SHAPES, **ORDINARY}), st.fixed_dictionaries({**SHAPES, **ANY}))
setting = st.fixed_dictionaries(
    {
        "classes": st.integers(1, 12),
        "width": st.integers(1, 8),
        "features": st.sampled_from(DTYPES),
        "head": st.sampled_from(DTYPES),
        "state": st.sampled_from(DTYPES),
        "has_bias": st.booleans(),
        "is_accelerator": st.booleans(),
    }
)


def inputs(batch, classes, width, dtype):
    """Return features [N, A] and targets [N] that ``batch`` describes."""
    torch.manual_seed(batch["seed"])
    samples = batch["samples"]
    features = (torch.randn(samples, width, dtype=torch.float64) + batch["mean"]) * 10.0 ** batch["magnitude"]
    targets = (torch.rand(samples) ** (9 if batch["lopsided"] else 1) * classes).long().clamp(max=classes - 1)
    targets[torch.rand(samples) < batch["ignored"] - 0.3] = IGNORED
    if samples:
        for value in batch["odd"]:
            features[torch.randint(samples, ()), torch.randint(width, ())] = value
        if batch["bad_label"] is not None:
            targets[torch.randint(samples, ())] = batch["bad_label"]
    return features.to(dtype), targets


def is_valid(batch, targets, classes):
    progress = batch["progress"]
    is_label = (targets == IGNORED) | ((targets >= 0) & (targets < classes))
    return isinstance(progress, float) and 0 <= progress <= 1, bool(is_label.all())


def expected_loss(name, criterion, before, head, seen, progress):
    """Return the loss of the last batch in float64; None if there is no literal form for this input."""
    features, targets = (one[targets_of(seen[-1])] for one in seen[-1])
    weight, classes = head.weight.detach().double(), head.out_features
    bias = torch.zeros(classes).double() if head.bias is None else head.bias.detach().double()
    features = features.double()
    logits = features @ weight.T + bias
    if name == "ce":
        return F.cross_entropy(logits, targets)
    if name == "focal":
        return reference.focal(logits, targets, criterion.alpha, criterion.gamma)
    if name == "lq":
        return reference.lq(logits, targets, criterion.q)
    if name == "center":
        centers = before["centers"].double()
        pull = reference.center_pull(features, centers, targets)
        return F.cross_entropy(logits, targets) + criterion.weight * pull
    if name in ("large_margin", "disturb_label", "isda_sampled"):  # angles at their ends; draws
        return None
    every, labels = (torch.cat([one[k][targets_of(one)] for one in seen]) for k in (0, 1))
    if name == "isda_identity":
        covariance = torch.eye(features.shape[1]).double().expand(classes, -1, -1)
    elif name == "isda_shared":
        covariance = reference.two_pass(every, torch.zeros_like(labels), 1)[1].expand(classes, -1, -1)
    else:
        covariance = reference.two_pass(every, labels, classes)[1]
        if name.startswith("isda_diagonal"):
            covariance = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
        if name.endswith("_prior"):
            covariance = reference.mixed_with_pooled(
                covariance, torch.bincount(labels, minlength=classes), criterion.prior
            )
    return reference.equation_4(features, weight, bias, targets, covariance, criterion.lambda_0 * progress)


def targets_of(pair):
    """Return which samples of a batch are not ignored."""
    return pair[1] != IGNORED


@pytest.mark.parametrize("name", MAKERS)
@given(setting, st.lists(batch, min_size=1, max_size=3))
def test_loss_is_its_reference_or_one_error_and_its_state_stays_finite(name, setting, batches):
    classes, width = setting["classes"], setting["width"]
    torch.manual_seed(0)
    criterion = MAKERS[name](classes, width).to(setting["state"])
    has_bias = setting["has_bias"] and criterion.uses_head_bias
    head = nn.Linear(width, classes, bias=has_bias).to(setting["head"])
    seen, is_ordinary = [], True
    for number, one in enumerate(batches):
        features, targets = inputs(one, classes, width, setting["features"])
        given = features.clone(), targets.clone()
        before = copy.deepcopy(criterion.state_dict())
        progress_is_valid, labels_are_valid = is_valid(one, targets, classes)
        # Progress is not read there, and a loss that makes the host wait has no such way.
        is_accelerator = setting["is_accelerator"] and progress_is_valid and not criterion.waits_for_device
        criterion.begin_step(torch.Generator().manual_seed(number))
        with mock.patch.object(torch.compiler, "is_compiling", lambda is_it=is_accelerator: is_it):
            leaf = features.detach().requires_grad_()
            logits = head(leaf.to(head.weight.dtype))
            call = lambda: criterion(leaf, logits, targets, head=head, progress=one["progress"])  # noqa: B023, E731
            if not progress_is_valid or not (labels_are_valid or is_accelerator):
                with pytest.raises((ValueError, TypeError)):
                    call()
                assert all(
                    torch.equal(*pair) for pair in zip(before.values(), criterion.state_dict().values(), strict=True)
                )
                continue
            loss = call()
            loss.backward()
        assert all(tensor.isfinite().all() for tensor in criterion.state_dict().values())
        for parameter in criterion.parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all()
            parameter.grad = None
        torch.testing.assert_close((features, targets), given, rtol=0, atol=0, equal_nan=True)
        if not labels_are_valid:
            assert loss.isnan()
            is_ordinary = False
        elif not targets_of((features, targets)).any():
            assert loss == 0
        else:
            seen.append((features, targets))
            is_ordinary &= not one["odd"] and abs(one["magnitude"]) <= 1
            expected = expected_loss(name, criterion, before, head, seen, one["progress"]) if is_ordinary else None
            if expected is not None:
                exact = {setting["features"], setting["head"]} <= {torch.float32, torch.float64}
                tolerance = 1e-3 if exact else 0.2  # a head in half precision computes its logits in it
                torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
        evaluate(criterion, head, features, targets, labels_are_valid)


def assert_equal(state, before):
    assert all(torch.equal(one, before[key]) for key, one in state.items())


def evaluate(criterion, head, features, targets, labels_are_valid):
    """Check that evaluation is cross-entropy and changes no state."""
    if not labels_are_valid:
        return
    before = copy.deepcopy(criterion.state_dict())
    with torch.no_grad():
        logits = head(features.to(head.weight.dtype))
        expected = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)
        found = [criterion.train(mode)(features, logits, targets, head=head, progress=0.5) for mode in (False, True)]
    for loss in found:
        if (targets != IGNORED).any():
            torch.testing.assert_close(loss, expected, equal_nan=True)
        else:
            assert loss == 0
    assert_equal(criterion.state_dict(), before)
