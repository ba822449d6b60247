"""Pseudo-colours of the trade: the ratio of the two attenuations gives the hue, their mean the brightness.

Organic matter is orange, mixed and inorganic matter green, metal blue, and what lets no photons through nearly black.
The colours were read off real scans: medians over pixels of each hue, by brightness.
"""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np

# Mean attenuation at which the colours of a ramp apply; in between they are interpolated.
ATTENUATION_STOPS = (0.0, 0.06, 0.2, 0.5, 1.05, 1.9, 3.0, 4.6, 7.0)
# Low/high attenuation ratio of the three hues: organic up to 1.30 (water has 1.24), mixed between 1.55 and 2.1
# (aluminium has 1.82), metal from 2.75 (steel has 3.29). As effective atomic numbers (energies.py) these are 8.0, 10.7,
# 15.1 and 20.3: the ratio grows with them, whatever the thickness, so a table by the ratio is one by them.
RATIO_STOPS = (1.30, 1.55, 2.10, 2.75)
RATIO_HUES = (0, 1, 1, 2)

MAX_ATTENUATION = 8.0
MAX_RATIO = 3.6
ATTENUATION_BINS = 512
RATIO_BINS = 64

Ramp = tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Palette:
    """Colours of one make of scanner: an RGB ramp along `ATTENUATION_STOPS` for each hue."""

    organic: Ramp
    mixed: Ramp
    metal: Ramp


WHITE, BELT = (255, 255, 255), (195, 197, 194)
PALETTES = {
    "white": Palette(
        organic=(WHITE, (255, 244, 228), (246, 223, 187), (234, 188, 117), (213, 160, 62), (160, 119, 23), (96, 72, 16), (30, 24, 12), (8, 8, 8)),  # noqa: E501
        mixed=(WHITE, (242, 253, 229), (217, 233, 197), (177, 208, 144), (130, 181, 80), (84, 144, 45), (36, 88, 34), (12, 30, 18), (5, 9, 9)),  # noqa: E501
        metal=(WHITE, (224, 244, 255), (184, 221, 244), (122, 184, 222), (50, 140, 202), (20, 95, 145), (10, 52, 80), (6, 22, 34), (4, 8, 14)),  # noqa: E501
    ),
    "grey": Palette(
        organic=(BELT, (190, 185, 176), (190, 168, 146), (187, 136, 96), (178, 92, 44), (146, 62, 22), (80, 34, 14), (22, 12, 8), (5, 5, 5)),  # noqa: E501
        mixed=(BELT, (184, 196, 178), (160, 188, 142), (122, 166, 92), (82, 136, 56), (48, 96, 36), (22, 52, 24), (10, 22, 14), (4, 7, 6)),  # noqa: E501
        metal=(BELT, (176, 188, 198), (140, 164, 200), (96, 124, 196), (52, 80, 176), (26, 48, 128), (14, 26, 70), (6, 12, 32), (3, 5, 12)),  # noqa: E501
    ),
}  # fmt: skip


@functools.cache
def table(name: str) -> np.ndarray:
    """Colour table of a palette: RGB uint8 [`RATIO_BINS`, `ATTENUATION_BINS`, 3].

    Attenuation runs over its bins by its square root, because the eye sees thin things best.
    """
    palette = PALETTES[name]
    attenuation = MAX_ATTENUATION * np.linspace(0, 1, ATTENUATION_BINS) ** 2
    ramps = np.array(
        [
            [np.interp(attenuation, ATTENUATION_STOPS, channel) for channel in zip(*ramp, strict=True)]
            for ramp in (palette.organic, palette.mixed, palette.metal)
        ]
    )
    hue = np.interp(np.linspace(1, MAX_RATIO, RATIO_BINS), RATIO_STOPS, RATIO_HUES)
    lower = np.minimum(hue.astype(int), 1)
    share = (hue - lower)[:, None, None]
    colours = (1 - share) * ramps[lower] + share * ramps[lower + 1]
    return np.ascontiguousarray(colours.transpose(0, 2, 1).round().astype(np.uint8))


def colourise(mean: np.ndarray, ratio: np.ndarray, name: str) -> np.ndarray:
    """Colour a scan.

    Args:
        mean: mean of the low and the high attenuation, float32 [height, width], 0 is an empty belt.
        ratio: low over high attenuation, float32 [height, width].
        name: palette.

    Returns:
        RGB uint8 [height, width, 3].
    """
    column = np.sqrt(np.clip(mean, 0, MAX_ATTENUATION) * np.float32((ATTENUATION_BINS - 1) ** 2 / MAX_ATTENUATION))
    row = (np.clip(ratio, 1, MAX_RATIO) - 1) * np.float32((RATIO_BINS - 1) / (MAX_RATIO - 1))
    return cv2.remap(table(name), column, row, cv2.INTER_LINEAR)
