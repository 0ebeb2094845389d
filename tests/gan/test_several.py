"""Two processes train the same generators as one process, if no image depends on its batch."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from gan_runs import settings
from torch import nn
from torch.distributed import TCPStore

from isda_repro.gan.run import train_generator

PROGRAM = """
import sys
import torch
from isda_repro.stopping import hard_exit_if_distributed
from test_several import OfOneImage, train

torch.set_num_threads(1)
torch.nn.BatchNorm2d = OfOneImage
with hard_exit_if_distributed():
    train(*sys.argv[1:])
"""


class OfOneImage(nn.GroupNorm):
    """Group normalisation in place of batch normalisation, so that images are independent."""

    def __init__(self, maps):
        super().__init__(2, maps)


def train(kind, folder):
    """Train on 51 images in batches of five: the last batch has one, so that one of two processes gets none."""
    more = ["dataset.train_limit=51", "gan.batch_size=5", "seed=4", "gan.epochs=1", "compute.precision=fp32"]
    train_generator(settings(kind, folder, *more))


def weights_in(folder):
    (checkpoint,) = Path(folder).glob("*/checkpoint.pt")
    state = torch.load(checkpoint, weights_only=True)["network"]
    return [tensor for network in (*state["generators"], *state["discriminators"]) for tensor in network.values()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["infogan", "wgan"])
def test_two_processes_give_the_weights_of_one(kind, tmp_path, monkeypatch):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=2))
    here = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])]),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",  # this process hosts the store
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, kind, str(tmp_path / "two")],
            env={**here, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    monkeypatch.setattr(nn, "BatchNorm2d", OfOneImage)
    train(kind, tmp_path / "one")
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    for alone, together in zip(*(weights_in(tmp_path / name) for name in ("one", "two")), strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)
