"""Confidence intervals of COCO's figures by the percentile bootstrap over test images (Efron, 1979).

An interval says how far a figure of this one detector would move if the test set were another sample of as many
images of the same kind. It does not cover the training: another seed gives another detector, whose figures can move
further; that needs several runs. Nor does it cover images of another kind, such as those of another scanner.

Each test set's images are drawn with replacement, as many as it has, and its matches are counted as often as their
image was drawn; no match changes, as COCO matches image by image. The mean and the pooled set are made of the same
draws. A draw without any item of a class leaves that class out of its average, as COCO does. The percentile method
does not correct for bias: in small sets, whose draws hold far fewer different images, intervals lie too high.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from segloc.detection.coco_eval import MEAN, METRICS, PARAMS, POOLED, Matches, figures, pool

LEVEL_PERCENT = 95
LEAST_RESAMPLES = 40  # with fewer, less than one lies beyond each bound
SEED = 0
_DRAWS = 0xB007


@dataclasses.dataclass(frozen=True)
class ClassMatches:
    """The matches of one class laid out for counting: D detections, R images, and lists of T, one an IoU threshold.

    Detections stand in COCO's order: by descending score, equal ones by image.

    Attributes:
        image: [D] number of the image.
        tie: [D] the first detection that has this score in this image.
        ties: [D] how many have it.
        true: T lists of detections matched with an item.
        ignored: T lists of detections matched with a crowd, and so neither true nor false.
        present: [R] numbers of the images that have items or detections.
        recalled: [R, T * 3] number of items found within the first 1, 10 and 100 detections of an image.
        items: [R] number of items to find.
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
    """Lay out matches for `accumulate`, a class at a time."""
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
    """Count every image as often as its weight says; the result is that of COCO on a set that holds it so often.

    Args:
        classes: from `arrange`.
        weights: [I] int, 0 or more.

    Returns:
        Precision [IoU, recall, class] and recall [IoU, class, limit], as `figures` takes them.
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
    """Precision at COCO's recalls, [IoU, recall]; its maxima lie where detections are true, so these suffice."""
    counts = weights[of_class.image]
    before = (np.cumsum(counts) - counts)[of_class.tie] + np.arange(len(counts)) - of_class.tie

    def ranks(chosen: np.ndarray) -> np.ndarray:
        """Ranks of some detections, as often as drawn; of equal ones, those of an image's first copy come first."""
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
    """Measure test sets on images drawn with replacement.

    Args:
        matches: by name of the test set; the draws depend on the name and its number of images alone, so boxes, masks
            and other detectors are measured on the same draws.
        resamples: number of draws.

    Returns:
        By test set, and for `MEAN` and `POOLED`, `METRICS` of every draw, [resamples, 6] in per cent; NaN where a
        draw has nothing to measure.
    """
    sets = {**{name: arrange(part) for name, part in matches.items()}, POOLED: arrange(pool(list(matches.values())))}
    draws = {name: np.random.default_rng([SEED, _DRAWS, *name.encode()]) for name in matches}
    values = {name: np.full((resamples, len(METRICS)), np.nan) for name in (*matches, MEAN, POOLED)}
    for row in tqdm(range(resamples), desc="bootstrap", unit="draw"):
        # How often each image is among as many drawn with replacement.
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
    """Bounds between which the middle 95 % of the draws lie, per metric; None where no draw has a figure."""
    tail = (100 - LEVEL_PERCENT) / 2
    columns = [column[~np.isnan(column)] for column in values.T]
    return [np.percentile(c, [tail, 100 - tail]).tolist() if len(c) else None for c in columns]
