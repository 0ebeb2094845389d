"""DenseNet's checkpointed concatenations, and its layers against a plain form."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isda_repro.models import DenseNet, imagenet_densenet


def for_cifar(**options):
    return DenseNet(22, 6, 5, **options)


def for_imagenet(**options):
    return imagenet_densenet(121, 5, image_size=32, **options)


def normalised_together(**options):
    return nn.SyncBatchNorm.convert_sync_batchnorm(for_cifar(**options))


def trained_once(make, checkpointed, dropout=0.0):
    torch.manual_seed(0)
    network = make(dropout=dropout, checkpointed=checkpointed).train()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    loss = F.cross_entropy(network(images).logits, torch.arange(4))
    loss.backward()
    return loss, network


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("make", [for_cifar, for_imagenet, normalised_together])
def test_checkpointing_changes_no_bit(make, dropout):
    """Loss, gradients, running statistics and the number of batches they have seen are compared."""
    (loss, network), (other_loss, other) = trained_once(make, True, dropout), trained_once(make, False, dropout)
    assert torch.equal(loss, other_loss)
    for (name, one), two in zip(network.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name
    for (name, one), two in zip(network.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two), name
    assert all(module.track_running_stats for module in network.modules() if hasattr(module, "track_running_stats"))


def saved_bytes(checkpointed):
    network = DenseNet(52, 6, 5, checkpointed=checkpointed)
    parameters = {parameter.data_ptr() for parameter in network.parameters()}
    held = {}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(torch.randn(4, 3, 16, 16)).logits.sum()
    del loss
    return sum(held.values())


def test_checkpointing_keeps_less_for_the_gradient():
    assert saved_bytes(True) < 0.6 * saved_bytes(False)


def test_each_layer_sees_all_before_it():
    """A block is compared with the definition, written plainly."""
    torch.manual_seed(0)
    block = DenseNet(16, 4, 5).eval().blocks[0]
    x = torch.randn(2, 8, 6, 6)
    expected = x
    for layer in block:
        squeezed = F.conv2d(F.relu(layer.bn1(expected)), layer.conv1.weight)
        own = F.conv2d(F.relu(layer.bn2(squeezed)), layer.conv2.weight, padding=1)
        expected = torch.cat([expected, own], 1)
    torch.testing.assert_close(block(x), expected)
    assert expected.shape == (2, 8 + 2 * 4, 6, 6)
