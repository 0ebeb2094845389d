"""torch.compile takes each network whole, forward and backward; two of them through its default compiler."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F

from isda_repro.config import CONF_DIR, build_model, compose
from isda_repro.models import DenseNet, ResNet, WideResNet, timm_network

MODELS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml") if path.stem != "timm")
NETWORKS = {
    **{model: lambda model=model: build_model(compose([f"model={model}", "recipe=resnet"]), 10) for model in MODELS},
    "timm": lambda: timm_network("convnext_atto", 10, image_size=32),
}
QUICK = {"resnet20"}


def loss_and_gradients(network, call, images):
    torch.manual_seed(1)
    network.zero_grad()
    loss = F.cross_entropy(call(images).logits, torch.arange(len(images)))
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in NETWORKS]
)
def test_no_network_breaks_a_graph(name):
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


def test_checkpoints_are_compiled_too_and_count_a_batch_once():
    """The backend that makes the backward pass, but no code."""
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
@pytest.mark.parametrize("make", [lambda: ResNet(8, 10), lambda: WideResNet(10, 1, 10, dropout=0.0)])
def test_two_networks_through_inductor(make):
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
