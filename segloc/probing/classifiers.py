"""Classifiers on frozen features: k nearest neighbours and a linear layer.

Both are deterministic and have no settings that depend on the features, so results of checkpoints are comparable.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

NEIGHBOURS = 20
TEMPERATURE = 0.07
L2 = 1e-3
ITERATIONS = 200


def nearest_neighbours(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Classify by a weighted vote of the nearest training features (Wu et al., CVPR 2018, section 3.4).

    Each of the k = 20 neighbours of highest cosine similarity votes for its class with weight exp(cosine / 0.07), as in
    that paper and in DINO. All training features vote if there are fewer than k. Ties go to the lower class id.

    Args:
        train: [M, D] float training features, of any norm.
        labels: [M] int64 class ids.
        test: [N, D] test features.
        num_classes: C.

    Returns:
        [N] int64 class ids.
    """
    similarity = F.normalize(test, dim=1) @ F.normalize(train, dim=1).T
    nearest = similarity.topk(min(NEIGHBOURS, len(train)), dim=1)
    # Subtract the maximum, so that exp does not overflow; this scales all votes of a row equally.
    weights = ((nearest.values - nearest.values[:, :1]) / TEMPERATURE).exp()
    votes = torch.zeros(len(test), num_classes, dtype=train.dtype, device=train.device)
    return votes.scatter_add_(1, labels[nearest.indices], weights).argmax(1)


def linear(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Classify by multinomial logistic regression on standardised features.

    Each feature is standardised to mean 0 and variance 1 over the training set. L-BFGS, initialised with zeros,
    minimises the mean cross-entropy plus L2 / 2 times the sum of squared weights (without biases), L2 = 0.001.

    For arguments and result see `nearest_neighbours`.
    """
    mean, std = train.mean(0), train.std(0, correction=0)
    # Set constant features to 0 instead of dividing by a tiny deviation.
    constant = std <= 1e-6 * train.abs().amax(0)
    std = torch.where(constant, torch.inf, std)
    x = (train - mean) / std
    weight = torch.zeros(x.shape[1], num_classes, dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, labels) + L2 / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return (((test - mean) / std) @ weight + bias).detach().argmax(1)
