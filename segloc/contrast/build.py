"""Networks and optimiser of pretraining."""

from __future__ import annotations

import dataclasses

import torch

from segloc.models.initial_weights import RANDOM
from segloc.models.norm import average_over
from segloc.models.segloc import SegLoc
from segloc.settings.pretraining import OptimConfig, PretrainConfig


def make_model(config: PretrainConfig, device: torch.device, share: int, resuming: bool) -> SegLoc:
    """Build both networks, seeded; with `resuming`, do not load initial weights. `share`: images of a step."""
    torch.manual_seed(config.seed)
    settings = dataclasses.replace(config.model, init=RANDOM) if resuming else config.model
    model = SegLoc(settings, config.head).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average_over(model, share)
    model.query.backbone.recompute = config.optim.recompute == "stages"
    if config.optim.compile:
        for network in (model.query, model.key):
            network.compile(dynamic=True)
    return model  # type: ignore[no-any-return]


def make_optimizer(network: torch.nn.Module, optim: OptimConfig, rate: float) -> torch.optim.Optimizer:
    """Build the optimiser of the query network."""
    if optim.method == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=optim.weight_decay)
    momentum, decay = optim.momentum, optim.weight_decay
    return torch.optim.SGD(network.parameters(), rate, momentum, weight_decay=decay, nesterov=momentum > 0)
