"""scikit-learn's bundled handwritten digits: a small real data set that needs no download."""

import torch

from isda_repro.data.source import Source, Split, narrowed, stratified_order

TEST_IMAGES = 360  # of 1797: a fifth, the usual choice for this set, which has no split of its own
LARGEST_GREY = 16


def load_digits(
    train_limit: int | None = None,
    test_limit: int | None = None,
    holdout: int | None = None,
    imbalance: float | None = None,
) -> Source:
    """Load the 1797 digits: 1437 for training, 360 for testing, uint8 [N, 3, 8, 8] (grey repeated to three channels).

    Args:
        train_limit, test_limit, holdout, imbalance: see ``narrowed``.

    Raises:
        DataError: a count is not positive or larger than the data.
    """
    from sklearn import datasets  # here, because it takes a second to import

    bunch = datasets.load_digits()
    grey_NHW = torch.from_numpy(bunch.images)
    images = (grey_NHW * (255 / LARGEST_GREY)).round().to(torch.uint8)
    everything = Split(
        images.unsqueeze(1).repeat(1, 3, 1, 1),
        torch.from_numpy(bunch.target).to(torch.int64),
    )
    order = stratified_order(everything.targets, "digits test set")
    train, test = everything.select(order[TEST_IMAGES:]), everything.select(order[:TEST_IMAGES])
    names = tuple(str(name) for name in bunch.target_names)
    source = Source("digits", train, test, len(names), names)
    return narrowed(source, train_limit=train_limit, test_limit=test_limit, holdout=holdout, imbalance=imbalance)
