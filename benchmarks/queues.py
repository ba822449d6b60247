"""Time and memory of the class queues against MoCo's single queue: ``python -m benchmarks.queues --help``.

The time is the queues' part of a step: similarities with all negatives, loss, gradient to the queries, and enqueuing of
the keys. The peer is a plain implementation with one queue for all classes: `torch.cat`, `cross_entropy`, autograd, a
ring pointer. A third variant has the class queues with that plain loss, to show what the hand-written gradient saves.
All get the same queries and keys, in random order.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from benchmarks.common import arguments, ratio, save
from segloc.contrast.losses import info_nce
from segloc.contrast.queues import ClassQueues

BATCH, CLASSES, SIZE, DIM, TEMPERATURE = 64, 12, 16384, 128, 0.2


class SingleQueue:
    """MoCo's dictionary: the last K keys of each level, of all classes."""

    def __init__(self, levels: int, generator: torch.Generator) -> None:
        self.keys = normalize(torch.randn(levels, SIZE, DIM, generator=generator), dim=2)
        self.pointer = 0

    def step(self, queries: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss and its gradient, then enqueue."""
        losses = []
        for query, key, bank in zip(queries, keys, self.keys, strict=True):
            positive = torch.einsum("nd,nd->n", query, key)[:, None]
            logits = torch.cat([positive, query @ bank.T], 1) / TEMPERATURE
            losses.append(cross_entropy(logits, torch.zeros_like(labels)))
        loss = torch.stack(losses).sum()
        loss.backward()
        self.keys[:, self.pointer : self.pointer + BATCH] = keys
        self.pointer = (self.pointer + BATCH) % SIZE
        return loss.detach()


def queue_step(
    queues: ClassQueues, queries: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Compute the loss and its gradient with the class queues, then enqueue the keys."""
    valid = queues.valid(labels.to(queries.device))
    levels = zip(queries, keys, queues.keys, strict=True)
    loss = torch.stack([info_nce(q, k, bank, valid, temperature).loss for q, k, bank in levels]).sum()
    loss.backward()
    queues.enqueue(keys, labels)
    return loss.detach()


class Ours:
    """The class queues, used as the trainer uses them."""

    def __init__(self, levels: int, generator: torch.Generator) -> None:
        self.queues = ClassQueues(CLASSES, SIZE, DIM, levels)
        while not self.queues.full:
            keys = normalize(torch.randn(levels, SIZE // 8, DIM, generator=generator), dim=2)
            self.queues.enqueue(keys, torch.randint(CLASSES, (SIZE // 8,), generator=generator))

    def step(self, queries: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss and its gradient, then enqueue."""
        return queue_step(self.queues, queries, keys, labels, TEMPERATURE)


class Autograd(Ours):
    """The class queues with a loss by masked logits, `cross_entropy` and autograd."""

    def step(self, queries: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss and its gradient, then enqueue."""
        valid, losses = self.queues.valid(labels), []
        for query, key, bank in zip(queries, keys, self.queues.keys, strict=True):
            positive = torch.einsum("nd,nd->n", query, key)[:, None]
            negatives = (query @ bank.T).masked_fill(~valid, float("-inf"))
            losses.append(cross_entropy(torch.cat([positive, negatives], 1) / TEMPERATURE, torch.zeros_like(labels)))
        loss = torch.stack(losses).sum()
        loss.backward()
        self.queues.enqueue(keys, labels)
        return loss.detach()


def time_steps(levels: int, threads: int, steps: int) -> dict[str, Any]:
    """Compare the step times for this number of levels and threads."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    kinds: dict[str, type[SingleQueue | Ours]] = {"single": SingleQueue, "ours": Ours, "autograd": Autograd}
    variants = {name: kind(levels, generator) for name, kind in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    for step in range(steps + 3):
        queries, keys = normalize(torch.randn(2, levels, BATCH, DIM, generator=generator), dim=3)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        random.shuffle(order)
        for name in order:
            leaf = queries.clone().requires_grad_()
            start = time.perf_counter()
            variants[name].step(leaf, keys, labels)
            if step >= 3:  # the first steps allocate memory
                seconds[name].append(time.perf_counter() - start)
    row = {"measured": "time", "stream": "balanced", "levels": levels, "threads": threads, "steps": steps}
    single = 1000 * float(np.median(seconds["single"]))
    ratios = {f"{name}/single": round(ratio(seconds, name, "single"), 3) for name in ("ours", "autograd")}
    return row | {"single_ms": round(single, 2), **ratios}


def streams(rng: np.random.Generator, keys: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield sequences of class ids with their names."""
    yield "balanced", rng.integers(CLASSES, size=keys)
    weights = 1 / np.arange(1, CLASSES + 1)
    yield "skewed (1/rank)", rng.choice(CLASSES, keys, p=weights / weights.sum())
    yield "runs of 1000 of a class", np.repeat(rng.integers(CLASSES, size=keys // 1000 + 1), 1000)[:keys]
    yield "balanced, then one class", np.where(np.arange(keys) < keys // 2, rng.integers(CLASSES, size=keys), 3)


def memory(name: str, labels: np.ndarray) -> dict[str, Any]:
    """Compare the key memory after a stream of keys with that of K keys, for one level."""
    queues = ClassQueues(CLASSES, SIZE, 1, 1)
    for start in range(0, len(labels), BATCH):
        some = labels[start : start + BATCH]
        queues.enqueue(torch.zeros(1, len(some), 1), some)
    row = {"measured": "memory", "stream": name, "levels": 1, "threads": 1, "steps": len(labels) // BATCH}
    return row | {"single_ms": "", "ours/single": round(queues.keys.shape[1] / SIZE, 3), "autograd/single": ""}


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.queues", description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=60, help="timed steps per variant (default: 60)")
    options.add_argument("--keys", type=int, default=400_000, help="keys per memory stream (default: 400000)")
    args = arguments(options)
    rows = [time_steps(levels, threads, args.steps) for levels in (1, 5) for threads in (1, 2)]
    rows += [memory(name, labels) for name, labels in streams(np.random.default_rng(0), args.keys)]
    save("queues", rows)


if __name__ == "__main__":
    main()
