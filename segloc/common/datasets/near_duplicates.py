"""Near-duplicate scans: finds scans of the same bag, so that a pair never shows one item twice.

The fingerprint is a perceptual hash (pHash: signs of low-frequency DCT coefficients about their median) of 256 bits. It
describes the scan's contents, not its frame: before the transform, the attenuation is resampled to a window of fixed
size around its centre of mass, scaled by its spread. So the fingerprint stays the same when a bag moves on the belt and
when the scan is cropped or resized. A plain pHash does not.

Two scans are in one group if a chain of scans with at most `THRESHOLD_BITS` different bits per step connects them.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from segloc.common.images import Image

# Between the differences of copies of one scan (JPEG, resolution, brightness, a shift of 3 % of the frame) and the
# minimum between two bags of 97 real and 900 simulated scans, 74. A turned or repacked bag is not recognised.
THRESHOLD_BITS = 48
FINGERPRINT_BYTES = 32
_BELT_PERCENTILE, _BELT_MARGIN = 95, 12  # of grey levels; levels within the margin of the belt have no weight
_WORKING_SIDE_PX, _WINDOW_SIDE_PX, _KEPT = 128, 32, 16
_SPREADS = 2.2  # half the window's side in standard deviations of the attenuation
_TILE = 4096


def fingerprint(scan: Image) -> bytes:
    """Hash what a scan shows.

    Args:
        scan: uint8 [h, w, 3] RGB or [h, w] grey.

    Returns:
        `FINGERPRINT_BYTES` bytes, to be compared by Hamming distance. All zero for a scan that shows only belt.
    """
    grey = np.asarray(cv2.cvtColor(scan, cv2.COLOR_RGB2GRAY) if scan.ndim == 3 else scan, np.uint8)
    coefficients = cv2.dct(_window(_attenuation(grey)))[:_KEPT, :_KEPT].ravel()
    # The first coefficient is the mean, which carries no information about the contents.
    return np.packbits(coefficients > np.median(coefficients[1:])).tobytes()


def _attenuation(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Darkness of each pixel relative to the belt, at working size: float32 [h, w], in grey levels."""
    height, width = grey.shape
    factor = min(1.0, _WORKING_SIDE_PX / max(height, width))
    size = max(8, round(width * factor)), max(8, round(height * factor))
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    darker: npt.NDArray[np.float32] = np.maximum(np.percentile(small, _BELT_PERCENTILE) - small - _BELT_MARGIN, 0)
    return darker.astype(np.float32)


def _window(attenuation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sample a map [h, w] around its centre of mass, each axis in units of its spread: float32 [32, 32]."""
    total = float(attenuation.sum())
    if total <= 0:
        return np.zeros((_WINDOW_SIDE_PX, _WINDOW_SIDE_PX), np.float32)
    steps, starts = [], []
    for axis in (0, 1):  # columns, then rows
        mass = attenuation.sum(axis=axis, dtype=np.float64) / total
        at = np.arange(len(mass))
        centre = float(mass @ at)
        spread = max(1.0, float(np.sqrt(mass @ (at - centre) ** 2)))
        steps.append(2 * _SPREADS * spread / _WINDOW_SIDE_PX)
        starts.append(centre - steps[-1] * (_WINDOW_SIDE_PX - 1) / 2)
    # Smooth to the step size, so that samples do not depend on details between them.
    blurred = cv2.GaussianBlur(attenuation, (0, 0), sigmaX=max(0.3, steps[0] / 2), sigmaY=max(0.3, steps[1] / 2))
    affine = np.array([[steps[0], 0, starts[0]], [0, steps[1], starts[1]]], np.float32)
    side = (_WINDOW_SIDE_PX, _WINDOW_SIDE_PX)
    sampled = cv2.warpAffine(blurred, affine, side, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.asarray(sampled, np.float32)


def group(fingerprints: Mapping[str, bytes], threshold_bits: int = THRESHOLD_BITS) -> dict[str, int]:
    """Number the groups of scans whose fingerprints lie close together.

    Args:
        fingerprints: fingerprint of every scan by its path, in any order.
        threshold_bits: maximum number of different bits between neighbours.

    Returns:
        Group per path, numbered from 0 by the groups' first paths in sorted order.
    """
    names = sorted(fingerprints)
    if not names:
        return {}
    packed = np.frombuffer(b"".join(fingerprints[name] for name in names), np.uint8).reshape(len(names), -1)
    distinct, which = np.unique(packed, axis=0, return_inverse=True)
    parents = _connected(distinct, threshold_bits)[which.reshape(-1)]
    _, first, numbers = np.unique(parents, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return dict(zip(names, rank[numbers.reshape(-1)].tolist(), strict=True))


def _connected(packed: npt.NDArray[np.uint8], threshold_bits: int) -> npt.NDArray[np.int64]:
    """Label the connected components of hashes uint8 [n, bytes] by their first member: int64 [n].

    With bits as -1 and 1, a matrix product gives the number of different bits, so the n^2 / 2 comparisons run as matrix
    products, one tile at a time. The sums are small whole numbers and exact in float32.
    """
    signs = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1
    least = signs.shape[1] - 2 * threshold_bits
    parents = np.arange(len(packed))
    for top in range(0, len(packed), _TILE):
        for left in range(0, top + 1, _TILE):
            near = signs[top : top + _TILE] @ signs[left : left + _TILE].T >= least
            _unite(parents, *(found + start for found, start in zip(np.nonzero(near), (top, left), strict=True)))
    return parents


def _unite(parents: npt.NDArray[np.int64], a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> None:
    """Join the components of each a and b, in place. Every entry is its first member, before and after."""
    while (parents[a] != parents[b]).any():
        low, high = np.minimum(parents[a], parents[b]), np.maximum(parents[a], parents[b])
        np.minimum.at(parents, high, low)
        while (parents != parents[parents]).any():
            parents[:] = parents[parents]
