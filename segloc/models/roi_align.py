"""RoIAlign that is fast on a CPU, too.

torchvision's CPU kernel computes the sample points again for every channel, and its backward pass adds single numbers.
Here the samples of a bin are rows of one table of pixels, and the bin is their weighted sum, which torch vectorises
over the channels. `python -m benchmarks.finetune` compares the two.
"""

from __future__ import annotations

import torch
import torchvision
from torch.nn import functional as F


def roi_align(x: torch.Tensor, rois: torch.Tensor, size: int, scale: float, samples: int) -> torch.Tensor:
    """Pool boxes from a feature map, as ``torchvision.ops.roi_align`` with ``aligned=True``; boxes get no gradient.

    Args:
        x: [N, C, H, W].
        rois: [R, 5], the number of the image and x0 y0 x1 y1 in its pixels.
        size: bins per axis, P.
        scale: of the map: 1 / stride.
        samples: sample points per bin and axis; 0 adapts to the box size.

    Returns:
        [R, C, P, P].
    """
    if x.device.type != "cpu" or not samples:
        return torchvision.ops.roi_align(x, rois, size, scale, samples or -1, aligned=True)
    channels, height, width = x.shape[1:]
    image = rois[:, 0].long()
    left, top, right, bottom = (rois[:, 1:].detach() * scale - 0.5).unbind(1)
    rows, row_weights = _along(top, bottom, size, samples, height)
    columns, column_weights = _along(left, right, size, samples, width)
    # [R, P, P, 2 * samples, 2 * samples]: pixels of all images, counted row by row
    row_starts = (image[:, None, None] * height + rows) * width
    pixels = row_starts[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)
    bags = pixels.flatten(3).flatten(0, 2), table
    pooled = F.embedding_bag(*bags, mode="sum", per_sample_weights=weights.flatten(3).flatten(0, 2))
    return pooled.view(len(rois), size, size, channels).permute(0, 3, 1, 2)


def _along(
    start: torch.Tensor, stop: torch.Tensor, size: int, samples: int, limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels and weights along one axis of `limit` pixels, both [R, size, 2 * samples].

    Each sample lies between two pixels. Up to a pixel outside the map it gets the value at the edge, farther out 0.
    """
    steps = torch.arange(size * samples, device=start.device) + 0.5
    at = start[:, None] + (stop - start)[:, None] / (size * samples) * steps
    inside = (at >= -1) & (at <= limit)
    at = at.masked_fill(~inside, 0).clamp(0, limit - 1)  # NaN is not inside either
    before = at.floor()
    share = at - before
    low = before.long()
    pixels = torch.stack([low, (low + 1).clamp(max=limit - 1)], -1)
    weights = torch.stack([1 - share, share], -1) * inside[..., None] / samples
    taps = len(start), size, 2 * samples
    return pixels.view(taps), weights.view(taps)
