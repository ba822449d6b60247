"""What a recipe leaves open and a run decides at its start: pairs per forward pass, and precision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from segloc.common.errors import InputError
from segloc.settings.pretraining import PretrainConfig
from segloc.training import precision
from segloc.training.processes import Group

FEWEST = 8  # pairs per forward pass that are tried without batch norm


class Choices(NamedTuple):
    """Decisions of a run, as in its run.json.

    Attributes:
        micro_batch: pairs per forward pass of a process.
        precision: ``float32`` or ``bfloat16``.
    """

    micro_batch: int
    precision: str


def micro_batches(config: PretrainConfig, world: int) -> list[int]:
    """Return the numbers of pairs per forward pass that are possible in each of `world` processes, largest first.

    They divide a process's share of the batch into whole parts of batch norm. A setting that is larger than the share
    means the share.

    Raises:
        InputError: the batch cannot be shared like this.
    """
    optim, unit = config.optim, config.bn_unit
    share = max(1, optim.batch // world)
    if optim.batch % world == 0 and share % unit:
        raise InputError(
            f"optim.batch {optim.batch} gives each of {world} processes {share} pairs, which is not a multiple of "
            f"model.bn_images {unit}; use fewer processes, a larger optim.batch or a smaller model.bn_images"
        )
    if not optim.micro_batch and optim.batch % world == 0:
        least = unit if unit > 1 else math.gcd(share, FEWEST)
        return [number for number in range(share, 0, -least) if share % number == 0]
    number = min(optim.micro_batch or share, share)
    if optim.batch % (number * world):
        raise InputError(
            f"optim.batch {optim.batch} cannot be shared by {world} processes in micro-batches of {number}; set "
            "another optim.micro_batch"
        )
    dataclasses.replace(config, optim=dataclasses.replace(optim, micro_batch=number))  # checks it
    return [number]


def choose(
    config: PretrainConfig,
    device: torch.device,
    group: Group,
    record: dict[str, Any] | None = None,
    fits: Callable[[Choices], bool] | None = None,
) -> Choices:
    """Decide what the recipe leaves open; the same in all processes. A collective call.

    Args:
        config: the recipe.
        device: of this process.
        group: the processes.
        record: run.json of the run that is resumed; its decisions are kept.
        fits: tries a decision; without it the smallest forward pass is taken.

    Raises:
        InputError: the batch cannot be shared, nothing fits into memory, or the device lacks the run's precision.
    """
    wanted, name = config.optim.precision, "optim.precision"
    if record and "precision" in record:
        wanted, name = str(record["precision"]), "the precision of the run"
    resolved = precision.resolve(wanted, name, device, group)
    possible = micro_batches(config, group.world)
    if not config.optim.micro_batch and record and "micro_batch" in record:
        # Another number of processes may have another share of the batch.
        return Choices(next((n for n in possible if n <= record["micro_batch"]), possible[-1]), resolved)
    if config.optim.micro_batch or fits is None:
        return Choices(possible[-1], resolved)
    # Every process tries alone, and all take the smallest result.
    mine = next((number for number in possible if fits(Choices(number, resolved))), 0)
    if not (fitting := -group.most(-mine, device)):
        recompute = "" if config.optim.recompute == "stages" else "optim.recompute=stages or "
        raise InputError(
            f"not even {possible[-1]} pairs of {config.data.image_size} px fit into the memory of this GPU; set "
            f"{recompute}a smaller data.image_size"
        )
    return Choices(fitting, resolved)
