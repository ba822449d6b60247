"""Memory kept for the backward pass, and the time of recomputing: ``python -m benchmarks.memory --help``.

Counted: the bytes of all tensors that autograd saves in the forward pass of the query network, each storage once. With
weights, gradients, momentum and queues this gives the largest micro-batch of a card; a fifth of the card is left for
what only lives for a moment. `time/kept` is the time of a training step of the query network and a forward pass of the
key network, divided by the time with everything kept, on smaller images.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.common import arguments, interleave, ratio, save
from segloc.contrast.queues import ClassQueues
from segloc.models import attention
from segloc.models.backbone import LEVELS
from segloc.models.segloc import Encoder
from segloc.settings.pretraining import PretrainConfig, load_config

SIDE_PX = 512  # of images of 500 px, padded
CARDS_GB = (16, 24, 48, 80)
MICRO_BATCHES = (64, 48, 32, 24, 16, 8)
USABLE = 0.8
VARIANTS = {"all kept": (False, "none"), "attention recomputed": (True, "none"), "and blocks": (True, "stages")}


def saved_bytes(forward: Callable[[], object]) -> int:
    """Count the bytes of all storages that autograd saves during a call, each once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in storages.values())


@contextlib.contextmanager
def variant(name: str, network: Encoder) -> Iterator[None]:
    """Keep or recompute the maps of the attention and the blocks of the ResNet."""
    recomputes_attention, blocks = VARIANTS[name]
    network.backbone.recompute = blocks == "stages"
    kept = mock.patch.object(attention, "recomputed", lambda function, *args: function(*args))
    with contextlib.nullcontext() if recomputes_attention else kept:
        yield


def inputs(images: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and a box for each."""
    boxes = torch.tensor([[0.25, 0.25, 0.6, 0.7]]).repeat(images, 1) * side
    return torch.zeros(images, 3, side, side).contiguous(memory_format=torch.channels_last), boxes


def bytes_per_pair(network: Encoder, name: str, amp: bool) -> float:
    """Count on small images, because bytes grow with the pixels: what two more pairs add, weights excluded."""
    side, saved = SIDE_PX // 4, []
    with variant(name, network), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        for images in (2, 4):
            given = inputs(images, side)
            saved.append(saved_bytes(lambda given=given: network(*given)))  # type: ignore[misc]
    return (saved[1] - saved[0]) / 2 * (SIDE_PX / side) ** 2


def fixed_bytes(network: Encoder, config: PretrainConfig) -> int:
    """Count weights of both networks, gradients, momentum and queues."""
    weights = sum(parameter.nbytes for parameter in network.parameters())
    queues = ClassQueues(12, config.queue.size, config.head.dim, len(LEVELS))
    return 4 * weights + sum(tensor.nbytes for tensor in queues.state_dict().values())


def times(config: PretrainConfig, side: int, images: int, rounds: int) -> dict[str, float]:
    """Measure the time of each variant divided by the time with everything kept."""
    network = Encoder(config.model, config.head).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    key, given = copy.deepcopy(network), inputs(images, side)

    def step(name: str) -> Callable[[object], None]:
        def run(_: object) -> None:
            with variant(name, network):
                network(*given).square().mean().backward()
            with torch.no_grad():
                key(*given)

        return run

    seconds = interleave({name: step(name) for name in VARIANTS}, [None], rounds)
    return {name: round(ratio(seconds, name, "all kept"), 2) for name in VARIANTS}


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5, help="default: 5")
    options.add_argument("--side", type=int, default=128, help="of the timed images, pixels (default: 128)")
    args = arguments(options)
    torch.set_num_threads(1)
    config = load_config(None, [])
    network = Encoder(config.model, config.head).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found, fixed = times(config, args.side, 16, args.rounds), fixed_bytes(network, config)
    rows = []
    for name in VARIANTS:
        for amp in (False, True):
            pair = bytes_per_pair(network, name, amp)
            fits = {
                f"micro_batch_{card}_gb": next((n for n in MICRO_BATCHES if n * pair + fixed <= USABLE * card * 1e9), 0)
                for card in CARDS_GB
            }
            rows.append(
                {
                    "model": f"{config.model.arch} {config.model.norm}",
                    "recomputed": name,
                    "precision": "bfloat16" if amp else "float32",
                    "gib_of_64_pairs": round(64 * pair / 2**30, 1),
                    "fixed_gib": round(fixed / 2**30, 2),
                    "time/kept": found[name],
                    **fits,
                }
            )
    save("memory", rows)


if __name__ == "__main__":
    main()
