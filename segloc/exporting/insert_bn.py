"""Insert batch norm into a norm-free ResNet without changing its outputs.

The paper pretrains without batch norm and fine-tunes with newly initialised batch norm, which it calls a weak spot
(section 5.4). Here each new layer gets the mean and variance of its input, the output of the preceding convolution, as
running statistics, and its affine part undoes the normalisation. In eval mode the network computes the same function
as before. In training mode it is close, if batches have statistics like those of the measured images.

Symbols, per channel: m and v are mean and variance; s and t are scale and shift of the replaced
`segloc.models.norm.ResidualScale`, or 1 and 0 if there was none.
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
    """Running mean and variance of each channel.

    Attributes:
        count: number of values per channel.
        mean: [C] float64.
        squares: [C] float64, sum of squared deviations from the mean.
    """

    count: int
    mean: torch.Tensor
    squares: torch.Tensor

    @property
    def variance(self) -> torch.Tensor:
        """Population variance [C] float64, as batch norm uses it in training."""
        return self.squares / self.count

    def add(self, x: torch.Tensor) -> None:
        """Add x [N, C, H, W] by the pairwise update of Chan et al. (1979), which avoids cancellation."""
        values = x.detach().double().transpose(0, 1).flatten(1)
        mean, count = values.mean(1), values.shape[1]
        difference, total = mean - self.mean, self.count + count
        self.squares += (values - mean[:, None]).square().sum(1) + difference.square() * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total


def measure_moments(backbone: SegLocBackbone, batches: Iterable[torch.Tensor]) -> dict[str, Moments]:
    """Measure the inputs of all modules of the ResNet that batch norm will replace.

    One pass over the images is enough, because the inserted layers do not change the outputs.

    Args:
        backbone: with ``norm=none``; not changed.
        batches: normalised images, each [N, 3, H, W], on the backbone's device.

    Returns:
        The moments by module name in the backbone.
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
    """Return the state dict of the same backbone with ``norm=bn``.

    Batch norm computes ``gamma * (x - m) / sqrt(v + eps) + beta``. With ``gamma = s * sqrt(v + eps)`` and
    ``beta = s * m + t`` this equals ``s * x + t``. The ResNet's convolutions have no bias with either norm. Constant
    channels work, too: v is 0, and eps avoids division by zero. FPN and attention are copied.

    Args:
        backbone: with ``norm=none``.
        moments: see `measure_moments`.
    """
    state = dict(backbone.state_dict())
    dtype = state["body.conv1.weight"].dtype
    for name, place in _places(backbone).items():
        # The affine part must undo the stored statistics, so compute it from the rounded values.
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
    """Return the modules of the ResNet that take the place of a norm, by name."""
    kinds = (nn.Identity, ResidualScale)
    return {f"body.{name}": module for name, module in backbone.body.named_modules() if isinstance(module, kinds)}
