"""Dense inputs: every loss of pixels is that of their rows, and their statistics are those of one pass in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from criteria import MAKERS, STATISTICS, assert_same, make, unchanged
from float64_reference import equation_4, two_pass
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from isda_repro.losses import IGNORED
from isda_repro.losses.covariances import pixels as module
from isda_repro.losses.dense import Pixels, pixels_of, rows_of

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {1: (9,), 2: (3, 5), 3: (2, 1, 4)}


@pytest.fixture(params=["cpu", "cpu, many parts", "accelerator"])
def way(request, monkeypatch):
    """Merge the pixels of a batch at once, in chunks of 4 pixels and blocks of 2 features, and as on an accelerator."""
    if request.param == "accelerator":
        request.getfixturevalue("accelerator")
    if request.param != "cpu":
        for name, value in (("PRODUCT_BYTES", 1), ("SORTED_BYTES", 1), ("ACCELERATOR_BYTES", 1), ("LEAST_PIXELS", 4)):
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(module, "LEAST_BLOCK", 2)
    return request.param


def convolution(head, dimensions):
    """Return a convolution of kernel size 1 with the weights of ``head``."""
    classes, width = head.weight.shape
    layer = CONVOLUTIONS[dimensions](width, classes, 1, bias=head.bias is not None).double()
    layer.weight.data.copy_(head.weight.view_as(layer.weight))
    if head.bias is not None:
        layer.bias.data.copy_(head.bias)
    return layer


def dense_batch(dimensions, images=4, classes=7, width=5):
    """Return features [N, A, *] and targets [N, *]; a third of the pixels has no class, the last class is absent."""
    features = torch.randn(images, width, *SIZES[dimensions]).double().relu()
    targets = torch.randint(classes - 1, (images, *SIZES[dimensions]))
    return features, targets.masked_fill(torch.rand(targets.shape) < 0.3, 255)


def results(criterion, head, features, logits, targets):
    """Return the loss, the gradients of features [*, A] and of the head [C, A], and the state."""
    criterion.begin_step(torch.Generator().manual_seed(0))
    loss = criterion(features, logits, targets, head=head, progress=0.7)
    loss.backward()
    of_head = [one.grad.flatten(1) if one.dim() > 1 else one.grad for one in head.parameters()]
    of_criterion = [one.grad for one in criterion.parameters()]
    return loss.detach(), rows_of(features.grad) if features.dim() > 2 else features.grad, of_head, of_criterion


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_loss_gradients_and_state_are_those_of_rows(name, dimensions, way):
    if way == "accelerator" and name == "isda_sampled":
        pytest.skip("it makes the host wait anyway")
    criterion, linear, _, _ = make(name, ignore_index=255)
    twin = copy.deepcopy(criterion)
    for _ in range(2):
        features, targets = dense_batch(dimensions)
        dense, rows = features.requires_grad_(), rows_of(features.detach()).contiguous().requires_grad_()
        head, linear = convolution(linear, dimensions), copy.deepcopy(linear)
        found = results(criterion, head, dense, head(dense), targets)
        expected = results(twin, linear, rows, linear(rows), targets.flatten())
        assert_same(found, expected)
        assert_same(dict(criterion.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_packed"])
def test_pixels_after_shares_of_samples_are_rows_after_shares_of_samples(name, way):
    """Probabilities leave counts that are no integers, below 1 for the absent class as well."""
    criterion, linear, _, _ = make(name, ignore_index=255)
    mixed, shares = torch.randn(5, 5).double(), torch.rand(5, 7).double() / 7
    criterion(mixed, linear(mixed), shares, head=linear, progress=0.7)
    twin, (features, targets) = copy.deepcopy(criterion), dense_batch(2)
    head, rows = convolution(linear, 2), rows_of(features)
    criterion(features, head(features), targets, head=head, progress=0.7)
    twin(rows, linear(rows), targets.flatten(), head=linear, progress=0.7)
    assert_same(dict(criterion.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_packed", "isda_shared", "center"])
def test_features_with_channels_last_and_a_linear_head_give_the_same(name):
    criterion, linear, _, _ = make(name, ignore_index=255)
    twin = copy.deepcopy(criterion)
    features, targets = dense_batch(2)
    last = features.contiguous(memory_format=torch.channels_last).requires_grad_()
    features.requires_grad_()
    found = results(criterion, linear, last, linear(last.movedim(1, -1)).movedim(-1, 1), targets)
    linear.zero_grad()
    head = convolution(linear, 2)
    assert_same(found, results(twin, head, features, head(features), targets))
    assert_same(dict(criterion.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_packed", "isda_shared"])
def test_a_class_that_is_ignored_enters_no_statistics_of_pixels(name, way):
    criterion, linear, _, _ = make(name, ignore_index=2)
    head, (features, targets) = convolution(linear, 2), dense_batch(2)
    targets, twin = targets.masked_fill(targets == 255, 2), copy.deepcopy(criterion)
    found = criterion(features, head(features), targets, head=head, progress=0.5)
    rows = rows_of(features)
    assert_same(found.detach(), twin(rows, linear(rows), targets.flatten(), head=linear, progress=0.5).detach())
    assert_same(dict(criterion.named_buffers()), dict(twin.named_buffers()))
    assert len(criterion.statistics.count) == 1 or criterion.statistics.count[2] == 0


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_value_and_gradients_of_pixels_equal_those_of_a_double_loop(kind):
    criterion, linear, _, _ = make("isda" if kind == "full" else "isda_diagonal", lambda_0=1.5)
    head = convolution(linear, 2)
    features, targets = dense_batch(2)
    targets = targets.masked_fill(targets == 255, IGNORED)
    loss = criterion(features.requires_grad_(), head(features), targets, head=head, progress=0.7)
    loss.backward()
    rows, kept = rows_of(features.detach()), targets.flatten() != IGNORED
    covariance = two_pass(rows[kept], targets.flatten()[kept], 7)[1]
    if kind == "diagonal":
        covariance = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
    copies = [one.detach().clone().requires_grad_() for one in (rows, linear.weight, linear.bias)]
    expected = equation_4(copies[0][kept], *copies[1:], targets.flatten()[kept], covariance, 1.5 * 0.7)
    expected.backward()
    found = rows_of(features.grad), head.weight.grad.flatten(1), head.bias.grad
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, tuple(one.grad for one in copies), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", STATISTICS)
@pytest.mark.parametrize("labels", ["any", "one class", "one pixel of each class"])
def test_statistics_of_pixels_equal_one_pass(kind, labels, way):
    torch.manual_seed(0)
    statistics, seen = STATISTICS[kind](12, 7).double(), []
    for _ in range(3):
        features = torch.randn(3, 7, 4).double() + 3
        targets = {
            "any": (torch.rand(3, 4) ** 4 * 12).long(),
            "one class": torch.full((3, 4), 5),
            "one pixel of each class": torch.randperm(12).view(3, 4),
        }[labels]
        module.update_by_pixels(statistics, Pixels(features, targets))
        seen.append((rows_of(features), targets.flatten()))
    every = [torch.cat(parts) for parts in zip(*seen, strict=True)]
    mean, covariance = two_pass(*every, 12)
    torch.testing.assert_close(statistics.mean, mean, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(statistics.count.long(), torch.bincount(every[1], minlength=12))
    if kind == "diagonal":
        torch.testing.assert_close(statistics.variance, covariance.diagonal(dim1=1, dim2=2), rtol=1e-11, atol=1e-12)
        return
    found = statistics.covariance if kind == "square" else [statistics.covariance_of(c) for c in range(12)]
    torch.testing.assert_close(torch.stack(tuple(found)), covariance, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", STATISTICS)
def test_mean_far_from_zero_costs_pixels_little_precision(kind, way):
    """Tolerance and batches are those of the test of rows; the classes are far from each other, too."""
    torch.manual_seed(0)
    statistics, seen = STATISTICS[kind](3, 8), []
    for _ in range(3):
        targets = torch.randint(3, (2, 40))
        features = torch.randn(2, 8, 40) + 1e4 * (1 + targets[:, None])
        module.update_by_pixels(statistics, Pixels(features, targets))
        seen.append((rows_of(features), targets.flatten()))
    _, covariance = two_pass(*(torch.cat(parts) for parts in zip(*seen, strict=True)), 3)
    if kind == "diagonal":
        found, covariance = statistics.variance, covariance.diagonal(dim1=1, dim2=2)
    else:
        is_packed = kind == "packed"
        found = torch.stack([statistics.covariance_of(c) for c in range(3)]) if is_packed else statistics.covariance
        assert torch.linalg.eigvalsh(found.double()).min() >= -1e-6 * covariance.abs().max()
    assert (found - covariance).abs().max() / covariance.abs().max() < 4e-3  # as far again as in the test of rows


@pytest.mark.parametrize("kind", STATISTICS)
def test_absent_class_keeps_its_bits_and_unsound_pixels_count_for_nothing(kind, way):
    torch.manual_seed(0)
    statistics, expected = STATISTICS[kind](3, 4), STATISTICS[kind](3, 4)
    features, targets = torch.randn(2, 4, 9), torch.randint(3, (2, 9))
    for one in (statistics, expected):
        module.update_by_pixels(one, Pixels(features, targets))
    before = copy.deepcopy(statistics.state_dict())
    targets = torch.randint(2, (2, 9))
    poisoned, marked = features.clone(), targets.clone()
    for place, value in ((0, float("nan")), (3, float("inf")), (4, -1e30), (8, 3e15)):
        poisoned[1, 2, place], marked[1, place] = value, IGNORED
    module.update_by_pixels(statistics, Pixels(poisoned, targets))
    module.update_by_pixels(expected, Pixels(features, marked))
    assert_same(statistics.state_dict(), expected.state_dict(), tolerance=1e-6)
    for key, one in statistics.state_dict().items():
        assert torch.equal(one[2], before[key][2]), key
        assert not torch.equal(one[:2], before[key][:2]), key


@pytest.mark.parametrize("name", MAKERS)
def test_evaluation_is_dense_cross_entropy_and_changes_no_state(name):
    criterion, linear, _, _ = make(name, ignore_index=255)
    head, (features, targets) = convolution(linear, 2), dense_batch(2)
    for mode in (False, True):
        with unchanged(criterion), torch.set_grad_enabled(not mode):
            loss = criterion.train(mode)(features, head(features), targets, head=head, progress=0.5)
        assert_same(loss.detach(), F.cross_entropy(head(features), targets, ignore_index=255).detach())


@pytest.mark.parametrize("name", MAKERS)
def test_pixels_without_a_class_alone_have_loss_0_and_a_bad_label_is_refused(name):
    criterion, linear, _, _ = make(name)
    head, (features, targets) = convolution(linear, 2), dense_batch(2)
    with unchanged(criterion):
        assert criterion(features, head(features), torch.full_like(targets, -100), head=head, progress=0.5) == 0
        with pytest.raises(ValueError, match=r"255.*ignore_index=255"):
            criterion(features, head(features), targets, head=head, progress=0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "isda_packed"])
def test_statistics_of_pixels_in_half_precision_are_in_float32(name, dtype, way):
    criterion, _, _, _ = make(name, ignore_index=255, dtype=torch.float32)
    twin, (features, targets) = copy.deepcopy(criterion), dense_batch(2)
    features = features.to(dtype)
    head = nn.Conv2d(5, 7, 1)
    with torch.autocast("cpu", dtype=dtype):
        criterion(features, head(features), targets, head=head, progress=0.5)
    features = features.float()
    twin(features, head(features), targets, head=head, progress=0.5)
    assert_same(dict(criterion.named_buffers()), dict(twin.named_buffers()), tolerance=1e-6)


@pytest.mark.parametrize("name", [pytest.param("isda", marks=pytest.mark.slow), "isda_diagonal"])
def test_dense_loss_compiles_into_one_graph(name):
    torch._dynamo.reset()
    criterion, linear, _, _ = make(name, ignore_index=255)
    eager, head, (features, targets) = copy.deepcopy(criterion), convolution(linear, 2), dense_batch(2)
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(criterion, fullgraph=True, backend=graphs)
    for progress in (torch.tensor(share).double() for share in (0.2, 0.4, 0.6)):
        losses = [one(features, head(features), targets, head=head, progress=progress) for one in (compiled, eager)]
        assert_same(*(loss.detach() for loss in losses), tolerance=1e-10)
    assert graphs.frame_count <= 2
    assert_same(dict(criterion.named_buffers()), dict(eager.named_buffers()), tolerance=1e-10)


def test_losses_without_statistics_copy_no_features(monkeypatch):
    """A copy of the features as rows would be most of the memory of cross-entropy."""
    head, (features, targets) = convolution(make("ce")[1], 2), dense_batch(2)
    logits, copied = head(features), []
    monkeypatch.setattr("isda_repro.losses.criterion.rows_of", lambda one: copied.append(one.shape[1]) or rows_of(one))
    for name in ("ce", "focal", "lq", "disturb_label", "isda", "isda_diagonal", "isda_identity"):
        make(name, ignore_index=255)[0](features, logits, targets, head=head, progress=0.5)
    assert copied == [7] * 7, "the logits, once for each loss"
    taken = pixels_of(features, targets, 7, 255)
    assert taken.features.data_ptr() == features.data_ptr()
    assert torch.equal(taken.labels == IGNORED, (targets == 255).flatten(1))


@pytest.mark.parametrize(
    ("shapes", "advice"),
    [
        (((2, 5, 6, 6), (2, 7, 6, 6), (2, 12, 12)), r"F.interpolate.*size=\(6, 6\), mode=\"nearest\""),
        (((2, 5, 6, 6), (2, 7, 6, 6), (2, 1, 6, 6)), r"squeeze\(1\)"),
        (((2, 5, 6, 6), (2, 7, 6, 6), (2, 36)), r"targets \[2, 6, 6\]"),
        (((2, 5, 6, 6), (2, 7, 6, 6), (3, 6, 6)), r"targets \[2, 6, 6\]"),
        (((2, 5, 6, 6), (2, 7, 12, 12), (2, 12, 12)), "before any interpolation"),
        (((2, 5, 6, 6), (2, 8, 6, 6), (2, 6, 6)), r"\[N, 7, \*\]"),
        (((2, 4, 6, 6), (2, 7, 6, 6), (2, 6, 6)), r"\[N, 5, \*\]"),
        (((2, 6, 6, 5), (2, 6, 6, 7), (2, 6, 6)), r"\[N, 5, \*\]"),
        (((2, 5, 6, 6), (72, 7), (2, 6, 6)), r"\[N, 7, \*\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_what_to_do(shapes, advice):
    criterion = make("isda")[0]
    features, logits, targets = (torch.zeros(shape) for shape in shapes)
    with unchanged(criterion), pytest.raises(ValueError, match=advice):
        criterion(features, logits, targets.long(), head=nn.Conv2d(5, 7, 1), progress=0.5)


@pytest.mark.parametrize(
    ("targets", "cast"),
    [
        (torch.zeros(2, 6, 6), "long()"),
        (torch.zeros(2, 1, 6, 6), "squeeze(1).long()"),
        (torch.zeros(2, 1, 6, 6, dtype=torch.int64), "squeeze(1).long()"),
        (torch.zeros(2, 7, 6, 6, dtype=torch.int64), "float()"),
    ],
)
def test_targets_of_another_type_are_refused_with_the_cast_that_mends_them(targets, cast):
    criterion, head = make("isda")[0], nn.Conv2d(5, 7, 1)
    features = torch.zeros(2, 5, 6, 6)
    with pytest.raises(ValueError, match="use targets") as refused:
        criterion(features, head(features), targets, head=head, progress=0.5)
    assert str(refused.value).endswith(f": use targets.{cast}")
    criterion(features, head(features), eval(f"targets.{cast}", {"targets": targets}), head=head, progress=0.5)


def test_the_line_that_resizes_targets_does():
    criterion, linear, _, _ = make("isda_diagonal", ignore_index=255)
    head, (features, targets) = convolution(linear, 2), dense_batch(2)
    large = targets.repeat_interleave(2, 1).repeat_interleave(2, 2)
    with pytest.raises(ValueError, match="interpolate") as refused:
        criterion(features, head(features), large, head=head, progress=0.5)
    line = str(refused.value).partition("use targets = ")[2].partition(", or interpolate")[0]
    assert torch.equal(eval(line, {"F": F, "targets": large}), targets)


@pytest.mark.parametrize(
    "head",
    [
        nn.Conv2d(5, 7, 3, padding=1),
        nn.Conv2d(5, 7, 1, stride=2),
        nn.Conv2d(5, 7, 1, padding=1),
        nn.Conv2d(35, 7, 1, groups=7),
        nn.Conv1d(5, 7, 3, padding="same"),
    ],
)
def test_convolutions_that_are_no_linear_layer_are_refused(head):
    criterion = make("isda")[0]
    with pytest.raises(ValueError, match="convolution of kernel size 1"):
        criterion(torch.zeros(2, 5, 6), torch.zeros(2, 7, 6), torch.zeros(2, 6).long(), head=head, progress=0.5)


def test_convolution_may_be_the_head_of_pooled_features():
    criterion, linear, features, targets = make("isda")
    head, twin = convolution(linear, 2), copy.deepcopy(criterion)
    found = criterion(features, head(features[:, :, None, None]).flatten(1), targets, head=head, progress=0.5)
    assert_same(found.detach(), twin(features, linear(features), targets, head=linear, progress=0.5).detach())
