"""scripts/bound.py on a short run: the closed form is above the expectation, and more draws narrow the band."""

import pytest
import torch

from isda_repro.config import compose
from isda_repro.errors import UserError
from isda_repro.training.run import run

RUN = [
    "model=resnet20",
    "model.depth=8",
    "dataset=digits",
    "dataset.train_limit=200",
    "recipe.epochs=1",
    "tracking=none",
]


def test_the_picture_shows_what_proposition_1_says(load_script, tmp_path, capsys):
    cfg = compose([*RUN, "loss=isda", f"runs_dir={tmp_path}"])
    run(cfg)
    script = load_script("bound")
    options = script.BoundOptions(run=str(tmp_path / cfg.run_id))
    torch.manual_seed(0)
    script.ESTIMATES = 20
    closed, expected, bands = script.curves(script.features_of(options))
    assert closed[0] == pytest.approx(expected[0].item(), rel=1e-5)
    assert (closed[1:] > expected[1:]).all()
    assert (expected.diff() > 0).all()
    widths = [(bands[draws][1] - bands[draws][0])[-1] for draws in script.DRAWS]
    assert widths[0] > 2 * widths[1] > 4 * widths[2] > 0
    for low, high in bands.values():
        assert (low - 1e-4 <= expected).all()
        assert (expected <= high + 1e-4).all()
    capsys.readouterr()
    script.main([f"run={tmp_path / cfg.run_id}", f"figure={tmp_path / 'bound.png'}"])
    assert {path.suffix for path in tmp_path.glob("bound.*")} == {".png", ".svg"}
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(script.LAMBDAS) + 1


def test_a_run_without_covariances_is_one_sentence(load_script, tmp_path):
    cfg = compose([*RUN, "loss=isda_diagonal", f"runs_dir={tmp_path}"])
    run(cfg)
    with pytest.raises(UserError, match=r"has loss.covariance=diagonal: this is for full ones, not packed"):
        load_script("bound").main([f"run={tmp_path / cfg.run_id}"])
