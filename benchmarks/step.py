"""A pretraining step with the configured optimisations against a plain step: ``python -m benchmarks.step --help``.

The plain step runs the same model eagerly in float32 with contiguous tensors. SegLoc's step uses channels-last and, on
a GPU, bfloat16. Both read the same shards. `share_of_matrix_rate` is the rate of floating-point operations, as counted
by torch, divided by the rate of a large matrix product on the same device in the same run. `queues` is the time of the
queues' work alone (similarities, loss, gradient to the queries, enqueuing of the keys) divided by the time of a step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import arguments, machine, ratio, save
from benchmarks.loader import write_shards
from benchmarks.queues import queue_step
from segloc.contrast.fitting import decide
from segloc.contrast.metrics import peak_memory_mib
from segloc.contrast.pretrainer import Pretrainer
from segloc.data.stream import Batch, ShardFolder
from segloc.models.backbone import LEVELS
from segloc.settings.pretraining import load_config
from segloc.training.processes import ALONE

WARM_UP = 3


class Waiting:
    """Iterates over batches and adds up the waiting time."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Waiting:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - start
        return batch

    def close(self) -> None:
        """End the decoding threads."""
        self.batches.close()  # type: ignore[attr-defined]


def trainer_of(settings: list[str], folder: ShardFolder, out: Path, plain: bool) -> Pretrainer:
    """Build a trainer with full queues."""
    device = ALONE.device()
    precision = "float32" if plain else "auto"
    config = load_config(None, [*settings, "queue.init=random", "log_every=1000000", f"optim.precision={precision}"])
    trainer = Pretrainer(config, folder, out, device, choices=decide(config, folder, out, device, ALONE))
    if plain:
        trainer.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    trainer.fill_queues()
    return trainer


def steps(trainer: Pretrainer, count: int) -> tuple[float, float]:
    """Return the seconds per step and the share spent waiting for data, after `WARM_UP` steps."""
    waiting = Waiting(trainer.stream.batches())
    trainer._batches = waiting  # type: ignore[assignment]
    for trainer.iter in range(1, WARM_UP + 1):  # step 0 would compute metrics
        trainer.run_step()
    finish(trainer.device)
    waiting.seconds, start = 0.0, time.perf_counter()
    for trainer.iter in range(WARM_UP + 1, WARM_UP + 1 + count):
        trainer.run_step()
    finish(trainer.device)
    total = time.perf_counter() - start
    trainer.close()
    return total / count, waiting.seconds / total


def operations(trainer: Pretrainer) -> float:
    """Return the floating-point operations of a step, counted by torch."""
    trainer.iter = 1
    with FlopCounterMode(display=False) as counter:
        trainer.run_step()
    trainer.close()
    return float(counter.get_total_flops())


def queue_seconds(trainer: Pretrainer) -> float:
    """Return the median seconds of the queues' work in a step."""
    config, device = trainer.config, trainer.device
    found = []
    for _ in range(9):
        drawn = torch.randn(2, len(LEVELS), config.optim.batch, config.head.dim, device=device)
        queries, keys = normalize(drawn, dim=3)
        labels = torch.randint(len(trainer.folder.index.classes), (config.optim.batch,))
        queries.requires_grad_()
        finish(device)
        start = time.perf_counter()
        queue_step(trainer.queues, queries, keys, labels, config.optim.temperature)
        finish(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def matrix_rate(device: torch.device) -> float:
    """Return the best rate, in operations per second, of a large matrix product in the dtype of SegLoc's step."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        finish(device)
        start = time.perf_counter()
        a @ b
        finish(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def finish(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__.splitlines()[0],
        epilog="example: python -m benchmarks.step model.arch=resnet50 optim.batch=8 optim.micro_batch=8",
    )
    options.add_argument("--steps", type=int, default=10, help="steps per round (default: 10)")
    options.add_argument("--rounds", type=int, default=3, help="default: 3")
    options.add_argument("settings", nargs="*", metavar="key=value", help="override settings of the recommended recipe")
    args = arguments(options)
    with tempfile.TemporaryDirectory() as temporary:
        write_shards(Path(temporary), (375, 376), 8, 64)
        folder = ShardFolder.open(temporary)
        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        waits, memory, flops = [], 0.0, 0.0
        for _ in range(args.rounds):
            for name in seconds:
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                trainer = trainer_of(args.settings, folder, Path(temporary), plain=name == "plain")
                step, waited = steps(trainer, args.steps)
                seconds[name].append(step)
                if name == "ours":
                    waits.append(waited)
                    memory = peak_memory_mib(trainer.device)
                    flops = flops or operations(trainer)
        config, device, queue_time = trainer.config, trainer.device, queue_seconds(trainer)
        rate = matrix_rate(device)
    median = statistics.median(seconds["ours"])
    row: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else machine(),
        "model": f"{config.model.arch} {config.model.norm}",
        "image_size": config.data.image_size,
        "batch": config.optim.batch,
        "plain/ours": round(ratio(seconds, "plain", "ours"), 2),
        "pairs_per_s": round(config.optim.batch / median, 2),
        "waiting_for_data": round(statistics.median(waits), 3),
        "queues": round(queue_time / median, 4),
        "peak_mib": round(memory),
        "gflop_per_step": round(flops / 1e9),
        "share_of_matrix_rate": round(flops / median / rate, 3),
    }
    save("step", [row])


if __name__ == "__main__":
    main()
