"""Pseudo-colours: the ratio of the two attenuations gives the hue, their mean the brightness.

Organic matter is orange, mixed and inorganic matter green, metal blue. Where hardly any photons pass, materials cannot
be distinguished; such pixels are dark blue. The colours were measured on real scans: medians over the pixels of each
hue, by brightness.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np

# Mean attenuation at which the colours of a ramp apply; colours between stops are interpolated.
ATTENUATION_STOPS = (0.0, 0.06, 0.2, 0.5, 1.05, 1.9, 3.0, 4.6, 7.0)
# Low/high attenuation ratio of the three hues: organic up to 1.30 (water has 1.24), mixed between 1.55 and 2.0
# (aluminium has 1.82), metal from 2.4 (steel has 3.29). As effective atomic numbers (energies.py) these are 8.0, 10.7,
# 14.3 and 17.4. The ratio grows with the atomic number at any thickness, so a table indexed by the ratio is enough.
RATIO_STOPS = (1.30, 1.55, 2.00, 2.40)
RATIO_HUES = (0, 1, 1, 2)

MAX_ATTENUATION = 8.0
MAX_RATIO = 3.6
ATTENUATION_BINS = 512
RATIO_BINS = 64

Ramp = tuple[tuple[int, int, int], ...]


class Palette(NamedTuple):
    """Colours of one make of scanner: an RGB ramp along `ATTENUATION_STOPS` for each hue."""

    organic: Ramp
    mixed: Ramp
    metal: Ramp


WHITE, BELT = (255, 255, 255), (195, 197, 194)
PALETTES = {
    "white": Palette(
        organic=(WHITE, (255, 244, 228), (246, 223, 187), (234, 188, 117), (213, 160, 62), (158, 122, 24), (80, 96, 32), (26, 76, 84), (18, 64, 78)),  # noqa: E501
        mixed=(WHITE, (242, 253, 229), (217, 233, 197), (177, 208, 144), (130, 181, 80), (84, 144, 45), (44, 100, 48), (22, 76, 88), (17, 64, 80)),  # noqa: E501
        metal=(WHITE, (226, 244, 252), (188, 223, 238), (122, 184, 214), (54, 146, 188), (36, 118, 156), (21, 98, 132), (17, 76, 100), (16, 62, 82)),  # noqa: E501
    ),
    # The machine of scans with items: thin things are nearly white, mixed materials a light, cold green.
    "pale": Palette(
        organic=(WHITE, (251, 247, 239), (240, 231, 206), (219, 199, 138), (204, 160, 62), (152, 132, 36), (82, 98, 36), (28, 78, 82), (19, 64, 74)),  # noqa: E501
        mixed=(WHITE, (246, 251, 239), (230, 239, 213), (189, 210, 150), (132, 189, 106), (86, 147, 92), (46, 106, 62), (24, 78, 82), (18, 64, 74)),  # noqa: E501
        metal=(WHITE, (238, 250, 248), (204, 232, 226), (126, 187, 178), (50, 150, 182), (36, 122, 146), (24, 102, 118), (19, 77, 92), (18, 62, 76)),  # noqa: E501
    ),
    "grey": Palette(
        organic=(BELT, (191, 187, 179), (190, 170, 150), (187, 136, 96), (178, 92, 44), (146, 66, 22), (82, 60, 24), (40, 50, 34), (18, 40, 54)),  # noqa: E501
        mixed=(BELT, (187, 195, 184), (162, 186, 146), (122, 166, 92), (84, 136, 58), (54, 96, 40), (42, 66, 32), (28, 50, 38), (18, 40, 54)),  # noqa: E501
        metal=(BELT, (180, 189, 196), (144, 164, 194), (96, 124, 188), (52, 82, 168), (34, 64, 140), (26, 52, 108), (21, 46, 80), (18, 40, 60)),  # noqa: E501
    ),
}  # fmt: skip


@functools.cache
def table(name: str) -> np.ndarray:
    """Colour table of a palette: RGB uint8 [`RATIO_BINS`, `ATTENUATION_BINS`, 3].

    Bins are spaced by the square root of the attenuation, because the eye sees thin things best.
    """
    attenuation = MAX_ATTENUATION * np.linspace(0, 1, ATTENUATION_BINS) ** 2
    channels = np.array(PALETTES[name], float).transpose(0, 2, 1)  # [hues, 3, stops]
    ramps = np.array([[np.interp(attenuation, ATTENUATION_STOPS, levels) for levels in hue] for hue in channels])
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
