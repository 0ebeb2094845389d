"""Several processes are one: the same weights, statistics, curves and evaluation. See together.py for what they run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from together import OTHERS, SHARED

from isda_repro.data import Share
from isda_repro.losses import CrossEntropy
from isda_repro.training.processes import ALONE
from isda_repro.training.step import WHOLE_BATCH, weighted

SCRIPT = Path(__file__).with_name("together.py")
KINDS = ("every_loss", "micro_batches", "batch_norm", "own_statistics", "few_samples")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(folder, world, kinds):
    folder.mkdir()
    here = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in range(world):
        several = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        command = [sys.executable, SCRIPT, folder, *kinds]
        yield subprocess.Popen(command, env=here | several, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What one, two, three and four processes leave behind."""
    folder = tmp_path_factory.mktemp("together")
    kinds = {1: KINDS[:2] + KINDS[4:], 2: KINDS, 3: KINDS[:2], 4: KINDS[4:]}
    running = {world: list(started(folder / str(world), world, kinds[world])) for world in kinds}
    for process in (process for several in running.values() for process in several):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return {world: torch.load(folder / str(world) / "outcome.pt", weights_only=False) for world in kinds}


def assert_same(one, other):
    for part in ("network", "criterion"):
        assert one[part].keys() == other[part].keys()
        for name, tensor in one[part].items():
            torch.testing.assert_close(other[part][name], tensor, rtol=1e-10, atol=1e-12, msg=name)
    torch.testing.assert_close(torch.tensor(other["curves"]), torch.tensor(one["curves"]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("loss", [*SHARED, *OTHERS])
def test_several_processes_train_as_one_also_where_batches_divide_unevenly(outcomes, world, loss):
    assert_same(outcomes[1]["every_loss"][loss], outcomes[world]["every_loss"][loss])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("loss", ["isda", "center"])
def test_so_do_micro_batches_of_which_processes_have_different_numbers(outcomes, world, loss):
    assert_same(outcomes[1]["micro_batches"][loss], outcomes[world]["micro_batches"][loss])
    assert_same(outcomes[1]["every_loss"][loss], outcomes[world]["micro_batches"][loss])


@pytest.mark.parametrize(("world", "shares"), [(1, [7]), (2, [4, 3]), (4, [3, 2, 1, 1])])
def test_seven_samples_are_evaluated_once_each(outcomes, world, shares):
    outcome = outcomes[world]["few_samples"]
    assert outcome["counted"] == shares, "a batch of 5, one of 2"
    assert outcome["error"] == outcomes[1]["few_samples"]["error"]
    assert outcome["top5"] == outcomes[1]["few_samples"]["top5"]
    assert outcome["top5"][0] is None, "of four classes"
    assert 0 < outcome["top5"][1] < 100, "of eight"
    assert outcome["loss"] == pytest.approx(outcomes[1]["few_samples"]["loss"], rel=1e-12)


def test_running_statistics_of_batch_normalisation_are_the_first_processes_in_all(outcomes):
    one, other = outcomes[2]["batch_norm"]["buffers"]
    assert one == other
    assert any(value not in (0, 1) for value in one[0])


@pytest.mark.parametrize("loss", ["isda", "center"])
def test_without_sync_each_process_keeps_its_own_through_a_resumption(outcomes, loss):
    ranks = outcomes[2]["own_statistics"][loss]
    assert all(rank["same"] for rank in ranks), "resumed = undisturbed"
    if loss == "isda":
        counts = [rank["count"] for rank in ranks]
        assert int(sum(counts).sum()) == 2 * 22, "each sample is counted by one of them, in two epochs"
        assert not torch.equal(*counts)


def test_alone_nothing_is_exchanged():
    assert ALONE.agreed(3, 0) == (3, 0)
    assert ALONE.largest(5) == 5
    assert ALONE.told_by_first(lambda: "said") == "said"
    assert ALONE.told_to_first("heard") == ALONE.told_to_all("heard") == ["heard"]
    assert WHOLE_BATCH.weight == 1
    assert Share().of(3, 10) == slice(3, 10)


def test_a_share_counts_by_its_samples():
    share = weighted(2, 8, CrossEntropy(4, 6), ALONE, torch.device("cpu"), may_fall_short=False)
    assert share == (0.25, None)
