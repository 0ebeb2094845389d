"""Ignored samples, empty batches, bad labels, and tensors and options that no loss accepts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from criteria import MAKERS, WITHOUT_DRAWS, assert_same, make, step, unchanged
from torch import nn

from isda_repro.losses.criterion import check_progress


@pytest.mark.parametrize("ignored", [-100, 255, 3, 0])
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_ignored_samples_count_for_nothing(name, ignored, request):
    criterion, head, features, targets = make(name, ignore_index=ignored)
    targets = targets.masked_fill(targets == ignored, 2)
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
    criterion, head, features, targets = make(name, ignore_index=None if bad == -100 else -100)
    targets[3] = bad
    with unchanged(criterion), pytest.raises(ValueError, match=f" {bad}"):
        criterion(features, head(features), targets, head=head, progress=1.0)


@pytest.mark.parametrize("bad", [7, -1, -100, 10**12])
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "isda_sampled"])
def test_bad_label_on_an_accelerator_makes_the_loss_nan_and_reaches_nothing_else(name, bad, accelerator):
    criterion, head, features, targets = make(name, ignore_index=None if bad == -100 else -100)
    targets[3] = bad
    loss, of_features, gradients, state = step(criterion, head, features, targets)
    assert loss.isnan()
    assert all(one is None or one.isfinite().all() for one in (of_features, *gradients.values()))
    assert all(one.isfinite().all() for one in state.values())
    if "statistics.count" in state:
        assert state["statistics.count"].sum() == 23


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_label_minus_100_is_ignored_by_default_as_in_torch(name):
    criterion, head, features, targets = make(name)
    masked = targets.masked_fill(torch.arange(24) < 4, -100)
    found = step(criterion, head, features, masked)
    loss, of_features, gradients, state = step(criterion, head, features[4:], targets[4:])
    assert_same(found, (loss, torch.cat((torch.zeros_like(features[:4]), of_features)), gradients, state))
    evaluated = criterion.eval()(features, head(features), masked, head=head, progress=1.0)
    assert_same(evaluated, F.cross_entropy(head(features), masked))


@pytest.mark.parametrize("name", MAKERS)
def test_labels_out_of_range_are_named_together_with_ignore_index(name):
    criterion, head, features, targets = make(name)
    targets[[3, 5, 8]] = torch.tensor([255, -100, 300])
    with unchanged(criterion), pytest.raises(ValueError, match=r"255, 300.*ignore_index=255"):
        criterion(features, head(features), targets, head=head, progress=1.0)


@pytest.mark.parametrize("progress", [7, -0.1, 1.001, float("nan"), float("inf"), torch.tensor(7.0)])
@pytest.mark.parametrize("name", MAKERS)
def test_progress_outside_0_to_1_is_refused_before_anything_is_learnt(name, progress):
    criterion, head, features, targets = make(name)
    with unchanged(criterion), pytest.raises(ValueError, match=r"progress.*step / total_steps"):
        criterion(features, head(features), targets, head=head, progress=progress)
    criterion.eval()(features, head(features), targets, head=head, progress=progress)  # which does not use it


@pytest.mark.parametrize("progress", [None, "half", "1", torch.zeros(2)])
def test_progress_that_is_no_number_is_refused(progress):
    criterion, head, features, targets = make("isda")
    with pytest.raises(TypeError, match="progress"):
        criterion(features, head(features), targets, head=head, progress=progress)


def test_progress_that_a_loop_has_added_up_may_be_rounded_above_1():
    criterion, head, features, targets = make("isda")
    criterion(features, head(features), targets, head=head, progress=1 + 1e-9)


@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_shared", "isda_prior"])
def test_shape_and_dtype_of_progress_do_not_matter(name):
    criterion, head, features, targets = make(name, dtype=torch.float32)
    progress = torch.tensor([0.5], dtype=torch.float64)
    losses = [
        copy.deepcopy(criterion)(features, head(features), targets, head=head, progress=one)
        for one in (0.5, progress[0], progress)
    ]
    assert [loss.dtype for loss in losses] == [torch.float32] * 3
    assert len({loss.item() for loss in losses}) == 1


def test_progress_on_an_accelerator_is_not_read():
    """A tensor without values stands in for one on a GPU."""
    check_progress(torch.zeros((), device="meta"))


def test_head_without_a_weight_is_refused():
    criterion, head, features, targets = make("isda")
    with pytest.raises(TypeError, match="Sequential"):
        criterion(features, head(features), targets, head=nn.Sequential(head), progress=0.5)


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
