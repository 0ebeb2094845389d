"""Grids of images, curves, and the text of the progress bar of a generator run."""

import pytest
import torch
from matplotlib.figure import Figure
from toys import mosaic

from isda_repro.gan import Cgan, ImageGenerator, Shape, Wgan
from isda_repro.gan.pictures import draw_losses, grid, shown_epochs
from isda_repro.gan.run import GanProgress
from isda_repro.sheets import arrange

SHAPE, SAVEFIG = Shape(num_classes=3, image_size=8, channels=3), Figure.savefig


@pytest.mark.parametrize(
    ("epochs", "shown"), [(1, {1}), (7, {1, 2, 5, 7}), (100, {1, 2, 5, 10, 20, 50, 100}), (12, {1, 2, 5, 10, 12})]
)
def test_grids_are_kept_after_1_2_5_10_and_so_on_and_the_last_epoch(epochs, shown):
    assert shown_epochs(epochs) == shown


@pytest.mark.parametrize("size", [8, 100])
def test_picture_has_every_image_in_its_row_and_column(size):
    images = torch.randint(0, 255, (2, 3, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.equal(mosaic(arrange(images), size, 3), images)


@pytest.mark.parametrize("kind", [Cgan, Wgan])
def test_row_of_a_grid_is_a_class_and_a_column_has_one_noise(kind):
    torch.manual_seed(0)
    game = kind(width=16)
    generator = ImageGenerator(game, [game.generator(SHAPE) for _ in range(3)], SHAPE)
    noise, codes = game.draw(10, torch.Generator().manual_seed(5))
    rows = mosaic(grid(generator, 5), 8, 10)
    assert len(rows) == 3
    for label, row in enumerate(rows):
        expected = generator.made_from(noise, codes, torch.full((10,), label))
        assert (row.int() - expected.int()).abs().max() <= 1


def test_grid_of_generators_that_are_asked_for_no_class_has_other_noise_in_each_row():
    torch.manual_seed(0)
    game = Wgan(width=16, one_for_all=True)
    rows = mosaic(grid(ImageGenerator(game, [game.generator(SHAPE)], SHAPE), 0), 8, 10)
    assert not torch.equal(rows[0], rows[1])


def test_losses_are_drawn_where_the_generator_took_no_step_in_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", SAVEFIG)
    curves = {"discriminator_loss": [1.0, 2.0], "real_score": [0.5, 0.25], "generator_loss": [None, 3.0]}
    draw_losses(tmp_path / "losses.png", curves, "of a run")
    assert all((tmp_path / f"losses.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))


def test_words_of_the_bar_have_every_loss_there_is():
    bar = GanProgress(2, 100)
    of_discriminator = {"discriminator_loss": 0.125, "real_score": 0.75, "fake_score": 0.375}
    more = {"generator_loss": 0.625, "fake_class_loss": 0.875, "code_loss": 0.25}
    for record in (of_discriminator, {**of_discriminator, **more}):
        assert all(f"{value:.3f}" in bar.epoch_words(record) for value in record.values())
    assert "0.125" in bar.running_words({"discriminator/loss": 0.125})
    assert "0.625" in bar.running_words({"discriminator/loss": 0.125, "generator/loss": 0.625})
