"""Two small classifiers that separate real from simulated scans; see ``benchmarks/study/realism.py``.

Folds are made of whole scans, so a classifier never trains on a patch of a test scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.study.scan_statistics import HISTOGRAMS, STATISTICS, ScanStatistics
from pipeline.bags import authentic_region
from pipeline.bags.belt import LEAST_CONTRAST
from segloc.common.images import Image

FOLDS = 5
PATCH_PX = 64
# Minimum share of matter in a patch; maximum number of patches per scan.
PATCH_MATTER, PATCHES = 0.5, 16
_FEATURE_BINS = 8
STEPS, BATCH = 300, 64


def folds(groups: Sequence[str], rng: np.random.Generator, count: int = FOLDS) -> np.ndarray:
    """Assign each scan to one of `count` folds, with every group spread evenly; int [scans]."""
    fold = np.empty(len(groups), int)
    start = 0
    for group in sorted(set(groups)):
        members = rng.permutation([index for index, name in enumerate(groups) if name == group])
        fold[members] = (start + np.arange(len(members))) % count
        start += len(members)
    return fold


def splits(fold: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield training and test indices of each fold."""
    for number in range(fold.max() + 1):
        yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def features(scans: Sequence[ScanStatistics]) -> np.ndarray:
    """Return statistics and coarse histograms of each scan, float [scans, features]; NaN where undefined."""
    # Number of bins to merge into one feature; about `_FEATURE_BINS` features per histogram.
    sizes = {name: next(size for size in range(bins // _FEATURE_BINS, 0, -1) if bins % size == 0)
             for name, (bins, _, _) in HISTOGRAMS.items()}  # fmt: skip
    return np.array([
        [*(scan.values[name] for name in STATISTICS)]
        + [share for name, size in sizes.items() for share in scan.histograms[name].reshape(-1, size).sum(1)]
        for scan in scans
    ])  # fmt: skip


def logistic_scores(
    inputs: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray, decay: float = 1.0
) -> np.ndarray:
    """Fit an L2-regularised logistic regression on standardised inputs by Newton's method.

    Args:
        inputs: float [scans, features].
        labels: 1 for real, 0 for simulated, [scans].
        train: training indices.
        test: indices to score.
        decay: factor of the L2 penalty, relative to the summed loss.

    Returns:
        A score for each index of `test`, above 0 for real.
    """
    with np.errstate(invalid="ignore"):
        mean, deviation = np.nanmean(inputs[train], 0), np.nanstd(inputs[train], 0)
    scaled = np.nan_to_num((inputs - mean) / np.where(deviation > 0, deviation, 1))  # NaN becomes the mean
    rows = np.column_stack([np.clip(scaled, -5, 5), np.ones(len(scaled))])
    penalty = np.full(rows.shape[1], decay)
    penalty[-1] = 1e-6
    weights = np.zeros(rows.shape[1])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-np.clip(rows[train] @ weights, -30, 30)))
        slope = rows[train].T @ (chance - labels[train]) + penalty * weights
        curvature = (rows[train] * (chance * (1 - chance))[:, None]).T @ rows[train] + np.diag(penalty)
        step = np.linalg.solve(curvature, slope)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    return np.asarray(rows[test] @ weights)


def patches(scan: Image, rng: np.random.Generator) -> np.ndarray:
    """Take random patches of a prepared scan inside bags: uint8 [at most `PATCHES`, 64, 64, 3]."""
    grey = np.asarray(cv2.cvtColor(scan, cv2.COLOR_RGB2GRAY), np.uint8)
    level = authentic_region.adaptive(grey)[1]
    sums = cv2.integral((grey < level - LEAST_CONTRAST).astype(np.uint8))
    side = PATCH_PX
    covered = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    corners = np.argwhere(covered >= PATCH_MATTER * side * side)
    chosen = corners[rng.permutation(len(corners))[:PATCHES]]
    found = [scan[y : y + side, x : x + side] for y, x in chosen]
    return np.stack(found) if found else np.empty((0, side, side, 3), np.uint8)


def as_seen(patch: np.ndarray, view: str) -> np.ndarray:
    """Convert patches [n, s, s, 3] to a view.

    Args:
        patch: uint8.
        view: ``colour``, ``grey`` (no hue), or ``coarse`` (grey, a quarter of the resolution: no grain, no fine edges).
    """
    if view == "colour":
        return patch
    grey = patch.astype(np.float32).mean(-1, keepdims=True)
    if view == "grey":
        return grey
    count, side, _, _ = grey.shape
    return np.asarray(grey.reshape(count, side // 4, 4, side // 4, 4, 1).mean((2, 4)))


def network(channels: int, side: int) -> nn.Sequential:
    """Build a network of three convolutions: [n, channels, side, side] to [n, 1] logits; side is 16 or 64."""
    layers: list[nn.Module] = []
    for width, kernel, stride in ((24, 5, side // 16), (48, 3, 2), (64, 3, 2)):
        layers += [nn.Conv2d(channels, width, kernel, stride, kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 1))


def patch_scores(
    scans: Sequence[np.ndarray], labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> list[np.ndarray]:
    """Train a small network on the patches of some scans and score the patches of others.

    Args:
        scans: patches of each scan, [patches, side, side, channels].
        labels: 1 for real, 0 for simulated, [scans].
        train: indices of training scans.
        test: indices of scans to score.
        seed: of weights, order and flips.

    Returns:
        For each scan of `test`, the scores of its patches, above 0 for real.
    """
    inputs = _normalised(np.concatenate([scans[index] for index in train]))
    targets = torch.from_numpy(np.repeat(labels[train], [len(scans[index]) for index in train])).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(inputs.shape[1], inputs.shape[2])
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            batch = torch.randint(len(inputs), (BATCH,))
            shown = inputs[batch].flip([axis for axis in (-2, -1) if torch.rand(()) < 0.5])
            loss = functional.binary_cross_entropy_with_logits(model(shown)[:, 0], targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return [model(_normalised(scans[index]))[:, 0].numpy() for index in test]


def _normalised(patches: np.ndarray) -> torch.Tensor:
    """Convert patches [n, side, side, channels] of levels to float [n, channels, side, side], -1 to 1."""
    return torch.from_numpy(patches).float().permute(0, 3, 1, 2) / 127.5 - 1


def cross_validated(
    score: Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray] | np.ndarray], fold: np.ndarray
) -> list[np.ndarray]:
    """Score every scan with a classifier trained on the other folds: one score per scan, or one per patch."""
    scores: list[np.ndarray] = [np.empty(0)] * len(fold)
    for train, test in splits(fold):
        for index, found in zip(test, score(train, test), strict=True):
            scores[index] = np.atleast_1d(found)
    return scores


def wilson(right: float, count: int) -> tuple[float, float]:
    """Compute Wilson's 95 % confidence interval of the share `right` / `count`."""
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
