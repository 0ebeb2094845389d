"""Misuse that the first training calls show: foreign logits, parameters without an optimizer, state left behind."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from criteria import MAKERS, make, unchanged
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from isda_repro.losses import CenterLoss, ISDALoss
from isda_repro.losses.first_calls import CALLS, ROWS

WITH_HEAD = [name for name in MAKERS if MAKERS[name] not in (MAKERS[one] for one in ("ce", "focal", "lq", "center"))]
WITH_HEAD.remove("disturb_label")


class Rounded(nn.Module):
    """A weight in int8, as in quantisation-aware training."""

    def forward(self, weight):
        scale = weight.abs().max() / 127
        return (weight / scale).round() * scale


class Adapted(nn.Linear):
    """A linear layer with a LoRA adapter, whose ``weight`` is that of the layer alone."""

    def __init__(self, layer, learnt):
        super().__init__(layer.in_features, layer.out_features)
        self.load_state_dict(layer.state_dict())
        self.adapter = nn.Sequential(nn.Linear(64, 4, bias=False), nn.Linear(4, 12, bias=False))
        nn.init.constant_(self.adapter[1].weight, learnt)

    def forward(self, features):
        return super().forward(features) + self.adapter(features) * torch.arange(12)


@pytest.fixture
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def called(name, logits_of, features_of=lambda features: features, head_of=lambda head: head, dtype=torch.float32):
    """Call a loss on the logits that ``logits_of`` makes of features and head; return it."""
    criterion, head, features, targets = make(name, size=40, classes=12, width=64, dtype=dtype)
    head = head_of(head)
    logits = logits_of(features, head)
    criterion(features_of(features), logits, targets, head=head, progress=0.5).backward()
    return criterion


def autocast(dtype):
    def logits_of(features, head):
        with torch.autocast("cpu", dtype=dtype):
            return head(features + 5)

    return logits_of


def masked(value):
    return lambda features, head: head(features).masked_fill(torch.arange(12) > 7, value)


RIGHT = {
    "linear": lambda features, head: head(features),
    "float64": lambda features, head: head.double()(features.double()),
    "masked by -inf": masked(-torch.inf),
    "masked by -1e4": masked(-1e4),
    "masked by the lowest number": masked(torch.finfo(torch.float32).min),
    "adjusted by a prior": lambda features, head: head(features) + torch.arange(12.0),
    "log-probabilities": lambda features, head: head(features).log_softmax(1),
    "a sample that overflows": lambda features, head: head(features).where(torch.arange(40)[:, None] != 3, torch.nan),
}


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("name", WITH_HEAD)
def test_logits_of_the_head_pass_the_first_call(name, case, silent):
    assert called(name, RIGHT[case]).first_calls is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", WITH_HEAD)
def test_logits_in_half_precision_pass_also_for_features_with_a_large_mean(name, dtype, silent):
    assert called(name, autocast(dtype), features_of=lambda features: features + 5).first_calls is None
    halved = [lambda one, head: head(one.to(dtype)), lambda one: one.to(dtype), lambda head: head.to(dtype)]
    assert called(name, *halved).first_calls is None


@pytest.mark.parametrize(
    "wrapped",
    [
        nn.DataParallel,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda head: parametrize.register_parametrization(head, "weight", Rounded()),
        lambda head: Adapted(head, learnt=0.0),
    ],
)
def test_heads_that_are_wrapped_or_parametrized_pass(wrapped, silent):
    assert called("isda", RIGHT["linear"], head_of=wrapped).first_calls is None


def another(head):
    torch.manual_seed(1)
    return nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)


FOREIGN = {
    "another head": lambda features, head: another(head)(features),
    "features of another layer": lambda features, head: head(torch.randn(40, 64).relu()),
    "features in another order": lambda features, head: head(features.flip(0)),
    "constant": lambda features, head: torch.zeros(40, 12, requires_grad=True),
}


@pytest.mark.parametrize("case", FOREIGN)
@pytest.mark.parametrize("name", WITH_HEAD)
def test_logits_that_have_nothing_to_do_with_the_head_are_refused_before_anything_is_learnt(name, case):
    criterion, head, features, targets = make(name, size=40, classes=12, width=64, dtype=torch.float32)
    logits = FOREIGN[case](features, head)
    with unchanged(criterion), pytest.raises(ValueError, match=r"not head\(features\).*this head, not another"):
        criterion(features, logits, targets, head=head, progress=0.5)
    criterion(features, head(features), targets, head=head, progress=0.5)
    assert criterion.first_calls is None


def dropout(p):
    def logits_of(features, head):
        torch.manual_seed(2)
        return head(F.dropout(features, p))

    return logits_of


RELATED = {
    "dropout of 0.02": (dropout(0.02), "a dropout"),
    "dropout of 0.1": (dropout(0.1), "a dropout"),
    "dropout of 0.5": (dropout(0.5), "a dropout"),
    "another activation": (lambda features, head: head(F.gelu(features - 0.5)), "another layer"),
    "a copy of the head": (lambda features, head: F.linear(features, head.weight * torch.rand(12, 64)), "not a copy"),
    "temperature": (lambda features, head: head(features) / 4, r"0\.25 times as large.*0\.25 \* features"),
    "cosine head": (
        lambda features, head: 16 * F.linear(F.normalize(features), F.normalize(head.weight)),
        r"16 times the cosines.*16 \* normalize\(features\)",
    ),
}


@pytest.mark.parametrize("case", RELATED)
@pytest.mark.parametrize("name", WITH_HEAD)
def test_logits_that_are_nearly_the_heads_give_one_warning_with_the_cure_at_the_callers_line(name, case):
    logits_of, cure = RELATED[case]
    with pytest.warns(UserWarning, match=cure) as caught:
        criterion = called(name, logits_of)
    assert [one.filename for one in caught] == [__file__]
    assert criterion.first_calls is None


def test_an_adapter_that_has_learnt_something_is_found():
    with pytest.warns(UserWarning, match="head that made the logits"):
        called("isda", RIGHT["linear"], head_of=lambda head: Adapted(head, learnt=0.1))


def test_cures_that_the_warnings_name_pass(silent):
    called("isda", lambda features, head: head(0.25 * features), features_of=lambda features: 0.25 * features)

    class UnitRows(nn.Module):
        def forward(self, weight):
            return F.normalize(weight)

    def unit(features):
        return 16 * F.normalize(features)

    def head_of(head):
        return parametrize.register_parametrization(head, "weight", UnitRows())

    called("isda", lambda features, head: head(unit(features)), features_of=unit, head_of=head_of)


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in WITH_HEAD])
def test_losses_that_do_not_use_the_head_take_any_logits(name, silent):
    criterion = called(name, FOREIGN["another head"])
    assert (criterion.first_calls is None) == (name != "center")


def test_only_the_first_training_call_that_can_be_judged_is_checked(silent):
    criterion, head, features, targets = make("isda", size=40)
    wrong, right = another(head).double()(features), head(features)
    criterion.eval()(features, wrong, targets, head=head, progress=0.5)
    with torch.no_grad():
        criterion.train()(features, wrong, targets, head=head, progress=0.5)
    criterion(features[:1], wrong[:1], targets[:1], head=head, progress=0.5)  # one row decides nothing
    padded = torch.cat((features[:2] * 0, features[:2]))
    criterion(features[:2] * 0, wrong[:2], targets[:2], head=head, progress=0.5)
    assert criterion.first_calls is not None
    criterion(padded, torch.cat((wrong[:2], right[:2])), targets[:4], head=head, progress=0.5)
    assert criterion.first_calls is None
    criterion(features, wrong, targets, head=head, progress=0.5)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        twin(features, wrong, targets, head=head, progress=0.5)
    for twin in (copy.deepcopy(ISDALoss(7, 5)), pickle.loads(pickle.dumps(ISDALoss(7, 5)))):
        with pytest.raises(ValueError, match="not head"):
            twin(features, wrong, targets, head=head, progress=0.5)


def test_a_head_of_zeros_is_checked_after_its_first_step(silent):
    criterion, head, features, targets = make("isda", size=40)
    nn.init.zeros_(head.weight)
    criterion(features, head(features), targets, head=head, progress=0.5).backward()
    torch.optim.SGD(head.parameters(), lr=0.1).step()
    with pytest.raises(ValueError, match="not head"):
        criterion(features, another(head).double()(features), targets, head=head, progress=0.5)


def test_rows_of_the_whole_batch_are_compared(silent):
    """The first rows alone, such as the border of an image, might be all alike."""
    criterion, head, features, targets = make("isda", size=40 * ROWS)
    features = features.detach()
    features[: 20 * ROWS] = 1.0
    with pytest.raises(ValueError, match="not head"):
        criterion(features, another(head).double()(features), targets, head=head, progress=0.5)


@pytest.mark.parametrize("name", ["isda", "isda_diagonal", "center"])
def test_a_compiled_graph_has_no_check_in_it(name):
    torch._dynamo.reset()
    criterion, head, features, targets = make(name, 4)
    compiled = torch.compile(criterion, fullgraph=True, backend="eager")
    progress = torch.tensor(0.5).double()
    for _ in range(2):
        compiled(features, another(head).double()(features), targets, head=head, progress=progress)
    assert criterion.first_calls is not None


@pytest.mark.parametrize("name", [name for name in MAKERS if make(name)[0].state_dict()])
def test_state_on_another_device_is_named(name):
    criterion, head, features, targets = make(name)
    criterion.to("meta")
    with pytest.raises(ValueError, match=r"is on meta and the features are on cpu.*criterion\.to\('cpu'\)"):
        criterion(features, head(features), targets, head=head, progress=0.5)


def train(steps, optimizers, *, accumulated=1, criterion=None):
    """Train head and criterion by the optimizers that ``optimizers`` makes for them; return the criterion."""
    head = nn.Linear(5, 7)
    criterion = CenterLoss(7, 5) if criterion is None else criterion
    chosen = optimizers(head, criterion)
    for step in range(steps):
        features, targets = torch.randn(24, 5), torch.randint(7, (24,))
        criterion(features, head(features), targets, head=head, progress=step / steps).backward()
        if (step + 1) % accumulated == 0:
            for optimizer in chosen:
                optimizer.step()
                optimizer.zero_grad()
    return criterion


def of_head(head, criterion):
    return [torch.optim.SGD(head.parameters(), lr=0.1)]


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_centres_without_an_optimizer_give_one_warning_after_some_calls(options):
    def of_head(head, criterion):
        return [torch.optim.SGD(head.parameters(), lr=0.1, **options)]

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(CALLS - 1, of_head)
        with pytest.raises(UserWarning, match=r"centers did not change.*parameter_groups"):
            train(CALLS, of_head)
        train(2 * CALLS - 1, of_head, accumulated=CALLS + 1)
    with pytest.warns(UserWarning, match=f"centers did not change in {2 * CALLS} calls"):
        train(2 * CALLS, of_head, accumulated=CALLS + 1)
    with pytest.warns(UserWarning, match="centers did not change") as caught:
        criterion = train(5 * CALLS, of_head)
    assert [one.filename for one in caught] == [__file__]
    assert criterion.first_calls is None


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_centres_that_an_optimizer_holds_give_none(kind, options, silent):
    calls = CALLS if "fused" in options else 2  # a fused step leaves the version of a weight as it was
    criterion = train(calls, lambda *modules: [kind([p for one in modules for p in one.parameters()], **options)])
    assert criterion.first_calls is None


class OfData:
    """An optimizer that changes weights without PyTorch's knowledge."""

    def __init__(self, weights):
        self.weights = list(weights)

    def step(self):
        for weight in self.weights:
            weight.data -= 0.1 * weight.grad

    def zero_grad(self):
        pass


@pytest.mark.parametrize(
    ("steps", "optimizers", "options"),
    [
        (30, lambda head, criterion: [*of_head(head, criterion), OfData(criterion.parameters())], {}),
        (30, lambda head, criterion: [], {}),
        (30, of_head, {"accumulated": 31}),
        (30, of_head, {"criterion": CenterLoss(7, 5).requires_grad_(False)}),
        (30, of_head, {"criterion": ISDALoss(7, 5)}),
    ],
)
def test_nothing_is_said_where_it_is_not_certain_that_centres_stand_still(steps, optimizers, options, silent):
    train(steps, optimizers, **options)
