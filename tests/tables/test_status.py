import json
import os
import subprocess
import sys
import time

from sweeps import HEEDS, all_runs, folder_of

from isda_repro import config
from isda_repro.tables.ending import Ending, note_ending
from isda_repro.tables.owner import here
from isda_repro.tables.records import EpochRecord, SegmentRecord, as_json
from isda_repro.tables.status import cancel, status

SEGMENT = SegmentRecord(
    step=7,
    device="cpu",
    hardware="test",
    precision="fp32",
    tf32=False,
    channels_last=False,
    compile=False,
    deterministic=False,
    world_size=1,
    threads=1,
    git_revision=None,
    git_clean=None,
)


def as_line(record):
    return json.dumps(as_json(record)) + "\n"


def write_epochs(folder, *errors, torn=""):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        as_line(
            EpochRecord(
                epoch=epoch,
                step=epoch,
                lr=0.1,
                train_loss=1.0,
                train_error=1.0,
                test_loss=1.0,
                test_error=error,
                timing={},
            )
        )
        for epoch, error in enumerate(errors, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(lines) + torn)


def test_status_of_each_cell(demo, options, finish, tmp_path):
    options.runs_dir = str(tmp_path / "runs")
    assert list(status(options, config.compose)) == [
        "table=demo: 0 of 6 runs done",
        "  ResNet-20 on digits, CE    not started",
        "  ResNet-20 on digits, ISDA  not started",
    ]
    runs = all_runs(demo)
    for run in runs[:4]:
        finish(run, 2.0)
    write_epochs(folder_of(options, runs[4]), 50.0, 4.125, torn='{"kind": "ep')
    write_epochs(folder_of(options, runs[5]))
    assert list(status(options, config.compose)) == [
        "table=demo: 4 of 6 runs done",
        "  ResNet-20 on digits, CE    done 3 of 3",
        "  ResNet-20 on digits, ISDA  done 1 of 3; "
        "seed 1: interrupted, epoch 2 of 30, test error 4.12; seed 2: interrupted, in its first epoch",
    ]
    long_ago = (folder_of(options, runs[4]) / "metrics.jsonl").read_text().splitlines()[0] + "\n"
    (folder_of(options, runs[4]) / "metrics.jsonl").write_text(long_ago + 50 * as_line(SEGMENT))
    assert "seed 1: interrupted, epoch 1 of 30, test error 50.00" in list(status(options, config.compose))[-1]
    (folder_of(options, runs[5]) / "metrics.jsonl").write_text("?\n")
    assert "metrics.jsonl, line 1: not JSON" in list(status(options, config.compose))[-1]


def test_status_tells_running_failed_and_stopped_runs_apart(demo, options, tmp_path):
    options.runs_dir = str(tmp_path / "runs")
    runs = all_runs(demo)
    for run in runs[:5]:
        write_epochs(folder_of(options, run), 50.0)
    note_ending(folder_of(options, runs[0]), Ending(2, "out of memory with 128 images"))
    note_ending(folder_of(options, runs[1]), Ending(75, "SIGTERM: stopped and saved"))
    owner = {**here(), "pid": os.getpid()}
    (folder_of(options, runs[2]) / "owner.json").write_text(json.dumps(owner))
    (folder_of(options, runs[3]) / "owner.json").write_text(json.dumps({**owner, "pid": 2**22 + 1}))
    (folder_of(options, runs[4]) / "owner.json").write_text(json.dumps({**owner, "host": "elsewhere"}))
    (folder_of(options, runs[0]) / "log.txt").touch()
    epoch = "epoch 1 of 30, test error 50.00"
    log = folder_of(options, runs[0]) / "log.txt"
    assert list(status(options, config.compose))[1:] == [
        f"  ResNet-20 on digits, CE    done 0 of 3; seed 0: failed: out of memory with 128 images (log: {log}); "
        f"seed 1: stopped, {epoch}; seed 2: running, {epoch}",
        f"  ResNet-20 on digits, ISDA  done 0 of 3; seed 0: interrupted, {epoch}; seed 1: running, {epoch}",
    ]
    (folder_of(options, runs[2]) / "owner.json").write_text(json.dumps({**owner, "boot": "before a restart"}))
    assert f"seed 2: interrupted, {epoch}" in list(status(options, config.compose))[1], "its number is another's now"
    os.utime(folder_of(options, runs[4]) / "owner.json", (1, 1))
    assert f"seed 1: interrupted, {epoch}" in list(status(options, config.compose))[2], "its heart beats no more"


def test_cancel_asks_the_runs_of_this_host_to_save(demo, options, tmp_path, capfd):
    options.runs_dir = str(tmp_path / "runs")
    seen, pid = tmp_path / "seen", tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", HEEDS, str(seen), "obeys"])
    while not pid.exists() or not pid.read_text():
        time.sleep(0.02)
    folder = folder_of(options, all_runs(demo)[1])
    folder.mkdir(parents=True)
    owner = {**here(), "pid": process.pid}
    (folder / "owner.json").write_text(json.dumps({**owner, "boot": "before a restart"}))
    assert cancel(options, config.compose) == 0
    assert "0 jobs, 0 runs on this host" in capfd.readouterr().out
    (folder / "owner.json").write_text(json.dumps(owner))
    assert cancel(options, config.compose) == 0
    assert process.wait(timeout=30) == 75
    assert seen.read_text().split() == ["SIGTERM"]
    assert "asked to stop: 0 jobs, 1 runs on this host" in capfd.readouterr().out
