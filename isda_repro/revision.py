"""Git revision of this code: of its checkout, or as ``make revision`` recorded it for copies without ``.git``.

python -m isda_repro.revision    # writes revision.json, to be copied with the code; needs only Python and git
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from isda_repro.console import say
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
FILE = "revision.json"
CODE = ("isda_repro", "conf", "train.py")  # files that can change a result
OWN = ("pyproject.toml", "isda_repro/revision.py", "conf/train.yaml")  # files that this project's repository tracks
MOST_DIFF = 100_000  # characters
OTHERS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")  # set where a hook runs


@dataclass(frozen=True)
class Revision:
    """Git revision of the code; a field is None if it is unknown.

    Attributes:
        git_revision: hash of the commit.
        git_clean: True if ``CODE`` has no uncommitted changes.
        git_diff: output of ``git diff HEAD`` for ``CODE``, at most ``MOST_DIFF`` characters of it.
    """

    git_revision: str | None = None
    git_clean: bool | None = None
    git_diff: str | None = None


def revision() -> Revision:
    """Return the revision of this code. ``revision.json`` is read only if there is no ``.git``.

    Code that was changed after recording is not clean.
    """
    return _of_checkout() if (ROOT / ".git").exists() else _recorded()


def why_unknown() -> str:
    """Return a sentence that the revision is unknown, and what to do about it."""
    if (ROOT / ".git").exists():
        advice = f"{ROOT / '.git'} is another project's, or git cannot read it, which git status explains"
    else:
        advice = "make revision, in the git checkout before it is copied, records it"
    return f"the revision of this code is unknown, and will not be in the result: {advice}"


def record() -> Path:
    """Write ``revision.json`` and return its path.

    Raises:
        UserError: the code is not in a git checkout with a commit.
    """
    found = _of_checkout()
    if found.git_revision is None:
        raise UserError(f"{ROOT} is no git checkout with a commit: record the revision there, and copy {FILE} with it")
    with atomic_write(ROOT / FILE) as file:
        file.write((json.dumps({**asdict(found), "code": _digest()}, indent=1) + "\n").encode())
    return ROOT / FILE


def _of_checkout() -> Revision:
    """Return the revision that git reports, if the repository is this project's.

    It is not if it belongs to a folder above this one, or if this code only lies in somebody else's repository: then
    neither its commit nor its changes are ours to record.
    """
    if _git("rev-parse", "--show-toplevel") != str(ROOT) or not _is_own():
        return Revision()
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--ignore-submodules", "--", *CODE)
    diff = _git("diff", "--no-ext-diff", "--no-textconv", "--ignore-submodules", "HEAD", "--", *CODE)
    if diff is not None and len(diff) > MOST_DIFF:
        diff = f"{diff[:MOST_DIFF]}\n(the first {MOST_DIFF:,} of {len(diff):,} characters)"
    return Revision(commit, None if changes is None else changes == "", diff)


def _is_own() -> bool:
    """Return whether the last commit has the files of this project, with its name in ``pyproject.toml``."""
    tracked = _git("ls-tree", "--name-only", "HEAD", "--", *OWN) or ""
    about = _git("show", "--no-ext-diff", "--no-textconv", "HEAD:pyproject.toml") or ""
    return set(tracked.splitlines()) == set(OWN) and f'name = "{__package__}"' in about


def _recorded() -> Revision:
    try:
        noted = json.loads((ROOT / FILE).read_text(encoding="utf-8"))
        is_clean = bool(noted["git_clean"]) and noted["code"] == _digest()
        return Revision(str(noted["git_revision"]), is_clean, str(noted["git_diff"])[: 2 * MOST_DIFF])
    except (OSError, ValueError, KeyError, TypeError):
        return Revision()


def _digest() -> str:
    """Return a hash of the names and contents of the files of ``CODE``."""
    found = [path for name in CODE for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    digest = hashlib.sha256()
    for path in sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(ROOT).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    mine = {name: value for name, value in os.environ.items() if name not in OTHERS}
    command = ["git", *arguments]
    try:
        answer = subprocess.run(
            command, cwd=ROOT, env=mine, capture_output=True, text=True, errors="replace", timeout=10, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


if __name__ == "__main__":
    with one_sentence_errors():
        if sys.argv[1:]:
            raise UserError(f"{sys.argv[1]} is not an option: python -m isda_repro.revision takes none")
        say(f"wrote {record()}")
