"""The revision that a checkout, a copy of it, and a copy inside another repository report."""

import json
import shutil
import subprocess
import sys

import pytest

from isda_repro import revision as module
from isda_repro.revision import revision


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def record(folder, *arguments):
    command = [sys.executable, "-m", "isda_repro.revision", *arguments]
    return subprocess.run(command, cwd=folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path, root):
    """Return a Git repository with the files of the project that determine a revision, and a configuration."""
    folder = tmp_path / "checkout"
    (folder / "conf").mkdir(parents=True)
    (folder / "isda_repro").mkdir()
    for name in ("__init__", "revision", "console", "errors", "files"):
        shutil.copy(root / "isda_repro" / f"{name}.py", folder / "isda_repro")
    for name in (".gitignore", "pyproject.toml", "conf/train.yaml"):
        shutil.copy(root / name, folder / name)
    (folder / "conf" / "a.yaml").write_text("a: 1")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    return folder


def said_of(folder, monkeypatch):
    monkeypatch.setattr(module, "ROOT", folder.resolve())
    found = revision()
    return found.git_revision, found.git_clean


@pytest.mark.parametrize("clean", [True, False])
def test_revision_is_the_checkouts_and_goes_into_its_copies(checkout, tmp_path, monkeypatch, clean):
    if not clean:
        (checkout / "conf/a.yaml").write_text("a: 2")
    (checkout / "results").mkdir()
    (checkout / "results/new").write_text("of no interest")
    expected = (git(checkout, "rev-parse", "HEAD"), clean)
    assert said_of(checkout, monkeypatch) == expected
    assert record(checkout).returncode == 0
    assert "revision.json" not in git(checkout, "status", "--porcelain")
    shutil.copytree(checkout, copy := tmp_path / "copy", ignore=shutil.ignore_patterns(".git"))
    assert said_of(copy, monkeypatch) == expected
    assert clean or "+a: 2" in revision().git_diff
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "copy")
    git(tmp_path, "commit", "-qm", "another project")
    assert said_of(copy, monkeypatch) == expected, "the repository around it is not its own"
    (copy / "isda_repro" / "__pycache__").mkdir(exist_ok=True)
    (copy / "isda_repro" / "__pycache__" / "x.pyc").touch()
    assert said_of(copy, monkeypatch) == expected
    (copy / "isda_repro" / "new.py").touch()
    assert said_of(copy, monkeypatch) == (expected[0], False), "it has changed since"


def test_record_is_not_believed_beside_git(checkout, monkeypatch):
    assert record(checkout).returncode == 0
    (checkout / "conf/a.yaml").write_text("a: 2")
    git(checkout, "commit", "-qam", "two")
    assert said_of(checkout, monkeypatch) == (git(checkout, "rev-parse", "HEAD"), True)
    (checkout / ".git" / "HEAD").unlink()
    assert said_of(checkout, monkeypatch) == (None, None)
    assert ".git" in module.why_unknown()


@pytest.mark.parametrize("text", [None, "{", "[]", "1", "{}", json.dumps({"git_revision": "a"})])
def test_copy_whose_record_is_missing_or_torn_is_unknown(tmp_path, monkeypatch, text):
    if text is not None:
        (tmp_path / "revision.json").write_text(text)
    assert said_of(tmp_path, monkeypatch) == (None, None)
    assert "make revision" in module.why_unknown()


@pytest.mark.parametrize(("arguments", "token"), [([], "copy"), (["now"], "now")])
def test_record_is_refused_outside_a_checkout(checkout, tmp_path, arguments, token):
    shutil.copytree(checkout, copy := tmp_path / "copy", ignore=shutil.ignore_patterns(".git"))
    done = record(copy, *arguments)
    assert (done.returncode, token in done.stderr, done.stderr.count("\n")) == (2, True, 1)
    assert not (copy / "revision.json").exists()


SECRET = "token = 'abc123'"


@pytest.mark.parametrize(
    "how", ["beside ours", "another project's", "copied into another", "ignored there", "of a hook"]
)
def test_changes_of_other_files_are_not_recorded(checkout, tmp_path, monkeypatch, how):
    """Somebody's repository has uncommitted secrets, in a tracked file."""
    folder = checkout
    (folder / "conf/a.yaml").write_text("a: 2")
    (folder / "secrets.py").write_text("")
    if how in ("beside ours", "another project's"):
        if how == "another project's":
            (folder / "pyproject.toml").write_text('[project]\nname = "thesis"')
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "more")
    else:
        other = tmp_path / "other"
        copy = other if how == "copied into another" else other / "isda"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".git"))
        (other / "secrets.py").write_text("")
        (other / "pyproject.toml").write_text("")
        (other / ".gitignore").write_text("isda" if how == "ignored there" else "")
        git(other, "init", "-q")
        git(other, "add", "-A")
        git(other, "commit", "-qm", "theirs")
        (other / "secrets.py").write_text(SECRET)
        if how == "of a hook":
            monkeypatch.setenv("GIT_DIR", str(other / ".git"))
            monkeypatch.setenv("GIT_WORK_TREE", str(other))
        else:
            folder = copy
    (folder / "secrets.py").write_text(SECRET)
    (folder / "conf/a.yaml").write_text("a: 3")
    monkeypatch.setattr(module, "ROOT", folder.resolve())
    found = revision()
    if how in ("beside ours", "of a hook"):
        assert found.git_revision == (monkeypatch.delenv("GIT_DIR", raising=False) or git(folder, "rev-parse", "HEAD"))
        assert "+a: 3" in found.git_diff
        assert not found.git_clean
    else:
        assert (found.git_revision, found.git_clean, found.git_diff) == (None, None, None)
        assert module.why_unknown()
    assert SECRET not in (found.git_diff or "")


def test_diff_is_bounded(checkout, monkeypatch):
    (checkout / "conf/a.yaml").write_text("\n".join(f"a{number}: 1" for number in range(module.MOST_DIFF)))
    monkeypatch.setattr(module, "ROOT", checkout.resolve())
    assert "+a1: 1" in revision().git_diff
    assert len(revision().git_diff) < module.MOST_DIFF + 200


def test_submodule_has_the_revision_of_its_own_repository(checkout, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(checkout), "isda")
    assert said_of(other / "isda", monkeypatch) == (git(checkout, "rev-parse", "HEAD"), True)
