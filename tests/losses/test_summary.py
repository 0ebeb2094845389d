"""``criterion.summary``: added terms, margins, traces and effective ranks, from the samples that were seen."""

import copy
import json
from statistics import fmean

import pytest
import torch
from criteria import MAKERS, WITH_PRIOR, make, unchanged
from float64_reference import mixed_with_pooled, two_pass

SEEN = range(6)  # class 6 has no samples
EACH_CLASS = ["isda", "isda_diagonal", "isda_packed", *WITH_PRIOR]


def trained(name, steps=3, **options):
    criterion, head, *_ = make(name, 40, **options)
    seen = []
    for number in range(steps):
        torch.manual_seed(number)
        features, targets = torch.randn(40, 5).double().relu() * 3, torch.randint(6, (40,))
        criterion.begin_step(torch.Generator().manual_seed(0))
        criterion(features, head(features), targets, head=head, progress=0.5)
        seen.append((features, targets))
    return criterion, head, *(torch.cat(parts) for parts in zip(*seen, strict=True))


def expected(name, head, features, targets, strength):
    """Return the figures of each class with samples, from the logits of all samples and two-pass covariances."""
    covariance = two_pass(features, targets, 7)[1]
    if "diagonal" in name:
        covariance = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
    used = mixed_with_pooled(covariance, targets.bincount(minlength=7), 3.0) if "prior" in name else covariance
    logits, weight = head(features).detach(), head.weight.detach()
    figures = {"samples": [], "trace": [], "effective_rank": [], "added": [], "margin": []}
    for c in SEEN:
        eigenvalues = torch.linalg.eigvalsh(covariance[c])
        wrong = [j for j in range(7) if j != c]
        own = logits[targets == c]
        figures["samples"].append(len(own))
        figures["trace"].append(eigenvalues.sum().item())
        figures["effective_rank"].append((eigenvalues.sum() ** 2 / (eigenvalues**2).sum()).item())
        differences = [weight[j] - weight[c] for j in wrong]
        figures["added"].append(fmean(strength / 2 * (d @ used[c] @ d).item() for d in differences))
        figures["margin"].append(fmean(abs((own[:, c] - own[:, j]).mean().item()) for j in wrong))
    return figures


@pytest.mark.parametrize("way", ["cpu", "in pieces", "accelerator"])
@pytest.mark.parametrize("name", EACH_CLASS)
def test_figures_of_each_class_and_of_all_equal_those_of_a_loop_over_classes(name, way, monkeypatch, request):
    criterion, head, features, targets = trained(name)
    if way == "accelerator":
        request.getfixturevalue("accelerator")
    elif way == "in pieces":
        monkeypatch.setattr("isda_repro.losses.isda.SUMMARY_BYTES", 1)
        monkeypatch.setattr("isda_repro.losses.covariances.packed.CPU_CHUNK_BYTES", 1)
    with unchanged(criterion):
        found = criterion.summary(head=head, progress=0.6)
    figures = expected(name, head, features, targets, 0.5 * 0.6)
    for key, values in figures.items():
        assert found[f"class_{key}"][:6] == pytest.approx(values, rel=1e-9), key
        assert found[key] == pytest.approx(sum(values) if key == "samples" else fmean(values), rel=1e-9)
    ratios = [added / margin for added, margin in zip(figures["added"], figures["margin"], strict=True)]
    assert found["class_ratio"][:6] == pytest.approx(ratios, rel=1e-9)
    assert found["ratio"] == pytest.approx(fmean(figures["added"]) / fmean(figures["margin"]), rel=1e-9)
    assert {value[6] for value in found.values() if isinstance(value, list)} == {0.0}


def test_unmixed_added_term_is_half_lambda_times_the_variance_of_the_margin_over_the_samples():
    criterion, head, features, targets = trained("isda")
    logits = head(features).detach()
    for c in SEEN:
        own = logits[targets == c]
        variances = (own[:, c : c + 1] - own).var(0, correction=0)
        assert criterion.summary(head=head)["class_added"][c] == pytest.approx(0.25 * variances.sum().item() / 6)


def test_lambda_follows_progress_unless_it_is_constant():
    linear, head, *_ = trained("isda")
    constant = trained("isda", lambda_schedule="constant")[0]
    halves = [one.summary(head=head, progress=0.5)["added"] for one in (linear, constant)]
    whole = linear.summary(head=head)["added"]
    assert halves == pytest.approx([whole / 2, whole])


@pytest.mark.parametrize("name", MAKERS)
def test_losses_without_covariances_have_none_and_others_need_no_head(name):
    criterion, head, *_ = trained(name)
    found = criterion.summary()
    if name in ("isda", "isda_diagonal", "isda_packed", "isda_sampled", "isda_shared", *WITH_PRIOR):
        assert found["samples"] == 120
        assert 1 <= found["effective_rank"] <= 5
        assert found["trace"] > 0
        assert "added" not in found
        assert ("class_trace" in found) == (name != "isda_shared")
    else:
        assert found is None
        assert criterion.summary(head=head, progress=0.5) is None


def test_shared_covariance_has_an_added_term_and_no_margin():
    criterion, head, features, _ = trained("isda_shared")
    found = criterion.summary(head=head)
    centred = features - features.mean(0)
    covariance, weight = centred.T @ centred / len(features), head.weight.detach()
    differences = weight[None] - weight[:, None]
    terms = 0.25 * torch.einsum("cja,ab,cjb->cj", differences, covariance, differences)
    assert found["added"] == pytest.approx(terms.sum().item() / 42)
    assert set(found) == {"samples", "trace", "effective_rank", "added"}


@pytest.mark.parametrize("name", EACH_CLASS)
def test_before_the_first_sample_all_figures_are_zero(name):
    criterion, head, *_ = make(name)
    found = criterion.summary(head=head)
    numbers = [value for value in found.values() if not isinstance(value, list)]
    assert numbers == [0.0] * len(numbers)


@pytest.mark.parametrize("name", EACH_CLASS)
def test_figures_that_overflow_are_numbers_in_json(name):
    criterion, head, features, targets = make(name, dtype=torch.float32)
    features = features * 1e15
    criterion(features, head(features), targets, head=head, progress=0.5)
    head.weight.data *= 1e25
    found = criterion.summary(head=head)
    json.dumps(found, allow_nan=False)
    assert found["trace"] > 1e29


def test_head_in_a_wrapper_in_half_precision_or_as_a_convolution_gives_the_same():
    criterion, head, *_ = trained("isda")
    found = criterion.summary(head=head)
    convolution = torch.nn.Conv2d(5, 7, 1).double()
    with torch.no_grad():
        convolution.weight.copy_(head.weight[:, :, None, None])
        convolution.bias.copy_(head.bias)
    assert criterion.summary(head=convolution) == found
    assert criterion.summary(head=torch.nn.DataParallel(head)) == found
    with torch.autocast("cpu", torch.bfloat16):
        assert criterion.summary(head=head) == found


def test_figures_are_those_of_a_copy_that_was_saved_and_loaded():
    criterion, head, *_ = trained("isda")
    loaded = make("isda")[0]
    loaded.load_state_dict(copy.deepcopy(criterion.state_dict()))
    assert loaded.summary(head=head, progress=0.3) == criterion.summary(head=head, progress=0.3)
