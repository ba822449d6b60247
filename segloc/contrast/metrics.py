"""Training metrics, which show learning and collapse."""

from __future__ import annotations

import dataclasses
import resource

import numpy as np
import torch

from segloc.contrast.losses import InfoNCE
from segloc.contrast.queues import ClassQueues
from segloc.models.backbone import LEVELS


@dataclasses.dataclass(frozen=True)
class Compared:
    """Comparison of the queries of a micro-batch with keys and queues.

    Attributes:
        levels: one result per level.
        queries: [levels, N, dim], unit length.
        labels: [N] class ids.
    """

    levels: list[InfoNCE]
    queries: torch.Tensor
    labels: torch.Tensor


@torch.no_grad()
def training_metrics(results: list[Compared], queues: ClassQueues) -> dict[str, float]:
    """Compute the metrics of a step. Call it before the step's keys enter the queues.

    Per level: ``loss``; ``top1``, fraction of queries whose key is nearer than every negative; ``positive`` and
    ``negative``, mean cosine; ``class_accuracy``, fraction of queries whose nearest key in any queue has their class;
    ``embedding_std``, spread of the embeddings, 1 if they are spread evenly and 0 if they have collapsed. Without a
    level: the sum of the losses, the mean ``top1`` and ``class_accuracy``. Per class id: ``queue_fill``, keys in its
    queue, and ``queue_age``, keys that have arrived since its oldest; without an id, the smallest fill.
    """
    slots = queues.slot_labels()
    labels = torch.cat([result.labels for result in results]).to(slots.device)
    metrics: dict[str, float] = {}
    for number, name in enumerate(LEVELS):
        for field in ("loss", "top1", "positive", "negative"):
            values = [getattr(result.levels[number], field) for result in results]
            metrics[f"{field}/{name}"] = float(torch.stack(values).mean())
        queries = torch.cat([result.queries[number] for result in results])
        similarity = (queries @ queues.keys[number].T).masked_fill(slots < 0, -torch.inf)
        metrics[f"class_accuracy/{name}"] = float((slots[similarity.argmax(1)] == labels).float().mean())
        metrics[f"embedding_std/{name}"] = float(queries.std(0, correction=0).mean() * queries.shape[1] ** 0.5)
    for field in ("loss", "top1", "class_accuracy"):
        across = [metrics[f"{field}/{name}"] for name in LEVELS]
        metrics[field] = float(np.sum(across) if field == "loss" else np.mean(across))
    for number, (fill, age) in enumerate(zip(queues.fill().tolist(), queues.age().tolist(), strict=True)):
        metrics |= {f"queue_fill/{number}": float(fill), f"queue_age/{number}": float(age)}
    return metrics | {"queue_fill": float(queues.fill().min()), "peak_memory_mib": peak_memory_mib(queues.keys.device)}


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory of this process: allocated on the GPU, or resident memory on a CPU, MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
