"""Evaluation of a trained classifier: errors of classes, confusion matrix, calibration, and predictions."""

from isda_repro.evaluation.calibration import BINS, Calibration, calibrate
from isda_repro.evaluation.classifier import Classifier, load_classifier
from isda_repro.evaluation.confusion import ClassError, class_errors, confusion_matrix
from isda_repro.evaluation.predictions import Predictions, find_images, predict_images, predict_test

__all__ = [
    "BINS",
    "Calibration",
    "ClassError",
    "Classifier",
    "Predictions",
    "calibrate",
    "class_errors",
    "confusion_matrix",
    "find_images",
    "load_classifier",
    "predict_images",
    "predict_test",
]
