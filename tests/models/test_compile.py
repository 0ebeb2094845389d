"""torch.compile takes each network as one graph, forward and backward; one of them with its default compiler."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F

from isda_repro.models import DenseNet, ResNet, ResNeXt, ShakeShake, WideResNet, imagenet_densenet, timm_network

NETWORKS = {
    "resnet": lambda: ResNet(8, 10, dropout=0.3),
    "se": lambda: ResNet(8, 10, se_reduction=16),
    "wide": lambda: WideResNet(10, 1, 10),
    "resnext": lambda: ResNeXt(11, 2, 8, 10, dropout=0.3),
    "densenet": lambda: DenseNet(10, 4, 10, dropout=0.3),
    "shake": lambda: ShakeShake(4, 10),
    "timm": lambda: timm_network("resnet18", 10, image_size=32),
    "imagenet_densenet": lambda: imagenet_densenet(121, 10, image_size=32),
}
SLOW = {"timm", "imagenet_densenet"}


def loss_and_gradients(network, call, images):
    torch.manual_seed(1)
    network.zero_grad()
    loss = F.cross_entropy(call(images).logits, torch.arange(len(images)))
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NETWORKS]
)
def test_network_compiles_into_one_graph(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    images = torch.randn(4, 3, 32, 32)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        loss_and_gradients(network, compiled, images),
        loss_and_gradients(network, network, images),
        rtol=1e-3,
        atol=1e-5,
    )


def test_compiled_checkpoints_count_a_batch_once():
    """The backend "aot_eager" builds the backward graph without generating code."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = DenseNet(16, 4, 10, checkpointed=True).train()
    other, images = copy.deepcopy(network), torch.randn(4, 3, 16, 16)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        loss_and_gradients(network, compiled, images), loss_and_gradients(other, other, images), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(dict(network.named_buffers()), dict(other.named_buffers()))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++") and not shutil.which("g++"), reason="torch.compile wants a C++ compiler")
@pytest.mark.parametrize("make", [lambda: ResNet(8, 10)])
def test_inductor_gives_the_same_loss_and_gradients(make):
    torch._dynamo.reset()
    torch.manual_seed(0)
    network, images = make().train(), torch.randn(4, 3, 32, 32)
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(
        loss_and_gradients(network, compiled, images),
        loss_and_gradients(network, network, images),
        rtol=1e-3,
        atol=1e-4,
    )
