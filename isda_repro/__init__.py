"""Implicit Semantic Data Augmentation for Deep Networks (NeurIPS 2019), reproduced.

Importing this package imports nothing else: ``from isda_repro.losses import ISDALoss`` costs torch and no more.
"""

__version__ = "0.1.0"
