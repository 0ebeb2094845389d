"""Calibration error, confusion matrix and errors of classes, against values by hand and scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.calibration import calibration_curve

from isda_repro.errors import UserError
from isda_repro.evaluation import BINS, calibrate, class_errors, confusion_matrix
from isda_repro.evaluation.measures import worst_classes
from isda_repro.evaluation.predictions import _of_batch


def test_calibration_error_by_hand():
    found = calibrate(np.array([0.1, 0.3, 0.4, 0.9]), np.array([True, False, True, True]), bins=2)
    assert found.images.tolist() == [3, 1]
    assert found.expected_error == pytest.approx(100 * (3 * (2 / 3 - 0.8 / 3) + (1 - 0.9)) / 4)


def test_bin_contains_its_upper_edge():
    found = calibrate(np.array([0.0, 0.5, np.nextafter(0.5, 1), 1.0, 1 + 1e-16]), np.ones(5, dtype=bool), bins=2)
    assert found.images.tolist() == [2, 3]


def test_calibration_is_scikit_learns():
    generator = np.random.default_rng(0)
    probabilities = generator.random(2000) ** 0.3
    right = generator.random(2000) < probabilities**2
    found = calibrate(probabilities, right)
    accuracy, confidence = calibration_curve(right, probabilities, n_bins=BINS)
    full = found.images > 0
    assert len(found.images) == 15
    np.testing.assert_allclose(found.accuracy[full], accuracy)
    np.testing.assert_allclose(found.confidence[full], confidence)
    assert np.isnan(found.accuracy[~full]).all()
    assert found.expected_error == pytest.approx(100 * np.abs(accuracy - confidence) @ (found.images[full] / 2000))


def test_confusion_matrix_is_scikit_learns():
    targets, predicted = np.random.default_rng(0).integers(0, 7, (2, 300))
    targets[targets == 3] = 2  # a class without images
    expected = metrics.confusion_matrix(targets, predicted, labels=range(8))
    np.testing.assert_array_equal(confusion_matrix(targets, predicted, 8), expected)


def test_errors_of_classes_by_hand():
    confusion = np.array([[3, 1, 0], [0, 0, 0], [2, 3, 5]])
    errors = class_errors(confusion)
    assert errors == [(0, 4, 25.0, 1, 1), (1, 0, None, None, 0), (2, 10, 50.0, 1, 3)]
    assert [one.number for one in worst_classes(errors, 5)] == [2, 0]
    assert worst_classes(class_errors(np.diag([2, 3])), 5) == []


def test_outputs_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="finite"):
        _of_batch(torch.tensor([[0.0, float("nan")]]))
