"""Evaluation: each sample counts once, running statistics are used, and the network's mode is restored."""

import pytest
import torch
import torch.nn.functional as F

from isda_repro.models import NetworkOutput, ResNet
from isda_repro.training.compute import Compute
from isda_repro.training.evaluate import ClassErrors, evaluate

COMPUTE = Compute(torch.device("cpu"), "test", "fp32", False, False, False, False, None)


@pytest.mark.parametrize("sizes", [[7], [3, 3, 1], [1] * 7])
@pytest.mark.parametrize("training", [True, False])
def test_the_mean_over_all_samples_however_they_are_cut(sizes, training):
    torch.manual_seed(0)
    network = ResNet(8, num_classes=5, dropout=0.5)
    network(torch.randn(16, 3, 8, 8))  # changes the running statistics
    images, targets = torch.randn(7, 3, 8, 8), torch.randint(5, (7,))
    with torch.no_grad():
        logits = network.eval()(images).logits
    network.train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = evaluate(network, zip(images.split(sizes), targets.split(sizes), strict=True), COMPUTE)
    assert found.loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    assert found.error == pytest.approx(100 * (logits.argmax(1) != targets).float().mean().item())
    assert network.training is training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Fixed(torch.nn.Module):
    """A network whose logits are its input."""

    def forward(self, images):
        return NetworkOutput(images, images)


def test_the_top_5_error_counts_the_images_whose_class_is_not_among_the_five_likeliest():
    torch.manual_seed(0)
    logits, targets = torch.randn(40, 9), torch.randint(9, (40,))
    ranks = (logits > logits.gather(1, targets[:, None])).sum(1)  # number of likelier classes
    found = evaluate(Fixed(), zip(logits.split(7), targets.split(7), strict=True), COMPUTE)
    assert 0 < (ranks >= 5).sum() < (ranks >= 1).sum()
    assert found.top5_error == pytest.approx(100 * (ranks >= 5).float().mean().item())
    assert found.error == pytest.approx(100 * (ranks >= 1).float().mean().item())


@pytest.mark.parametrize(("classes", "has_one"), [(5, False), (6, True)])
def test_five_classes_have_no_top_5_error(classes, has_one):
    logits = torch.arange(float(classes)).expand(3, classes)
    found = evaluate(Fixed(), [(logits, torch.zeros(3, dtype=torch.int64))], COMPUTE)
    assert found.top5_error == (100 if has_one else None)
    assert found.error == 100


def labelled(errors, samples):
    """Return logits [N, C] and targets in a mixed order, of which ``errors[c]`` of ``samples[c]`` are wrong."""
    targets = torch.arange(len(samples)).repeat_interleave(torch.tensor(samples))
    wrong = torch.cat([torch.arange(n) < e for e, n in zip(errors, samples, strict=True)])
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot((targets + wrong.long()) % len(samples), len(samples)).float()
    return logits[order], targets[order]


COUNTS = [500, 101, 100, 20, 19, 1]
ERRORS, SAMPLES = [1, 0, 6, 3, 5, 9], [10, 4, 8, 6, 5, 10]


@pytest.mark.parametrize("size", [1, 7, 43])
def test_classes_count_the_same_in_each_group_whatever_their_number_of_samples(size):
    logits, targets = labelled(ERRORS, SAMPLES)
    batches = list(zip(logits.split(size), targets.split(size), strict=True))
    found = evaluate(Fixed(), batches, COMPUTE, train_counts=COUNTS)
    assert found.of_classes == pytest.approx((100 * (0.1 + 0 + 0.75 + 0.5 + 1 + 0.9) / 6, 5.0, 62.5, 95.0))
    assert found[:3] == evaluate(Fixed(), batches, COMPUTE)[:3]
    assert found.error == pytest.approx(100 * sum(ERRORS) / sum(SAMPLES))
    assert evaluate(Fixed(), batches, COMPUTE).of_classes is None


def test_groups_without_classes_and_classes_without_samples_are_left_out():
    logits, targets = labelled([2, 0, 1], [4, 0, 2])
    found = evaluate(Fixed(), [(logits, targets)], COMPUTE, train_counts=[200, 5, 300])
    assert found.of_classes == ClassErrors(50.0, 50.0, None, None)
