"""ISDA with ``prior``: the forms of a class's own and of the pooled within-class covariance, mixed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from criteria import WITH_PRIOR, assert_same, make, step
from float64_reference import equation_4, mixed_with_pooled, two_pass

from isda_repro.losses import ISDALoss
from isda_repro.losses.covariances.prior import mixed, within_class

WITHOUT = {"isda_prior": "isda", "isda_diagonal_prior": "isda_diagonal", "isda_packed_prior": "isda_packed"}


def trained(name, steps=3, size=24, **options):
    """Return a criterion with statistics of some batches, its head, and the batches; the last class is absent."""
    criterion, head, *_ = make(name, size, **options)
    batches = []
    for number in range(steps):
        torch.manual_seed(number)
        features = torch.randn(size, 5).double().relu() * (1 + torch.arange(5))
        batches.append((features, torch.randint(6, (size,)) * torch.randint(2, (size,))))  # half are of class 0
        criterion(features, head(features), batches[-1][1], head=head, progress=0.5)
    return criterion, head, *(torch.cat(parts) for parts in zip(*batches, strict=True))


@pytest.mark.parametrize("way", ["cpu", "accelerator"])
@pytest.mark.parametrize("size", [3, 24, 40])
@pytest.mark.parametrize("name", WITH_PRIOR)
def test_value_and_gradients_equal_those_of_a_double_loop_over_mixed_matrices(name, size, way, request):
    if way == "accelerator":
        request.getfixturevalue("accelerator")
    criterion, head, features, targets = trained(name, 2, size)
    new, labels = features[:size].neg().relu().add(0.5).requires_grad_(), targets.flip(0)[:size]
    head.zero_grad()
    loss = criterion(new, head(new), labels, head=head, progress=0.7)
    loss.backward()
    seen = torch.cat([features, new.detach()]), torch.cat([targets, labels])
    covariance = two_pass(*seen, 7)[1]
    if "diagonal" in name:
        covariance = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
    matrices = mixed_with_pooled(covariance, seen[1].bincount(minlength=7), 3.0)
    copies = [tensor.detach().clone().requires_grad_() for tensor in (new, head.weight, head.bias)]
    expected = equation_4(*copies, labels, matrices, 0.5 * 0.7)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    for found, copied in zip((new, head.weight, head.bias), copies, strict=True):
        torch.testing.assert_close(found.grad, copied.grad, rtol=1e-9, atol=1e-11)
    for label in range(7):
        torch.testing.assert_close(criterion.class_covariance(label), matrices[label], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", WITH_PRIOR)
def test_gradient_for_the_weight_is_that_of_finite_differences(name):
    criterion, head, features, targets = trained(name)

    def augmented(logits, weight):
        return criterion._augmented(logits, weight, targets[:9], targets[:9], 0.8)

    inputs = head(features[:9]).detach().requires_grad_(), head.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(augmented, inputs)


@pytest.mark.parametrize("name", WITH_PRIOR)
def test_zero_gives_the_bits_of_none_and_a_large_prior_the_pooled_covariance(name):
    _, head, features, targets = make(name)
    kind = {"covariance": "diagonal"} if "diagonal" in name else {"packed": "packed" in name}
    plain, zero, pooled = (ISDALoss(7, 5, prior=prior, **kind).double() for prior in (None, 0, 1e15))
    assert_same(step(zero, head, features, targets), step(plain, head, features, targets), tolerance=0)
    assert plain.state_dict().keys() == zero.state_dict().keys()
    for criterion in (pooled, zero):
        criterion(features, head(features), targets, head=head, progress=1.0)
    within = within_class(pooled.statistics)
    assert_same(pooled.class_covariance(0), within.diag() if within.dim() == 1 else within)
    assert_same(zero.class_covariance(6), pooled.class_covariance(6))  # class 6 has no samples


@pytest.mark.parametrize("prior", [0, 3.0])
@pytest.mark.parametrize("name", WITH_PRIOR)
def test_class_without_samples_has_the_form_of_the_pooled_covariance(name, prior):
    criterion, head, *_ = trained(name)
    weight, label, zeros = head.weight.detach(), torch.tensor([6]), torch.zeros(1, 7).double()
    found = mixed(zeros, weight, criterion._classes(label), criterion.statistics, prior, 2.0)
    within = within_class(criterion.statistics)
    within = within.diag() if within.dim() == 1 else within
    differences = weight - weight[6]
    torch.testing.assert_close(found[0], ((differences @ within) * differences).sum(1), rtol=1e-10, atol=1e-12)


def test_loss_is_the_logarithm_of_what_features_from_the_mixed_covariance_give():
    """Augment features with (n Sigma_c + k Sigma_within) / (n + k): the loss is the log of the expectation, exactly."""
    criterion, head, features, targets = trained("isda_prior", lambda_0=0.2)
    found = criterion(features[:4], head(features[:4]), targets[:4], head=head, progress=1.0).item()
    torch.manual_seed(0)
    total, variance, expected_loss = 0.0, 0.0, 0.0
    matrices = mixed_with_pooled(criterion.statistics.covariance, criterion.statistics.count, 3.0)
    for a, y in zip(features[:4], targets[:4].tolist(), strict=True):
        draws = torch.distributions.MultivariateNormal(a, 0.2 * matrices[y]).sample((200_000,))
        logits = head(draws).detach()
        ratios = (logits - logits[:, y : y + 1]).exp().sum(1)
        total += ratios.mean().log().item() / 4
        variance += (ratios.var() / len(ratios) / ratios.mean() ** 2).item() / 16
        expected_loss += F.cross_entropy(logits, torch.full((len(logits),), y)).item() / 4
    assert abs(found - total) < 5 * variance**0.5 < 0.01
    assert expected_loss < found


@pytest.mark.parametrize("name", WITH_PRIOR)
def test_resumed_training_has_the_bits_of_an_uninterrupted_one(name):
    criterion, head, features, targets = trained(name)
    resumed = make(name)[0]
    assert resumed.state_dict().keys() == make(WITHOUT[name])[0].state_dict().keys()
    resumed.load_state_dict(copy.deepcopy(criterion.state_dict()))
    assert_same(step(resumed, head, features, targets), step(criterion, head, features, targets), tolerance=0)


@pytest.mark.parametrize("prior", [-1, float("nan"), float("inf"), "3", True])
def test_prior_that_is_no_number_from_zero_on_is_refused(prior):
    with pytest.raises(ValueError, match="prior"):
        ISDALoss(7, 5, prior=prior)


@pytest.mark.parametrize("covariance", ["shared", "identity"])
def test_prior_is_refused_where_there_is_no_covariance_for_each_class(covariance):
    with pytest.raises(ValueError, match=f"prior=3.*{covariance}"):
        ISDALoss(7, 5, covariance=covariance, prior=3)


def test_print_shows_the_prior_only_where_it_is_set():
    assert "prior=2.5" in repr(ISDALoss(7, 5, prior=2.5))
    assert "prior" not in repr(ISDALoss(7, 5))


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"covariance": "diagonal"}])
def test_pooled_covariance_of_less_than_one_sample_is_that_of_the_only_class(options):
    """Probabilities can count a few samples for less than one in all."""
    mixture, own = (ISDALoss(3, 4, prior=prior, **options).double() for prior in (5.0, None))
    features, shares = torch.randn(2, 4).double(), torch.tensor([[0.2, 0.0, 0.0], [0.1, 0.0, 0.0]]).double()
    for criterion in (mixture, own):
        criterion.statistics.update(features, shares)
    assert_same(mixture.class_covariance(0), own.class_covariance(0))
    assert_same(mixture.class_covariance(2), own.class_covariance(0))
