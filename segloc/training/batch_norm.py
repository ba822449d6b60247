"""How many images share their batch statistics, and what a run says if they are few."""

from __future__ import annotations

from segloc.settings.backbone import BackboneSettings

FEWEST = 8  # with fewer, the statistics are too noisy (Wu & He 2018, figure 1)


def images_per_part(model: BackboneSettings, forward: int, others: bool = False) -> int | None:
    """Return the number of images that batch norm normalises together in training; None without batch norm.

    Args:
        model: the backbone.
        forward: images per forward pass of a process.
        others: whether there is batch norm outside of the backbone.
    """
    if not (others or model.norm == "bn" or (model.attention and model.sda_norm == "bn")):
        return None
    return min(model.bn_images or forward, forward)


def too_few(images: int | None) -> str:
    """Return a sentence for a run whose batch norm sees fewer than `FEWEST` images; empty for others."""
    if images is None or images >= FEWEST:
        return ""
    return f"batch norm sees {images} images at a time; below {FEWEST} its statistics are noisy, and results suffer"
