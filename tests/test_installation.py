"""Imports and messages in an environment that has torch alone."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires

import pytest
from packaging.requirements import Requirement

COMMANDS = ["train", *(f"scripts/{name}" for name in ("sweep", "tables", "report", "evaluate", "dashboard", "data"))]
COMMANDS += [f"scripts/{name}" for name in ("models", "train_gan", "invert", "directions", "lambda_0", "bound")]
COMMANDS += [f"scripts/{name}" for name in ("gan_gallery", "gan_quality", "inversion_grid")]

HIDE = """
import runpy, sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

hidden = set(sys.argv.pop(1).split(","))
sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""

TEN_STEPS = """
import torch
from torch import nn
from isda_repro.losses import ISDALoss
from isda_repro.models import ResNet

assert not hidden.intersection(sys.modules)
torch.manual_seed(0)
network = ResNet(8, 10)
criterion = ISDALoss(num_classes=10, feature_dim=network.feature_dim, lambda_0=0.5)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
images, targets = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
losses = []
for step in range(10):
    features, logits = network(images)
    loss = criterion(features, logits, targets, head=network.head, progress=step / 10)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
assert not hidden.intersection(sys.modules)
"""

COMMAND = """
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def distribution(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def with_requirements(name, found):
    """Add a distribution and its requirements to ``found``, recursively and without extras."""
    if distribution(name) not in found:
        found.add(distribution(name))
        for line in requires(name) or ():
            required = re.match(r"[\w.-]+", line)[0]
            if "extra ==" not in line and distribution(required) in INSTALLED:
                with_requirements(required, found)
    return found


PROVIDERS = packages_distributions()
INSTALLED = {distribution(name) for names in PROVIDERS.values() for name in names}


@pytest.fixture(scope="module")
def hidden():
    """Return the packages of this environment that torch does not require, separated by commas."""
    of_torch = with_requirements("torch", {distribution("isda_repro")})
    return ",".join(
        package for package, names in PROVIDERS.items() if not of_torch.intersection(map(distribution, names))
    )


def run(code, hidden, root, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", HIDE + code, hidden, *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)


def test_torch_alone_trains_with_isda(hidden, root):
    assert {"numpy", "omegaconf", "torchvision"} <= set(hidden.split(","))
    done = run(TEN_STEPS, hidden, root)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_its_packages_says_how_to_install_them(command, hidden, root):
    done = run(COMMAND, f"{hidden},torch", root, f"{command}.py", "--help")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert 'pip install -e ".[train]"' in done.stderr


def test_a_package_without_conf_says_what_commands_need(root, tmp_path):
    """This is what ``pip install .`` gives; the losses work there."""
    shutil.copytree(root / "isda_repro", tmp_path / "isda_repro", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    imports = "import isda_repro.losses, isda_repro.config as c; print(c.__file__); c.compose()"
    scripts = root / "scripts"
    for command in ([scripts / "tables.py", "table=demo"], [scripts / "train_gan.py", "gan=acgan"], ["-c", imports]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert str(tmp_path) in done.stderr
        assert "pip install -e ." in done.stderr
    assert str(tmp_path) in done.stdout


def test_a_command_of_a_checkout_runs_in_any_folder(root, tmp_path):
    command = [sys.executable, root / "scripts" / "tables.py", "table=demo"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "ResNet-20 on digits" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_versions_of_hydra_with_known_holes_are_not_accepted(root):
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (hydra,) = (one for one in map(Requirement, extras["train"]) if one.name == "hydra-core")
    assert [hydra.specifier.contains(version) for version in ("1.3.2", "1.3.4", "1.3.6", "1.3.8")] == [False] * 3 + [
        True
    ]
