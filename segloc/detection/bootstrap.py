"""Confidence intervals of COCO metrics by the percentile bootstrap over test images (Efron, 1979).

An interval shows how much a metric of this one detector varies between test sets of the same size and kind. It does
not cover training variance, which can be larger and needs runs with several seeds, and it does not cover images of
another kind, such as those of another scanner.

A draw samples the images of each test set with replacement, at the size of the set. The matches of an image count once
for each time it was drawn. Images are not matched again, because COCO matches each image separately. The mean and the
pooled set use the same draws. A class without items in a draw is left out of the average of that draw, as in COCO. The
percentile method does not correct for bias: draws from a small set hold far fewer distinct images, and its intervals
are too high.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from segloc.detection.coco_eval import MEAN, METRICS, PARAMS, POOLED, Matches, figures, pool

LEVEL_PERCENT = 95
LEAST_RESAMPLES = 40  # with fewer, less than one draw is outside each bound
MOST_RESAMPLES = 1_000_000  # an interval no longer changes, and the draws are kept in memory
SEED = 0
_DRAWS = 0xB007


@dataclasses.dataclass(frozen=True)
class ClassMatches:
    """Matches of one class, arranged for counting: D detections, R images, T IoU thresholds.

    Detections are in COCO's order: by descending score, then by image.

    Attributes:
        image: [D] number of the image.
        tie: [D] index of the first detection with this score in this image.
        ties: [D] number of detections with this score in this image.
        true: T lists of indices of detections matched with an item.
        ignored: T lists of indices of detections matched with a crowd, which count as neither true nor false.
        present: [R] numbers of the images that have items or detections.
        recalled: [R, T * 3] number of items found in the first 1, 10 and 100 detections of an image.
        items: [R] number of items, without crowds.
    """

    image: np.ndarray
    tie: np.ndarray
    ties: np.ndarray
    true: list[np.ndarray]
    ignored: list[np.ndarray]
    present: np.ndarray
    recalled: np.ndarray
    items: np.ndarray


def arrange(matches: Matches) -> list[ClassMatches]:
    """Arrange the matches of each class for `accumulate`."""
    return [_arrange(of_class) for of_class in matches.records]


def _arrange(of_class: Sequence[dict[str, Any] | None]) -> ClassMatches:
    records = [record for record in of_class if record]
    levels = len(PARAMS.iouThrs)
    recalled, items = np.zeros((len(records), levels * len(PARAMS.maxDets))), np.zeros(len(records))
    true, ignored = [np.zeros((levels, 0), bool)], [np.zeros((levels, 0), bool)]
    for row, record in enumerate(records):
        skip = record["dtIgnore"].astype(bool)
        hit = (record["dtMatches"] != 0) & ~skip
        recalled[row] = np.stack([hit[:, :limit].sum(1) for limit in PARAMS.maxDets], 1).ravel()
        items[row] = np.count_nonzero(np.asarray(record["gtIgnore"]) == 0)
        true.append(hit)
        ignored.append(skip)
    present = np.array([number for number, record in enumerate(of_class) if record], np.int64)
    image = np.repeat(present, [len(record["dtScores"]) for record in records])
    scores = np.array([score for record in records for score in record["dtScores"]], float)
    order = np.argsort(-scores, kind="stable")
    image, scores = image[order], scores[order]
    new = (np.diff(image, prepend=-1) != 0) | (np.diff(scores, prepend=np.inf) != 0)
    firsts, group = np.flatnonzero(new), np.cumsum(new) - 1
    ties = np.bincount(group)[group] if len(group) else group
    hits, skips = ([np.flatnonzero(row) for row in np.concatenate(part, 1)[:, order]] for part in (true, ignored))
    return ClassMatches(image, firsts[group], ties, hits, skips, present, recalled, items)


def accumulate(classes: list[ClassMatches], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute COCO's precision and recall for a set that contains image i `weights[i]` times.

    Args:
        classes: from `arrange`.
        weights: [I] int, 0 or more.

    Returns:
        Precision [IoU, recall, class] and recall [IoU, class, limit], the arguments of `figures`.
    """
    levels, points, limits = len(PARAMS.iouThrs), len(PARAMS.recThrs), len(PARAMS.maxDets)
    precision, recall = -np.ones((levels, points, len(classes))), -np.ones((levels, len(classes), limits))
    for k, of_class in enumerate(classes):
        times = weights[of_class.present]
        items = times @ of_class.items
        if items:
            recall[:, k] = (times @ of_class.recalled).reshape(levels, limits) / items
            precision[:, :, k] = _precision(of_class, weights, items)
    return precision, recall


def _precision(of_class: ClassMatches, weights: np.ndarray, items: float) -> np.ndarray:
    """Compute precision [IoU, recall] at COCO's recalls from the true detections, where precision has its maxima."""
    counts = weights[of_class.image]
    before = (np.cumsum(counts) - counts)[of_class.tie] + np.arange(len(counts)) - of_class.tie

    def ranks(chosen: np.ndarray) -> np.ndarray:
        """Rank every copy of some detections; among equal scores, the first copy of an image comes first."""
        times = counts[chosen]
        copy = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        return np.sort(np.repeat(before[chosen], times) + copy * np.repeat(of_class.ties[chosen], times))

    precision = np.zeros((len(PARAMS.iouThrs), len(PARAMS.recThrs)))
    for level, (true, ignored) in enumerate(zip(of_class.true, of_class.ignored, strict=True)):
        rank = ranks(true)
        found = np.arange(1.0, len(rank) + 1)
        judged = rank + 1 - np.searchsorted(ranks(ignored), rank)
        best = np.maximum.accumulate((found / (judged + np.spacing(1)))[::-1])[::-1]
        precision[level] = np.append(best, 0.0)[np.searchsorted(found / items, PARAMS.recThrs)]
    return precision


def resample(matches: Mapping[str, Matches], resamples: int) -> dict[str, np.ndarray]:
    """Compute the metrics of test sets on images drawn with replacement.

    Args:
        matches: by name of the test set. Draws depend only on this name and the number of images, so boxes, masks and
            other detectors get the same draws.
        resamples: number of draws.

    Returns:
        `METRICS` of every draw by test set, and for `MEAN` and `POOLED`: [resamples, 6] in per cent, NaN where
        undefined.
    """
    sets = {**{name: arrange(part) for name, part in matches.items()}, POOLED: arrange(pool(list(matches.values())))}
    draws = {name: np.random.default_rng([SEED, _DRAWS, *name.encode("utf-8", "surrogatepass")]) for name in matches}
    values = {name: np.full((resamples, len(METRICS)), np.nan) for name in (*matches, MEAN, POOLED)}
    for row in tqdm(range(resamples), desc="bootstrap", unit="draw"):
        # Number of times each image was drawn.
        weights = {
            name: np.bincount(draws[name].integers(max(part.images, 1), size=part.images), minlength=part.images)
            for name, part in matches.items()
        }
        weights[POOLED] = np.concatenate(list(weights.values()))
        for name, classes in sets.items():
            values[name][row] = list(figures(*accumulate(classes, weights[name])).values())
        values[MEAN][row] = np.mean([values[name][row] for name in matches], axis=0)
    return values


def interval(values: np.ndarray) -> list[list[float] | None]:
    """Compute the bounds of the middle 95 % of the draws for each metric; None where all draws are NaN."""
    tail = (100 - LEVEL_PERCENT) / 2
    columns = [column[~np.isnan(column)] for column in values.T]
    return [np.percentile(c, [tail, 100 - tail]).tolist() if len(c) else None for c in columns]
