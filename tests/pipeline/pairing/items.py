"""Items drawn by hand."""

import numpy as np

from pipeline.tables.segment_table import Segment


def segment(mask: np.ndarray, scan_width: int = 500, seed: int = 0) -> Segment:
    """An item with random colours and white all around."""
    rgb = np.random.default_rng(seed).integers(0, 120, (*mask.shape, 3), np.uint8)
    rgb[~mask] = 255
    return Segment("s", np.dstack([rgb, mask.astype(np.uint8) * 255]), scan_width, np.full(3, 230, np.float32))


def blob(height: int, width: int) -> np.ndarray:
    """An L that fills its box, so that flips and rotations are visible."""
    mask = np.zeros((height, width), bool)
    mask[:, : max(1, width // 3)] = True
    mask[-max(1, height // 4) :] = True
    return mask
