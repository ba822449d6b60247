"""InsLoc's bounding-box augmentation: pool the query from a random box that overlaps the pasted item.

"Instance Localization for Self-supervised Detection Pretraining" (Yang et al., CVPR 2021), with the constants of
its released code: anchors of the stride-16 level, some of them partly outside the image. SegLoc pools the item's box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchvision.ops import box_iou, nms

from segloc.models.backbone import LEVELS

STRIDE_PX = 16
SIDES_PX = (32, 64, 128, 256)  # 2, 4, 8 and 16 strides
RATIOS = (0.5, 0.75, 1.0, 1.5, 2.0)  # height over width
LEAST_IOU = 0.5
FALLBACK = 4000
NMS_IOU = 0.7
AUGMENTED = LEVELS.index("p5")


def query_boxes(
    boxes: torch.Tensor, size: Sequence[int], kind: str, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Return the boxes to pool the queries from.

    Args:
        boxes: [N, 4], x0 y0 x1 y1 in pixels, of the items.
        size: height and width of the batch in pixels, multiples of 16.
        kind: ``none`` or ``insloc``.
        generators: one per image, on the CPU.

    Returns:
        `boxes` for ``none``; else [levels, N, 4]: an augmented box on P5, the item's box on the other levels.
    """
    if kind == "none":
        return boxes
    levels = boxes.repeat(len(LEVELS), 1, 1)
    levels[AUGMENTED] = augment_boxes(boxes, size, generators)
    return levels


def augment_boxes(boxes: torch.Tensor, size: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Draw one anchor with IoU > 0.5 for each box.

    If there is none, as for items far smaller than 32 px, the candidates are the `FALLBACK` anchors of highest IoU, as
    in the released code; in a small image these are nearly all anchors. Non-maximum suppression with random scores
    thins the candidates, so that dense regions are not overrepresented. One of the rest is drawn uniformly.

    Args:
        boxes: [N, 4], x0 y0 x1 y1 in pixels.
        size: height and width of the images in pixels, multiples of 16.
        generators: one per image, on the CPU, for any device of `boxes`.

    Returns:
        [N, 4]; anchors are not clipped to the image.
    """
    grid = anchors(size).to(boxes)
    overlaps = box_iou(boxes, grid)  # [N, anchors]
    chosen = []
    for overlap, generator in zip(overlaps, generators, strict=True):
        scores = torch.rand(len(grid), generator=generator).to(boxes)
        draw = float(torch.rand((), generator=generator))
        candidates = (overlap > LEAST_IOU).nonzero()[:, 0]
        if not len(candidates):
            candidates = overlap.topk(min(FALLBACK, len(overlap))).indices
        left = candidates[nms(grid[candidates], scores[candidates], NMS_IOU)]
        chosen.append(grid[left[int(draw * len(left))]])
    return torch.stack(chosen)


def anchors(size: Sequence[int]) -> torch.Tensor:
    """Return the anchors centred on every multiple of 16 px in an image: [cells * 20, 4], x0 y0 x1 y1 in pixels.

    Args:
        size: height and width of the image in pixels, multiples of 16.
    """
    sides, ratios = torch.tensor(SIDES_PX)[:, None], torch.tensor(RATIOS)[None]
    half = torch.stack([sides / ratios.sqrt(), sides * ratios.sqrt()], -1).reshape(-1, 2) / 2  # width, height
    rows, columns = (torch.arange(0, side, STRIDE_PX) for side in size)
    centre_y, centre_x = torch.meshgrid(rows, columns, indexing="ij")
    centres = torch.stack([centre_x, centre_y], -1).reshape(-1, 1, 2)
    return torch.cat([centres - half, centres + half], -1).reshape(-1, 4)
