"""Evaluation: each sample counts once, running statistics are used, and the network's mode is restored."""

import pytest
import torch
import torch.nn.functional as F

from isda_repro.models import NetworkOutput, ResNet
from isda_repro.training.compute import Compute
from isda_repro.training.evaluate import evaluate

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
