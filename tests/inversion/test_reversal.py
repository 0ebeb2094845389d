"""Steps I and II: find the z from which a generator makes an image with given features."""

from dataclasses import replace

import pytest
import torch
from toys import FEATURES, LABELS, NOISE, noise, pixels_at_random, reversal

from isda_repro.errors import UserError
from isda_repro.gan.sampling import pixels
from isda_repro.inversion import STEP_ONE, STEP_TWO, Descent, Settings, augmented, invert, step_one, step_two
from isda_repro.inversion import reversal as module
from isda_repro.inversion.reversal import start_of

SHORT = Settings(
    eta=0.1,
    strength=0.5,
    augmentations=3,
    first=replace(STEP_ONE, iterations=20),
    second=replace(STEP_TWO, iterations=20),
)
NUMBERS = torch.tensor([9, 4, 100, 5])


def silent(iterations, objective):
    pass


def covariance(label):
    return (1 + label) * torch.eye(FEATURES).double() / 100


def inverted(settings=SHORT, rows=slice(None), advance=silent):
    return invert(reversal(), pixels_at_random(4)[rows], LABELS[rows], NUMBERS[rows], covariance, settings, advance)


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch):
    """Let Step I start from float64 numbers; by default it draws fp32."""
    monkeypatch.setattr(module, "start_of", lambda *them: start_of(*them).double())


@pytest.mark.slow
def test_image_that_the_generator_makes_is_found():
    """The images come from known z, so that the full 10,000 iterations must find their features and pixels."""
    case, labels = reversal(), LABELS[:2]
    images = pixels(case.images(noise(2, seed=5), labels))
    settings = replace(SHORT, eta=1.0, first=STEP_ONE, second=STEP_TWO, augmentations=1)
    found = invert(case, images, labels, NUMBERS[:2], covariance, settings, silent)
    assert (found.found.features < 1e-2 * found.start.features).all()
    assert (found.found.pixels < 1e-2 * found.start.pixels).all()
    assert (found.reconstructions.float() - images.float()).abs().mean() < 3, "of 255"
    assert (found.after < 0.2 * found.before).all(), "Step II reaches features that Step I has not seen"


def test_distances_are_those_of_what_was_found():
    case, found = reversal(), inverted()
    assert found.reconstructions.shape == (4, 3, 8, 8)
    assert found.augmentations.shape == (4, 3, 3, 8, 8)
    assert all(one.shape == (4, 3) for one in (found.moved, found.before, found.after))
    images = pixels_at_random(4)
    start = start_of(NUMBERS, NOISE, 0).double()
    z = step_one(case, images, LABELS, start, eta=SHORT.eta, descent=SHORT.first, at_once=64, advance=silent)
    assert torch.equal(found.reconstructions, pixels(case.images(z, LABELS)))
    wanted = case.features.of_pixels(images)
    expected = case.first_objective(z, LABELS, wanted, images.double() / 127.5 - 1, SHORT.eta)
    torch.testing.assert_close(found.found.features + SHORT.eta * found.found.pixels, expected, rtol=1e-6, atol=0)
    at_start = case.first_objective(start, LABELS, wanted, images.double() / 127.5 - 1, SHORT.eta)
    torch.testing.assert_close(found.start.features + SHORT.eta * found.start.pixels, at_start, rtol=1e-6, atol=0)
    moved = found.before.mean(1) - found.found.features
    assert (moved.abs() > 1e-3).all(), "Step II seeks other features than Step I"


def test_each_step_has_its_settings_and_the_second_begins_where_the_first_ended():
    settings = replace(
        SHORT, eta=0.7, seed=3, first=Descent(lr=3.0, iterations=12), second=Descent(lr=0.2, iterations=24)
    )
    case, images, found = reversal(), pixels_at_random(4), inverted(settings)
    how = {"at_once": 64, "advance": silent}
    start = start_of(NUMBERS, NOISE, 3).double()
    z = step_one(case, images, LABELS, start, eta=0.7, descent=settings.first, **how)
    features = case.features.of_pixels(images)
    moved = augmented(features, LABELS, covariance, 0.5, draws=3, seed=3, numbers=NUMBERS)
    torch.testing.assert_close(found.moved, (moved - features[:, None]).square().sum(2))
    for row in range(4):
        for draw in range(3):
            begin, wanted, label = z[row : row + 1], moved[row, draw][None], LABELS[row : row + 1]
            end = step_two(case, wanted, label, begin, descent=settings.second, **how)
            for one, objective in ((begin, found.before), (end, found.after)):
                expected = case.second_objective(one, label, wanted)[0]
                torch.testing.assert_close(objective[row, draw], expected, rtol=1e-6, atol=0)
            shown = pixels(case.images(end, label))[0].int()
            assert (found.augmentations[row, draw].int() - shown).abs().max() <= 1
            assert not torch.equal(found.augmentations[row, draw], found.reconstructions[row])


def test_start_follows_from_seed_and_number_and_is_not_what_features_are_moved_by():
    one, again, other = (start_of(NUMBERS, NOISE, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(start_of(NUMBERS[2:], NOISE, 0), one[2:])
    start = start_of(NUMBERS, FEATURES, 0).double()
    moved = augmented(
        torch.zeros(4, FEATURES).double(),
        LABELS,
        lambda label: torch.eye(FEATURES),
        1.0,
        draws=1,
        seed=0,
        numbers=NUMBERS,
    )
    assert ((moved[:, 0] - start).abs().amax(1) > 0.1).all()


def test_lambda_of_zero_seeks_the_features_of_the_image_itself():
    found = inverted(replace(SHORT, strength=0.0))
    assert torch.equal(found.moved, torch.zeros(4, 3).double())
    torch.testing.assert_close(found.before, found.found.features[:, None].expand(4, 3))


@pytest.mark.parametrize("at_once", [1, 3])
def test_result_does_not_depend_on_how_many_are_sought_together(at_once):
    whole, parts = inverted(), inverted(replace(SHORT, at_once=at_once))
    for name in ("moved", "before", "after"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name), rtol=1e-6, atol=0)
    for one, other in zip((*whole.start, *whole.found), (*parts.start, *parts.found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    assert (whole.augmentations.int() - parts.augmentations.int()).abs().max() <= 1


def test_what_is_found_for_an_image_does_not_depend_on_the_others():
    whole, alone = inverted(), inverted(rows=slice(2, 3))
    torch.testing.assert_close(whole.after[2:3], alone.after, rtol=1e-6, atol=0)
    torch.testing.assert_close(whole.moved[2:3], alone.moved)


def test_bar_is_told_of_all_iterations():
    made = []
    inverted(advance=lambda iterations, objective: made.append(iterations * len(objective)))
    assert sum(made) == SHORT.iterations(4) == 4 * (20 + 3 * 20)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("eta", -1, "eta=-1"),
        ("eta", float("nan"), "eta=nan"),
        ("strength", -0.5, "lambda=-0.5"),
        ("augmentations", 0, "augmentations=0"),
        ("at_once", 0, "at_once=0"),
        ("seed", -1, "seed=-1"),
    ],
)
def test_setting_that_cannot_be_is_named(key, value, named):
    with pytest.raises(UserError, match=named):
        replace(SHORT, **{key: value})
