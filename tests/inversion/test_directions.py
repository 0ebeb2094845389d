"""Semantic directions: principal axes of a covariance, and the real images nearest to them."""

import pytest
import torch
from toys import draws

from isda_repro.inversion import nearest, principal_directions
from isda_repro.inversion.directions import moved_along, neighbours


def test_directions_are_the_axes_of_a_covariance_widest_first():
    axes, _ = torch.linalg.qr(torch.randn(4, 4, generator=draws(), dtype=torch.float64))
    variances = torch.tensor([1.0, 9.0, 4.0, 2.0]).double()
    found = principal_directions((axes * variances) @ axes.T, 3)
    torch.testing.assert_close(found.variances, torch.tensor([9.0, 4.0, 2.0]).double())
    torch.testing.assert_close(found.share, torch.tensor([9.0, 4.0, 2.0]).double() / 16)
    for vector, column in zip(found.vectors, (1, 2, 3), strict=True):
        assert abs(float(vector @ axes[:, column])) == pytest.approx(1)
        assert vector[vector.abs().argmax()] > 0, "else the sign would be anybody's"


def test_steps_count_standard_deviations_of_isdas_distribution():
    covariance = torch.diag(torch.tensor([4.0, 1.0]))
    points = moved_along(torch.tensor([10.0, 20.0]), principal_directions(covariance, 2), [-1.0, 2.0], 0.25)
    expected = [[[9.0, 20.0], [12.0, 20.0]], [[10.0, 19.5], [10.0, 21.0]]]
    torch.testing.assert_close(points, torch.tensor(expected).double())


def test_nearest_image_is_another_one():
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    indices, distances = nearest(
        torch.tensor([[[0.1, 0.0], [2.5, 0.0]], [[0.0, 1.5], [0.0, 9.0]]]), features, without=0
    )
    assert indices.tolist() == [[1, 2], [3, 3]]
    torch.testing.assert_close(distances, torch.tensor([[0.9, 0.5], [0.5, 7.0]]).double())


def test_neighbours_lie_along_their_direction():
    """For images on a cross, steps along an axis of the covariance reach the images on that arm."""
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = neighbours(0, features, torch.diag(torch.tensor([4.0, 1.0])), directions=2, steps=[-1.0, 1.0], strength=1.0)
    assert found.indices.tolist() == [[2, 1], [4, 3]]
    torch.testing.assert_close(found.moved, torch.tensor([[2.0, 2.0], [1.0, 1.0]]).double())
    torch.testing.assert_close(found.distances, torch.zeros(2, 2).double())


@pytest.mark.parametrize("count", [0, 5])
def test_there_are_as_many_directions_as_features(count):
    with pytest.raises(ValueError, match=f"count={count}"):
        principal_directions(torch.eye(4), count)
