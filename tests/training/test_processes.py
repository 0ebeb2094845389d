"""Several processes give the weights, statistics, curves and evaluation of one; together.py has their trainings."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from together import OTHERS, SHARED, finished, outcomes, state_after, trainer_of
from torch import nn

from isda_repro.config import compose
from isda_repro.config.checks import ConfigError
from isda_repro.data import Share
from isda_repro.errors import UserError
from isda_repro.losses import CrossEntropy, ISDALoss
from isda_repro.models import timm_network
from isda_repro.training import distributed
from isda_repro.training.compute import refuse_differences, resolve_compute
from isda_repro.training.ddp import convert_sync_batchnorm
from isda_repro.training.distributed import SINGLE_PROCESS, LostContactError, Processes, init_distributed
from isda_repro.training.session import prepare
from isda_repro.training.step import WHOLE_BATCH, _shown, weighted

SCRIPT = Path(__file__).with_name("together.py")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """Return the outcomes for one, two and three processes; this process hosts their store, as torchrun does."""
    folder = tmp_path_factory.mktemp("together")
    for world in "123":
        (folder / world).mkdir()
    torch.save(state_after(trainer_of("isda", SINGLE_PROCESS), 5), folder / "of_one.pt")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPT, folder],
            env={**os.environ, "OMP_NUM_THREADS": "1", **here, "RANK": str(rank), "WORLD_SIZE": "3"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    of_one = outcomes(SINGLE_PROCESS, folder / "1")
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    of_several = {world: torch.load(folder / str(world) / "outcome.pt", weights_only=False) for world in (2, 3)}
    return {1: of_one, **of_several}


def assert_same(one, other, loss):
    for part in ("network", "criterion"):
        assert one[part].keys() == other[part].keys()
        for name, tensor in one[part].items():
            torch.testing.assert_close(other[part][name], tensor, rtol=1e-10, atol=1e-12, msg=f"{loss}: {name}")
    torch.testing.assert_close(torch.tensor(other["curves"]), torch.tensor(one["curves"]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_train_as_one_where_batches_divide_unevenly(left, world):
    for loss in (*SHARED, *OTHERS):
        assert_same(left[1]["every_loss"][loss], left[world]["every_loss"][loss], loss)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_micro_batches_of_which_processes_have_different_numbers_train_as_the_whole_batch(left, world):
    for loss in ("isda", "center"):
        assert_same(left[1]["every_loss"][loss], left[world]["micro_batches"][loss], loss)
    assert_same(left[1]["micro_batches"]["buffers"], left[world]["micro_batches"]["buffers"], "isda")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_mixtures_do_not_depend_on_the_number_of_processes_and_of_micro_batches(left, world):
    for loss, other in (("ce", "ce"), ("isda", "isda"), ("isda", "micro")):
        assert_same(left[1]["mixed"][loss], left[world]["mixed"][other], f"{other} with mixup")
    plain, mixed = (left[1][kind]["ce"]["curves"] for kind in ("every_loss", "mixed"))
    assert mixed[0][0] != plain[0][0]


@pytest.mark.parametrize("world", [2, 3])
def test_another_number_of_processes_goes_on_as_if_it_had_not_changed(left, tmp_path, world):
    assert_same(left[1]["every_loss"]["isda"], left[world]["another_number"]["resumed"], "isda")
    alone = trainer_of("isda", SINGLE_PROCESS)
    alone.load_state_dict(*left[world]["another_number"]["state"])
    assert_same(left[1]["every_loss"]["isda"], finished(alone, tmp_path), "isda")


@pytest.mark.parametrize(("world", "shares"), [(1, [7]), (2, [4, 3]), (3, [3, 3, 1])])
def test_few_samples_are_evaluated_once_each(left, world, shares):
    outcome, of_one = left[world]["few_samples"], left[1]["few_samples"]
    assert outcome["counted"] == shares, "a batch of 5, one of 2"
    assert outcome["error"] == of_one["error"]
    assert outcome["loss"] == pytest.approx(of_one["loss"], rel=1e-12)
    assert outcome["top5"] == of_one["top5"] * world
    assert outcome["of_classes"] == of_one["of_classes"] * world
    assert len({*outcome["of_classes"][0]}) > 1
    of_four_classes, of_eight, of_one_sample = outcome["top5"][0]
    assert of_four_classes is None
    assert 0 < of_eight < 100
    assert of_one_sample in (0, 100)


def test_running_statistics_of_batch_normalisation_are_the_first_processs_in_all(left):
    one, other = left[2]["batch_norm"]["buffers"]
    assert one == other
    assert any(value not in (0, 1) for value in one[0])


@pytest.mark.parametrize("loss", ["isda", "center"])
def test_without_sync_each_process_keeps_its_own_statistics_through_a_resumption(left, loss):
    ranks = left[2]["own_statistics"][loss]
    assert all(rank["same"] for rank in ranks), "resumed = uninterrupted"
    if loss == "isda":
        counts = [rank["count"] for rank in ranks]
        assert int(sum(counts).sum()) == 2 * 22, "each sample is counted by one of them, in two epochs"
        assert not torch.equal(*counts)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_learn_what_the_others_tell(left, world):
    last = world - 1
    agreed = [(0, 1), (0, 0), (0, 0)] if world == 1 else [(0, 0), (7 * last, 1), (0, 0)]
    for rank, outcome in enumerate(left[world]["exchanges"]):
        assert outcome == {
            "agreed": agreed,  # several processes agree one call later
            "all_reduce_max": 10,
            "sum": [world, sum(range(world))],
            "of_nothing": 0,
            "of_first": [[[0.0] * 3] * 2, [5], [0.5]],
            "told": [0, [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], None],
            "to_first": None if rank else list(range(world)),
            "is_main": rank == 0,
        }


def test_first_process_is_through_before_the_others_begin(left, tmp_path_factory):
    """Each rank appended its number to the same file."""
    for world in (2, 3):
        folder = next(iter(tmp_path_factory.getbasetemp().glob(f"together*/{world}")))
        written = [int(rank) for rank in (folder / "order.txt").read_text().split()]
        assert written[0] == 0
        assert sorted(written) == list(range(world))


def test_weight_of_a_share_is_its_part_of_the_batch_times_the_processes():
    def of(processes, samples, total, criterion, device=CPU, short=False):
        targets = torch.zeros(samples, dtype=torch.int64)
        return weighted(targets, total, criterion, processes, device, may_fall_short=short)

    class Four(Processes):
        def all_reduce_sum(self, tensor):
            return tensor + 5  # the remaining three processes have five samples

    ce, isda = CrossEntropy(4, 6), ISDALoss(4, 6, lambda_0=1.0)
    assert WHOLE_BATCH == (1.0, None, None, None)
    assert Share().of(3, 10) == slice(3, 10)
    assert of(SINGLE_PROCESS, 2, 8, ce) == (0.25, None, None, 8)
    assert of(Processes(1, 4), 3, 8, ce) == (1.5, None, None, 2)
    assert of(Four(1, 4), 3, 12, ce, short=True) == (1.5, None, None, 3)
    assert of(Processes(1, 4), 2, 9, isda, torch.device("meta")).padded_size is None, "nothing is exchanged"


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("are_soft", [False, True])
def test_padding_of_shares_changes_no_loss(are_soft, label_smoothing):
    """Accelerators pad the shares of a batch to one size, and a mean over probabilities includes the padding."""

    class Collective(CrossEntropy):
        is_collective = True

    torch.manual_seed(0)
    criterion, head = Collective(4, 6, label_smoothing=label_smoothing), torch.nn.Linear(6, 4)
    features, targets = torch.randn(10, 6), torch.randint(4, (10,))
    if are_soft:
        targets = 0.7 * torch.eye(4)[targets] + 0.3 * torch.eye(4)[targets.flip(0)]
    whole = criterion(features, head(features), targets, head=head, progress=0.0)
    weights, means = 0.0, 0.0
    for rank in range(3):
        part = Share(rank, 3).of(0, 10)
        own = targets[part]
        share = weighted(own, 10, criterion, Processes(rank, 3), torch.device("meta"), may_fall_short=False)
        shown = _shown(features[part], head(features[part]), own, share.padded_size)
        assert [len(one) for one in shown] == [4] * 3
        loss = criterion(*shown, head=head, progress=0.0)
        weights += loss * share.weight / 3
        means += loss * (len(own) if share.counts_as is None else share.counts_as) / 10
    torch.testing.assert_close(weights, whole)
    torch.testing.assert_close(means, whole)


LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.parametrize(
    ("variables", "token"),
    [
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT"),
        (dict(zip(LAUNCHED, ("2", "a", "0", "127.0.0.1", "1"), strict=True)), "whole numbers .*'a'"),
        ({**dict(zip(LAUNCHED, "21011", strict=True)), "LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE"),
    ],
)
def test_missing_or_bad_variables_of_torchrun_are_named(monkeypatch, variables, token):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=token), init_distributed(1):
        pass


def test_process_that_waits_in_vain_gives_up(monkeypatch):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    several = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**several, "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostContactError, match="rank 0 of 2"), init_distributed(0.002):
        pass


@pytest.mark.parametrize("option", ["precision", "channels_last", "deterministic", "micro_batch"])
def test_processes_that_would_calculate_differently_are_refused(option):
    mine = resolve_compute({**compose(["dataset=digits"]).compute, "precision": "fp32"})

    class Another(Processes):
        def all_gather(self, thing):
            return [thing, {**thing, option: "another"}]

    with pytest.raises(UserError, match=rf"compute\.{option} .*rank 0 .*another.*rank 1"):
        refuse_differences(mine, Another())
    refuse_differences(mine, Processes())


@pytest.mark.parametrize("key", ["classes", "train_images", "test_images"])
def test_processes_that_have_other_data_are_refused(key):
    class Another(Processes):
        def all_gather(self, thing):
            return [thing, {**thing, key: "another"} if key in thing else thing]

    cfg = compose(["dataset=digits"])
    with pytest.raises(UserError, match=r"digits .*rank 1 .*rank 0"):
        prepare(cfg, Another())
    prepare(cfg, Processes())


def test_common_batch_normalisation_needs_gpus():
    with pytest.raises((UserError, ConfigError), match=r"compute\.sync_bn"):
        convert_sync_batchnorm(
            trainer_of("ce", SINGLE_PROCESS).network,
            SINGLE_PROCESS,
            resolve_compute(compose(["dataset=digits"]).compute),
        )


def test_gpus_that_nccl_refuses_are_no_lost_contact():
    def refused():
        raise dist.DistBackendError("ncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0\nmore")

    with pytest.raises(UserError, match="Duplicate GPU") as caught, distributed._explained(Processes(1, 2), 10):
        refused()
    assert not isinstance(caught.value, LostContactError)


@pytest.mark.parametrize(
    ("code", "last", "is_lost"),
    [
        ("ncclUnhandledCudaError", "Cuda failure 'out of memory'", False),
        (
            "ncclSystemError",
            "Error while creating /dev/shm/nccl-x: No space left on device",
            False,
        ),
        ("ncclRemoteError", "NET/Socket: connection to 10.0.0.2 was lost", True),
        ("ncclSystemError", "socketStartConnect: Connect to 10.0.0.2<2345> failed: Connection refused", True),
    ],
)
def test_failures_of_nccl_on_this_host_are_named(code, last, is_lost):
    text = f"NCCL error in: NCCLUtils.cpp:94, NCCL version 2.28\n{code}: (e.g. socket, malloc)\nLast error:\n{last}"
    with pytest.raises(UserError) as caught, distributed._explained(Processes(1, 2), 10):
        raise dist.DistBackendError(text)
    assert isinstance(caught.value, LostContactError) == is_lost
    assert (last in str(caught.value)) != is_lost


@pytest.mark.parametrize("name", ["efficientnet_b0", "densenet121", "regnety_004", "resnet18"])
def test_common_batch_normalisation_keeps_the_networks_activations(name):
    torch.manual_seed(0)
    network = timm_network(name, 10, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    before = network(images).features
    on_gpu = replace(resolve_compute(compose(["dataset=digits"]).compute), device=torch.device("cuda"))
    converted = convert_sync_batchnorm(network, SINGLE_PROCESS, on_gpu)
    norms = [one for one in converted.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(one, nn.SyncBatchNorm) for one in norms)
    assert torch.equal(converted(images).features, before)
