"""Recompute activations in the backward pass instead of keeping them (activation checkpointing, Chen et al. 2016)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from segloc.models.norm import SplitBatchNorm2d


def recomputed(function: Callable[..., Any], *args: torch.Tensor) -> Any:
    """Call a function; its backward pass calls it again on `args`, the only tensors that are kept.

    Args:
        function: without random numbers and side effects. It may be a module with batch norm, which updates its
            running statistics in the first call only.
        args: its arguments.

    Returns:
        Result of the function, with the same values and gradients as a plain call.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    parts = function.modules() if isinstance(function, nn.Module) else ()
    if norms := [part for part in parts if isinstance(part, SplitBatchNorm2d)]:
        options["context_fn"] = lambda: (contextlib.nullcontext(), _without_updates(norms))
    return checkpoint(function, *args, **options)


@contextlib.contextmanager
def _without_updates(norms: list[SplitBatchNorm2d]) -> Iterator[None]:
    """Keep running statistics as they are; the output does not change."""
    for norm in norms:
        norm.updates = False
    try:
        yield
    finally:
        for norm in norms:
            norm.updates = True
