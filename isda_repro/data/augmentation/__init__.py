"""Augmentation of images, and their normalisation: tensor arithmetic on batches on the device."""
