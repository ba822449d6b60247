"""Augment whole batches on the device.

Each image has its own generator on the CPU, so its random numbers do not depend on the rest of the batch or on the
device, and a step can be repeated exactly.

No set includes the grey-scaling of MoCo v2, because colour encodes the material in X-ray scans (paper, page 4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch.nn import functional as F
from torchvision.transforms.v2.functional import adjust_hue

BLUR_RADIUS = 4
GREY = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Photometric:
    """Strengths of a photometric set.

    Attributes:
        brightness: factor drawn from 1 +- this value.
        contrast: factor drawn from 1 +- this value, about the image's mean grey level.
        saturation: factor drawn from 1 +- this value.
        hue: shift drawn from +- this value, in turns of the colour circle.
        jitter: probability of the four changes above, applied together.
        sigma: range of the Gaussian blur, pixels.
        blur: probability of the blur.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.8
    sigma: tuple[float, float] = (0.1, 1.0)
    blur: float = 0.5


SETS: dict[str, Photometric | None] = {
    # Hue and saturation encode the material: no hue change, little saturation change.
    "xray": Photometric(brightness=0.2, contrast=0.2, saturation=0.1),
    # MoCo v2 without grey-scaling, as in the paper.
    "paper": Photometric(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, sigma=(0.1, 2.0)),
    "none": None,
}


def photometric(images: torch.Tensor, name: str, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Apply the set `name` to each image independently.

    Args:
        images: [N, 3, H, W] float RGB in 0..255.
        name: key of `SETS`.
        generators: one per image.

    Returns:
        The same shape, in 0..255.
    """
    strength = SETS[name]
    if strength is None:
        return images
    jitter, brightness, contrast, saturation, hue, width, blur = _uniform(generators, 7)
    on = jitter < strength.jitter

    def within(spread: float, drawn: torch.Tensor) -> torch.Tensor:
        return ((2 * drawn - 1) * spread * on).to(images)[:, None, None, None]

    images = (images * (1 + within(strength.brightness, brightness))).clamp(0, 255)
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, 1 + within(strength.contrast, contrast)).clamp(0, 255)
    grey = _grey(images).expand_as(images)
    images = torch.lerp(grey, images, 1 + within(strength.saturation, saturation)).clamp(0, 255)
    if strength.hue:
        turns = within(strength.hue, hue).flatten().tolist()
        images = torch.stack([adjust_hue(x / 255, turn) * 255 for x, turn in zip(images, turns, strict=True)])
    low, high = strength.sigma
    # A Gaussian of sigma 0 leaves the image unchanged.
    return _blur(images, ((low + (high - low) * width) * (blur < strength.blur)).to(images))


def horizontal_flip(
    images: torch.Tensor, boxes: torch.Tensor, probability: float, generators: Sequence[torch.Generator]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip some images and their boxes left to right.

    Args:
        images: [N, 3, H, W].
        boxes: [N, 4], x0 y0 x1 y1 in pixels.
        probability: of a flip, per image.
        generators: one per image.
    """
    chosen = (_uniform(generators, 1)[0] < probability).to(images.device)
    width = images.shape[-1]
    mirrored = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    images = torch.where(chosen[:, None, None, None], images.flip(-1), images)
    return images, torch.where(chosen[:, None], mirrored, boxes)


def _uniform(generators: Sequence[torch.Generator], count: int) -> torch.Tensor:
    """Draw `count` numbers in [0, 1) per image: [count, N]."""
    return torch.stack([torch.rand(count, generator=generator) for generator in generators], 1)


def _grey(images: torch.Tensor) -> torch.Tensor:
    return torch.einsum("nchw,c->nhw", images, images.new_tensor(GREY))[:, None]


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur each image with its own Gaussian, by one grouped convolution per axis."""
    n, c, h, w = images.shape
    offset = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None, None]  # [N*C, 1, 1, taps]
    x = images.reshape(1, n * c, h, w)
    x = F.conv2d(F.pad(x, (BLUR_RADIUS,) * 2 + (0, 0), mode="replicate"), kernel, groups=n * c)
    x = F.conv2d(F.pad(x, (0, 0) + (BLUR_RADIUS,) * 2, mode="replicate"), kernel.mT, groups=n * c)
    return x.view(n, c, h, w)
