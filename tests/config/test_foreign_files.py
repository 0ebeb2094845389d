"""Frozen configurations from somebody else: they are data, run no code, refer to nothing, and stay in runs_dir."""

import itertools
import os
import subprocess
import sys
from collections import defaultdict

import pytest
import yaml
from omegaconf import OmegaConf

from isda_repro.config import (
    CONF_DIR,
    build,
    build_loss,
    compose,
    compose_generator,
    naming,
    read_frozen,
    read_frozen_generator,
    read_frozen_run,
    run_id,
    target_class,
)
from isda_repro.config.checks import ConfigError
from isda_repro.config.generator import generator_id
from isda_repro.config.plain_yaml import MOST_BYTES
from isda_repro.config.targets import targets

BASE = "model=resnet8 dataset=digits tracking=offline"


def names_of(group):
    return sorted(path.stem for path in (CONF_DIR / group).glob("[!_]*.yaml"))


def composed_targets(node, place=""):
    """Yield (place, target, is partial) of a composed configuration."""
    if "_target_" in node:
        yield place, (node["_target_"], node.get("_partial_", False))
    for key, value in node.items():
        if isinstance(value, dict):
            yield from composed_targets(value, f"{place}.{key}".removeprefix("."))


def test_the_targets_are_those_that_conf_composes_and_no_others():
    found = defaultdict(set)
    groups = ("model", "dataset", "augmentation", "loss", "recipe", "synthetic")
    longest = max(len(names_of(group)) for group in groups)
    for names in itertools.islice(zip(*(itertools.cycle(names_of(group)) for group in groups), strict=False), longest):
        chosen = [f"{group}={name}" for group, name in zip(groups, names, strict=True)]
        declared = ["dataset.augment.image_size=32", *(["model.name=resnet18"] if "model=timm" in chosen else [])]
        declared += [] if "synthetic=none" in chosen else ["synthetic.generator=any"]
        for place, target in composed_targets(OmegaConf.to_container(compose([*chosen, *declared]))):
            found[place].add(target)
    for name in names_of("gan"):
        for place, target in composed_targets(OmegaConf.to_container(compose_generator([f"gan={name}"]))):
            found[place].add(target)
    assert found == targets(CONF_DIR)
    assert {name.rpartition(".")[0] for some in found.values() for name, _ in some} == {
        *(f"isda_repro.{package}" for package in ("losses", "models", "data", "training", "gan")),
        "torch.optim",
    }


def forged(cfg, changes, name_it=run_id):
    """Return the text of a frozen file with changed settings, and the run id that it would have."""
    plain = OmegaConf.to_container(cfg)
    identity = {key: plain.pop(key) for key in ("run_id", "numerics_version")}
    for key, value in changes.items():
        *above, last = key.split(".")
        node = plain
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return yaml.dump({**identity, **plain, "run_id": name_it(plain)}, allow_unicode=True)


CODE = {"_target_": "torch.hub.load", "repo_or_dir": "evil", "model": "m", "source": "local"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dataset.source": CODE}, "torch.hub.load"),
        ({"loss": {"_target_": "torch.load", "f": "evil.pt", "weights_only": False}}, "torch.load"),
        ({"loss._target_": "isda_repro.losses.isda.torch.load"}, "torch.load"),
        ({"loss._target_": "isda_repro.data.load_digits"}, "isda_repro.data.load_digits"),
        ({"model._target_": ["torch.load"]}, "model._target_"),
        ({"model.extra": {"_target_": "isda_repro.data.NoAugmentation"}}, "model.extra"),
        ({"model.extra": [{"_target_": "torch.load"}]}, "model.extra"),
        ({"tracking.evil": CODE}, "tracking.evil"),
        ({"loss._args_": ["evil"]}, "_args_"),
        ({"loss._partial_": True}, "isda_repro.losses.CrossEntropy"),
        ({"loss._recursive_": False}, "_recursive_"),
        ({"loss._convert_": "all"}, "_convert_"),
        ({"recipe._partial_": True}, "recipe._partial_"),
        ({"tracking.group": "${oc.env:SECRET}"}, "${oc.env:SECRET}"),
        ({"tracking.group": "a ${seed}"}, "${seed}"),
        ({"${seed}": 1}, "${seed}"),
        ({"tracking.group": "???"}, "???"),
        ({"choice.model": "../../escaped"}, "choice.model"),
        ({"choice.loss": ".hidden"}, "choice.loss"),
        ({"choice.loss": 65 * "a"}, "choice.loss"),
        ({"choice.dataset": "a\nb"}, "dataset"),
        ({"tracking.group": "a\nb"}, "tracking.group"),
        ({"tracking.group": "\x1b[2J"}, "control"),
        ({"tracking.group": 5000 * "a"}, "tracking.group"),
        ({"tracking.group": "caf\udce9"}, "tracking.group"),
        ({"seed": 10**400}, "seed"),
        ({"recipe.lr": 10**400}, "recipe.lr"),
    ],
)
def test_a_frozen_file_that_is_more_than_data_is_refused(composed, tmp_path, changes, named):
    path = tmp_path / "config.yaml"
    path.write_text(forged(composed(BASE), changes), encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ConfigError) as error:
        read_frozen(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gan.optimizer": {"_target_": "os.system", "command": "true"}}, "os.system"),
        ({"gan.optimizer._partial_": False}, "torch.optim.Adam"),
        ({"gan.game": CODE}, "torch.hub.load"),
        ({"choice.dataset": "../digits"}, "choice.dataset"),
    ],
)
def test_a_frozen_generator_that_is_more_than_data_is_refused(tmp_path, changes, named):
    path = tmp_path / "config.yaml"
    path.write_text(forged(compose_generator(["gan=acgan", "dataset=digits"]), changes, generator_id))
    for read in (read_frozen_generator, read_frozen_run):
        with pytest.raises(ConfigError) as error:
            read(path)
        assert named in str(error.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"run_id: &a [1]\nnumerics_version: *a", "*a"),
        (b"run_id: !!python/object/apply:os.system [evil]\nnumerics_version: 2", "os.system"),
        (b"run_id: 1\nrun_id: 2\nnumerics_version: 2", "run_id"),
        (b"run_id: " + 5000 * b"[", "deeper"),
        (b"run_id: a\n#" + MOST_BYTES * b"a", "bytes"),
        (b"run_id: \xff", "UTF-8"),
        (b"run_id: " + 5000 * b"9", "not YAML"),
        (b"? [a]\n: b", "not YAML"),
    ],
)
def test_a_file_that_is_no_plain_yaml_is_refused(tmp_path, content, named):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    for read in (read_frozen_run, read_frozen_generator):
        with pytest.raises(ConfigError) as error:
            read(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
        assert named in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    for read in (read_frozen, read_frozen_run, read_frozen_generator):
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            read(tmp_path / "config.yaml")


def test_a_frozen_file_elsewhere_does_not_choose_where_its_run_writes(composed, tmp_path):
    cfg = composed(BASE)
    for folder, is_run in (("somewhere", False), (cfg.run_id, True)):
        path = tmp_path / folder / "config.yaml"
        path.parent.mkdir()
        path.write_text(forged(cfg, {"runs_dir": "/chosen/by/others"}))
        if is_run:
            assert read_frozen_run(path).runs_dir == str(tmp_path.resolve())
        else:
            with pytest.raises(ConfigError, match="runs_dir=/chosen/by/others"):
                read_frozen_run(path)
        assert read_frozen(path).run_id == cfg.run_id, "it can still be looked at"


def test_a_command_runs_nothing_and_writes_nothing_for_a_file_with_code(root, composed, tmp_path):
    code = {"_target_": "subprocess.getoutput", "cmd": f"touch {tmp_path}/ran"}
    (tmp_path / "config.yaml").write_text(forged(composed(BASE), {"dataset.source": code}))
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    path = str(tmp_path / "config.yaml")
    for command in (["train.py", path], ["scripts/train_gan.py", path], ["scripts/evaluate.py", f"run={tmp_path}"]):
        done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "config.yaml"]


# ------------------------------------------------------------------------------------------------- building


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "builtins.eval"},
        {"_target_": "isda_repro.data.Chain", "one": {"_target_": "os.system", "command": "true"}},
        {"_target_": "isda_repro.data.Chain", "one": [{"_target_": "os.system"}]},
        {"_target_": "torch.optim.Adam", "params": []},
        {"_target_": "isda_repro.losses.ISDALoss", "_partial_": True},
        {"_target_": "isda_repro.data.NoAugmentation", "_args_": []},
        {"lr": 1},
    ],
)
def test_nothing_is_built_that_conf_does_not_have(node):
    with pytest.raises(ConfigError):
        build(OmegaConf.create(node))
    with pytest.raises(ConfigError):
        target_class(OmegaConf.create(node))


def test_nodes_are_built_from_the_inside_and_a_partial_one_is_a_function(composed):
    chain = build(composed(f"{BASE} augmentation=cutout").augmentation)
    assert type(chain).__name__ == "Chain"
    optimizer = build(compose_generator(["gan=acgan"]).gan.optimizer)
    assert optimizer.func.__name__ == "Adam"
    assert optimizer.keywords == {"lr": 2.0e-4, "betas": [0.5, 0.999]}
    loss = composed(f"{BASE} loss=isda")
    assert type(build_loss(loss, num_classes=3, feature_dim=2)) is target_class(loss.loss)


@pytest.mark.parametrize(
    "override",
    ["loss._target_=os.system", "+loss._args_=[1]", "+augmentation.one={_target_:os.system}", "+model._partial_=true"],
)
def test_an_override_chooses_no_code_either(override):
    with pytest.raises(ConfigError, match="_"):
        compose([*BASE.split(), override])


@pytest.mark.parametrize("override", ["hydra.searchpath=[a]", "+hydra.run.dir=a", "hydra/launcher=basic", "~hydra.run"])
def test_a_composition_takes_nothing_for_hydra_itself(override):
    with pytest.raises(ConfigError, match="hydra"):
        compose([*BASE.split(), override])


# --------------------------------------------------------------------------------------------------- naming


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("pets (1)", "pets (1)"),
        ("фото", "фото"),
        ("../../a", ".._.._a"),
        ("a\nb\tc\x00", "a_b_c_"),
        ("100% #1: 'a', \"b\"; c?", "100_ _1_ _a__ _b__ c_"),
        ("caf\udce9", "caf_"),
        (200 * "n", 57 * "n"),
        (60 * "я", 28 * "я"),
    ],
)
def test_a_run_id_is_a_file_name_whatever_a_data_set_is_called(settings, name, part):
    found = run_id(settings("dataset=folder data_dir=pets", **{"dataset.name": name}))
    assert found.startswith(f"wrn28_10-folder_{part}-baseline-ce-s0-")
    assert len(found.encode()) < 200
    assert naming.UNSAFE.search(found) is None


def test_run_ids_of_different_names_differ(settings):
    names = ["a/b", "a_b", "a:b", 100 * "n", 101 * "n"]
    ids = {run_id(settings("dataset=folder data_dir=pets", **{"dataset.name": name})) for name in names}
    assert len(ids) == len(names)


def test_a_folder_whose_name_is_not_utf8_names_a_data_set(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    cfg = compose(["dataset=folder", f"data_dir={folder}", "model=resnet8"])
    assert cfg.dataset.name == "caf_"
    assert cfg.data_dir == folder
