"""Weights from files: whose names fit, what is refused, and what they are good for afterwards."""

import copy
import os
import pickle
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from interrupted_runs import settings
from omegaconf import OmegaConf
from safetensors.torch import save_file

from isda_repro.config import compose
from isda_repro.errors import UserError
from isda_repro.models import ResNet, imagenet_densenet, timm_network
from isda_repro.training.run import run
from isda_repro.training.weights import WeightsError, load_weights


@pytest.fixture(scope="module")
def theirs():
    """torchvision's ResNet-18, with weights and statistics that nobody else has."""
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


WRITERS = {
    "torchvision": lambda state, path: torch.save(state, path),
    "torchvision, before PyTorch 1.6": lambda state, path: torch.save(
        state, path, _use_new_zipfile_serialization=False
    ),
    "the ISDA authors'": lambda state, path: torch.save(
        {"epoch": 90, "arch": "resnet18", "state_dict": wrapped(state, "module."), "best_acc1": np.float64(70.0)},
        path,
        _use_new_zipfile_serialization=False,
    ),
    "timm's training": lambda state, path: torch.save(
        {"args": Namespace(lr=0.1, opt="sgd"), "state_dict": {}, "state_dict_ema": wrapped(state, "module.")}, path
    ),
    "timm's hub": lambda state, path: save_file(state, path),
    "Lightning's, compiled": lambda state, path: torch.save(
        {"state_dict": wrapped(state, "_orig_mod.", "model.")}, path
    ),
    "a classifier by another name": lambda state, path: torch.save(
        {name.replace("fc.", "classifier."): tensor for name, tensor in state.items()}, path
    ),
    "no counts of batches": lambda state, path: torch.save(
        {name: tensor for name, tensor in state.items() if "num_batches" not in name}, path
    ),
    "in half precision": lambda state, path: torch.save({name: tensor.half() for name, tensor in state.items()}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_wrote_the_file_the_network_answers_as_theirs(tmp_path, theirs, writer):
    model = copy.deepcopy(theirs)
    if writer == "in half precision":
        model = model.half().float()
    path = tmp_path / ("model.safetensors" if writer == "timm's hub" else "model.pth")
    WRITERS[writer](model.state_dict(), path)
    network = ours()
    count = len(model.state_dict()) - (20 if writer == "no counts of batches" else 0)
    assert load_weights(network, path, new_head=False) == f"{path}: {count} tensors taken"
    assert_equal(network, model)


def test_a_head_for_other_classes_is_left_as_it_is_where_that_is_wanted(tmp_path, theirs):
    path = tmp_path / "model.pth"
    torch.save(theirs.state_dict(), path)
    network = ours(7)
    before = network.head.weight.clone()
    said = load_weights(network, path, new_head=True)
    assert said == f"{path}: 120 tensors taken; its head is for 1000 classes, and a new one for 7 classes is trained"
    assert torch.equal(network.head.weight, before)
    assert torch.equal(network.backbone.conv1.weight, theirs.conv1.weight)
    with pytest.raises(WeightsError, match=r"of another shape: head\.weight 1000x512 for 7x512, head\.bias 1000 for 7"):
        load_weights(ours(7), path, new_head=False)


def test_a_backbone_without_a_head_is_enough_to_begin_with(tmp_path, theirs):
    path = tmp_path / "model.pth"
    torch.save({name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc")}, path)
    assert "its head is missing, and a new one for 1000 classes is trained" in load_weights(ours(), path, new_head=True)
    with pytest.raises(WeightsError, match=r"missing: head\.weight, head\.bias$"):
        load_weights(ours(), path, new_head=False)


@pytest.mark.parametrize("dotted", [False, True], ids=["as now", "as torchvision's first"])
def test_densenets_of_torchvision_timm_and_the_authors(tmp_path, dotted):
    torch.manual_seed(0)
    path = tmp_path / "densenet.pth"
    model = timm.create_model("densenet121", num_classes=11)
    state = model.state_dict()
    if dotted:
        for number in "12":
            for layer in ("norm", "conv"):
                state = {name.replace(f"{layer}{number}.", f"{layer}.{number}."): one for name, one in state.items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, path)
    network = imagenet_densenet(121, 11, image_size=32)
    load_weights(network, path, new_head=False)
    assert_equal(network, model)
    official = imagenet_densenet(121, 11, image_size=32, first_channels=24)
    with pytest.raises(WeightsError, match=r"features\.conv0\.weight 64x3x7x7 for 24x3x7x7.* more$"):
        load_weights(official, path, new_head=False)
    torch.save(official.state_dict(), path)
    with pytest.raises(WeightsError, match=r"features\.conv0\.weight 24x3x7x7 for 64x3x7x7.*need faithful=official"):
        load_weights(network, path, new_head=False)


def test_another_network_is_named_key_by_key(tmp_path, theirs):
    path = tmp_path / "model.pth"
    torch.save(theirs.state_dict(), path)
    network = timm_network("resnet34", 1000, image_size=32)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(WeightsError, match=r"does not fit this network: missing: layer1\.2\.conv1\.weight, .* more$"):
        load_weights(network, path, new_head=True)
    with pytest.raises(WeightsError, match=r"missing: stem.*; not of this network: .*conv1\.weight"):
        load_weights(ResNet(20, num_classes=10), path, new_head=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items()), "nothing is touched"


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, of quantised tensors
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda weight: weight.to(torch.int64), "not plain floating-point numbers"),
        (lambda weight: weight.to(torch.complex64), "not plain floating-point numbers"),
        (lambda weight: weight.to_sparse(), "not plain floating-point numbers"),
        (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "not plain floating-point numbers"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "not plain floating-point numbers"),
        (lambda weight: weight.to("meta"), "not plain floating-point numbers"),
        (lambda weight: weight * torch.nan, "not finite"),
        (lambda weight: torch.ones(()), "of another shape"),
    ],
)
def test_weights_that_would_not_be_the_same_numbers_are_named(tmp_path, spoil, what):
    path = tmp_path / "model.pth"
    state = ResNet(8, num_classes=10).state_dict()
    torch.save({**state, "head.weight": spoil(state["head.weight"])}, path)
    with pytest.raises(
        WeightsError, match=rf"does not fit this network: {what}: head\.weight( one number for 10x64)?$"
    ):
        load_weights(ResNet(8, num_classes=10), path, new_head=False)


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
    with pytest.raises(
        WeightsError, match=r"missing: head\.weight, head\.bias; not of this network: auxiliary\.weight"
    ):
        load_weights(ours(), path, new_head=False)


class Code:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (
            lambda path: torch.save({"state_dict": {}, "more": Code()}, path),
            r"holds code \(posix\.system\), which is never",
        ),
        (
            lambda path: torch.save(ResNet(8, num_classes=10), path),
            r"holds code \(isda_repro\.models\.resnet\.ResNet\), which is never run",
        ),
        (lambda path: path.write_bytes(pickle.dumps(Code())), r"model\.pth (holds code|cannot be read as weights)"),
        (lambda path: torch.save([1], path), r"holds no weights: it must be a state_dict, alone or under network, "),
        (lambda path: torch.save({}, path), "holds no weights"),
        (lambda path: path.write_bytes(b""), r"cannot be read as weights: EOFError"),
        (
            lambda path: path.write_text("<html>not found</html>"),
            "cannot be read as weights: it is no state_dict that torch.save wrote",
        ),
    ],
)
def test_what_is_not_weights_is_one_sentence_and_no_code_runs(tmp_path, capfd, write, sentence):
    path = tmp_path / "model.pth"
    write(path)
    with pytest.raises(WeightsError, match=sentence) as caught:
        load_weights(ResNet(8, num_classes=10), path, new_head=True)
    assert "\n" not in str(caught.value)
    out, err = capfd.readouterr()
    assert "must never run" not in out + err
    assert "weights_only" not in str(caught.value) + err


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("how", ["truncated", "one bit flipped"])
def test_a_damaged_file_is_refused(tmp_path, theirs, suffix, how):
    """But for a flipped bit in safetensors, which have no checksum."""
    path = tmp_path / f"model{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(theirs.state_dict(), path)
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif suffix == ".safetensors":
        content[20] ^= 0x80
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.\w+ (is damaged: the checksum|cannot be read as weights)"):
        load_weights(ours(), path, new_head=True)


def test_memory_and_disk_are_not_blamed_on_the_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    torch.save(ResNet(8, num_classes=10).state_dict(), path)
    for trouble, expected in (
        (RuntimeError("can't allocate memory"), RuntimeError),
        (OSError(5, "Input/output error"), OSError),
    ):

        def failing(*_arguments, trouble=trouble, **_options):
            raise trouble

        with monkeypatch.context() as patch:
            patch.setattr("torch.load", failing)
            with pytest.raises(expected, match=r"allocate|Input/output error: .*model\.pth"):
                load_weights(ResNet(8, num_classes=10), path, new_head=True)


def cfg_of(cfg, *true):
    """With some settings true."""
    return OmegaConf.merge(cfg, dict.fromkeys(true, True))


def test_a_run_begins_with_the_weights_of_another_and_resumes(tmp_path, monkeypatch, capsys):
    first = run(settings(tmp_path))
    weights = tmp_path / first.run_id / "checkpoint.pt"
    cfg = settings(tmp_path, f"model.weights={weights}", "recipe.lr=1e-12", "recipe.weight_decay=0")
    assert cfg.run_id != first.run_id
    second = run(cfg)
    assert f"{weights}: " in capsys.readouterr().out
    assert second.curves["test_error"][0] == pytest.approx(first.test_error_final, abs=6), "statistics go on moving"
    begun, ended = (torch.load(tmp_path / one / "checkpoint.pt")["network"] for one in (first.run_id, second.run_id))
    torch.testing.assert_close(ended["head.weight"], begun["head.weight"])
    moved = weights.rename(tmp_path / "moved.pt")
    assert settings(tmp_path, f"model.weights={moved}", "recipe.lr=1e-12", "recipe.weight_decay=0").run_id == cfg.run_id
    with pytest.raises(UserError, match=r"model\.weights=.*checkpoint\.pt is no file"):
        run(cfg_of(cfg, "force"))
    torch.save({}, weights)
    with pytest.raises(UserError, match=r"checkpoint\.pt is not the file it was \(its SHA-256 is .*, not "):
        run(cfg_of(cfg, "force"))
    with pytest.raises(UserError, match=r"model\.weights=nowhere is no file"):
        settings(tmp_path, "model.weights=nowhere")


def test_weights_and_pretrained_exclude_each_other():
    with pytest.raises(ValueError, match=r"model\.weights=a and model\.pretrained=true exclude each other"):
        compose(["model=resnet50", "model.weights=a", "model.pretrained=true"])


@pytest.mark.parametrize("weights", ["''", "3", "[a]"])
def test_weights_are_the_name_of_a_file(weights):
    with pytest.raises(ValueError, match=r"model\.weights=.* must be a file, or null"):
        settings("runs", f"model.weights={weights}")


@pytest.mark.slow
def test_evaluate_py_takes_a_file_of_weights(root, tmp_path):
    network = timm_network("resnet18", 10, image_size=8)
    torch.save({f"module.{name}": one for name, one in network.backbone.state_dict().items()}, tmp_path / "half.pth")
    whole = {name.removeprefix("backbone.").replace("head.", "fc."): one for name, one in network.state_dict().items()}
    torch.save(whole, tmp_path / "whole.pth")

    def evaluate(*arguments):
        more = ["dataset=digits", "dataset.test_limit=20", "model=timm", "model.name=resnet18", "recipe=digits"]
        command = [sys.executable, "scripts/evaluate.py", *more, *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)

    good = evaluate(f"model.weights={tmp_path / 'whole.pth'}")
    assert good.returncode == 0, good.stderr
    taken, images, error = good.stdout.splitlines()
    assert taken == f"{tmp_path / 'whole.pth'}: 122 tensors taken"
    assert images == "timm_resnet18 on 20 images of digits (test)"
    assert error.startswith("loss ")
    for bad, sentence in (
        (
            evaluate(f"model.weights={tmp_path / 'half.pth'}"),
            "does not fit this network: missing: head.weight, head.bias",
        ),
        (evaluate(), "give run=runs/<run_id>, or model= and dataset= with model.weights=FILE"),
    ):
        assert bad.returncode == 2
        assert sentence in bad.stderr
        assert bad.stderr.count("\n") == 1
