"""Appendix C: features, and ISDA's augmented ones, back to images; and what its semantic directions look like."""

from isda_repro.inversion.augment import augmented
from isda_repro.inversion.descent import STEP_ONE, STEP_TWO, Descent, descend
from isda_repro.inversion.directions import Directions, nearest, principal_directions
from isda_repro.inversion.features import FeatureMap
from isda_repro.inversion.objectives import Distances, Reversal
from isda_repro.inversion.reversal import Inversion, Settings, invert, step_one, step_two

__all__ = [
    "STEP_ONE",
    "STEP_TWO",
    "Descent",
    "Directions",
    "Distances",
    "FeatureMap",
    "Inversion",
    "Reversal",
    "Settings",
    "augmented",
    "descend",
    "invert",
    "nearest",
    "principal_directions",
    "step_one",
    "step_two",
]
