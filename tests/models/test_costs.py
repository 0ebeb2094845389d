"""``scripts/models.py``: Table 1's theoretical costs, and the first lines of each model's file."""

import re

import pytest

from isda_repro.config import CONF_DIR, compose

SLOW = {"resnet101", "resnet152", "resnext101_32x8d", "densenet121", "densenet265", "densenet_bc190_40"}
MODELS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml") if path.stem != "timm")


@pytest.fixture(scope="module")
def models(load_script, root, monkeypatch_module):
    monkeypatch_module.syspath_prepend(str(root / "scripts"))
    return load_script("models")


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def marked(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.mark.parametrize(
    "model",
    marked(["resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "densenet121", "densenet265"]),
)
def test_isdas_theoretical_cost_is_table_1s(models, model):
    """DenseNets as in the authors' code, with 24 first channels: those the paper's figures are of."""
    cost = models.cost_of(model, *(["faithful=official"] if model.startswith("densenet") else []))
    share = 100 * 5 * 1000 * cost.feature_dim / cost.multiply_adds
    assert f"{share:.2f}" == f"{models.paper(model)['cost_theoretical_pct']:.2f}"


@pytest.mark.parametrize("model", marked(MODELS))
def test_each_file_opens_with_its_command_the_papers_error_and_its_cost(models, model):
    command, about, recipe = (CONF_DIR / "model" / f"{model}.yaml").read_text().splitlines()[:3]
    assert command.startswith(f"# python train.py model={model} ")
    cost = models.cost_of(model)
    assert about.startswith(f"# {cost.parameters / 1e6:.2f} M parameters. ")
    assert recipe.startswith(f"# The whole recipe: {cost.petaflop:,.0f} PFLOP")
    older, newer = models.hours_on_gtx_980(model, cost), models.hours_on_v100(cost)
    assert f" {models.written(newer)} h or more on a V100" in recipe
    assert "GTX" not in recipe if older is None else f"; {models.written(older)} h on a GTX 980," in recipe
    said = models.paper(model)
    if "cifar10" in said:
        for dataset in ("cifar10", "cifar100"):
            basic, isda = (value[0] if isinstance(value, list) else value for value in list(said[dataset].values())[:2])
            assert f"{basic:.2f} -> {isda:.2f}" in about
    elif said:
        assert f"{said['baseline'][0]:.1f} -> {said['isda'][0]:.1f}" in about


def test_hours_on_a_gtx_980_are_the_published_ones_where_the_recipe_has_as_many_epochs(models):
    """ResNet-110: 160 epochs in 3 h 06. ResNet-32 does less in each."""
    large, small = models.cost_of("resnet110"), models.cost_of("resnet32")
    assert models.hours_on_gtx_980("resnet110", large) == pytest.approx(3.1)
    share = small.multiply_adds / large.multiply_adds
    assert models.hours_on_gtx_980("resnet32", small) == pytest.approx(3.1 * share)
    assert models.hours_on_gtx_980("resnet50", large) is None


def test_a_residual_networks_multiply_adds_by_hand(models):
    """ResNet-20: the convolutions' sizes, written out."""
    stem, head = 27 * 16 * 32**2, 640
    first = 6 * 9 * 16 * 16 * 32**2
    second = (9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32) * 16**2
    third = (9 * 32 * 64 + 5 * 9 * 64 * 64 + 32 * 64) * 8**2
    cost = models.cost_of("resnet20")
    assert cost.multiply_adds == stem + first + second + third + head
    assert cost.petaflop == pytest.approx(
        6 * cost.multiply_adds * 50_000 * compose(["model=resnet20"]).recipe.epochs / 1e15
    )


def test_the_committed_table_is_the_scripts(models, root):
    """One cheap line of it."""
    lines = (root / "results" / "models.md").read_text().splitlines()
    assert models.row("resnet32") in lines
    assert sum(line.startswith("| `") for line in lines) == 1 + len(MODELS) + len(models.VARIANTS)


def test_memory_for_the_gradient_of_a_known_network(models):
    """One convolution and its input, which is kept; a relu in place keeps its output."""
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(4, 2, 1))
    kept = models.bytes_for_gradient(network, torch.randn(1, 3, 8, 8))
    assert kept == 4 * (3 * 64 + 4 * 64)


def test_an_unknown_model_is_one_sentence(models, monkeypatch):
    monkeypatch.setattr("sys.argv", ["models.py", "only=[resnet5]"])
    with pytest.raises(ValueError, match=re.escape("there is no model resnet5; there are densenet121, ")):
        models.main()
