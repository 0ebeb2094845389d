"""Worker of test_processes.py: small trainings with each loss by one process or several, and their outcomes.

RANK=.. MASTER_PORT=.. python together.py FOLDER    # with three processes, and then with two of them
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn

from isda_repro.data import InMemoryLoader, Mixup, Share, Split
from isda_repro.losses import CenterLoss, CrossEntropy, DisturbLabel, ISDALoss, LargeMarginSoftmax, SampledISDALoss
from isda_repro.models import Network
from isda_repro.runs.records import EpochRecord
from isda_repro.stopping import hard_exit_if_distributed
from isda_repro.training.checkpoint import Checkpoints, Saver
from isda_repro.training.compute import Compute
from isda_repro.training.ddp import wrap_ddp
from isda_repro.training.distributed import init_distributed
from isda_repro.training.evaluate import evaluate
from isda_repro.training.schedule import MultiStep
from isda_repro.training.trainer import Trainer

CPU = torch.device("cpu")
CLASSES, WIDTH = 4, 6
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
SHARED = {
    "isda": lambda **shared: ISDALoss(CLASSES, WIDTH, lambda_0=2.0, **shared),
    "isda_weighted": lambda **shared: ISDALoss(CLASSES, WIDTH, lambda_0=2.0, weight=WEIGHTS, **shared),
    "isda_packed": lambda **shared: ISDALoss(CLASSES, WIDTH, lambda_0=2.0, packed=True, **shared),
    "isda_diagonal": lambda **shared: ISDALoss(CLASSES, WIDTH, lambda_0=2.0, covariance="diagonal", **shared),
    "isda_shared": lambda **shared: ISDALoss(CLASSES, WIDTH, lambda_0=2.0, covariance="shared", **shared),
    "isda_identity": lambda **shared: ISDALoss(CLASSES, WIDTH, lambda_0=0.3, covariance="identity", **shared),
    "isda_sampled": lambda **shared: SampledISDALoss(CLASSES, WIDTH, samples=3, lambda_0=2.0, **shared),
    "center": lambda **shared: CenterLoss(CLASSES, WIDTH, weight=0.3, **shared),
}
OTHERS = {
    "ce": lambda: CrossEntropy(CLASSES, WIDTH),
    "ce_weighted": lambda: CrossEntropy(CLASSES, WIDTH, weight=WEIGHTS, label_smoothing=0.1),
    "large_margin": lambda: LargeMarginSoftmax(CLASSES, WIDTH),
    "disturb_label": lambda: DisturbLabel(CLASSES, WIDTH, alpha=0.4),
}


class Grouped(Network):
    """A network in float64 in which each image's output depends on that image alone."""

    def __init__(self, norm=None, classes=CLASSES):
        super().__init__(WIDTH, classes)
        self.body = nn.Sequential(
            nn.Conv2d(3, WIDTH, 3), norm or nn.GroupNorm(2, WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3), nn.Tanh()
        )
        self.double()

    def forward_features(self, images):
        return self.pool(self.body(images.double()))


class FixedNorm(nn.BatchNorm2d):
    """A normalisation with buffers, which DDP sends in each forward pass, that does not depend on the batch."""

    def __init__(self):
        super().__init__(WIDTH)

    def train(self, mode=True):
        return super().train(False)


def split(samples, seed):
    draws = torch.Generator().manual_seed(seed)
    return Split(
        torch.randint(256, (samples, 3, 8, 8), dtype=torch.uint8, generator=draws),
        torch.randint(CLASSES, (samples,), generator=draws),
    )


def trainer_of(
    name, processes, *, norm=None, micro_batch=None, sync=True, mixup=None, train=22, batch_size=10, epochs=2
):
    """Return a trainer of 22 images in batches of 10: of three processes, one has no image of an epoch's last batch."""
    compute = Compute(CPU, "test", "fp32", False, False, False, False, micro_batch)
    torch.manual_seed(1)
    network = Grouped(norm() if norm else None)
    torch.manual_seed(2)
    shared = {"process_group": processes.group} if sync and processes.is_distributed else {}
    criterion = (SHARED[name](**shared) if name in SHARED else OTHERS[name]()).double()
    if not criterion.uses_head_bias:
        network.drop_head_bias()
    groups = [{"params": list(network.parameters())}, *criterion.parameter_groups()]
    optimizer = torch.optim.SGD(groups, lr=0.3, momentum=0.9, nesterov=True, weight_decay=1e-3)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    options = {"mean": [0.5] * 3, "std": [0.3] * 3, "seed": 0, "device": CPU}
    options["share"] = Share(processes.rank, processes.world_size)
    return Trainer(
        network=network,
        eval_model=network,
        train_model=wrap_ddp(network, processes, compute) if processes.is_distributed else network,
        criterion=criterion,
        optimizer=optimizer,
        schedule=MultiStep([2], 0.5),
        epochs=epochs,
        progress="iteration",
        train_batches=InMemoryLoader(split(train, 0), batch_size=batch_size, shuffle=True, mixup=mixup, **options),
        test_batches=InMemoryLoader(split(7, 1), batch_size=5, shuffle=False, **options),
        compute=compute,
        seed=0,
        processes=processes,
    )


def finished(trainer, folder):
    """Train to the end, and return the network, the criterion and the curves."""
    records = trainer.train([], None, Saver(Checkpoints(folder), trainer.state_dict, processes=trainer.processes))
    return {
        "network": trainer.network.state_dict(),
        "criterion": trainer.criterion.whole_state_dict(),
        "curves": [[one.train_loss, one.train_error, one.test_loss, one.test_error] for one in records],
    }


def every_loss(processes, folder):
    return {name: finished(trainer_of(name, processes), folder) for name in (*SHARED, *OTHERS)}


def micro_batches(processes, folder):
    """Train with micro-batches of two images, of which the processes have different numbers."""
    outcome = {name: finished(trainer_of(name, processes, micro_batch=2), folder) for name in ("isda", "center")}
    mixing = trainer_of("isda", processes, norm=FixedNorm, micro_batch=3)  # of three processes one has 4 images
    return {**outcome, "buffers": finished(mixing, folder)}


def mixed(processes, folder):
    """Train on mixtures of images, of which the partners may be samples of other processes, and in micro-batches."""
    mixup = Mixup(1.0, CLASSES)
    whole = {name: finished(trainer_of(name, processes, mixup=mixup), folder) for name in ("ce", "isda")}
    return {**whole, "micro": finished(trainer_of("isda", processes, mixup=mixup, micro_batch=2), folder)}


def batch_norm(processes, folder):
    """Train with batch normalisation of each process's own images; the buffers of the main process count."""
    trainer = trainer_of("ce", processes, norm=lambda: nn.BatchNorm2d(WIDTH))
    outcome = finished(trainer, folder)
    return {**outcome, "buffers": processes.all_gather([buffer.tolist() for buffer in trainer.network.buffers()])}


class StoppedHereError(Exception):
    """Raised to end a training."""


class StoppingAfter(Saver):
    """A saver that keeps the state after a step, and ends the training there."""

    def __init__(self, trainer, step):
        self.trainer, self.step = trainer, step

    def step_taken(self, step):
        if step == self.step:
            self.state = self.trainer.state_dict()
            raise StoppedHereError

    def epoch_ended(self):
        """Continue with the training."""

    stop_if_asked = epoch_ended


class Records(list):
    """A tracker that collects the records of finished epochs."""

    def log(self, record):
        self.append(EpochRecord.from_json(record))

    def close(self):
        """Do nothing."""


def state_after(trainer, step):
    """Return the trainer's state and epochs after ``step``, on all processes."""
    saver, records = StoppingAfter(trainer, step), Records()
    try:
        trainer.train([records], None, saver)
    except StoppedHereError:
        return trainer.processes.broadcast_from_main(lambda: (saver.state, list(records)))
    raise AssertionError


def own_statistics(processes, folder):
    """Compare a resumed with an uninterrupted run for ``sync=false``, whose statistics differ between processes."""
    outcome = {}
    for name in ("isda", "center"):
        whole = trainer_of(name, processes, sync=False)
        finished(whole, folder)
        state = state_after(trainer_of(name, processes, sync=False), 2)
        second = trainer_of(name, processes, sync=False)
        second.load_state_dict(*state)
        finished(second, folder)
        one, other = (trainer.criterion.state_dict() for trainer in (whole, second))
        outcome[name] = processes.all_gather(
            {"same": all(torch.equal(one[key], other[key]) for key in one), "count": one.get("statistics.count")}
        )
    return outcome


def another_number(processes, folder):
    """Resume one process's state from the middle of epoch 2; also return these processes' state, for one to resume."""
    resumed = trainer_of("isda", processes)
    resumed.load_state_dict(*torch.load(folder.parent / "of_one.pt", weights_only=False))
    of_these = state_after(trainer_of("isda", processes), 5)
    return {"resumed": finished(resumed, folder), "state": of_these}


def few_samples(processes, folder):
    """Evaluate seven samples in batches of five and two, and one sample alone, by any number of processes."""
    trainer = trainer_of("ce", processes)
    counted = processes.all_gather(sum(len(targets) for _, targets in trainer.test_batches.epoch(0)))
    torch.manual_seed(3)
    ranked = Grouped(classes=8)
    one = InMemoryLoader(
        split(1, 1), batch_size=5, shuffle=False, mean=[0.5] * 3, std=[0.3] * 3, seed=0, device=CPU,
        share=Share(processes.rank, processes.world_size),
    )  # fmt: skip
    test, ranked_test, of_one = (
        evaluate(network, batches.epoch(0), trainer.compute, processes)
        for network, batches in ((trainer.network, trainer.test_batches), (ranked, trainer.test_batches), (ranked, one))
    )
    top5 = (test.top5_error, ranked_test.top5_error, of_one.top5_error)
    counts = [500, 50, 5, 4]
    grouped = evaluate(trainer.network, trainer.test_batches.epoch(0), trainer.compute, processes, counts)
    of_classes = processes.all_gather(tuple(grouped.of_classes))
    return {
        "counted": counted,
        "loss": test.loss,
        "error": test.error,
        "top5": processes.all_gather(top5),
        "of_classes": of_classes,
    }


def exchanges(processes, folder):
    """Return the results of each kind of communication, on all processes."""
    rank = processes.rank
    log = folder / "order.txt"
    with processes.main_first(), log.open("a") as file:
        file.write(f"{rank}\n")
    tensors = [torch.full((2, 3), float(rank)), torch.tensor([rank + 5]), torch.full((1,), rank + 0.5)]
    processes.broadcast_tensors(tensors)
    head, own = nn.Linear(WIDTH, CLASSES), torch.randn(2, WIDTH)
    of_nothing = ISDALoss(CLASSES, WIDTH, process_group=processes.group)
    told = processes.broadcast_from_main(lambda: {"thing": [rank, (torch.arange(6.0).reshape(2, 3).t(), None)]})
    return processes.all_gather(
        {
            "agreed": [processes.agreed(*wishes) for wishes in ([(7 * rank, 1), (0, 0), (0, 0)])],
            "all_reduce_max": processes.all_reduce_max(10 - rank),
            "sum": processes.all_reduce_sum(torch.tensor([1.0, rank])).tolist(),
            "of_nothing": of_nothing(own, head(own), torch.full((2,), -100), head=head, progress=0.5).item(),
            "of_first": [tensor.tolist() for tensor in tensors],
            "told": [told["thing"][0], told["thing"][1][0].tolist(), told["thing"][1][1]],
            "to_first": processes.gather_to_main(rank),
            "is_main": processes.is_main,
        }
    )


ALL = (every_loss, micro_batches, mixed, another_number, few_samples, exchanges)
OF_TWO = (batch_norm, own_statistics)


def outcomes(processes, folder):
    """Return the outcome of each kind of training, by the name of its function."""
    kinds = (*ALL, *OF_TWO) if processes.world_size == 2 else ALL
    return {kind.__name__: kind(processes, folder) for kind in kinds}


def main(folder):
    """Run as one of three processes; afterwards the first two of them join again."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for world in (3, 2):
        if rank < world:
            os.environ |= {"WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(world)}
            here = folder / str(world)
            with init_distributed(timeout_minutes=5) as processes:
                outcome = outcomes(processes, here)
            if processes.is_main:
                torch.save(outcome, here / "outcome.pt")


if __name__ == "__main__":
    with hard_exit_if_distributed():
        main(Path(sys.argv[1]))
