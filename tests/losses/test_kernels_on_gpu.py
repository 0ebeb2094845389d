"""The Triton kernels on a GPU, against float64."""

import copy

import pytest
import torch
from kernel_errors import error
from torch import nn

from isda_repro.losses import ISDALoss

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("shape", [(128, 10, 640), (128, 100, 640), (128, 100, 64), (16, 100, 64)])
def test_kernels_on_a_gpu_equal_float64_and_the_host_never_waits(shape):
    samples, classes, width = shape
    torch.manual_seed(0)
    head, exact_head = nn.Linear(width, classes).cuda(), nn.Linear(width, classes).double().cuda()
    exact_head.load_state_dict(head.state_dict())
    fast, exact = ISDALoss(classes, width, kernels=True).cuda(), ISDALoss(classes, width).double().cuda()
    for step in range(4):
        features = torch.randn(samples, width, device="cuda").relu().requires_grad_()
        copied = features.detach().double().requires_grad_()
        targets = torch.randint(classes, (samples,), device="cuda")
        head.zero_grad()
        exact_head.zero_grad()
        expected = exact(copied, exact_head(copied), targets, head=exact_head, progress=1.0)
        expected.backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first call compiles
        try:
            loss = fast(features, head(features), targets, head=head, progress=1.0)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert error(loss, expected) < 1e-6
        assert error(features.grad, copied.grad) < 1e-5
        assert error(head.weight.grad, exact_head.weight.grad) < 1e-5
        assert error(fast.statistics.mean, exact.statistics.mean) < 1e-6
        assert error(fast.statistics.covariance, exact.statistics.covariance) < 1e-6
        assert torch.equal(fast.statistics.covariance, fast.statistics.covariance.mT)
        assert torch.equal(fast.statistics.count, exact.statistics.count)


def test_the_default_on_a_gpu_is_the_kernels():
    criterion = ISDALoss(5, 19).cuda()
    assert criterion._takes_kernels(torch.zeros(3, 5, device="cuda"), 3)


@pytest.mark.parametrize("shape", [(128, 100, 64), (16, 100, 64)])
def test_kernels_in_a_cuda_graph_take_the_strength_of_each_replay(shape):
    samples, classes, width = shape
    torch.manual_seed(0)
    head, criterion = nn.Linear(width, classes).cuda(), ISDALoss(classes, width, kernels=True).cuda()
    features = torch.randn(samples, width, device="cuda").relu()
    targets, progress = torch.randint(classes, (samples,), device="cuda"), torch.tensor(0.5, device="cuda")
    eager, start = copy.deepcopy(criterion), copy.deepcopy(criterion.state_dict())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            criterion(features, head(features), targets, head=head, progress=progress).backward()
    torch.cuda.current_stream().wait_stream(stream)
    criterion.load_state_dict(start)
    graph = torch.cuda.CUDAGraph()
    head.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        captured = criterion(features, head(features), targets, head=head, progress=progress)
        captured.backward()
    criterion.load_state_dict(start)
    replayed = head.weight.grad
    for value in (0.1, 0.9):
        progress.fill_(value)
        features.normal_().relu_()
        targets.random_(classes)
        graph.replay()
        head.weight.grad = None
        expected = eager(features, head(features), targets, head=head, progress=value)
        expected.backward()
        torch.testing.assert_close(captured, expected, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(replayed, head.weight.grad, rtol=1e-5, atol=1e-7)
        head.weight.grad = replayed
        assert all(torch.equal(*pair) for pair in zip(criterion.buffers(), eager.buffers(), strict=True))
