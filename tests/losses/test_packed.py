"""Full covariances as triangles, in one process and divided among several, against square ones in one process."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from reference import two_pass
from torch import nn

from isda_repro.losses import ISDALoss, PackedStatistics
from isda_repro.losses.triangles import pack, packed_shape, unpack


@pytest.mark.parametrize("size", [1, 2, 3, 8, 17])
def test_packing_is_undone_by_unpacking_and_halves_the_memory(size):
    square = torch.randn(3, 2, size, size).double()
    square = square + square.mT
    rectangle = pack(square)
    assert rectangle.shape[2:] == packed_shape(size)
    assert torch.equal(unpack(rectangle, size), square)
    assert rectangle[0, 0].numel() == (size + size % 2) * (size + size % 2 + 1) // 2


def make(packed, classes=7, width=5, dtype=torch.float64, **options):
    torch.manual_seed(0)
    criterion = ISDALoss(classes, width, lambda_0=1.5, packed=packed, **options).to(dtype)
    return criterion, nn.Linear(width, classes).to(dtype)


def batches(count, samples, classes, width):
    for step in range(count):
        torch.manual_seed(step)
        yield torch.randn(samples, width).double().relu() + step, torch.randint(classes - 1, (samples,))


def assert_same_training(criterion, reference, head, samples, classes, width):
    for features, targets in batches(5, samples, classes, width):
        results = []
        for one in (criterion, reference):
            features = features.detach().requires_grad_()
            head.zero_grad()
            loss = one(features, head(features), targets, head=head, progress=0.6)
            loss.backward()
            results.append((loss.detach(), features.grad, head.weight.grad, head.bias.grad))
        torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
    for number in range(classes):
        expected = reference.statistics.covariance[number]
        torch.testing.assert_close(criterion.statistics.covariance_of(number), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("samples", "classes", "width"), [(12, 7, 5), (40, 4, 6), (3, 9, 4), (1, 3, 1)])
@pytest.mark.parametrize("chunk", [1, 2**30])
@pytest.mark.parametrize("kept", [0, 2**30])
@pytest.mark.parametrize("behind", [False, True])
def test_packed_is_square(samples, classes, width, chunk, kept, behind, monkeypatch):
    monkeypatch.setattr("isda_repro.losses.packed.CPU_CHUNK_BYTES", chunk)
    monkeypatch.setattr("isda_repro.losses.packed.ACCELERATOR_CHUNK_BYTES", chunk)
    monkeypatch.setattr("isda_repro.losses.packed_quadratic.KEPT_BYTES", kept)
    if behind:
        for room in ("packed", "batch_classes", "criterion", "statistics"):
            monkeypatch.setattr(f"isda_repro.losses.{room}.is_asynchronous", lambda tensor: True)
    (criterion, head), (reference, _) = (make(packed, classes, width) for packed in (True, False))
    assert_same_training(criterion, reference, head, samples, classes, width)


@pytest.mark.parametrize("behind", [False, True])
def test_ignored_samples_count_for_nothing(behind, monkeypatch):
    criterion, head = make(True, ignore_index=-1)
    twin = copy.deepcopy(criterion)
    ((features, targets),) = batches(1, 12, 7, 5)
    expected = twin(features[:9], head(features[:9]), targets[:9], head=head, progress=1.0)
    if behind:
        for room in ("packed", "batch_classes", "criterion", "statistics"):
            monkeypatch.setattr(f"isda_repro.losses.{room}.is_asynchronous", lambda tensor: True)
    targets[9:] = -1
    found = criterion(features, head(features), targets, head=head, progress=1.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(criterion.state_dict(), twin.state_dict())


def test_a_backward_pass_that_needs_matrices_which_have_changed_is_refused(monkeypatch):
    """Where the products are made again: a wrong gradient would be silent."""
    monkeypatch.setattr("isda_repro.losses.packed_quadratic.KEPT_BYTES", 0)
    criterion, head = make(True)
    ((features, targets),) = batches(1, 12, 7, 5)
    first = criterion(features, head(features), targets, head=head, progress=1.0)
    criterion(features, head(features), targets, head=head, progress=1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()


def test_an_absent_class_keeps_its_very_bits():
    statistics = PackedStatistics(3, 4)
    statistics.update(torch.randn(49, 4), torch.arange(49) % 3)
    before = statistics.packed[2].clone()
    statistics.update(torch.randn(10, 4), torch.arange(10) % 2)
    assert torch.equal(statistics.packed[2], before)


def test_20000_small_batches_in_float32_stay_close_to_float64():
    torch.manual_seed(0)
    features, targets = (torch.randn(20_000, 4, 6) + 2).relu(), torch.randint(3, (20_000, 4))
    statistics = PackedStatistics(3, 6)
    for one, labels in zip(features, targets, strict=True):
        statistics.update(one, labels)
    _, covariance = two_pass(features.flatten(0, 1), targets.flatten(), 3)
    found = torch.stack([statistics.covariance_of(number) for number in range(3)])
    assert (found - covariance).abs().max() / covariance.abs().max() < 1e-4  # measured: 1e-5


def test_it_is_chosen_where_squares_would_not_fit():
    assert isinstance(ISDALoss(100, 640).statistics.covariance, torch.Tensor)
    with torch.device("meta"):
        statistics = ISDALoss(1000, 2048).statistics
        assert not isinstance(ISDALoss(100, 2190).statistics, PackedStatistics)
    assert isinstance(statistics, PackedStatistics)
    assert statistics.packed.nbytes == 1000 * 2048 * 2049 * 2
    with pytest.raises(ValueError, match="packed=True is for covariance='full'"):
        ISDALoss(10, 5, covariance="diagonal", packed=True)


# ------------------------------------------------------------------------------------------------- several processes


def one_of_several(rank, world, folder, kind, sizes):
    """Train on this process's part of each batch, and leave loss, gradient and state."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    packed = True if kind == "packed" else None
    covariance = "full" if kind == "packed" else kind
    criterion, head = make(packed, covariance=covariance, process_group=dist.group.WORLD)
    if (folder / "state.pt").exists():
        criterion.load_state_dict(torch.load(folder / "state.pt"))
    trace = []
    for features, targets in batches(4, sum(sizes), 7, 5):
        part = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        own, labels = features[part].requires_grad_(), targets[part]
        head.zero_grad()
        loss = criterion(own, head(own), labels, head=head, progress=0.6) * (len(labels) / sum(sizes))
        loss.backward()
        for gathered in (total := loss.detach().clone(), head.weight.grad, head.bias.grad):
            dist.all_reduce(gathered)
        trace.append((total, head.weight.grad.clone(), head.bias.grad.clone()))
    statistics = criterion.statistics
    whole = statistics.whole_state_dict() if kind == "packed" else statistics.state_dict()
    if rank == 0:
        torch.save(
            {"trace": trace, "state": {f"statistics.{key}": one for key, one in whole.items()}}, folder / "out.pt"
        )
    else:
        assert kind != "packed" or whole is None
    dist.destroy_process_group()


def on_processes(folder, kind, sizes, state=None):
    folder.mkdir()
    if state is not None:
        torch.save(state, folder / "state.pt")
    mp.spawn(one_of_several, (len(sizes), folder, kind, sizes), nprocs=len(sizes))
    return torch.load(folder / "out.pt")


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("packed", (6, 6)), ("packed", (9, 0, 3)), ("full", (5, 7)), ("diagonal", (12, 0)), ("shared", (4, 8))],
)
def test_several_processes_are_one(tmp_path, kind, sizes):
    """Uneven parts, a process without a sample, and more processes' ranges than classes fill evenly."""
    found = on_processes(tmp_path / "several", kind, sizes)
    criterion, head = make(None if kind != "packed" else False, covariance="full" if kind == "packed" else kind)
    for (features, targets), (loss, *gradients) in zip(batches(4, sum(sizes), 7, 5), found["trace"], strict=True):
        head.zero_grad()
        expected = criterion(features, head(features), targets, head=head, progress=0.6)
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(gradients, [head.weight.grad, head.bias.grad], rtol=1e-9, atol=1e-11)
    if kind != "packed":
        torch.testing.assert_close(found["state"], criterion.state_dict(), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_divided_covariances_are_saved_and_resumed_on_any_number_of_processes(tmp_path):
    state = on_processes(tmp_path / "two", "packed", (6, 6))["state"]
    traces = [on_processes(tmp_path / str(len(sizes)), "packed", sizes, state) for sizes in ((12,), (5, 7), (4, 4, 4))]
    for other in traces[1:]:
        torch.testing.assert_close(other["trace"], traces[0]["trace"], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(other["state"], traces[0]["state"], rtol=1e-10, atol=1e-12)
    whole, _ = make(True)
    whole.load_state_dict(traces[2]["state"])
    assert whole.statistics.count.sum() == 2 * 4 * 12
    head = nn.Linear(5, 7).double()
    features = torch.randn(4, 5).double()
    loss = whole.eval()(features, head(features), torch.arange(4), head=head, progress=1.0)
    assert torch.equal(loss, F.cross_entropy(head(features), torch.arange(4)))
