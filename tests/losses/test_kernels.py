"""The Triton kernels against float64: in Triton's interpreter on a CPU, in a process of its own."""

import copy
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from float64_reference import equation_4, merge
from kernel_errors import error
from torch import nn

from isda_repro.losses import IGNORED, ClassStatistics, ISDALoss
from isda_repro.losses.covariances import kernel_choice

triton = pytest.importorskip("triton")

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when it is imported
interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="runs within test_kernels_in_the_interpreter")
compiler = pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter does not compile")
SHAPES = [(11, 5, 19), (5, 9, 19), (21, 17, 17), (1, 3, 2)]  # N, C, A


@pytest.mark.skipif(IS_INTERPRETED, reason="this is that process")
@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8), reason="its interpreter fails with numpy 2.4 and later"
)
def test_kernels_in_the_interpreter():
    """Run the tests of this file that are marked as interpreted in another process, with TRITON_INTERPRET=1."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    finished = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "passed" in finished.stdout


@pytest.fixture
def kernels(monkeypatch):
    """Return the module with tiles so small that there are several of each kind; ignored samples stay in the batch."""
    from isda_repro.losses.covariances import kernels, sorted_batch

    for name in ("TILE", "DEPTH", "MOST_CLASSES", "WIDE"):
        monkeypatch.setattr(kernels, name, 16)
    monkeypatch.setattr(sorted_batch, "WIDE", 16)
    for module in ("criterion", "batch_classes", "isda", "covariances.class_statistics"):
        monkeypatch.setattr(f"isda_repro.losses.{module}.is_asynchronous", lambda tensor: True)
    return kernels


def batches(shape, count=3, ignored=True):
    """Yield random batches, most of which lack some classes; the last class occurs in the last batch only."""
    samples, classes, width = shape
    torch.manual_seed(0)
    for step in range(count):
        present = torch.randperm(classes - 1)[: 1 + 2 * step]
        targets = present[torch.randint(len(present), (samples,))]
        if step == count - 1:
            targets[0] = classes - 1  # one sample of a class
        features = torch.randn(samples, width) * (1 + targets[:, None] / classes) + 1
        if ignored and samples > 2:
            features[1 :: 2 + step], targets[1 :: 2 + step] = float("inf"), IGNORED
        yield features, targets


@interpreted
@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_equal_equations_9_to_11_and_are_symmetric(kernels, shape):
    _, classes, width = shape
    statistics = ClassStatistics(classes, width)
    state = torch.zeros(classes, width), torch.zeros(classes, width, width), torch.zeros(classes)
    state = tuple(one.double() for one in state)
    for features, targets in batches(shape):
        before = copy.deepcopy(statistics)
        kernels.update(statistics, features, targets)
        kept = targets != IGNORED
        state = merge(*state, features[kept], targets[kept])
        assert error(statistics.mean, state[0]) < 5e-7
        assert error(statistics.covariance, state[1]) < 5e-7
        assert torch.equal(statistics.count, state[2])
        assert torch.equal(statistics.covariance, statistics.covariance.mT)
        absent = [number for number in range(classes) if not (targets == number).any()]
        for name, one in statistics.state_dict().items():
            assert torch.equal(one[absent], before.state_dict()[name][absent]), name


@interpreted
def test_mean_far_from_zero_costs_the_first_batch_nothing(kernels):
    features, targets = torch.randn(12, 8) + 1e4, torch.arange(12) % 3
    found, expected = ClassStatistics(3, 8), ClassStatistics(3, 8).double()
    kernels.update(found, features, targets)
    expected.update(features.double(), targets)
    assert error(found.covariance, expected.covariance) < 1e-5  # plain torch: 1e-5 too


@interpreted
@pytest.mark.parametrize("size", [0, 1, 5, 40, 300])
def test_samples_are_sorted_stably_and_ignored_ones_come_first(kernels, size):
    from isda_repro.losses.covariances.sorted_batch import sort_by_class

    targets = torch.randint(-1, 7, (size,)).masked_fill_(torch.rand(size) < 0.2, IGNORED).clamp_(max=6)
    targets[targets < 0] = IGNORED
    count = torch.ones(7, dtype=torch.float64)
    batch = sort_by_class(targets, 7, count)
    assert torch.equal(batch.order.long(), targets.argsort(stable=True))
    per_class = torch.bincount(targets[targets >= 0], minlength=7)
    assert torch.equal(batch.starts.diff().long(), per_class)
    assert torch.equal(count, 1 + per_class.double())


def losses(criterion, head, shape, strength=lambda step: 0.3 + 0.1 * step, device="cpu", ignored=False):
    """Yield the loss of each step, the double loop's loss, and pairs of their gradients."""
    seen = [torch.zeros(*one.shape, dtype=torch.float64) for one in criterion.buffers()]
    for step, (features, targets) in enumerate(batches(shape, ignored=ignored)):
        kept = targets != IGNORED
        seen = merge(*seen, features[kept], targets[kept])
        inputs = [one.detach().double().cpu().requires_grad_() for one in (features[kept], head.weight, head.bias)]
        expected = equation_4(*inputs, targets[kept], seen[1], 1.5 * (0.3 + 0.1 * step))
        expected.backward()
        head.zero_grad()
        features = features.masked_fill(~kept[:, None], 1.0).to(device).requires_grad_()
        loss = criterion(features, head(features), targets.to(device), head=head, progress=strength(step))
        loss.backward()
        found = [features.grad.cpu()[kept], head.weight.grad, head.bias.grad]
        yield loss, expected, zip(found, [one.grad for one in inputs], strict=True)


@interpreted
@pytest.mark.parametrize(("ignored", "progress"), [(False, float), (True, torch.tensor)])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_equal_those_of_a_double_loop(kernels, shape, ignored, progress):
    torch.manual_seed(0)
    criterion = ISDALoss(*shape[1:], lambda_0=1.5, ignore_index=IGNORED, kernels=True)
    head = nn.Linear(shape[2], shape[1])
    steps = losses(criterion, head, shape, lambda step: progress(0.3 + 0.1 * step), ignored=ignored)
    for loss, expected, gradients in steps:
        assert error(loss, expected) < 1e-6
        for found, literal in gradients:
            assert error(found, literal) < 1e-6


@interpreted
def test_prior_gives_the_numbers_of_plain_torch(kernels):
    torch.manual_seed(0)
    plain, head = ISDALoss(9, 19, ignore_index=IGNORED, prior=2.0), nn.Linear(19, 9)
    criterion = ISDALoss(9, 19, ignore_index=IGNORED, prior=2.0, kernels=True)
    for features, targets in batches((5, 9, 19)):
        features, results = features.nan_to_num(posinf=1.0), []
        for one in (criterion, plain):
            head.zero_grad()
            loss = one(features, head(features), targets, head=head, progress=0.7)
            loss.backward()
            results.append((loss.detach(), head.weight.grad.clone()))
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@interpreted
def test_sigma2_is_precise_for_close_weights_zero_at_the_own_class_and_never_negative(kernels):
    from isda_repro.losses.covariances.sorted_batch import sort_by_class

    torch.manual_seed(0)
    root, weight = torch.randn(9, 19, 1), torch.randn(1, 19) + 1e-3 * torch.randn(9, 19)
    covariance, targets = root @ root.mT, torch.arange(9)
    batch = sort_by_class(targets, 9)
    found = kernels.add_half_sigma2(torch.zeros(9, 9), weight, covariance, batch, 2.0)
    difference = weight.double() - weight.double()[:, None]
    expected = torch.einsum("cja,cab,cjb->cj", difference, covariance.double(), difference)
    assert error(found, expected) < 1e-6
    assert (found.diagonal() == 0).all()
    assert (found >= 0).all()


@interpreted
@pytest.mark.parametrize("samples", [0, 3])
def test_batch_without_a_sample_has_loss_0_and_changes_no_state(kernels, samples):
    criterion, head = ISDALoss(5, 19, ignore_index=IGNORED, kernels=True), nn.Linear(19, 5)
    features, targets = torch.ones(samples, 19), torch.full((samples,), IGNORED)
    loss = criterion(features, head(features), targets, head=head, progress=1.0)
    loss.backward()
    assert loss == 0
    assert (head.weight.grad == 0).all()
    assert all((one == 0).all() for one in criterion.buffers())
    batch = kernels.update(criterion.statistics, features, targets)  # as if other processes had samples
    assert kernels.add_half_sigma2(head(features), head.weight, criterion.statistics.covariance, batch, 1.0).sum() == (
        head(features).sum()
    )


@interpreted
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_two_batches_before_one_backward_pass_and_again_agree_bit_for_bit(kernels, shape):
    results = []
    for apart in (False, True, True):
        torch.manual_seed(0)
        criterion, head = ISDALoss(*shape[1:], kernels=True), nn.Linear(shape[2], shape[1], bias=False)
        values = []
        for features, targets in batches(shape, count=2, ignored=False):
            values.append(criterion(features, head(features), targets, head=head, progress=0.5))
            if apart:
                values[-1].backward()
        if not apart:
            sum(values).backward()
        results.append((head.weight.grad, *criterion.buffers()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(*pair) for pair in zip(*results[1:], strict=True))


@interpreted
@pytest.mark.parametrize("poison", [float("inf"), float("nan"), -1e30])
def test_samples_that_overflow_enter_no_statistics(kernels, poison):
    head, poisoned, clean = nn.Linear(19, 5), ISDALoss(5, 19, kernels=True), ISDALoss(5, 19, kernels=True)
    (features, targets), ordinary = batches((11, 5, 19), count=2, ignored=False)
    masked = targets.clone()
    features[3, 7], masked[3] = poison, IGNORED
    poisoned(features, head(features), targets, head=head, progress=1.0).backward()
    clean(features, head(features), masked, head=head, progress=1.0)
    assert all(torch.equal(*pair) for pair in zip(poisoned.buffers(), clean.buffers(), strict=True))
    assert poisoned(ordinary[0], head(ordinary[0]), ordinary[1], head=head, progress=1.0).isfinite()


@interpreted
def test_processes_that_share_their_batch_get_what_one_gets(kernels, monkeypatch):
    """A stub returns the gathered features and targets of two processes, of which this is the second."""
    features, targets = next(batches((11, 5, 19), ignored=False))
    head, whole = nn.Linear(19, 5), ISDALoss(5, 19, kernels=True)
    whole(features, head(features), targets, head=head, progress=1.0)
    part = ISDALoss(5, 19, kernels=True)
    monkeypatch.setattr("isda_repro.losses.isda.of_all_processes", lambda *given: (features, targets))
    loss = part(features[4:], head(features[4:]), targets[4:], head=head, progress=1.0)
    expected = equation_4(
        features[4:], head.weight, head.bias, targets[4:], whole.statistics.covariance, torch.tensor(0.5)
    )
    assert error(loss, expected) < 1e-6
    assert all(torch.equal(*pair) for pair in zip(part.buffers(), whole.buffers(), strict=True))


@interpreted
def test_what_the_kernels_cannot_take_goes_through_plain_torch(kernels, monkeypatch):
    """The kernels do not take other dtypes, compiled graphs or evaluation."""
    monkeypatch.setattr(kernels, "update", None)
    features, targets = torch.randn(11, 19).double(), torch.arange(11) % 5
    criterion, head = ISDALoss(5, 19, kernels=True).double(), nn.Linear(19, 5).double()
    plain = ISDALoss(5, 19).double()
    values = [one(features, head(features), targets, head=head, progress=1.0) for one in (criterion, plain)]
    assert torch.equal(*values)
    value = criterion.float().eval()(features, head(features), targets, head=head, progress=1.0)
    assert torch.equal(value, F.cross_entropy(head(features), targets))


@interpreted
def test_switch_is_no_state_and_second_derivatives_are_refused(kernels):
    criterion, head = ISDALoss(5, 19, kernels=True), nn.Linear(19, 5)
    assert list(criterion.state_dict()) == list(ISDALoss(5, 19).state_dict())
    features, targets = torch.randn(11, 19), torch.arange(11) % 5
    values = [
        one(features, head(features), targets, head=head, progress=1.0)
        for one in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion)), criterion)
    ]
    assert torch.equal(values[0], values[2])
    assert torch.equal(values[1], values[2])
    (gradient,) = torch.autograd.grad(values[2], head.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.square().sum().backward()


def test_grids_take_any_number_of_samples(monkeypatch):
    """CUDA refuses a grid whose second or third axis is longer than 65,535; nothing is computed here."""
    from isda_repro.losses.covariances import kernels, sorted_batch

    grids = {}

    class Recorder:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            grids[self.name] = grid
            return lambda *arguments, **options: None

    for module, names in (
        (kernels, ("_move_means", "_merge_covariances", "_products", "_add_half", "_factors", "_weight_gradient")),
        (sorted_batch, ("_sort_by_class",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Recorder(name))
    samples, statistics, weight = 70_000, ClassStatistics(3, 4), torch.randn(3, 4, requires_grad=True)
    batch = kernels.update(statistics, torch.zeros(samples, 4), torch.zeros(samples, dtype=torch.int64))
    kernels.add_half_sigma2(torch.zeros(samples, 3), weight, statistics.covariance, batch, 0.5).sum().backward()
    assert len(grids) == 7
    assert all(max(grid[1:], default=1) < 2**16 for grid in grids.values()), grids


def test_more_classes_than_a_grid_takes_go_through_plain_torch(monkeypatch):
    monkeypatch.setattr(kernel_choice, "_is_interpreted", lambda: True)
    for classes in (65_535, 65_536):
        criterion = ISDALoss(classes, 1, packed=False)
        criterion.kernels = True
        assert criterion._takes_kernels(torch.zeros(1, classes), 1) == (classes == 65_535)


def test_batches_that_are_slow_to_sort_go_through_plain_torch(monkeypatch):
    monkeypatch.setattr(kernel_choice, "_is_interpreted", lambda: True)
    criterion = ISDALoss(3, 1, packed=False)
    criterion.kernels = True
    assert [criterion._takes_kernels(torch.zeros(1, 3), samples) for samples in (16_384, 16_385)] == [True, False]


@interpreted
@pytest.mark.parametrize("options", [{"covariance": "diagonal"}, {"covariance": "shared"}, {"packed": True}])
def test_other_covariances_have_no_kernels(options):
    with pytest.raises(ValueError, match="kernels=True"):
        ISDALoss(5, 19, kernels=True, **options)


@compiler
def test_switch_is_refused_where_there_is_no_gpu_or_no_triton(monkeypatch):
    with pytest.raises(ValueError, match="kernels=yes"):
        ISDALoss(5, 19, kernels="yes")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="CUDA"):
        ISDALoss(5, 19, kernels=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "isda_repro.losses.covariances.kernels", raising=False)
    with pytest.raises(ValueError, match="Triton"):
        ISDALoss(5, 19, kernels=True)


@interpreted
def test_default_tries_the_kernels_once_on_each_device_and_says_why_they_do_not_run(kernels, monkeypatch):
    monkeypatch.setattr(kernel_choice, "_RUNS", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    logits = SimpleNamespace(is_cuda=True, shape=(3, 5), dtype=torch.float32, device=torch.device("cpu"))
    statistics = ISDALoss(5, 19).statistics
    assert kernel_choice.takes_kernels(None, logits, statistics, 3)
    assert not kernel_choice.takes_kernels(False, logits, statistics, 3)
    assert not kernel_choice.takes_kernels(None, torch.zeros(3, 5), statistics, 3)
    assert not kernel_choice.takes_kernels(None, logits, copy.deepcopy(statistics).double(), 3)
    monkeypatch.setattr(kernel_choice, "_RUNS", {})
    monkeypatch.setattr(kernels, "add_half_sigma2", None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not kernel_choice.takes_kernels(None, logits, statistics, 3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.warns(UserWarning, match="not callable"):
        assert not kernel_choice.takes_kernels(None, logits, statistics, 3)
    assert not kernel_choice.takes_kernels(None, logits, statistics, 3)  # without a second warning


POINTERS = {"targets": "*i64", "count": "*fp64", "order": "*i32", "starts": "*i32"}
INTEGERS = dict.fromkeys(("samples", "classes", "width", "tiles", "rows"), 1)  # Triton specialises integers that are 1
SIZES = {"SIZE": 16, "TILE": 64, "DEPTH": 32, "SPAN": 128, "TILES": 16, "QUERIES": 32, "ROW_IS_CLASS": True}
CASES = [SIZES, {**SIZES, **INTEGERS, "SPAN": 16, "TILES": 1, "ROW_IS_CLASS": False, "count": None}]
KERNELS = ["_sort_by_class", "_move_means", "_merge_covariances", "_products", "_add_half", "_factors"]


@compiler
@pytest.mark.parametrize("constants", CASES, ids=["large", "smallest"])
@pytest.mark.parametrize("name", [*KERNELS, "_weight_gradient"])
def test_kernels_compile_for_an_h100(name, constants, monkeypatch, tmp_path):
    """The interpreter accepts more than the compiler; Triton ships a compiler that needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from isda_repro.losses.covariances import kernels, sorted_batch

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(sorted_batch if name == "_sort_by_class" else kernels, name)
    if "covariances" in name or "means" in name:  # these need ``count``
        constants = {key: value for key, value in constants.items() if key != "count"}
    signature = {one: "i32" if one in INTEGERS else POINTERS.get(one, "*fp32") for one in kernel.arg_names}
    signature |= {one: "constexpr" for one in kernel.arg_names if one in constants}
    source = ASTSource(kernel, signature, {one: constants[one] for one in kernel.arg_names if one in constants})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
    if name in ("_merge_covariances", "_products"):
        assert "mma" in compiled.asm["ptx"], "no tensor core is used"
