"""``scripts/bound.py`` on a short run: equation 4 against a double loop, the expectation against independent draws."""

import re

import pytest
import torch

from isda_repro.config import compose
from isda_repro.errors import UserError
from isda_repro.training.run import run

RUN = ["model=resnet8", "dataset=digits", "dataset.train_limit=100", "recipe.epochs=1", "tracking=none"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return ``trained(loss)``, which trains a run and returns its folder."""
    folder = tmp_path_factory.mktemp("runs")

    def of(loss):
        cfg = compose([*RUN, f"loss={loss}", f"runs_dir={folder}"])
        run(cfg)
        return folder / cfg.run_id

    return of


def equation_4(batch, strength):
    """Return equation 4's loss in float64, computed one sample and one class at a time."""
    weight, losses = batch.head.weight.detach().double(), []
    for feature, target in zip(batch.features.double(), batch.targets.tolist(), strict=True):
        logits = weight @ feature + batch.head.bias.detach().double()
        covariance = batch.covariance[target].double()
        for c in range(len(weight)):
            difference = weight[c] - weight[target]
            logits[c] += strength / 2 * (difference @ covariance @ difference)
        losses.append(logits.logsumexp(0) - logits[target])
    return torch.stack(losses).mean().item()


def expectation(batch, strength, draws=4000):
    """Return a Monte Carlo estimate of equation 3 from sampled features, and its standard error."""
    torch.manual_seed(1)
    means, variances = [], []
    for feature, target in zip(batch.features.double(), batch.targets.tolist(), strict=True):
        values, vectors = torch.linalg.eigh(batch.covariance[target].double() * strength)
        noise = torch.randn(draws, len(feature), dtype=torch.float64) * values.clamp(min=0).sqrt()
        logits = (feature + noise @ vectors.T) @ batch.head.weight.detach().double().T + batch.head.bias.detach()
        losses = logits.logsumexp(1) - logits[:, target]
        means.append(losses.mean())
        variances.append(losses.var() / draws)
    return torch.stack(means).mean().item(), torch.stack(variances).sum().sqrt().item() / len(means)


def test_curves_and_printed_numbers_are_those_of_equations_2_to_4(load_script, trained, tmp_path, capsys):
    folder = trained("isda")
    script = load_script("bound")
    script.SAMPLES, script.ESTIMATES = 8, 20
    batch = script.features_of(script.BoundOptions(run=str(folder)))
    assert batch.features.shape == (8, 64)
    batch = batch._replace(covariance=100 * batch.covariance)  # after one epoch they are small
    torch.manual_seed(0)
    closed, expected, bands = script.curves(batch)
    for index, strength in enumerate(script.LAMBDAS.tolist()):
        assert closed[index].item() == pytest.approx(equation_4(batch, strength), rel=1e-5)
    mean, error = expectation(batch, 1.0)
    assert expected[-1].item() == pytest.approx(mean, abs=5 * error)
    mean, error = expectation(batch, 0.25)
    assert expected[2].item() == pytest.approx(mean, abs=5 * error)
    assert (closed[1:] > expected[1:]).all()
    widths = [(bands[draws][1] - bands[draws][0])[-1] for draws in script.DRAWS]
    assert widths[0] > 2 * widths[1] > 4 * widths[2] > 0
    for low, high in bands.values():
        assert (low - 1e-4 <= expected).all()
        assert (expected <= high + 1e-4).all()
    capsys.readouterr()
    script.main([f"run={folder}", f"figure={tmp_path / 'bound.png'}"])
    assert {path.suffix for path in tmp_path.glob("bound.*")} == {".png", ".svg"}
    rows = [re.findall(r"\d+\.\d+", line) for line in capsys.readouterr().out.splitlines() if re.match(r"\s*\d", line)]
    torch.manual_seed(0)
    closed, expected, bands = script.curves(script.features_of(script.BoundOptions(run=str(folder))))
    for index, strength in enumerate(script.LAMBDAS):
        edges = [band[edge, index] for band in bands.values() for edge in (0, 1)]
        assert rows[index] == [f"{value:.3f}" for value in (strength, closed[index], expected[index], *edges)]
    assert len(rows) == len(script.LAMBDAS)


def test_a_figure_that_cannot_be_written_is_refused_before_the_work(load_script, tmp_path):
    (tmp_path / "mine.svg").write_text("<svg/>")
    for name, token in (("mine.png", r"mine\.svg"), ("bound.jpg", "jpg")):
        with pytest.raises(UserError, match=token):
            load_script("bound").main([f"run={tmp_path / 'none'}", f"figure={tmp_path / name}"])


def test_a_run_without_full_covariances_is_refused(load_script, trained):
    folder = trained("isda_diagonal")
    with pytest.raises(UserError, match=r"loss\.covariance=diagonal") as error:
        load_script("bound").main([f"run={folder}"])
    assert str(folder) in str(error.value)
