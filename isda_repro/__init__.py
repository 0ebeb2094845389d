"""Reproduction of *Implicit Semantic Data Augmentation for Deep Networks* (NeurIPS 2019).

Importing this package imports nothing else, and ``from isda_repro.losses import ISDALoss`` only imports torch.
"""

__version__ = "0.1.0"
