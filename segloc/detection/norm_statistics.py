"""Batch-norm statistics of the weights as they are, over many training images ("precise batch norm").

The running averages of training lag behind the weights and remember few batches. A test image is normalised by them, so
with small batches or after a short training they decide the result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from segloc.models.norm import SplitBatchNorm2d
from segloc.training.processes import ALONE, Group


def trained_norms(network: nn.Module) -> list[SplitBatchNorm2d]:
    """Return the batch norms that use batch statistics in training, which `network` has to be set to."""
    return [part for part in network.modules() if isinstance(part, SplitBatchNorm2d) and part.training]


@torch.no_grad()
def estimate(network: nn.Module, batches: Iterable[torch.Tensor], group: Group = ALONE) -> int:
    """Replace the running statistics of the trained batch norms by those over all images of all processes together.

    Args:
        network: in training mode. It is called with each batch; nothing else of it changes.
        batches: [N, 3, H, W] each, the share of this process.
        group: the processes; all call this together.

    Returns:
        The number of images of all processes. With 0, nothing has changed.
    """
    norms = trained_norms(network)
    device = next(network.parameters()).device
    # For each norm, sums over all values of a channel: of the values, of their squares, and their number.
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64, device=device) for norm in norms}

    def add(norm: SplitBatchNorm2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        (x,) = inputs
        variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        mean, variance = mean.double(), variance.double()
        sums[norm] += torch.stack([mean, variance + mean.square(), torch.ones_like(mean)]) * (x.numel() // x.shape[1])

    images = 0
    with _watched(norms, add):
        for batch in batches:
            network(batch)
            images += len(batch)
    every = int(group.gather(torch.tensor(images, device=device)).sum())
    if not every:
        return 0
    for norm, own in sums.items():
        total, squares, values = group.gather(own).sum(0)
        mean = total / values
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((squares / values - mean.square()).clamp(min=0))
    return every


@contextlib.contextmanager
def _watched(norms: list[SplitBatchNorm2d], then: Callable[..., None]) -> Iterator[None]:
    """Call `then` after each forward pass of a norm; do not update the running averages."""
    hooks = [norm.register_forward_hook(then) for norm in norms]
    for norm in norms:
        norm.updates = False
    try:
        yield
    finally:
        for norm, hook in zip(norms, hooks, strict=True):
            hook.remove()
            norm.updates = True
