"""ISDA and the compared losses written out literally in float64: loops over samples and classes, no shared code."""

import math

import torch


def two_pass(features, targets, num_classes):
    """Return mean and population covariance of each class from all its samples at once; zeros for an absent class."""
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
    """Merge a batch by equations 9, 10 and 11 as they are printed, class by class, into new tensors."""
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
    """Return the mean over samples of -log of equation 4's fraction, by a double loop over samples and classes."""
    total = features.new_zeros(())
    for a, y in zip(features, targets.tolist(), strict=True):
        exponents = []
        for j in range(len(weight)):
            difference = weight[j] - weight[y]
            exponents.append(weight[j] @ a + bias[j] + strength / 2 * (difference @ covariance[y] @ difference))
        total = total - (weight[y] @ a + bias[y]) + torch.stack(exponents).logsumexp(0)
    return total / len(features)


def loss_with_label(a, y, weight, bias, covariance, strength, class_weight, smoothing):
    """Return the bound of the expected cross-entropy of one sample with label y, by a loop over classes.

    The target distribution is smoothed and each of its classes k has a weight:

        sum_k w_k q_k (log sum_j exp(z_j + strength/2 sigma2_yj) - z_k),   q_k = (1 - smoothing) [k = y] + smoothing/C
    """
    logits, raised = [], []
    for j in range(len(weight)):
        difference = weight[j] - weight[y]
        logits.append(weight[j] @ a + bias[j])
        raised.append(logits[j] + strength / 2 * (difference @ covariance[y] @ difference))
    normaliser, total = torch.stack(raised).logsumexp(0), 0
    for k in range(len(weight)):
        share = (1 - smoothing) * (k == y) + smoothing / len(weight)
        total = total + class_weight[k] * share * (normaliser - logits[k])
    return total


def two_pass_soft(features, probabilities):
    """Return weighted means and covariances of all samples at once, where sample i counts p_ic times in class c."""
    mean, covariance = [], []
    for p in probabilities.double().T:
        total = p.sum() if p.sum() > 0 else 1.0
        mean.append(sum(p_i * a for p_i, a in zip(p, features.double(), strict=True)) / total)
        outer = (p_i * (a - mean[-1])[:, None] * (a - mean[-1]) for p_i, a in zip(p, features.double(), strict=True))
        covariance.append(sum(outer) / total)
    return torch.stack(mean), torch.stack(covariance)


def reduced(losses, labels, class_weight, reduction):
    """Return the losses of the samples reduced as torch does: a mean is divided by the sum of the labels' weights."""
    if reduction == "none":
        return torch.stack(losses)
    return sum(losses) / (sum(class_weight[y] for y in labels) if reduction == "mean" else 1)


def softmax_of(logits, y):
    return logits[y].exp() / sum(one.exp() for one in logits)


def focal(logits, targets, alpha, gamma):
    """Return the mean of -alpha (1 - p_y)^gamma log p_y."""
    probabilities = [softmax_of(row, y) for row, y in zip(logits, targets.tolist(), strict=True)]
    return sum(-alpha * (1 - p) ** gamma * p.log() for p in probabilities) / len(targets)


def lq(logits, targets, q, truncation=None):
    """Return the mean of (1 - p_y^q) / q, or of (1 - k^q) / q for samples whose p_y is at most the truncation k."""
    total = 0
    for row, y in zip(logits, targets.tolist(), strict=True):
        p = softmax_of(row, y)
        is_cut = truncation is not None and p.item() <= truncation
        total = total + ((1 - truncation**q) / q if is_cut else (1 - p**q) / q)
    return total / len(targets)


def l_softmax(features, weight, targets, margin, beta):
    """Return the cross-entropy of L-Softmax, computed by angles.

    The logit of the own class is (beta |w||a| cos(theta) + |w||a| psi(theta)) / (1 + beta).
    """
    total = 0
    for a, y in zip(features, targets.tolist(), strict=True):
        logits = [w @ a for w in weight]
        norms = weight[y].norm() * a.norm()
        theta = (logits[y] / norms).acos()
        k = math.floor(margin * theta.item() / math.pi)
        psi = (-1) ** k * (margin * theta).cos() - 2 * k
        logits[y] = (beta * logits[y] + norms * psi) / (1 + beta)
        total = total - logits[y] + torch.stack(logits).logsumexp(0)
    return total / len(targets)


def center_pull(features, centers, targets):
    """Return half the mean squared distance of the features to the centres of their classes."""
    pairs = zip(features, targets.tolist(), strict=True)
    return sum(((a - centers[y]) ** 2).sum() for a, y in pairs) / 2 / len(targets)


def center_rule(features, centers, targets):
    """Return the update of the centres divided by minus their learning rate, class by class."""
    moves = torch.zeros_like(centers)
    for j in range(len(centers)):
        own = [a for a, y in zip(features, targets.tolist(), strict=True) if y == j]
        moves[j] = sum((centers[j] - a for a in own), torch.zeros_like(centers[j])) / (1 + len(own))
    return moves
