"""ISDA written out literally, in float64: loops over samples and classes, nothing shared with the implementation."""

import torch


def two_pass(features, targets, num_classes):
    """Mean and population covariance of each class from all its samples at once; zero for a class without any."""
    width = features.shape[1]
    mean = torch.zeros(num_classes, width, dtype=torch.float64)
    covariance = torch.zeros(num_classes, width, width, dtype=torch.float64)
    for class_number in range(num_classes):
        rows = features[targets == class_number].double()
        if len(rows):
            mean[class_number] = rows.mean(0)
            centred = rows - rows.mean(0)
            covariance[class_number] = centred.T @ centred / len(rows)
    return mean, covariance


def merge(mean, covariance, count, features, targets):
    """Equations 9, 10 and 11, class by class, as they are printed. Returns new tensors."""
    mean, covariance, count = mean.clone(), covariance.clone(), count.clone()
    for j in targets.unique().tolist():
        rows = features[targets == j].double()
        n, m = count[j].item(), len(rows)
        batch_mean = rows.mean(0)
        batch_covariance = (rows - batch_mean).T @ (rows - batch_mean) / m
        difference = (mean[j] - batch_mean)[:, None]
        covariance[j] = (n * covariance[j] + m * batch_covariance) / (n + m)
        covariance[j] += n * m * (difference @ difference.T) / (n + m) ** 2
        mean[j] = (n * mean[j] + m * batch_mean) / (n + m)
        count[j] = n + m
    return mean, covariance, count


def equation_4(features, weight, bias, targets, covariance, strength):
    """The mean over samples of -log of equation 4's fraction, by a double loop over samples and classes."""
    total = features.new_zeros(())
    for a, y in zip(features, targets.tolist(), strict=True):
        exponents = []
        for j in range(len(weight)):
            difference = weight[j] - weight[y]
            exponents.append(weight[j] @ a + bias[j] + strength / 2 * (difference @ covariance[y] @ difference))
        total = total - (weight[y] @ a + bias[y]) + torch.stack(exponents).logsumexp(0)
    return total / len(features)
