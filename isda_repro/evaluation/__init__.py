"""Evaluation of a trained classifier: errors of classes, confusion matrix, calibration, and predictions."""

from isda_repro.evaluation.classifier import (
    Classifier,
    FinishedRun,
    finished_run_config,
    load_classifier,
    load_finished_run,
)
from isda_repro.evaluation.measures import BINS, Calibration, ClassError, calibrate, class_errors, confusion_matrix
from isda_repro.evaluation.predictions import Predictions, find_images, predict_images, predict_test

__all__ = [
    "BINS",
    "Calibration",
    "ClassError",
    "Classifier",
    "FinishedRun",
    "Predictions",
    "calibrate",
    "class_errors",
    "confusion_matrix",
    "find_images",
    "finished_run_config",
    "load_classifier",
    "load_finished_run",
    "predict_images",
    "predict_test",
]
