"""Micro-batch and precision of a run: trials show how many pairs fit into the GPU's memory."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import torch

from segloc.contrast.choices import Choices, choose
from segloc.contrast.pretrainer import Pretrainer, Step
from segloc.data.batches import Batch, Views
from segloc.data.shard_folder import ShardFolder
from segloc.models.backbone import WHITE, padded_size
from segloc.settings.pretraining import PretrainConfig
from segloc.training.processes import Group

# Share of the memory that stays free in the trial, for fragments and for buffers that several processes need.
RESERVE = 0.06


def decide(
    config: PretrainConfig, folder: ShardFolder, out: Path, device: torch.device, group: Group, record: Any = None
) -> Choices:
    """Decide what the recipe leaves open (`choose`), by trials on a GPU. For the arguments see `Pretrainer`."""

    def fits(choices: Choices) -> bool:
        found = _passes(config, folder, out, device, group, choices)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return found

    return choose(config, device, group, record, fits if device.type == "cuda" else None)


def _passes(
    config: PretrainConfig, folder: ShardFolder, out: Path, device: torch.device, group: Group, choices: Choices
) -> bool:
    """Return whether a pass with these choices fits into the free memory of a GPU."""
    optim = dataclasses.replace(config.optim, batch=config.optim.batch // group.world, compile=False)
    optim = dataclasses.replace(optim, micro_batch=choices.micro_batch)
    alone = dataclasses.replace(config, optim=optim)
    reserved_bytes = int(RESERVE * torch.cuda.get_device_properties(device).total_memory)
    try:
        reserve = torch.empty(reserved_bytes, dtype=torch.uint8, device=device)
        try_pass(Pretrainer(alone, folder, out, device, resuming=True, choices=choices))
        torch.cuda.synchronize(device)
        del reserve
    except torch.cuda.OutOfMemoryError:
        return False
    return True


def try_pass(trainer: Pretrainer) -> None:
    """Embed the keys of a step, compare one micro-batch with the queues, and take an optimiser step.

    The images are of full size and white. The trainer is of no further use.
    """
    count, side = trainer.micro_batch, trainer.config.data.image_size
    width, height = padded_size((side, side))
    images = torch.full((count, 3, height, width), WHITE, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    views = Views(images, torch.tensor([[0.0, 0, side, side]]).repeat(count, 1))
    numbers = torch.zeros(count, dtype=torch.int64)
    step = Step([Batch(views, views, numbers, numbers)] * trainer.accumulate, (height, width), (height, width))
    keys = trainer.embed_keys(step, 0)
    levels, _ = trainer.compare(step, 0, keys[:, :count])
    torch.stack([level.loss for level in levels]).sum().backward()
    trainer.optimizer.step()
