"""Weights from files: names that fit, files that are refused, and runs that use them."""

import copy
import datetime
import os
import pickle
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from interrupted_runs import settings
from omegaconf import OmegaConf
from safetensors.torch import save_file

from isda_repro import torch_files
from isda_repro.config import build, compose
from isda_repro.errors import UserError
from isda_repro.models import ResNet, imagenet_densenet, timm_network
from isda_repro.models.weights import WeightsError, load_weights
from isda_repro.training import builders
from isda_repro.training import evaluate as evaluation
from isda_repro.training.compute import resolve_compute
from isda_repro.training.run import run


@pytest.fixture(scope="module")
def theirs():
    """Return torchvision's ResNet-18 with weights and statistics of its own."""
    torch.manual_seed(5)
    model = torchvision.models.resnet18()
    model(torch.randn(4, 3, 32, 32))
    return model.eval()


def ours(classes=1000):
    return timm_network("resnet18", classes, image_size=32).eval()


def assert_equal(network, model):
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network.eval()(images).logits, model.eval()(images), rtol=1e-5, atol=1e-5)


def wrapped(state, *prefixes):
    for prefix in prefixes:
        state = {prefix + name: tensor for name, tensor in state.items()}
    return state


WRAPPED = {  # forms in which other programs save a state_dict
    "torchvision": lambda state: state,
    "the ISDA authors'": lambda state: {
        "epoch": 90, "arch": "resnet18", "state_dict": wrapped(state, "module."), "best_acc1": np.float64(70.0)
    },
    "timm's training": lambda state: {
        "args": Namespace(lr=0.1, opt="sgd"), "state_dict": {}, "state_dict_ema": wrapped(state, "module.")
    },
    "Lightning's, compiled": lambda state: {"state_dict": wrapped(state, "_orig_mod.", "model.")},
    "a classifier by another name": lambda state: {name.replace("fc.", "classifier."): state[name] for name in state},
    "no counts of batches": lambda state: {name: state[name] for name in state if "num_batches" not in name},
    "in half precision": lambda state: {name: tensor.half() for name, tensor in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("writer", [*WRAPPED, "timm's hub"])
def test_whoever_wrote_the_file_the_network_answers_as_theirs(tmp_path, theirs, writer):
    model, path = copy.deepcopy(theirs), tmp_path / "model.pth"
    if writer == "in half precision":
        model = model.half().float()
    if writer == "timm's hub":
        path = tmp_path / "model.safetensors"
        save_file(model.state_dict(), path)
    else:  # PyTorch before 1.6 wrote no zip archive
        older = {"_use_new_zipfile_serialization": False} if writer == "the ISDA authors'" else {}
        torch.save(WRAPPED[writer](model.state_dict()), path, **older)
    network = ours()
    assert str(path) in load_weights(network, path, new_head=False)
    assert_equal(network, model)


@pytest.mark.parametrize(("classes", "without"), [(7, "nothing"), (1000, "fc.")], ids=["other classes", "no head"])
def test_a_head_that_is_not_in_the_file_is_left_as_it_is_where_that_is_wanted(tmp_path, theirs, classes, without):
    path = tmp_path / "model.pth"
    torch.save({name: one for name, one in theirs.state_dict().items() if not name.startswith(without)}, path)
    network = ours(classes)
    before = network.head.weight.clone()
    load_weights(network, path, new_head=True)
    assert torch.equal(network.head.weight, before)
    assert torch.equal(network.backbone.conv1.weight, theirs.conv1.weight)
    with pytest.raises(WeightsError, match=r"head\.weight.*head\.bias"):
        load_weights(ours(classes), path, new_head=False)


@pytest.mark.parametrize("dotted", [False, True], ids=["as now", "as torchvision's first"])
def test_densenets_of_torchvision_timm_and_the_authors(tmp_path, dotted):
    torch.manual_seed(0)
    path = tmp_path / "densenet.pth"
    model = timm.create_model("densenet121", num_classes=11)
    state = model.state_dict()
    if dotted:
        state = {re.sub(r"(layer\d+\.\w+?)(\d\.)", r"\1.\2", name): one for name, one in state.items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, path)
    network = imagenet_densenet(121, 11, image_size=32)
    load_weights(network, path, new_head=False)
    assert_equal(network, model)
    official = imagenet_densenet(121, 11, image_size=32, first_channels=24)
    with pytest.raises(WeightsError, match=r"features\.conv0\.weight 64x3x7x7 .*24x3x7x7"):
        load_weights(official, path, new_head=False)
    torch.save(official.state_dict(), path)
    with pytest.raises(WeightsError, match=r"features\.conv0\.weight 24x3x7x7 .*64x3x7x7.*faithful=official"):
        load_weights(network, path, new_head=False)


def test_another_network_is_named_key_by_key(tmp_path, theirs):
    path = tmp_path / "model.pth"
    torch.save(theirs.state_dict(), path)
    network = timm_network("resnet34", 1000, image_size=32)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(WeightsError, match=r"layer1\.2\.conv1\.weight"):
        load_weights(network, path, new_head=True)
    with pytest.raises(WeightsError, match=r"stem.*conv1\.weight"):
        load_weights(ResNet(20, num_classes=10), path, new_head=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items()), "nothing is touched"


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch raises it for quantised tensors
@pytest.mark.parametrize(
    "spoil",
    [
        lambda weight: weight.to(torch.int64),
        lambda weight: weight.to_sparse(),
        lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        lambda weight: weight.to("meta"),
        lambda weight: weight * torch.nan,
        lambda weight: torch.ones(()),
    ],
    ids=["integers", "sparse", "quantised", "meta", "nan", "shape"],
)
def test_weights_that_would_not_be_the_same_numbers_are_named(tmp_path, spoil):
    path, network = tmp_path / "model.pth", ResNet(8, num_classes=10)
    state = ResNet(8, num_classes=10).state_dict()
    before = copy.deepcopy(network.state_dict())
    torch.save({**state, "head.weight": spoil(state["head.weight"])}, path)
    with pytest.raises(WeightsError, match=r"head\.weight"):
        load_weights(network, path, new_head=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items()), "nothing is touched"


def test_counts_that_half_precision_cannot_hold_are_left_out(tmp_path):
    path, network = tmp_path / "model.pth", ResNet(8, num_classes=10)
    state = {name: tensor.half() for name, tensor in network.state_dict().items()}
    overflown = {name: one * torch.inf if name.endswith("num_batches_tracked") else one for name, one in state.items()}
    torch.save({"state_dict_ema": {}, "state_dict": {**overflown, "head.weight": torch.ones(10, 64)}}, path)
    load_weights(network, path, new_head=False)
    assert torch.equal(network.head.weight, torch.ones(10, 64))
    assert network.stem[1].num_batches_tracked.item() == 0


def test_a_matrix_that_nobody_calls_a_classifier_is_none(tmp_path, theirs):
    path = tmp_path / "model.pth"
    torch.save({name.replace("fc.", "auxiliary."): one for name, one in theirs.state_dict().items()}, path)
    with pytest.raises(WeightsError, match=r"head\.weight, head\.bias.*auxiliary\.weight"):
        load_weights(ours(), path, new_head=False)


class Code:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


@pytest.mark.parametrize(
    ("write", "token"),
    [
        (lambda path: torch.save({"state_dict": {}, "more": Code()}, path), r"posix\.system"),
        (lambda path: torch.save(ResNet(8, num_classes=10), path), r"isda_repro\.models\..*ResNet"),
        (lambda path: path.write_bytes(pickle.dumps(Code())), "model"),
        (lambda path: torch.save([1], path), "state_dict"),
        (lambda path: torch.save({}, path), "state_dict"),
        (lambda path: path.write_bytes(b""), "model"),
        (lambda path: path.write_text("<html>not found</html>"), "model"),
    ],
    ids=["code", "object", "pickle", "list", "nothing", "empty", "page"],
)
def test_what_is_not_weights_is_refused_and_no_code_runs(tmp_path, capfd, write, token):
    path = tmp_path / "model.pth"
    write(path)
    with pytest.raises(WeightsError, match=token) as caught:
        load_weights(ResNet(8, num_classes=10), path, new_head=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    out, err = capfd.readouterr()
    assert "must never run" not in out + err
    assert "weights_only" not in str(caught.value) + err, "PyTorch's advice is to run the code"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("how", ["truncated", "one bit flipped"])
def test_a_damaged_file_is_refused(tmp_path, theirs, suffix, how):
    """safetensors has no checksum, so that there a bit of the header is flipped."""
    path = tmp_path / f"model{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(theirs.state_dict(), path)
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    else:
        content[20 if suffix == ".safetensors" else len(content) // 2] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"model{suffix}"):
        load_weights(ours(), path, new_head=True)


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (RuntimeError("can't allocate memory"), RuntimeError),
        (OSError(5, "Input/output error"), OSError),
        (OSError(22, "Invalid argument"), WeightsError),  # zipfile fails like this on a damaged archive
    ],
)
def test_memory_and_disk_are_not_blamed_on_the_file(tmp_path, monkeypatch, trouble, expected):
    path = tmp_path / "model.pth"
    torch.save(ResNet(8, num_classes=10).state_dict(), path)

    def failing(*_arguments, **_options):
        raise trouble

    monkeypatch.setattr(torch_files, "open_regular", failing)
    with pytest.raises(expected, match=r"allocate|model\.pth"):
        load_weights(ResNet(8, num_classes=10), path, new_head=True)


class Settings(dict):
    """Stand-in for Lightning's AttributeDict: a class of the program that has written the file."""


def of_lightning(state, prefix="net.", **more):
    """Return the checkpoint of a LightningModule with a network and a criterion."""
    beside = {"criterion.statistics.count": torch.zeros(3), "criterion.statistics.mean": torch.zeros(3, 4)}
    return {
        "epoch": 3,
        "state_dict": {**wrapped(state, prefix), **beside, **more},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": Settings(data_dir=Path("somewhere"), lr=0.1, widths={1, 2}, name=np.str_("x")),
        "loops": {"state": Code()},
        "when": datetime.datetime(2026, 1, 1),
    }


@pytest.mark.parametrize("older", [False, True], ids=["now", "before PyTorch 1.6"])
@pytest.mark.parametrize(
    "prefix", ["net.", "model.", "backbone.", "", "net.module._orig_mod.", "_orig_mod.net.", "a.b.c.", "fc.", "layer1."]
)
def test_the_one_prefix_under_which_the_network_lies_is_found(tmp_path, theirs, capfd, prefix, older):
    path = tmp_path / "last.ckpt"
    written = of_lightning(theirs.state_dict(), prefix)
    if prefix == "":
        del written["state_dict"]["criterion.statistics.count"], written["state_dict"]["criterion.statistics.mean"]
    torch.save(written, path, **({"_use_new_zipfile_serialization": False} if older else {}))
    network = ours()
    said = load_weights(network, path, new_head=False)
    assert_equal(network, theirs)
    assert ("criterion.statistics.count" in said) == (prefix != "")
    assert "\n" not in said
    assert "must never run" not in "".join(capfd.readouterr())


def test_own_networks_are_found_under_a_prefix_too(tmp_path, theirs):
    path = tmp_path / "last.ckpt"
    for network in (ResNet(8, num_classes=10), ours()):
        torch.save(of_lightning(network.state_dict()), path)
        twin = copy.deepcopy(network)
        for weight in twin.parameters():
            weight.data.zero_()
        load_weights(twin, path, new_head=False)
        assert all(map(torch.equal, twin.state_dict().values(), network.state_dict().values()))


def test_two_copies_of_the_network_are_refused_by_their_prefixes(tmp_path):
    path, network = tmp_path / "last.ckpt", ResNet(8, num_classes=10)
    state = network.state_dict()
    torch.save(of_lightning(state, "student.", **wrapped(ResNet(8, num_classes=10).state_dict(), "teacher.")), path)
    with pytest.raises(WeightsError, match=r"student\..*teacher\."):
        load_weights(network, path, new_head=False)
    again = {name: one.detach() for name, one in state.items()}  # other objects with the same memory
    larger = wrapped(ResNet(20, num_classes=10).state_dict(), "teacher.")
    torch.save(of_lightning(state, "student.", **larger, **wrapped(again, "criterion.network.")), path)
    assert "student." in load_weights(network, path, new_head=False), "the same tensors, and another network"
    torch.save({"a": state, "b": state}, path)
    with pytest.raises(WeightsError, match=r"a, b"):
        load_weights(network, path, new_head=False)


def test_under_a_prefix_what_is_missing_or_of_another_shape_is_named(tmp_path):
    path, network = tmp_path / "last.ckpt", ResNet(8, num_classes=10)
    state = network.state_dict()
    name = next(iter(state))
    torch.save(of_lightning({key: one for key, one in state.items() if key != name}), path)
    with pytest.raises(WeightsError, match=rf"missing: {re.escape(name)}"):
        load_weights(network, path, new_head=False)
    torch.save(of_lightning({**state, name: torch.zeros(2, 2)}), path)
    with pytest.raises(WeightsError, match=rf"{re.escape(name)} 2x2 for"):
        load_weights(network, path, new_head=False)
    torch.save(of_lightning({**state, name: Code()}), path)
    with pytest.raises(WeightsError, match=re.escape(name)):
        load_weights(network, path, new_head=False)


def cfg_of(cfg, *true):
    """Return the configuration with some settings set to true."""
    return OmegaConf.merge(cfg, dict.fromkeys(true, True))


def test_a_run_begins_with_the_weights_of_another_and_resumes(tmp_path, monkeypatch, capsys):
    first = run(settings(tmp_path))
    weights = tmp_path / first.run_id / "checkpoint.pt"
    cfg = settings(tmp_path, f"model.weights={weights}", "recipe.lr=1e-12", "recipe.weight_decay=0")
    assert cfg.run_id != first.run_id
    second = run(cfg)
    assert str(weights) in capsys.readouterr().out
    assert second.curves["test_error"][0] == pytest.approx(first.test_error_final, abs=6), "statistics go on moving"
    begun, ended = (torch.load(tmp_path / one / "checkpoint.pt")["network"] for one in (first.run_id, second.run_id))
    torch.testing.assert_close(ended["head.weight"], begun["head.weight"])
    moved = weights.rename(tmp_path / "moved.pt")
    assert settings(tmp_path, f"model.weights={moved}", "recipe.lr=1e-12", "recipe.weight_decay=0").run_id == cfg.run_id
    with pytest.raises(UserError, match=r"model\.weights=.*checkpoint\.pt"):
        run(cfg_of(cfg, "force"))
    torch.save({}, weights)
    with pytest.raises(UserError, match=rf"checkpoint\.pt.*{cfg.model.weights_sha256}"):
        run(cfg_of(cfg, "force"))
    with pytest.raises(UserError, match=r"model\.weights_sha256=0f.*model\.weights="):
        settings(tmp_path, "model.weights_sha256=0f")
    with pytest.raises(UserError, match=r"model\.weights=nowhere"):
        settings(tmp_path, "model.weights=nowhere")


def test_evaluate_py_takes_a_file_of_weights(load_script, tmp_path, capsys):
    network = timm_network("resnet18", 10, image_size=8)
    torch.save({f"module.{name}": one for name, one in network.backbone.state_dict().items()}, tmp_path / "half.pth")
    whole = {name.removeprefix("backbone.").replace("head.", "fc."): one for name, one in network.state_dict().items()}
    torch.save(whole, tmp_path / "whole.pth")
    settings = ["dataset=digits", "dataset.test_limit=20", "model=timm", "model.name=resnet18", "recipe=digits"]

    def evaluate(*arguments):
        load_script("evaluate").main([*settings, "compute.precision=fp32", *arguments])

    evaluate(f"model.weights={tmp_path / 'whole.pth'}")
    cfg = compose([*settings, "compute.precision=fp32"])
    compute, source = resolve_compute(cfg.compute), build(cfg.dataset.source)
    found = evaluation.evaluate(network, builders.build_loaders(cfg, source, compute)[1].epoch(0), compute)
    said = capsys.readouterr().out
    assert f" {found.loss:.4f}" in said
    assert f" {found.error:.2f}%" in said
    with pytest.raises(WeightsError, match=r"head\.weight, head\.bias"):
        evaluate(f"model.weights={tmp_path / 'half.pth'}")
    with pytest.raises(UserError, match=r"model\.weights"):
        evaluate()
