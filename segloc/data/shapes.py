"""Pairs of similar shape are read together, because all images of a step are padded to one size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segloc.common.errors import InputError
from segloc.data.shard_folder import Sample
from segloc.models.backbone import padded_size


def shrunk_to_fit(size: tuple[int, int], square: int) -> tuple[int, int]:
    """Return the (width, height) of an image shrunk to fit a square of this side, pixels."""
    shrink = square / max(size)
    return size if shrink >= 1 else (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))


def by_shape(
    samples: Sequence[Sample], classes: Sequence[str], image_size: int, group: int, ranks: np.ndarray
) -> list[Sample]:
    """Sort the pairs of a shard so that neighbours have images of similar aspect ratio, queries and keys.

    The pairs are divided into strata by the aspect ratio of the query, and each stratum is sorted by that of the key,
    in turn upwards and downwards. There are as many strata as groups in each. Ratios are those of the padded images.

    Args:
        samples: the pairs.
        classes: class names, as in the index.
        image_size: side of the square that images are shrunk to fit, pixels.
        group: pairs that are read together.
        ranks: [n], the order of pairs of equal ratios.
    """
    ratios = np.array([_log_ratios(sample, classes, image_size) for sample in samples])
    count = len(samples)
    strata = max(1, round((count / group) ** 0.5))
    stratum = np.empty(count, np.int64)
    stratum[np.lexsort((ranks, ratios[:, 0]))] = np.arange(count) * strata // count
    within = np.where(stratum % 2, -ratios[:, 1], ratios[:, 1])
    return [samples[place] for place in np.lexsort((ranks, within, stratum))]


def _log_ratios(sample: Sample, classes: Sequence[str], image_size: int) -> tuple[float, float]:
    """Return the logarithms of width over height of query and key; 0 if the description is damaged."""
    try:
        pair = sample.describe(classes)
    except InputError:
        return 0.0, 0.0
    sizes = [padded_size(shrunk_to_fit(view.size, image_size)) for view in (pair.query, pair.key)]
    query, key = (float(np.log(width / height)) for width, height in sizes)
    return query, key
