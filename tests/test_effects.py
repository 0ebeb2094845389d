"""The list of all places that signal a process, or replace, cut or delete a file, and why that is certainly ours.

A new place fails the test until it is written here with its reason, and one that has gone fails it too. Prefer
``write_output`` for files that the user names, and ``rename_aside``: those calls need no line here.
"""

import ast
import re
from collections import Counter

CALLS = {
    # signals
    *("kill", "killpg", "send_signal", "terminate", "pidfd_send_signal", "raise_signal"),
    # names of files
    *("rename", "renames", "unlink", "rmtree", "rmdir", "remove", "removedirs", "move", "symlink_to", "hardlink_to"),
    *("truncate", "ftruncate", "copy", "copy2", "copyfile", "copytree"),
    # contents of files
    *("write_text", "write_bytes", "savefig", "imsave", "savez", "to_csv", "tofile", "FileHandler", "FileLock"),
    "atomic_write",
}
"""Calls by the name of the method or function; a name that strings, tensors and lists have too is told apart below."""


def test_list_has_every_place_that_signals_a_process_or_changes_a_file(root):
    places = Counter()
    folders = ("isda_repro", "scripts", "benchmarks", "slurm")
    for path in [root / "train.py", *(path for folder in folders for path in sorted((root / folder).rglob("*.py")))]:
        for function, call in effects(ast.parse(path.read_text(encoding="utf-8"))):
            places[f"{path.relative_to(root)}: {function}: {call}"] += 1
    assert dict(places) == {place: count for place, (count, _) in PLACES.items()}


def test_list_has_every_line_of_a_shell_script_that_does(root):
    words = r"\b(kill|pkill|killall|scancel|rm|mv|truncate|sed -i)\b"
    found = Counter()
    for path in sorted((root / "slurm").iterdir()):
        if path.suffix != ".py":
            code = (line.partition(" # ")[0] for line in path.read_text().splitlines() if not line.startswith("#"))
            found[path.name] += sum(re.search(words, line) is not None for line in code)
    assert dict(found) == {name: count for name, (count, _) in SHELL.items()}


def effects(tree):
    """Yield (function, call) for each call that may signal a process or change a file."""
    scopes = {}

    def visit(node, scope):
        for child in ast.iter_child_nodes(node):
            is_scope = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            inner = f"{scope}.{child.name}".lstrip(".") if is_scope else scope
            scopes[child] = inner
            visit(child, inner)

    visit(tree, "")
    for node, scope in scopes.items():
        if isinstance(node, ast.Call) and (name := effect_of(node)) is not None:
            yield scope or "module", name


def effect_of(call):
    """Return the name of what a call does if it has an effect of this kind, else None."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    if name == "open":
        return opened(call, owner)
    if name == "replace":  # of a path: one argument; of a string: two; dataclasses.replace: keywords
        return name if owner == "os" or (len(call.args) == 1 and not call.keywords and owner != "") else None
    if name == "save":
        return f"{owner}.save" if owner in ("torch", "np", "numpy") else "save"
    if name in ("copy", "move", "remove", "copytree"):  # lists and dictionaries have copy and remove
        return f"{owner}.{name}" if owner in ("shutil", "os") else None
    if any(one.arg == "is_own_place" and ast.unparse(one.value) == "True" for one in call.keywords):
        return f"{name} is_own_place"
    if any(isinstance(one, ast.Constant) and one.value == "scancel" for one in call.args):
        return "scancel"
    return name if name in CALLS else None


def opened(call, owner):
    """Return "open" with the mode, if a call opens a file for writing; appending changes nothing that is there."""
    if owner == "Image":
        return None
    if owner == "os":
        flags = ast.unparse(call.args[1]) if len(call.args) > 1 else ""
        return f"os.open {flags}" if re.search("O_(WRONLY|RDWR|TRUNC|CREAT)", flags) else None
    position = 0 if owner else 1
    modes = [one.value for one in call.args[position : position + 1] if isinstance(one, ast.Constant)]
    modes += [one.value.value for one in call.keywords if one.arg == "mode" and isinstance(one.value, ast.Constant)]
    known = [mode for mode in modes if isinstance(mode, str)]
    if not known and len(call.args) > position and owner not in ("tarfile", "zipfile"):
        return f"open {ast.unparse(call.args[position])}"
    return next((f"open {mode}" for mode in known if re.search(r"[wx+]", mode)), None)


CHILD = "a process that this one has started and not yet waited for, so that its pid is its own"
CACHE = "a file of the cache folder, which can be made again; its name has a digest of what it is made of"
LOCKED = "in the folder of a run, under its lock, by a name that belongs to the program"
TEMPORARY = "in a temporary folder of its own"
MEMORY = "into memory"

PLACES = {  # "file: function: call": how often, and why it is ours
    # the few functions that others use
    "isda_repro/files.py: atomic_write: open xb": (1, "a new file with a random name"),
    "isda_repro/files.py: atomic_write: replace": (1, "its callers are listed here"),
    "isda_repro/files.py: atomic_write: unlink": (1, "the new file that it has made itself"),
    "isda_repro/files.py: rename_aside: rename": (1, "to a name that is free: nothing is lost"),
    "isda_repro/files.py: write_output: atomic_write": (1, "there was no file, or one with the mark of this program"),
    # signals
    "isda_repro/runs/lock.py: _exists: kill": (1, "signal 0 only asks; the pid was checked to be a pid"),
    "isda_repro/sweeps/status.py: _signal_owner: kill": (
        1,
        "the pid of pid_here: same host, boot and start time, and the file lock is held",
    ),
    "isda_repro/sweeps/local.py: _Sweep._take: send_signal": (1, CHILD),
    "isda_repro/sweeps/local.py: _Sweep._watch_clock: kill": (1, CHILD),
    "isda_repro/sweeps/local.py: _Sweep._start: send_signal": (1, CHILD),
    "isda_repro/sweeps/slurm.py: TrainingJob.checkpoint: send_signal": (1, CHILD),
    "isda_repro/sweeps/slurm_queue.py: cancel_jobs: scancel": (
        1,
        "jobs of query_queue: this user's, whose script lies in .slurm of this runs_dir",
    ),
    "benchmarks/gpu/gpu.py: ended: killpg": (2, "the group of a child that was started as a session of its own"),
    "benchmarks/gpu/gpu_training.py: _the_same_bits: send_signal": (1, CHILD),
    # a run's folder
    "isda_repro/runs/lock.py: _is_locked: os.open os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW": (1, "writes nothing"),
    "isda_repro/runs/lock.py: FolderLock.__init__: FileLock": (1, "an empty file, or none: see _refuse_foreign_lock"),
    "isda_repro/runs/lock.py: FolderLock.__exit__: unlink": (2, "owner.json has this process's token; lock is empty"),
    "isda_repro/runs/lock.py: FolderLock._take: rename": (
        1,
        "over an owner.json whose owner is dead; one that is not ours was copied beside it",
    ),
    "isda_repro/runs/lock.py: FolderLock._take: unlink": (1, "the claim that this process has made"),
    "isda_repro/runs/lock.py: FolderLock._create: os.open os.O_CREAT | os.O_EXCL | os.O_WRONLY": (1, "a new file"),
    "isda_repro/runs/lock.py: FolderLock._create: unlink": (1, "the new file"),
    "isda_repro/runs/lock.py: _copy_aside: open xb": (1, "a new file"),
    "isda_repro/runs/exit_status.py: write_exit_status: atomic_write": (1, "one that is not ours is renamed first"),
    "isda_repro/runs/exit_status.py: clear_exit_status: unlink": (1, "one that is not ours is renamed first"),
    "isda_repro/runs/diverged.py: clear_divergence: unlink": (1, "one that is not ours is renamed instead"),
    "isda_repro/runs/records.py: write_result: atomic_write": (
        1,
        f"{LOCKED}; in results/ only a new file, or with overwrite=true",
    ),
    "isda_repro/runs/run_directory.py: write_environment: atomic_write": (1, f"{LOCKED}, which keeps what it replaces"),
    "isda_repro/config/frozen.py: write_frozen: atomic_write": (1, "config.yaml of a folder named after its content"),
    "isda_repro/sweeps/slurm_queue.py: note_job: atomic_write": (1, "job.json of a run that has no waiting job"),
    "isda_repro/tracking/jsonl.py: JsonLines._drop_after: truncate": (
        1,
        "what is cut off was copied and flushed first",
    ),
    "isda_repro/tracking/wandb.py: WandbTracker._begin: shutil.copy": (1, "into W&B's folder of this very run"),
    "isda_repro/tracking/wandb.py: WandbTracker._begin: save": (1, "W&B's: sends a file"),
    "isda_repro/tracking/wandb.py: WandbTracker._remove_unfinished: rmtree": (
        1,
        "W&B's folder of an offline run with this run's id, made again from metrics.jsonl",
    ),
    "isda_repro/training/checkpoint.py: save: atomic_write": (1, f"{LOCKED}, which is looked at before it is replaced"),
    "isda_repro/training/checkpoint.py: save: torch.save": (1, "into the file of atomic_write"),
    "isda_repro/training/checkpoint.py: Checkpoints._delete: unlink": (
        1,
        "exact names of checkpoints and their unfinished files; the lock is looked at before each",
    ),
    "isda_repro/training/checkpoint.py: Checkpoints._write: save": (1, "the function above"),
    "isda_repro/training/session.py: Session.finish: save": (1, "the function above"),
    "isda_repro/gan/pictures.py: draw_losses: write_figure is_own_place": (1, LOCKED),
    "isda_repro/gan/run.py: train_generator.epoch_ended: write_picture is_own_place": (1, LOCKED),
    # data
    "isda_repro/data/cifar.py: _download: replace": (1, "a file of the official archive whose checksum was wrong"),
    "isda_repro/data/folder.py: _write: atomic_write": (1, CACHE),
    "isda_repro/data/folder.py: _write: savez": (1, "into the file of atomic_write"),
    "isda_repro/data/augmentation/normalise.py: stored_statistics: atomic_write": (1, CACHE),
    "isda_repro/data/packed.py: _indexed: atomic_write": (1, CACHE),
    "isda_repro/data/packed.py: _indexed: savez": (1, "into the file of atomic_write"),
    "isda_repro/data/packing.py: Packing.encoded: save": (2, MEMORY),
    "isda_repro/data/packing.py: pack: atomic_write": (1, "the manifest of a folder that was empty or has the same"),
    "isda_repro/data/packing.py: _locked: FileLock": (1, "an empty file in a folder that it packs into"),
    "isda_repro/data/packing.py: _locked: unlink": (1, "that empty file, while its lock is held"),
    "isda_repro/data/packing.py: _check_content: unlink": (
        1,
        "an unfinished archive by its exact name, in a folder with our manifest, under the lock",
    ),
    "isda_repro/data/packing.py: _write_archive: atomic_write": (1, "an archive of a folder with our manifest"),
    # others
    "isda_repro/torch_files.py: _of_archive.read_storage: open entry": (1, "reads a part of an archive"),
    "isda_repro/console.py: _silence: os.open os.O_WRONLY": (1, "/dev/null"),
    "isda_repro/experiments/compose_cache.py: ComposeCache.keep: atomic_write": (1, CACHE),
    "isda_repro/revision.py: record: atomic_write": (1, "revision.json of this project's own checkout, ignored by git"),
    "isda_repro/tables/dashboards.py: sent: save": (1, "W&B's: the dashboard that the user has named, or a new one"),
    "isda_repro/sheets.py: write_picture: save": (1, MEMORY),
    "isda_repro/plotting.py: write_figure: savefig": (1, MEMORY),
    "benchmarks/data_wait.py: second_epoch: open w": (1, "/dev/null"),
    "benchmarks/training_rate.py: trainer_epoch: open w": (1, "/dev/null"),
    "benchmarks/gpu/gpu.py: ended: open w": (1, TEMPORARY),
    "benchmarks/gpu/gpu_sections.py: jpegs: save": (1, MEMORY),
    "benchmarks/gpu/gpu_sections.py: jpegs: write_bytes": (1, TEMPORARY),
    "benchmarks/gpu/measuring.py: Findings._write: atomic_write": (1, TEMPORARY),
    "benchmarks/input_pipeline.py: _file_splits: symlink_to": (1, TEMPORARY),
    "benchmarks/packing.py: images_per_second: write_text": (1, TEMPORARY),
    "benchmarks/table_speed.py: make_runs: write_text": (2, TEMPORARY),
}

SHELL = {  # file: number of lines, and why they are ours
    "cluster_down.sh": (5, "pids with the start times that cluster_up.sh noted, and the jobs of that cluster"),
    "cluster_up.sh": (4, "below SLURM_DIR, which is new or has its mark; the lines in /etc/hosts that it has marked"),
    "train.sbatch": (3, "its own step of its own job"),
}
