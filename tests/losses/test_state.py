"""State of each loss under what foreign loops do: overflows, casts, copies, pickles, DataParallel, EMA, autocast."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from criteria import MAKERS, WITH_PRIOR, WITHOUT_DRAWS, assert_same, make, step, unchanged
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from isda_repro.losses import CenterLoss, ClassStatistics, ClassVariances, ISDALoss, PackedStatistics
from isda_repro.losses.batch_classes import largest_feature
from isda_repro.losses.covariances import class_statistics as statistics_module

WITH_STATE = ["center", "isda", "isda_diagonal", "isda_shared", "isda_packed", "isda_sampled"]
WAYS = ["cpu", "one by one", "accelerator"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Take each way to merge a batch into the statistics."""
    if request.param == "one by one":
        monkeypatch.setattr(statistics_module, "BATCHED_BYTES", 0)
    if request.param == "accelerator":
        request.getfixturevalue("accelerator")
    return request.param


@pytest.fixture
def group(tmp_path):
    """Return a process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def learn(criterion, head, features, targets):
    """Call the criterion and let an optimizer step on its parameters; return the loss."""
    groups = criterion.parameter_groups()
    criterion.begin_step(torch.Generator().manual_seed(0))
    loss = criterion(features.detach(), head(features.detach()), targets, head=head, progress=0.5)
    loss.backward()
    if groups:
        torch.optim.SGD(groups, lr=1.0).step()
    criterion.zero_grad()
    return loss.detach()


# ---------------------------------------------------------------------------------------------------------- overflows

POISONS = {"inf": torch.inf, "minus inf": -torch.inf, "nan": torch.nan, "square overflows": 1e30, "negative": -1e30}


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("name", WITH_STATE)
def test_samples_that_overflow_never_enter_the_state(name, poison, way):
    if name == "isda_sampled" and way == "accelerator":
        pytest.skip("it makes the host wait anyway")
    criterion, head, features, targets = make(name, dtype=torch.float32)
    clean = copy.deepcopy(criterion)
    sound = torch.arange(24) % 5 != 3
    poisoned = features.detach().clone()
    poisoned[~sound, 2] = poison
    for one, batch, labels in ((criterion, poisoned, targets), (clean, features[sound], targets[sound])):
        learn(one, head, batch, labels)
    tolerance = 0 if way != "accelerator" else 1e-6  # sums are in another order there
    assert_same(criterion.state_dict(), clean.state_dict(), tolerance)
    for one in (criterion, clean):
        assert learn(one, head, features + 1, targets).isfinite()
    assert_same(criterion.state_dict(), clean.state_dict(), tolerance)


@pytest.mark.parametrize("name", WITH_STATE)
def test_batch_of_overflows_alone_changes_no_state(name, way):
    if name == "isda_sampled" and way == "accelerator":
        pytest.skip("it makes the host wait anyway")
    criterion, head, features, targets = make(name, dtype=torch.float32)
    learn(criterion, head, features, targets)
    with unchanged(criterion):
        learn(criterion, head, torch.full_like(features, torch.nan), targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_squared_differences_of_2_to_the_24_of_the_largest_samples_add_up_in_float32(dtype):
    largest = largest_feature(torch.float64, dtype)
    assert largest == pytest.approx(2.25e15, rel=1e-2)
    assert 2**24 * (2 * largest) ** 2 <= torch.finfo(torch.float32).max * (1 + 1e-12)


@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WITH_STATE)
def test_largest_samples_that_enter_leave_all_finite(name, state, way):
    """A state in float64 takes no more than a loss in float32, which uses it."""
    if name == "isda_sampled" and way == "accelerator":
        pytest.skip("it makes the host wait anyway")
    criterion, head, features, targets = make(name, dtype=torch.float32, size=100)
    criterion.to(state)
    signs = torch.where(features.detach() > 0, 1.0, -1.0)
    for size in (0.999, 1e4):
        learn(criterion, head, signs * largest_feature(torch.float32) * size, targets)
        assert all(one.isfinite().all() for one in criterion.state_dict().values())
        assert learn(criterion, head, features, targets).isfinite()
    if name.startswith("isda"):
        assert criterion.statistics.count.sum() == 300


@pytest.mark.parametrize("name", WITH_STATE)
def test_step_that_a_gradient_scaler_skips_leaves_the_state_finite(name):
    criterion, head, features, targets = make(name, dtype=torch.float32)
    layer = nn.Linear(5, 5)
    optimizer = torch.optim.SGD([*layer.parameters(), *head.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for size in (1.0, 1e6, 1.0, 1.0):
        with torch.autocast("cpu", torch.float16):
            hidden = layer(features.detach() * size)  # 1e6 is infinite in half precision
            loss = criterion(hidden, head(hidden), targets, head=head, progress=0.5)
            scaler.scale(loss).backward()  # within autocast, as many loops have it
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.isfinite().item())
    assert losses == [True, False, True, True]
    assert scaler.get_scale() == 2**15
    assert all(one.isfinite().all() for one in criterion.state_dict().values())


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_backward_pass_within_autocast_gives_the_same_gradients(name):
    gradients = []
    for within in (True, False):
        criterion, head, features, targets = make(name, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(features).detach().requires_grad_()
            loss = criterion(features, logits, targets, head=head, progress=0.7)
            if within:
                loss.backward()
        if not within:
            loss.backward()
        gradients.append([one.grad for one in (features, logits, head.weight)])
    assert_same(*gradients, tolerance=0)


# --------------------------------------------------------------------------------------------- casts, copies, pickles


def has_dtype(module, dtype):
    """Return True if all state has the dtype, apart from counts, which are always float64."""
    state = module.state_dict().items()
    return all(one.dtype == (torch.float64 if key.endswith("count") else dtype) for key, one in state)


CASTS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to": lambda module: module.to("cpu", torch.float16),
    "type": lambda module: module.type(torch.bfloat16),
    "float": lambda module: module.float(),
    "within a model": lambda module: nn.Sequential(nn.Linear(2, 2), module).half()[1],
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
@pytest.mark.parametrize("name", WITH_STATE)
def test_casts_keep_the_state_in_float32_to_the_bit(name, cast):
    criterion, head, features, targets = make(name, dtype=torch.float32)
    learn(criterion, head, features, targets)
    with unchanged(criterion):
        cast(criterion)
    half = features.detach().half()
    loss = criterion(half, head(half.float()), targets, head=copy.deepcopy(head).half(), progress=0.5)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


@pytest.mark.parametrize("name", WITH_STATE)
def test_double_makes_the_state_float64_and_half_makes_that_float32(name):
    criterion = make(name, dtype=torch.float32)[0]
    for cast, dtype in ((criterion.double, torch.float64), (criterion.half, torch.float32)):
        cast()
        assert has_dtype(criterion, dtype)


@pytest.mark.parametrize("kind", [ClassStatistics, ClassVariances, PackedStatistics, CenterLoss, ISDALoss])
def test_state_made_or_loaded_in_half_precision_is_in_float32(kind):
    torch.set_default_dtype(torch.bfloat16)
    try:
        module = kind(4, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert has_dtype(module, torch.float32)
    half = {key: one.half() if one.is_floating_point() else one for key, one in module.state_dict().items()}
    for assign in (False, True):
        module.half().load_state_dict(half, assign=assign)
        assert has_dtype(module, torch.float32)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", [ClassStatistics, ClassVariances, PackedStatistics])
def test_counts_of_older_files_which_are_int64_are_loaded_as_float64(kind, assign):
    module = kind(2, 3)
    older = module.state_dict() | {"count": torch.tensor([2**24 + 1, 3])}
    module.load_state_dict(older, assign=assign)
    for cast in (lambda: module, module.half, module.float, module.double):
        cast()
        assert module.count.dtype == torch.float64
        assert module.count.tolist() == [2**24 + 1, 3]


def saved_and_loaded(criterion):
    file = io.BytesIO()
    torch.save(criterion, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda criterion: pickle.loads(pickle.dumps(criterion)),
    "torch.save": saved_and_loaded,
    "deepcopy of a pickle": lambda criterion: copy.deepcopy(pickle.loads(pickle.dumps(criterion))),
}


def test_identity_matrices_need_no_samples_of_other_processes(group):
    assert ISDALoss(3, 4, process_group=group).is_collective
    assert not ISDALoss(3, 4, covariance="identity", process_group=group).is_collective


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", WITH_STATE)
def test_copies_with_a_process_group_go_on_as_the_original(name, copied, group):
    """A pickle has the state, and cannot have the group: without one it evaluates, and does not train alone."""
    criterion, head, features, targets = make(name, process_group=group)
    criterion(features, head(features), targets, head=head, progress=0.5)
    twin = copied(criterion)
    assert twin.is_collective
    assert_same(twin.state_dict(), criterion.state_dict(), tolerance=0)
    if copied is not copy.deepcopy:
        twin.eval()(features, head(features), targets, head=head, progress=0.5)
        with unchanged(twin), pytest.raises(RuntimeError, match="process_group"):
            twin.train()(features, head(features), targets, head=head, progress=0.5)
        twin.process_group = group
    assert twin.process_group is group
    assert_same(step(twin, head, features, targets), step(criterion, head, features, targets), tolerance=0)
    twin.process_group = None
    assert not twin.is_collective
    assert_same(step(twin, head, features, targets), step(criterion, head, features, targets), tolerance=0)


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_averaged_copies_of_a_model_leave_its_criterion_alone_and_evaluate(name, grouped, use_buffers, request):
    shared = {"process_group": request.getfixturevalue("group")} if grouped and name in WITH_STATE else {}
    criterion, head, features, targets = make(name, dtype=torch.float32, **shared)
    model = nn.ModuleDict({"head": head, "criterion": criterion})
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    for _ in range(3):
        learn(criterion, head, features, targets)
        with unchanged(criterion):
            averaged.update_parameters(model)
    twin = averaged.module["criterion"].eval()
    assert all(one.isfinite().all() for one in twin.state_dict().values())
    loss = twin(features, head(features), targets, head=head, progress=0.5)
    assert_same(loss, nn.functional.cross_entropy(head(features), targets), tolerance=0)


@pytest.mark.parametrize("name", MAKERS)
def test_replicas_of_data_parallel_are_refused_where_their_state_would_be_lost(name):
    criterion, head, features, targets = make(name)
    replica = criterion._replicate_for_data_parallel()
    for key, child in criterion.named_children():  # as torch.nn.parallel.replicate does
        replica._modules[key] = child._replicate_for_data_parallel()
    call = lambda: replica(features, head(features), targets, head=head, progress=0.5)  # noqa: E731
    with unchanged(criterion):
        if name in (*WITH_STATE, *WITH_PRIOR):
            with pytest.raises(RuntimeError, match="DataParallel"):
                call()
        else:
            call()
        replica.eval()
        assert_same(call(), nn.functional.cross_entropy(head(features), targets), tolerance=0)


@pytest.mark.parametrize("name", MAKERS)
def test_head_may_be_wrapped_in_data_parallel(name):
    criterion, head, features, targets = make(name)
    expected = step(criterion, head, features, targets)[0]
    criterion.begin_step(torch.Generator().manual_seed(0))
    found = criterion(features, head(features), targets, head=nn.DataParallel(head), progress=0.7)
    assert_same(found.detach(), expected, tolerance=0)


# ------------------------------------------------------------------------------------------------------------ imports

BARE = """
import signal, sys
for name in [name for name in dir(signal) if name.startswith("SIG") and name not in ("SIGINT", "SIGTERM")]:
    delattr(signal, name)
import torch
import torch.distributed as dist
for name in ("ProcessGroup", "all_gather_into_tensor", "get_rank"):
    delattr(dist, name)
sys.modules["triton"] = None
from isda_repro.losses import ISDALoss
head, features, targets = torch.nn.Linear(3, 2), torch.randn(4, 3), torch.arange(4) % 2
ISDALoss(2, 3)(features, head(features), targets, head=head, progress=0.5).backward()
"""


def test_losses_work_on_platforms_without_signals_process_groups_or_triton():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_device_without_float64_takes_the_counts_in_float32():
    """As Apple's MPS, which raises an error; here the counts come back in float64, because a CPU has it."""

    def moved(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor.clone()

    criterion = ISDALoss(3, 2)
    criterion.statistics.count += 2.5
    criterion._apply(moved)
    assert criterion.statistics.count.tolist() == [2.5] * 3
