"""Shake-Shake's separate draws for forward and backward pass, and the two views of the image in its shortcut."""

import pytest
import torch

from isda_repro.models import ShakeShake
from isda_repro.models.shake_shake import ShakeBlock, Shortcut, _Shake


class Constant(torch.nn.Module):
    """A branch that multiplies its input by a number."""

    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return x * self.factor


def block_of_constants():
    block = ShakeBlock(3, 3, 1, 1).double()
    block.branches = torch.nn.ModuleList([Constant(1.0), Constant(0.0)]).double()
    return block


def test_each_image_has_its_own_share_forward_and_another_backward():
    """Branches x and 0 give (1 + share) x, and the gradient shows the share of the backward pass."""
    torch.manual_seed(0)
    block, images = block_of_constants(), torch.ones(64, 3, 2, 2, dtype=torch.float64)
    images.requires_grad_()
    output = block(images)
    forward_shares = (output - images)[:, 0, 0, 0]
    output.sum().backward()
    backward_shares = images.grad[:, 0, 0, 0] - 1
    for shares in (forward_shares, backward_shares):
        assert (shares >= 0).all()
        assert (shares < 1).all()
        assert len(shares.unique()) == 64, "each image its own"
        assert abs(shares.mean() - 0.5) < 0.15
    correlation = torch.corrcoef(torch.stack([forward_shares.detach(), backward_shares]))[0, 1]
    assert abs(correlation) < 0.4, "independent"
    assert block.branches[0].factor.grad == pytest.approx((backward_shares * 12).sum().item())
    assert block.branches[1].factor.grad == pytest.approx(((1 - backward_shares) * 12).sum().item())


def test_the_gradient_divides_what_comes_back():
    one, other = (torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    forward_share, backward_share = torch.rand(2, 3, 1, 1, 1, dtype=torch.float64)
    output = _Shake.apply(one, other, forward_share, backward_share)
    torch.testing.assert_close(output, forward_share * one + (1 - forward_share) * other)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    torch.testing.assert_close(one.grad, backward_share * gradient)
    torch.testing.assert_close(other.grad, (1 - backward_share) * gradient)


def test_draws_are_those_of_the_seed_and_evaluation_has_none():
    network, images = ShakeShake(4, 5), torch.randn(3, 3, 16, 16)

    def logits(seed):
        torch.manual_seed(seed)
        return network(images).logits

    network.train()
    assert torch.equal(logits(0), logits(0))
    assert not torch.equal(logits(0), logits(1))
    network.eval()
    assert torch.equal(logits(0), logits(1))


def test_in_evaluation_each_branch_counts_half():
    block, images = block_of_constants().eval(), torch.ones(2, 3, 2, 2, dtype=torch.float64)
    assert torch.equal(block(images), 1.5 * images)


@pytest.mark.parametrize(("shift", "neighbour"), [(1, (-1, -1)), (-1, (1, 1))])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_shortcut_sees_every_pixel_and_its_neighbour(shift, neighbour, stride):
    shortcut = Shortcut(1, 2, stride, shift).eval()
    torch.nn.init.ones_(shortcut.conv1.weight)
    torch.nn.init.ones_(shortcut.conv2.weight)
    images = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    here, beside = shortcut(images)[0] * (1 + shortcut.bn.eps) ** 0.5
    for row, column in torch.cartesian_prod(torch.arange(4 // stride), torch.arange(4 // stride)).tolist():
        y, x = row * stride, column * stride
        torch.testing.assert_close(here[row, column], images[0, 0, y, x])
        y, x = y + neighbour[0], x + neighbour[1]
        inside = 0 <= y < 4 and 0 <= x < 4
        torch.testing.assert_close(beside[row, column], images[0, 0, y, x] if inside else torch.tensor(0.0))


def test_another_shift_is_refused():
    with pytest.raises(ValueError, match="shift=2"):
        ShakeShake(4, 5, shift=2)
