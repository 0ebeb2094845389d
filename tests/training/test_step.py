"""One step: the separate backward pass of the criterion changes nothing, and micro-batches equal the whole batch."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isda_repro.data import InMemoryLoader, Share, Split
from isda_repro.errors import UserError
from isda_repro.losses import CrossEntropy, ISDALoss
from isda_repro.models import Network
from isda_repro.training.compute import Compute
from isda_repro.training.ddp import _AcceptsEmptyBatch
from isda_repro.training.distributed import SINGLE_PROCESS
from isda_repro.training.running_metrics import RunningMetrics, Stopwatch
from isda_repro.training.step import Weighted, compute_gradients, refuse_single_images

CPU = torch.device("cpu")


class SmallNetwork(Network):
    """A network of convolution, group normalisation and dropout, in which images are independent."""

    def __init__(self, dropout=0.0, norm=None):
        super().__init__(feature_dim=6, num_classes=4)
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), norm or nn.GroupNorm(2, 6), nn.Dropout(dropout) if dropout else nn.Identity(), nn.ReLU()
        )

    def forward_features(self, images):
        return self.pool(self.body(images))


def compute(micro_batch=None, precision="fp32"):
    return Compute(CPU, "test", precision, False, False, False, False, micro_batch)


def gradients(network, criterion, images, targets, micro_batch=None, seed=lambda index: None):
    network, criterion = copy.deepcopy(network).train(), copy.deepcopy(criterion).train()
    result = compute_gradients(
        network,
        criterion,
        images,
        targets,
        head=network.head,
        progress=0.7,
        compute=compute(micro_batch),
        seed_micro_batch=seed,
        stopwatch=Stopwatch(CPU),
    )
    return result, {name: parameter.grad for name, parameter in network.named_parameters()}, network, criterion


def example(dtype=torch.float64):
    torch.manual_seed(0)
    network = SmallNetwork().to(dtype)
    criterion = ISDALoss(num_classes=4, feature_dim=6, lambda_0=2.0).to(dtype)
    return network, criterion, torch.randn(10, 3, 6, 6, dtype=dtype), torch.arange(10) % 4


def test_the_cut_gives_the_gradients_of_one_plain_backward_pass():
    network, criterion, images, targets = example()
    result, cut, _, _ = gradients(network, criterion, images, targets)
    plain, loss_function = copy.deepcopy(network).train(), copy.deepcopy(criterion).train()
    features, logits = plain(images)
    loss = loss_function(features, logits, targets, head=plain.head, progress=0.7)
    loss.backward()
    torch.testing.assert_close(result.loss, loss.detach())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(cut[name], parameter.grad, msg=name)
    assert not torch.allclose(loss, F.cross_entropy(logits, targets)), "ISDA's term must matter in this test"


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 10, 64])
@pytest.mark.parametrize("loss", ["ce", "isda"])
def test_micro_batches_equal_the_whole_batch(loss, micro_batch):
    network, criterion, images, targets = example()
    criterion = criterion if loss == "isda" else CrossEntropy(num_classes=4, feature_dim=6)
    whole, expected, _, state = gradients(network, criterion, images, targets)
    parts, found, _, state_of_parts = gradients(network, criterion, images, targets, micro_batch)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.logits, whole.logits)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    for name, buffer in state.state_dict().items():
        torch.testing.assert_close(state_of_parts.state_dict()[name], buffer, msg=name)


def test_both_passes_of_a_micro_batch_draw_the_same_dropout():
    torch.manual_seed(0)
    network, images, targets = SmallNetwork(dropout=0.5).double(), torch.randn(8, 3, 6, 6).double(), torch.arange(8) % 4
    criterion = CrossEntropy(num_classes=4, feature_dim=6)
    seeded = dict(seed=lambda index: torch.manual_seed(100 + index))
    result, found, _, _ = gradients(network, criterion, images, targets, micro_batch=4, **seeded)
    reference = copy.deepcopy(network).train()
    logits = []
    for index, part in enumerate(images.split(4)):
        torch.manual_seed(100 + index)
        logits.append(reference(part).logits)
    loss = F.cross_entropy(torch.cat(logits), targets)
    loss.backward()
    torch.testing.assert_close(result.loss, loss.detach())
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_batch_normalisation_sees_each_micro_batch_once():
    torch.manual_seed(0)
    network, images, targets = SmallNetwork(norm=nn.BatchNorm2d(6)), torch.randn(8, 3, 6, 6), torch.arange(8) % 4
    criterion = CrossEntropy(num_classes=4, feature_dim=6)
    _, _, trained, _ = gradients(network, criterion, images, targets, micro_batch=4)
    assert trained.body[1].num_batches_tracked == 2
    reference = copy.deepcopy(network).train()
    for part in images.split(4):
        reference(part)
    torch.testing.assert_close(trained.body[1].running_var, reference.body[1].running_var)


@pytest.mark.parametrize(
    ("samples", "batch_size", "micro_batch", "world", "is_refused"),
    [
        (9, 4, None, 1, True),  # the last batch of an epoch
        (9, 9, 4, 1, True),  # the last micro-batch
        (8, 8, 1, 1, True),
        (7, 7, None, 4, True),  # the last process's share
        (5, 4, None, 2, True),  # of an epoch's last batch: one process has an image, the other none
        (9, 3, None, 1, False),
        (8, 8, 4, 1, False),
        (12, 6, None, 2, False),
        (9, 9, 100, 1, False),
    ],
)
def test_step_with_one_image_that_cannot_be_normalised_is_refused(samples, batch_size, micro_batch, world, is_refused):
    split = Split(torch.zeros(samples, 3, 3, 3, dtype=torch.uint8), torch.arange(samples) % 4)
    constants = {"mean": [0.5] * 3, "std": [0.3] * 3, "seed": 0, "device": CPU}
    batches = InMemoryLoader(split, batch_size=batch_size, shuffle=True, share=Share(0, world), **constants)
    network = SmallNetwork(norm=nn.BatchNorm2d(6))
    expected = pytest.raises(UserError, match=f"batches of {batch_size}") if is_refused else nullcontext()
    with expected:
        refuse_single_images(network, batches, compute(micro_batch), (3, 3, 3))  # its maps are of 1 x 1 pixels
    before, draws = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    refuse_single_images(network, batches, compute(micro_batch), (3, 4, 4))  # its maps are not
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(draws, torch.get_rng_state())


def test_an_empty_share_of_a_batch_with_micro_batches_has_gradients_of_zero():
    """All of its images were unreadable, and other processes have more than a micro-batch."""
    network, criterion, images, targets = example()
    network.body.register_forward_pre_hook(lambda *_: pytest.fail("many networks do not take an empty batch"))
    wrapped = _AcceptsEmptyBatch(network.train())
    result = compute_gradients(
        wrapped, criterion.train(), images[:0], targets[:0], head=network.head, progress=0.5,
        compute=compute(2), seed_micro_batch=lambda index: None, stopwatch=None, share=Weighted(0.0, largest=3),
        eval_model=network,
    )  # fmt: skip
    assert (result.loss.item(), tuple(result.logits.shape)) == (0, (0, 4))
    assert all(not parameter.grad.any() for parameter in network.parameters())


def test_gradients_add_up_and_the_criterion_is_timed():
    network, criterion, images, targets = example(torch.float32)
    stopwatch = Stopwatch(CPU)
    arguments = dict(
        head=network.head, progress=0.5, compute=compute(), seed_micro_batch=lambda index: None, stopwatch=stopwatch
    )
    criterion = CrossEntropy(num_classes=4, feature_dim=6)
    compute_gradients(network, criterion, images, targets, **arguments)
    once = network.head.weight.grad.clone()
    compute_gradients(network, criterion, images, targets, **arguments)
    torch.testing.assert_close(network.head.weight.grad, 2 * once)
    seconds = stopwatch.seconds()
    assert seconds["criterion"] > 0
    assert stopwatch.seconds() == {}


def test_first_step_without_a_finite_loss_is_the_bad_one():
    metrics = RunningMetrics(CPU)
    for step, loss in enumerate([1.0, float("nan"), 2.0, float("inf")]):
        metrics.add(torch.tensor(loss), torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), step)
        assert metrics.bad_step(SINGLE_PROCESS) == (1 if step else None)
    metrics.reset()
    assert metrics.bad_step(SINGLE_PROCESS) is None
