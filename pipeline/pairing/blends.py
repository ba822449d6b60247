"""Composition modes: how an item's pixels and the bag's become one (paper section 3.1; Beer-Lambert).

To add a mode, write a function and enter it in `BLENDS`; ``--blend`` and ``--coefficients`` offer it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.pairing.geometry import Patch
from segloc.common.images import Image

# Least transmission a pixel may have: what a scanner shows as black is not infinitely thick. Of a picture as it is, and
# of one that is divided by its surroundings (`ratio_blend`, occluders).
PICTURE_FLOOR, RATIO_FLOOR = 0.02, 0.05


def alpha_blend(host: Image, patch: Patch, donor: npt.NDArray[np.float32], weight: float) -> Image:
    """The paper's composition: weight * item + (1 - weight) * background, to the nearest level."""
    return np.asarray(cv2.addWeighted(patch.rgb, weight, host, 1 - weight, 0), np.uint8)


def multiply_blend(host: Image, patch: Patch, donor: npt.NDArray[np.float32], thickness: float) -> Image:
    """Stack materials: their transmissions multiply (Beer-Lambert), host * item ** thickness, white being 1.

    What lay over and under the item in its donor is taken along; `ratio_blend` takes that out.
    """
    return _attenuate(host, patch, np.full(3, 255.0), PICTURE_FLOOR, thickness)


def ratio_blend(host: Image, patch: Patch, donor: npt.NDArray[np.float32], thickness: float) -> Image:
    """Stack the item alone: its transmission is the donor's pixels over the donor's surroundings."""
    return _attenuate(host, patch, np.maximum(donor, 1).astype(np.float64), RATIO_FLOOR, thickness)


def _attenuate(host: Image, patch: Patch, clear: npt.NDArray[np.float64], floor: float, thickness: float) -> Image:
    """Multiply `host` by the item's transmission; `clear` [3] is the level of a pixel that lets all through."""
    levels = np.arange(256.0)[:, None]
    # Less 1, which is what the fading scales.
    table = (np.clip(levels / clear, floor, 1) ** thickness - 1).astype(np.float32)
    loss = cv2.LUT(patch.rgb, table[None])
    inside = patch.mask.view(np.uint8).astype(np.float32)
    # One pixel of fading inside the rim; nothing changes outside the mask.
    weight = inside * cv2.blur(inside, (3, 3), borderType=cv2.BORDER_CONSTANT)
    factor = 1 + cv2.multiply(cv2.cvtColor(weight, cv2.COLOR_GRAY2RGB), loss)
    return np.asarray(cv2.multiply(host, factor, dtype=cv2.CV_8U), np.uint8)


def paste_blend(host: Image, patch: Patch, donor: npt.NDArray[np.float32], weight: float) -> Image:
    """InsLoc's composition: the item hides what is under it. The weight is 1."""
    return patch.rgb


class Blend(NamedTuple):
    """A composition mode.

    Attributes:
        mix: ``mix(host, patch, donor, coefficient)`` makes one of both.
        coefficients: range that `View.coefficient` is drawn from, uniformly, unless another is asked for.
        allowed: range outside of which a coefficient makes no sense.
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
