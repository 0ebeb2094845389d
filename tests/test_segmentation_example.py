"""The segmentation example runs in small, learns, and continues where it was interrupted."""

import runpy

import pytest
import torch

from isda_repro.losses import ISDALoss

SMALL = {"epochs": 3, "seeds": 1, "count": 16}  # two steps in each epoch


class StoppedError(Exception):
    """Stands in for the end of a job."""


def test_segmentation_learns_and_an_interrupted_one_gives_the_same_numbers(root, tmp_path, monkeypatch):
    path = root / "examples" / "segmentation.py"
    assert len(path.read_text().splitlines()) <= 80
    main = runpy.run_path(str(path))["main"]
    losses, forward = [], ISDALoss.forward

    def recorded(self, features, logits, targets, **options):
        losses.append(forward(self, features, logits, targets, **options))
        if len(losses) == 3:
            raise StoppedError
        return losses[-1]

    with torch.random.fork_rng():
        whole = main(str(tmp_path / "whole"), **SMALL)
        assert 3 < whole["CE"][0] < 100
        assert 3 < whole["ISDA"][0] < 100
        monkeypatch.setattr(ISDALoss, "forward", recorded)
        with pytest.raises(StoppedError):
            main(str(tmp_path / "stopped"), **SMALL)
        monkeypatch.undo()
        assert (tmp_path / "stopped" / "segmentation_ISDA_0.pt").exists(), "the first epoch is saved"
        assert main(str(tmp_path / "stopped"), **SMALL) == whole
        assert main(str(tmp_path / "stopped"), **SMALL) == whole, "nothing is left to train"
