"""ISDA on a GPU against float64: at real sizes, with every kind of target, eagerly and replayed from a CUDA graph."""

import copy

import pytest
import torch
from torch import nn

from isda_repro.losses import ISDALoss

pytestmark = pytest.mark.gpu

SHAPES = [(128, 10, 64), (128, 100, 64), (128, 10, 640), (128, 100, 640), (64, 300, 128)]
SMALL = [(16, 5, 8), (16, 100, 8)]
CLASSES = 19
FORMS = {
    "full": {},
    "full, without kernels": {"kernels": False},
    "packed": {"packed": True},
    "diagonal": {"covariance": "diagonal"},
    "shared": {"covariance": "shared"},
    "full, prior": {"prior": 5.0},
    "packed, prior": {"packed": True, "prior": 5.0},
    "diagonal, prior": {"covariance": "diagonal", "prior": 5.0},
    "weight, label smoothing": {"weight": torch.linspace(0.5, 1.5, CLASSES), "label_smoothing": 0.1},
}


@pytest.fixture(autouse=True)
def _no_tf32():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def batch_of(targets, samples, classes, width):
    """Return features and targets; of 4 x 6 pixels or of images, some of which are ignored, or probabilities."""
    size = (4, 6) if targets.endswith("of pixels") else ()
    labels = torch.randint(classes, (samples, *size))
    if targets.startswith("probabilities"):  # of two labels, as mixup makes them
        two = (nn.functional.one_hot(one, classes).float() for one in (labels, torch.randint(classes, labels.shape)))
        labels = torch.lerp(*two, torch.rand(*labels.shape, 1)).movedim(-1, 1)
    else:
        labels[::7] = -100
    return torch.randn(samples, width, *size).relu(), labels


def captured(step):
    """Capture a step as a CUDA graph, and return the function that replays it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()

    def replay():
        graph.replay()
        return found

    return replay


def steps(criterion, head, batches, device, dtype, capture_from=None):
    """Return loss, gradients and statistics after calls on several batches, in float64 on the CPU."""
    criterion, head = (copy.deepcopy(module).to(device, dtype) for module in (criterion, head))
    converted = [
        (one.to(device, dtype), two.to(device, dtype if two.is_floating_point() else None)) for one, two in batches
    ]
    features, targets = (one.clone() for one in converted[0])
    features.requires_grad_()

    def step():
        loss = criterion(features, head(features), targets, head=head, progress=0.8)
        return [loss.detach(), *torch.autograd.grad(loss, [features, head.weight])]

    take_step = step
    for number, batch in enumerate(converted):
        if number == capture_from and device.type == "cuda":
            take_step = captured(step)
        with torch.no_grad():
            features.copy_(batch[0])
            targets.copy_(batch[1])
        found = take_step()
    return [one.double().cpu() for one in (*found, *criterion.buffers())]


def assert_near_float64(criterion, head, batches, device, capture_from=None):
    found = steps(criterion, head, batches, device, torch.float32, capture_from)
    expected = steps(criterion, head, batches, torch.device("cpu"), torch.float64)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("covariance", ["full", "diagonal", "shared"])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_real_sizes_have_the_numbers_of_float64(device, on_gpu, shape, covariance):
    samples, classes, width = SHAPES[shape] if on_gpu else SMALL[shape % len(SMALL)]
    torch.manual_seed(0)
    batches = [batch_of("labels", samples, classes, width) for _ in range(3)]
    assert_near_float64(ISDALoss(classes, width, covariance=covariance), nn.Linear(width, classes), batches, device)


@pytest.mark.parametrize("capture_from", [None, 1], ids=["eager", "captured"])
@pytest.mark.parametrize("targets", ["labels", "probabilities", "labels of pixels", "probabilities of pixels"])
@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_target_has_the_numbers_of_float64(device, form, targets, capture_from):
    """A graph is captured after one eager call, which has checked the logits, and replayed on other batches."""
    torch.manual_seed(0)
    width = 32
    head = nn.Conv2d(width, CLASSES, 1) if targets.endswith("of pixels") else nn.Linear(width, CLASSES)
    batches = [batch_of(targets, 24, CLASSES, width) for _ in range(4)]
    assert_near_float64(ISDALoss(CLASSES, width, **FORMS[form]), head, batches, device, capture_from)
