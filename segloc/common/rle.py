"""Checks run-length encoded masks before pycocotools reads them.

With a truncated mask, or one that does not fill its image, pycocotools reads and writes out of bounds or never ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_CHARACTERS = 7  # per run: 2^35 pixels
# Runs, or characters of compressed ones. An item in a scan has some thousand. Comparing the masks of an image takes
# time in proportion to their runs, so a megabyte of them would take minutes.
MOST_RUNS = 500_000


def sound(segmentations: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Whether each value, read from JSON, is a valid RLE that fills an image of that (height, width): bool [n].

    Compressed RLEs are checked together, because for a single one the numpy calls take longer than the work.
    """
    good = np.zeros(len(sizes), bool)
    texts, positions = [], []
    for position, (value, (height, width)) in enumerate(zip(segmentations, sizes, strict=True)):
        if not isinstance(value, dict) or value.get("size") != [height, width]:
            continue
        counts = value.get("counts")
        if not isinstance(counts, (str, list)) or len(counts) > MOST_RUNS:
            continue
        if isinstance(counts, str):
            texts.append(counts)
            positions.append(position)
        elif all(type(count) is int and count >= 0 for count in counts):
            good[position] = sum(counts) == height * width
    if texts:
        good[positions] = _sound(texts, np.array([sizes[position] for position in positions], np.int64).prod(1))
    return good


def _sound(texts: Sequence[str], pixels: np.ndarray) -> np.ndarray:
    """Whether each compressed RLE ends with a whole run, has no negative run and adds up to its image's pixels."""
    encoded = [text.encode("utf-8", "surrogatepass") or b"\0" for text in texts]
    lengths = np.array([len(text) for text in encoded])
    mask = np.repeat(np.arange(len(texts)), lengths)
    bits = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int64) - 48
    stops = bits & 32 == 0  # at the last character of a run
    ends = np.cumsum(lengths) - 1
    good = stops[ends]
    stops[ends] = True
    last = np.flatnonzero(stops)
    first = np.append(0, last[:-1] + 1)
    place = np.arange(len(bits)) - np.repeat(first, last - first + 1)
    good[mask[(bits < 0) | (bits > 63) | (place >= MOST_CHARACTERS)]] = False
    # Five bits per character, the lowest first. The highest bit is the sign.
    place = np.minimum(place, MOST_CHARACTERS - 1)
    runs = np.add.reduceat((bits & 31) << 5 * place, first) - ((bits[last] & 16) << (5 * place[last] + 1))
    mask = mask[first]
    start = np.flatnonzero(np.diff(mask, prepend=-1))  # the first run of each mask
    runs = _undo_differences(runs, np.arange(len(runs)) - start[mask], mask)
    good[mask[(runs < 0) | (runs > pixels[mask])]] = False
    return good & (np.add.reduceat(runs, start) == pixels)


def _undo_differences(runs: np.ndarray, number: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Add up differences: from a mask's fourth run on, each is relative to the run two before."""
    lane = 3 * mask + np.where(number == 0, 0, 1 + number % 2)
    order = np.argsort(lane, kind="stable")
    total = np.cumsum(runs[order])
    head = np.flatnonzero(np.diff(lane[order], prepend=-1))
    before = total[head] - runs[order[head]]
    summed = np.empty_like(runs)
    summed[order] = total - np.repeat(before, np.diff(np.append(head, len(runs))))
    return summed
