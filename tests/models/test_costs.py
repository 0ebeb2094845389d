"""The counts of ``scripts/models.py`` against formulas, Table 1 and the committed counts."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from isda_repro.config import CONF_DIR, compose
from isda_repro.tables.costs import cost_of, networks

SLOW = {"resnet101", "resnet152", "resnext101_32x8d", "densenet121", "densenet265", "densenet_bc190_40"}
QUICK = {"resnet8", "densenet_bc100_12"}
MODELS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml") if path.stem != "timm")


@pytest.fixture(scope="module")
def models(load_script):
    return load_script("models")


def marked(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name.split()[0] in SLOW else name for name in names]


def settings(model, dataset):
    return OmegaConf.to_container(compose([f"model={model}", f"dataset={dataset}"]))


@pytest.mark.parametrize(
    "model",
    marked(["resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "densenet121", "densenet265"]),
)
def test_isdas_theoretical_cost_equals_table_1s(models, model):
    """The paper's figures hold for DenseNets with 24 first channels, as in the authors' code."""
    cost = models.count(model, *(["faithful=official"] if model.startswith("densenet") else []))
    share = 100 * 5 * 1000 * cost.feature_dim / cost.multiply_adds
    assert f"{share:.2f}" == f"{models.paper(model)['cost_theoretical_pct']:.2f}"


@pytest.mark.parametrize(
    "model",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def test_cost_of_a_run_equals_the_count_of_its_network(models, model):
    counted = models.count(model)
    cost = cost_of(settings(model, "imagenet" if models.on_imagenet(model) else "cifar10"))
    found = cost.parameters, cost.multiply_adds, cost.feature_dim, cost.petaflop
    expected = counted.parameters, counted.multiply_adds, counted.feature_dim, pytest.approx(counted.petaflop)
    assert found == expected


@pytest.mark.parametrize(
    "name",
    ["resnet8", "shake_shake26_2x32d faithful=official", *marked(["densenet121 faithful=official"])],
)
def test_committed_counts_equal_the_counters(models, name):
    assert networks()[name] == models.entry(*name.split())


def test_all_models_are_counted_and_written_to_a_file(models, tmp_path, monkeypatch):
    assert set(MODELS) <= set(networks())
    monkeypatch.setattr(models, "VARIANTS", [("resnet20", "model.checkpointed=true")])
    monkeypatch.setattr(models, "COUNTED_TOO", [("resnet8", "model.depth=14")])
    models.write_data(tmp_path / "costs.json", ["resnet8"])
    written = json.loads((tmp_path / "costs.json").read_text())
    assert list(written) == ["made_by", "resnet8", "resnet8 model.depth=14"]
    assert written["resnet8"] == networks()["resnet8"]
    lines = (CONF_DIR.parent / "isda_repro" / "tables" / "costs.json").read_text().splitlines()
    assert (tmp_path / "costs.json").read_text().splitlines()[1] in lines


def test_multiply_adds_of_a_residual_network_equal_a_calculation_by_hand(models):
    """The convolutions of ResNet-20 are written out."""
    stem, head = 27 * 16 * 32**2, 640
    first = 6 * 9 * 16 * 16 * 32**2
    second = (9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32) * 16**2
    third = (9 * 32 * 64 + 5 * 9 * 64 * 64 + 32 * 64) * 8**2
    cost = models.count("resnet20")
    assert cost.multiply_adds == stem + first + second + third + head
    assert cost.petaflop == pytest.approx(
        6 * cost.multiply_adds * 50_000 * compose(["model=resnet20"]).recipe.epochs / 1e15
    )


def test_committed_table_has_the_scripts_rows(models, root):
    """One row that is cheap to compute is compared, and the number of rows."""
    lines = (root / "results" / "models.md").read_text().splitlines()
    assert models.row("resnet32") in lines
    assert sum(line.startswith("| `") for line in lines) == 1 + len(MODELS) + len(models.VARIANTS)


def test_memory_for_the_gradient_of_a_known_network(models):
    """The input of a convolution is kept for the gradient; a ReLU in place keeps its output."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(4, 2, 1))
    kept = models.bytes_for_gradient(network, torch.randn(1, 3, 8, 8))
    assert kept == 4 * (3 * 64 + 4 * 64)


def test_unknown_model_is_named(models, monkeypatch):
    monkeypatch.setattr("sys.argv", ["models.py", "only=[resnet5]"])
    with pytest.raises(ValueError, match="resnet5"):
        models.main()
