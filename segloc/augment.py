"""Augmentation of whole batches on the device. Every draw comes from a generator, so a step can be repeated exactly.

Grey-scaling, part of MoCo v2's set, is in none of the sets: in X-ray scans colour is material (paper, page 4).
"""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional as F
from torchvision.transforms.v2.functional import adjust_hue

BLUR_RADIUS = 4
GREY = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Photometric:
    """Strengths of a photometric set.

    Attributes:
        brightness: factor drawn from 1 +- this.
        contrast: factor drawn from 1 +- this, about the image's mean grey level.
        saturation: factor drawn from 1 +- this.
        hue: shift drawn from +- this, in turns of the colour circle.
        jitter: probability of the four above, together.
        sigma: range of the Gaussian blur, pixels.
        blur: its probability.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.8
    sigma: tuple[float, float] = (0.1, 1.0)
    blur: float = 0.5


SETS: dict[str, Photometric | None] = {
    # Hue and saturation carry the material, so they are (nearly) left alone.
    "xray": Photometric(brightness=0.2, contrast=0.2, saturation=0.1),
    # MoCo v2 without grey-scaling, as the paper has it.
    "paper": Photometric(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, sigma=(0.1, 2.0)),
    "none": None,
}


def photometric(images: torch.Tensor, name: str, generator: torch.Generator) -> torch.Tensor:
    """Apply the set `name`, each image by itself.

    Args:
        images: [N, 3, H, W] float RGB in 0..255.
        name: key of `SETS`.
        generator: on the CPU, whatever the device of `images`.

    Returns:
        The same shape, in 0..255.
    """
    strength = SETS[name]
    if strength is None:
        return images
    n = len(images)
    on = torch.rand(n, generator=generator) < strength.jitter

    def draw(spread: float) -> torch.Tensor:
        drawn = 2 * torch.rand(n, generator=generator) - 1
        return (drawn * spread * on).to(images)[:, None, None, None]

    images = (images * (1 + draw(strength.brightness))).clamp(0, 255)
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, 1 + draw(strength.contrast)).clamp(0, 255)
    images = torch.lerp(_grey(images).expand_as(images), images, 1 + draw(strength.saturation)).clamp(0, 255)
    hue = draw(strength.hue).flatten().tolist()
    if strength.hue:
        images = torch.stack([adjust_hue(x / 255, h) * 255 for x, h in zip(images, hue, strict=True)])
    low, high = strength.sigma
    sigma = low + (high - low) * torch.rand(n, generator=generator)
    blurred = torch.rand(n, generator=generator) < strength.blur
    # A Gaussian of no width leaves the image as it is.
    return _blur(images, torch.where(blurred, sigma, torch.zeros(n)).to(images))


def horizontal_flip(
    images: torch.Tensor, boxes: torch.Tensor, probability: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror some images left-right, and their boxes with them.

    Args:
        images: [N, 3, H, W].
        boxes: [N, 4], x0 y0 x1 y1 in pixels.
        probability: of each image.
        generator: on the CPU.
    """
    chosen = (torch.rand(len(images), generator=generator) < probability).to(images.device)
    width = images.shape[-1]
    mirrored = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    images = torch.where(chosen[:, None, None, None], images.flip(-1), images)
    return images, torch.where(chosen[:, None], mirrored, boxes)


def _grey(images: torch.Tensor) -> torch.Tensor:
    return torch.einsum("nchw,c->nhw", images, images.new_tensor(GREY))[:, None]


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur each image by its own Gaussian: one grouped convolution along each axis."""
    n, c, h, w = images.shape
    offset = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None, None]  # [N*C, 1, 1, taps]
    x = images.reshape(1, n * c, h, w)
    x = F.conv2d(F.pad(x, (BLUR_RADIUS,) * 2 + (0, 0), mode="replicate"), kernel, groups=n * c)
    x = F.conv2d(F.pad(x, (0, 0) + (BLUR_RADIUS,) * 2, mode="replicate"), kernel.mT, groups=n * c)
    return x.view(n, c, h, w)
