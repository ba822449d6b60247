"""Batch norm put into a norm-free ResNet without changing what it computes.

The paper pretrains without batch norm and fine-tunes with new, random ones, and names that as its weak spot
(section 5.4). Here each new layer starts from the mean and the variance of what the convolution before it puts out,
and its affine part undoes the normalisation: in eval mode the network is the same function as before, and in training
mode nearly so, as far as a batch resembles the images that were measured.

Symbols, per channel: m and v mean and variance, s and t the scale and the shift that stood in the layer's place
(1 and 0 where nothing did; see `segloc.models.norm.ResidualScale`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial

import torch
from torch import nn

from segloc.models.backbone import SegLocBackbone
from segloc.models.norm import ResidualScale

EPS = nn.BatchNorm2d(1).eps


@dataclasses.dataclass
class Moments:
    """Mean and variance of each channel over all values seen so far.

    Attributes:
        count: values seen per channel.
        mean: [C] float64.
        squares: [C] float64, sum of the squared distances from the mean.
    """

    count: int
    mean: torch.Tensor
    squares: torch.Tensor

    @property
    def variance(self) -> torch.Tensor:
        """Population variance [C] float64, what batch norm divides by in training."""
        return self.squares / self.count

    def add(self, x: torch.Tensor) -> None:
        """Take in x [N, C, H, W], by the pairwise update of Chan et al. (1979), which does not cancel."""
        values = x.detach().double().transpose(0, 1).flatten(1)
        mean, count = values.mean(1), values.shape[1]
        difference, total = mean - self.mean, self.count + count
        self.squares += (values - mean[:, None]).square().sum(1) + difference.square() * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total


def measure_moments(backbone: SegLocBackbone, batches: Iterable[torch.Tensor]) -> dict[str, Moments]:
    """Measure what arrives at every place of the ResNet where a norm would stand.

    One pass is enough for all of them, as the layers to be inserted change nothing.

    Args:
        backbone: with ``norm=none``; left as it is.
        batches: normalised images, each [N, 3, H, W], on the backbone's device.

    Returns:
        The moments by the place's name in the backbone.
    """
    found: dict[str, Moments] = {}

    def watch(name: str, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        x = inputs[0]
        if name not in found:
            zeros = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
            found[name] = Moments(0, zeros, zeros.clone())
        found[name].add(x)

    places = _places(backbone)
    handles = [place.register_forward_pre_hook(partial(watch, name)) for name, place in places.items()]
    training = backbone.training
    try:
        with torch.no_grad():
            for images in batches:
                backbone.eval().body(images)
    finally:
        backbone.train(training)
        for handle in handles:
            handle.remove()
    return found


def insert(backbone: SegLocBackbone, moments: dict[str, Moments]) -> dict[str, torch.Tensor]:
    """Make the state dict of the same backbone with ``norm=bn``.

    Batch norm computes ``gamma * (x - m) / sqrt(v + eps) + beta``. With ``gamma = s * sqrt(v + eps)`` and
    ``beta = s * m + t`` that is ``s * x + t``. The ResNet's convolutions have no bias, so nothing else moves. A channel
    that never varies needs no exception: v is 0, and eps keeps the division defined. FPN and attention keep their
    tensors.

    Args:
        backbone: with ``norm=none``.
        moments: see `measure_moments`.
    """
    state = dict(backbone.state_dict())
    dtype = state["body.conv1.weight"].dtype
    for name, place in _places(backbone).items():
        # The affine part has to undo the statistics as they are stored, so it is computed from the rounded ones.
        mean, variance = moments[name].mean.to(dtype), moments[name].variance.to(dtype)
        gamma, beta = (variance.double() + EPS).sqrt(), mean.double()
        if isinstance(place, ResidualScale):
            scale, shift = place.weight.detach().double(), place.bias.detach().double()
            gamma, beta = scale * gamma, scale * beta + shift
        state[f"{name}.weight"], state[f"{name}.bias"] = gamma.to(dtype), beta.to(dtype)
        state[f"{name}.running_mean"], state[f"{name}.running_var"] = mean, variance
        state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    return state


def _places(backbone: SegLocBackbone) -> dict[str, nn.Module]:
    """Find the modules of the ResNet that stand where a norm would."""
    kinds = (nn.Identity, ResidualScale)
    return {f"body.{name}": module for name, module in backbone.body.named_modules() if isinstance(module, kinds)}
