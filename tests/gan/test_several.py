"""Two processes train the generators that one would, where no image sees the others of its batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = """
import sys
from pathlib import Path

import torch
from torch import nn

from isda_repro.gan import networks
from isda_repro.gan.run import train_generator
from isda_repro.stopping import leaving_whole
from gan_runs import settings

torch.set_num_threads(1)


class OfOneImage(nn.GroupNorm):
    def __init__(self, maps):
        super().__init__(2, maps)


networks.nn.BatchNorm2d = OfOneImage
kind, folder = sys.argv[1:]
# 51 images in batches of five: of the last batch, one, a process has nothing
with leaving_whole():
    train_generator(settings(kind, folder, "dataset.train_limit=51", "gan.batch_size=5", "seed=4", "compute=cpu"))
"""


def trained(kind, folder, world):
    """The weights that so many processes leave."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    common = {**os.environ, "PYTHONPATH": path}
    if world > 1:
        common |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, kind, str(folder)],
            env={**common, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, said
    (checkpoint,) = folder.glob("*/checkpoint.pt")
    state = torch.load(checkpoint, weights_only=True)["network"]
    return [tensor for network in (*state["generators"], *state["discriminators"]) for tensor in network.values()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["infogan", "wgan"])
def test_two_processes_give_the_weights_of_one(kind, tmp_path):
    one, two = (trained(kind, tmp_path / str(world), world) for world in (1, 2))
    assert len(one) == len(two)
    for alone, together in zip(one, two, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)
