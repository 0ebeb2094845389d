"""Each loss under ``torch.compile``, on a GPU, and in a CUDA graph."""

import copy

import pytest
import torch
from criteria import WITH_PRIOR, WITH_SIGMA2, WITHOUT_DRAWS, assert_same, make, step, unchanged
from torch._dynamo.testing import CompileCounterWithBackend

from isda_repro.losses import ISDALoss


@pytest.mark.parametrize(
    ("name", "samples"),
    [(name, 4) for name in ("isda", "isda_diagonal", "isda_packed", "isda_prior")]
    + [(name, 24) for name in (*(name for name in WITHOUT_DRAWS if name not in WITH_SIGMA2), "isda_shared")]
    + [
        pytest.param(name, 24, marks=pytest.mark.slow) for name in ("isda", "isda_identity", "isda_packed", *WITH_PRIOR)
    ],
)
def test_loss_compiles_into_one_graph_that_takes_any_progress(name, samples):
    torch._dynamo.reset()
    criterion, head, features, targets = make(name, samples, ignore_index=2)
    eager = copy.deepcopy(criterion)
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(criterion, fullgraph=True, backend=graphs)
    for progress in (torch.tensor(share).double() for share in (0.2, 0.4, 0.6)):
        losses, gradients = [], []
        for function in (compiled, eager):
            head.zero_grad()
            features.grad = None
            loss = function(features, head(features), targets, head=head, progress=progress)
            loss.backward()
            losses.append(loss.detach())
            gradients.append([features.grad, head.weight.grad])
        assert_same(*losses, tolerance=1e-10)
        assert_same(*gradients, tolerance=1e-10)
    assert graphs.frame_count <= 2, "not one for each value"
    assert_same(dict(criterion.named_buffers()), dict(eager.named_buffers()), tolerance=1e-10)


def test_a_progress_that_is_a_number_is_compiled_twice():
    """Dynamo makes the changing float dynamic, but AOTAutograd of PyTorch 2.11 still specialises on it."""
    torch._dynamo.reset()
    criterion, head, features, targets = make("isda", 4)
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(criterion, fullgraph=True, backend=graphs)
    for progress in (0.2, 0.4, 0.6, 0.8):
        compiled(features, head(features), targets, head=head, progress=progress)
    assert graphs.frame_count == 2


def test_compiled_loss_learns_nothing_while_gradients_are_off():
    torch._dynamo.reset()
    criterion, head, features, targets = make("isda_diagonal", 4)
    compiled = torch.compile(criterion, fullgraph=True, backend="eager")
    progress = torch.tensor(0.5).double()
    for count in (4, 8):
        compiled(features, head(features), targets, head=head, progress=progress)
        assert criterion.statistics.count.sum() == count
        with torch.no_grad(), unchanged(criterion):
            loss = compiled(features, head(features), targets, head=head, progress=progress)
        assert_same(loss, torch.nn.functional.cross_entropy(head(features), targets), tolerance=0)


@pytest.mark.parametrize("form", [{}, {"packed": True}, {"covariance": "diagonal"}, {"prior": 3.0}], ids=str)
@pytest.mark.parametrize("targets", ["labels", "probabilities", "pixels"])
def test_a_compiled_loss_takes_a_smaller_last_batch(targets, form):
    torch._dynamo.reset()
    torch.manual_seed(0)
    classes, size = 30, (5, 4) if targets == "pixels" else ()
    head = (torch.nn.Conv2d(8, classes, 1) if size else torch.nn.Linear(8, classes)).double()
    criterion = ISDALoss(classes, 8, **form).double()
    eager = copy.deepcopy(criterion)
    compiled, progress = torch.compile(criterion, fullgraph=True, backend="eager"), torch.tensor(0.5).double()
    for samples in (24, 24, 9):
        features, given = torch.randn(samples, 8, *size).double(), torch.randint(classes, (samples, *size))
        if targets == "probabilities":
            given = torch.rand(samples, classes).double().softmax(1)
        found, expected = (
            one(features, head(features), given, head=head, progress=progress) for one in (compiled, eager)
        )
        assert_same(found, expected, tolerance=1e-10)
    assert_same(dict(criterion.named_buffers()), dict(eager.named_buffers()), tolerance=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["isda", "isda_diagonal"])
def test_inductor_compiles_isda(name):
    torch._dynamo.reset()
    criterion, head, features, targets = make(name, dtype=torch.float32)
    eager = copy.deepcopy(criterion)
    compiled = torch.compile(criterion, fullgraph=True)
    for progress in (0.2, 0.4, 0.6):
        found = compiled(features, head(features), targets, head=head, progress=progress)
        expected = eager(features, head(features), targets, head=head, progress=progress)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_a_gpu_gives_the_cpus_numbers_and_the_host_never_waits(name):
    criterion, head, features, targets = make(name, size=64, dtype=torch.float32, ignore_index=2)
    expected = step(criterion, head, features, targets)
    criterion, head, features, targets = criterion.cuda(), head.cuda(), features.detach().cuda(), targets.cuda()
    before = copy.deepcopy(criterion.state_dict())
    criterion(features, head(features), targets, head=head, progress=0.7)  # the first call checks the logits
    criterion.load_state_dict(before)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = criterion(features, head(features), targets, head=head, progress=0.7)
        found.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu().detach(), expected[0], rtol=1e-5, atol=1e-6)
    for key, tensor in criterion.named_buffers():
        torch.testing.assert_close(tensor.cpu(), expected[3][key], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_shared", "isda_identity", *WITH_PRIOR])
def test_a_cuda_graph_replays_it(name):
    criterion, head, features, targets = make(name, size=16, dtype=torch.float32)
    criterion, head, features, targets = criterion.cuda(), head.cuda(), features.detach().cuda(), targets.cuda()
    progress, eager = torch.tensor(0.5, device="cuda"), copy.deepcopy(criterion)
    twin = copy.deepcopy(criterion.state_dict())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # warm-up, which capturing requires
        for _ in range(3):
            criterion(features, head(features), targets, head=head, progress=progress).backward()
    torch.cuda.current_stream().wait_stream(stream)
    criterion.load_state_dict(twin)
    graph = torch.cuda.CUDAGraph()
    head.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        captured = criterion(features, head(features), targets, head=head, progress=progress)
        captured.backward()
    for value in (0.1, 0.9):
        progress.fill_(value)
        features.normal_().relu_()
        graph.replay()
        expected = eager(features, head(features), targets, head=head, progress=value)
        torch.testing.assert_close(captured, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_a_bad_label_on_a_gpu_does_not_end_the_process(name):
    criterion, head, features, targets = make(name, dtype=torch.float32)
    targets[0] = 7
    tensors = [one.cuda() for one in (features, head(features), targets)]
    loss = criterion.cuda()(*tensors, head=head.cuda(), progress=1.0)
    assert loss.isnan()
    torch.cuda.synchronize()
