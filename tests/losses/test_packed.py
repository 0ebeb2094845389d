"""Packed full covariances, in one process and divided among several, against square ones in one process."""

import copy
import pickle

import criteria
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from isda_repro.losses import ISDALoss, PackedStatistics
from isda_repro.losses.covariances.packed import pack, packed_shape, unpack


@pytest.mark.parametrize("size", [1, 2, 3, 8, 17])
def test_unpacking_undoes_packing_and_packed_matrices_take_half_the_memory(size):
    square = torch.randn(3, 2, size, size).double()
    square = square + square.mT
    rectangle = pack(square)
    assert rectangle.shape[2:] == packed_shape(size)
    assert torch.equal(unpack(rectangle, size), square)
    assert rectangle[0, 0].numel() == (size + size % 2) * (size + size % 2 + 1) // 2


def make(packed, classes=7, width=5, **options):
    torch.manual_seed(0)
    criterion = ISDALoss(classes, width, lambda_0=1.5, packed=packed, **options).double()
    return criterion, nn.Linear(width, classes).double()


def batches(count, samples, classes, width):
    for step in range(count):
        torch.manual_seed(step)
        yield torch.randn(samples, width).double().relu() + step, torch.randint(classes - 1, (samples,))


@pytest.mark.parametrize(("samples", "classes", "width"), [(12, 7, 5), (40, 4, 6), (3, 9, 4), (1, 3, 1)])
@pytest.mark.parametrize("chunk", [1, 2**30])
@pytest.mark.parametrize("kept", [0, 2**30])
@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_packed_covariances_give_the_losses_and_gradients_of_square_ones(
    samples, classes, width, chunk, kept, way, monkeypatch, request
):
    monkeypatch.setattr("isda_repro.losses.covariances.packed.CPU_CHUNK_BYTES", chunk)
    monkeypatch.setattr("isda_repro.losses.covariances.packed.ACCELERATOR_CHUNK_BYTES", chunk)
    monkeypatch.setattr("isda_repro.losses.covariances.packed_quadratic.KEPT_BYTES", kept)
    if way == "accelerator":
        request.getfixturevalue("accelerator")
    (criterion, head), (reference, _) = (make(packed, classes, width) for packed in (True, False))
    for features, targets in batches(3, samples, classes, width):
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


def test_backward_pass_that_needs_matrices_which_have_changed_is_refused(monkeypatch):
    """The backward pass recomputes the products, so that without the check its gradient would be silently wrong."""
    monkeypatch.setattr("isda_repro.losses.covariances.packed_quadratic.KEPT_BYTES", 0)
    criterion, head = make(True)
    ((features, targets),) = batches(1, 12, 7, 5)
    first = criterion(features, head(features), targets, head=head, progress=1.0)
    criterion(features, head(features), targets, head=head, progress=1.0)
    with pytest.raises(RuntimeError, match="inplace"):
        first.backward()


def test_covariances_are_packed_where_squares_would_not_fit():
    with torch.device("meta"):
        assert not isinstance(ISDALoss(100, 2190).statistics, PackedStatistics), "the paper's largest on CIFAR"
        assert not isinstance(ISDALoss(128, 2048).statistics, PackedStatistics), "2 GiB"
        assert not isinstance(ISDALoss(1000, 2048, packed=False).statistics, PackedStatistics)
        statistics = ISDALoss(1000, 2048).statistics
        assert isinstance(ISDALoss(129, 2048).statistics, PackedStatistics)
    assert statistics.packed.nbytes == 1000 * 2048 * 2049 * 2


def test_formula_of_the_packed_forms_costs(load_script):
    cost = load_script("benchmarks/packed_cost")
    square, packed = cost.gigabytes(1000, 2048)
    assert (round(square, 1), round(packed, 1)) == (16.8, 8.4), "the figures of the paper's setting"
    assert cost.classes_in_batch(64, 1000) == pytest.approx(1000 * (1 - 0.999**64))
    assert cost.multiply_adds(1, 1, 10) == pytest.approx((1 + 2) * 100)
    samples = cost.multiply_adds(64, 1000, 2048) / (cost.classes_in_batch(64, 1000) * 1000 * 2048**2)
    assert samples == pytest.approx(1, abs=0.003), "the product with W is nearly all of it"


# ------------------------------------------------------------------------------------------------- several processes

TRAININGS = {  # kind of covariance, samples of each process in each batch, training whose state is loaded
    "packed": ("packed", (9, 0, 3), None),
    "two": ("packed", (6, 6), None),
    "two on one": ("packed", (12,), "two"),
    "two on two": ("packed", (5, 7), "two"),
    "two on three": ("packed", (4, 4, 4), "two"),
    "full": ("full", (5, 7), None),
    "diagonal": ("diagonal", (12, 0), None),
    "shared": ("shared", (4, 5, 3), None),
    "prior": ("packed", (9, 0, 3), None),
    "full, prior": ("full", (5, 7), None),
    "accelerator": ("packed", (1, 1), None),  # fewer samples than classes of a process
}


def kind_of(kind, **options):
    return make(kind == "packed", covariance="full" if kind == "packed" else kind, **options)


def trained(criterion, head, sizes, rank, group):
    """Train on four batches, and return losses and gradients summed over the processes."""
    trace = []
    for features, targets in batches(4, sum(sizes), 7, 5):
        part = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        own, labels = features[part].requires_grad_(), targets[part]
        head.zero_grad()
        loss = criterion(own, head(own), labels, head=head, progress=0.6) * (len(labels) / sum(sizes))
        loss.backward()
        sums = loss.detach().clone(), head.weight.grad.clone(), head.bias.grad.clone()
        for one in sums:
            if group is not None:
                dist.all_reduce(one, group=group)
        trace.append(sums)
    return trace


def one_of_three(rank, folder):
    """Do all trainings as one of three processes; the main process of each saves losses, gradients and state."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3)
    groups = {world: dist.new_group(list(range(3 - world, 3))) for world in (1, 2, 3)}
    for name, (kind, sizes, before) in TRAININGS.items():
        group, own = groups[len(sizes)], rank - (3 - len(sizes))
        torch.compiler.is_compiling = lambda name=name: name == "accelerator"
        if own >= 0:
            criterion, head = kind_of(kind, process_group=group, prior=2.0 if "prior" in name else None)
            if before is not None:
                criterion.load_state_dict(torch.load(folder / before)["state"])
            trace = trained(criterion, head, sizes, own, group)
            state, summary = criterion.whole_state_dict(), criterion.summary(head=head)
            assert kind != "packed" or (state is None) == (own > 0)
            if own == 0:
                torch.save({"trace": trace, "state": state, "summary": summary}, folder / name)
        dist.barrier()
    torch.compiler.is_compiling = lambda: False
    states = {name: overflow(name, rank, groups[3]) for name in SHARING}
    if rank == 0:
        torch.save(states, folder / "overflows")
    dist.destroy_process_group()


SHARING = ["center", "isda", "isda_diagonal", "isda_shared", "isda_packed", "isda_sampled"]


def overflow(name, rank=0, group=None):
    """Train on three batches of 24 samples as one of three processes, and return the state.

    One sample of the second process overflows in the second step. A single process trains without that sample. After
    that step the processes go on with copies of the criterion.
    """
    criterion, head, features, targets = criteria.make(name, process_group=group)
    for step in range(3):
        here = torch.arange(24) if group is None else torch.arange(8 * rank, 8 * rank + 8)
        if group is None and step == 1:
            here = here[here != 11]
        own = features.detach()[here] + step
        if group is not None and step == 1:
            own[here == 11] = torch.inf
        criterion.begin_step(torch.Generator().manual_seed(step))
        loss = criterion(own, head(own), targets[here], head=head, progress=0.5)
        loss.backward()
        if criterion.parameter_groups():
            torch.optim.SGD(criterion.parameter_groups(), lr=1.0).step()
        criterion.zero_grad()
        if group is not None and step == 1:
            unpickled = pickle.loads(pickle.dumps(criterion))
            if name == "isda_packed":
                with pytest.raises(ValueError, match="whole_state_dict"):
                    unpickled.process_group = None  # its covariances are a part of all
            unpickled.process_group = group
            criterion = copy.deepcopy(unpickled)
    return criterion.whole_state_dict()


def test_several_processes_equal_one(tmp_path):
    """Covers uneven parts, a process without a sample, a last range of classes that is shorter, and an overflow."""
    mp.spawn(one_of_three, (tmp_path,), nprocs=3)
    outcomes = {name: torch.load(tmp_path / name) for name in (*TRAININGS, "overflows")}
    for name, (kind, sizes, before) in TRAININGS.items():
        criterion, head = kind_of(kind, prior=2.0 if "prior" in name else None)
        if before is not None:
            criterion.load_state_dict(outcomes[before]["state"])
        trace, found = trained(criterion, head, (sum(sizes),), 0, None), outcomes[name]
        say = lambda message, name=name: f"{name}: {message}"  # noqa: E731
        torch.testing.assert_close(found["trace"], trace, rtol=1e-9, atol=1e-11, msg=say)
        torch.testing.assert_close(found["state"], criterion.state_dict(), rtol=1e-10, atol=1e-12, msg=say)
        torch.testing.assert_close(found["summary"], criterion.summary(head=head), rtol=1e-9, atol=1e-11, msg=say)
        assert criterion.state_dict()["statistics.count"].sum() == sum(sizes) * 4 * (1 if before is None else 2), name
    for name, state in outcomes["overflows"].items():
        say = lambda message, name=name: f"{name}: {message}"  # noqa: E731
        torch.testing.assert_close(state, dict(overflow(name)), rtol=1e-10, atol=1e-12, msg=say)
