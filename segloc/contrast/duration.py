"""How long a pretraining would take on a CPU, from the time of one forward pass."""

from __future__ import annotations

import time

import torch

from segloc.contrast.pretrainer import Pretrainer
from segloc.models.backbone import WHITE
from segloc.training.precision import autocast

# A pair costs a forward pass of its key and one of its query, whose backward pass takes as long as two.
PASSES = 4
LONG_H = 1.0
LAPTOP_RECIPE = "detectron_configs/pretrain/demo_r18.yaml"


def warning(trainer: Pretrainer, start: int) -> str:
    """Return a sentence for a run that would take more than `LONG_H` on a CPU; empty for others.

    Args:
        trainer: before its step `start`; its state does not change.
        start: first step of this process; before step 0 the queues are filled.
    """
    config = trainer.config
    filling = 0 if start or config.queue.init == "random" else config.queue.size
    images = filling + (trainer.steps - start) * config.optim.batch * PASSES
    hours = images * seconds_per_image(trainer) / trainer.group.world / 3600
    if hours <= LONG_H:
        return ""
    shown = f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours"
    return f"on this CPU the run takes about {shown}; the recipe for laptops is {LAPTOP_RECIPE}"


@torch.no_grad()
def seconds_per_image(trainer: Pretrainer) -> float:
    """Measure a forward pass of one image of full size; the second of two, because the first allocates memory."""
    side = trainer.config.data.image_size
    image, box = torch.full((1, 3, side, side), float(WHITE)), torch.tensor([[0.0, 0.0, side, side]])
    network, seconds = trainer.model.key.eval(), 0.0
    for _ in range(2):
        begun = time.perf_counter()
        with autocast(trainer.device, trainer.precision):
            network(image, box)
        seconds = time.perf_counter() - begun
    network.train()
    return seconds
