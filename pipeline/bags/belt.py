"""The empty belt of a scan: its level and its noise."""

from __future__ import annotations

import cv2
import numpy as np

from segloc.common.images import Image

_BELT_ROWS = 32  # the belt's level is estimated from about this many rows
_BELT_SHARE = 0.01  # minimum share of the scan with the belt's tone, within two levels
LEAST_CONTRAST = 5.0  # grey levels; the faintest fabric seen is 8 darker than its belt
NOISE_FACTOR = 5.0
_NOISE_ROW_STEP = 16  # every sixteenth row is enough to estimate the noise


def belt_level(grey: Image) -> int:
    """Estimate the grey level of the empty belt: the brightest tone that a fair share of the scan has.

    Matter only darkens, so nothing large is brighter than the belt. A full bag may cover more of the scan.

    Args:
        grey: uint8 [height, width].

    Returns:
        A level in 0..255. White scans give 255, grey belts about 196.
    """
    return brightest_common(grey[:: max(1, len(grey) // _BELT_ROWS)], _BELT_SHARE)


def brightest_common(grey: Image, share: float, mask: Image | None = None) -> int:
    """Return the brightest tone that has at least `share` of the pixels (of the mask, if given)."""
    counts = cv2.calcHist([grey], [0], mask, [256], [0, 256]).ravel()
    around = np.convolve(counts, np.ones(5), "same")
    common = np.flatnonzero(around >= share * counts.sum())
    top = int(common[-1] if len(common) else np.argmax(around))
    lowest = max(0, top - 12)
    return lowest + int(np.argmax(counts[lowest : top + 1]))


def belt_noise(small: Image, level: int) -> float:
    """Estimate the standard deviation of the belt from the deviations of its pixels from their neighbours' mean."""
    rows = small[::_NOISE_ROW_STEP]
    near = cv2.blur(rows, (9, 1))
    belt = cv2.inRange(near, level - LEAST_CONTRAST, level + LEAST_CONTRAST)  # type: ignore[call-overload]
    # The mean absolute deviation of a Gaussian is 0.80 of its standard deviation.
    return cv2.mean(cv2.absdiff(rows, near), belt)[0] / 0.8
