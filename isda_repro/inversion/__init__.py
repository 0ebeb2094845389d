"""Inversion of features into images (Appendix C), and nearest real images along ISDA's semantic directions."""

from isda_repro.inversion.directions import Directions, augmented, nearest, principal_directions
from isda_repro.inversion.objectives import Distances, FeatureMap, Reversal
from isda_repro.inversion.reversal import (
    STEP_ONE,
    STEP_TWO,
    Descent,
    Inversion,
    Settings,
    descend,
    invert,
    step_one,
    step_two,
)

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
