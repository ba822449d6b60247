"""Composition modes: ways to blend an item into a background (paper section 3.1; Beer-Lambert).

To add a mode, write a function and add it to `BLENDS`. ``--blend`` and ``--coefficients`` then accept it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.pairing.geometry import Patch
from segloc.common.images import Image

# Minimum transmission of a pixel: black in a scan is not infinitely thick. The first is for pictures themselves, the
# second for pictures divided by their surroundings (`ratio_blend`, occluders).
PICTURE_FLOOR, RATIO_FLOOR = 0.02, 0.05


def alpha_blend(background: Image, patch: Patch, donor: npt.NDArray[np.float32], weight: float) -> Image:
    """The paper's composition: weight * item + (1 - weight) * background, rounded to the nearest level."""
    return np.asarray(cv2.addWeighted(patch.rgb, weight, background, 1 - weight, 0), np.uint8)


def multiply_blend(background: Image, patch: Patch, donor: npt.NDArray[np.float32], thickness: float) -> Image:
    """Multiply transmissions (Beer-Lambert): background * item ** thickness, with white as 1.

    The result includes whatever lay over and under the item in its donor scan; `ratio_blend` removes that.
    """
    return _attenuate(background, patch, np.full(3, 255.0), PICTURE_FLOOR, thickness)


def ratio_blend(background: Image, patch: Patch, donor: npt.NDArray[np.float32], thickness: float) -> Image:
    """Multiply by the transmission of the item alone: the donor's pixels divided by the donor's surroundings."""
    return _attenuate(background, patch, np.maximum(donor, 1).astype(np.float64), RATIO_FLOOR, thickness)


def _attenuate(
    background: Image, patch: Patch, clear: npt.NDArray[np.float64], floor: float, thickness: float
) -> Image:
    """Multiply `background` by the item's transmission; `clear` [3] is the level of full transmission."""
    levels = np.arange(256.0)[:, None]
    # Transmission minus 1, because the fade at the rim scales the loss.
    table = (np.clip(levels / clear, floor, 1) ** thickness - 1).astype(np.float32)
    loss = cv2.LUT(patch.rgb, table[None])
    inside = patch.mask.view(np.uint8).astype(np.float32)
    # Fade over one pixel inside the rim; pixels outside the mask do not change.
    weight = inside * cv2.blur(inside, (3, 3), borderType=cv2.BORDER_CONSTANT)
    factor = 1 + cv2.multiply(cv2.cvtColor(weight, cv2.COLOR_GRAY2RGB), loss)
    return np.asarray(cv2.multiply(background, factor, dtype=cv2.CV_8U), np.uint8)


def paste_blend(background: Image, patch: Patch, donor: npt.NDArray[np.float32], weight: float) -> Image:
    """InsLoc's composition: the item replaces the background. The weight is 1."""
    return patch.rgb


class Blend(NamedTuple):
    """A composition mode.

    Attributes:
        mix: ``mix(background, patch, donor, coefficient)`` returns the blended image.
        coefficients: default range of `View.coefficient`, drawn uniformly.
        allowed: range of meaningful coefficients.
    """

    mix: Callable[[Image, Patch, Any, float], Image]
    coefficients: tuple[float, float]
    allowed: tuple[float, float]


BLENDS = {
    "alpha": Blend(alpha_blend, (0.25, 0.65), (0.01, 1.0)),
    "multiply": Blend(multiply_blend, (0.6, 1.4), (0.01, 10.0)),
    "ratio": Blend(ratio_blend, (0.6, 1.4), (0.01, 10.0)),
    "paste": Blend(paste_blend, (1.0, 1.0), (1.0, 1.0)),
}
