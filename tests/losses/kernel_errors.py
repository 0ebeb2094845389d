"""The error of a kernel's result."""


def error(found, expected):
    """Return the largest absolute error divided by the largest absolute entry."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
