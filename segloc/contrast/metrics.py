"""What a run shows of itself while it trains: is it learning, and is it collapsing?"""

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
    """What comparing the queries of a micro-batch gave.

    Attributes:
        levels: a result a level.
        queries: [levels, N, dim], unit length.
        labels: [N] class ids.
    """

    levels: list[InfoNCE]
    queries: torch.Tensor
    labels: torch.Tensor


@torch.no_grad()
def gauges(results: list[Compared], queues: ClassQueues) -> dict[str, float]:
    """Summarise a step, before its own keys enter the queues: a query would find its own positive there.

    Per level: ``loss``; ``top1``, how often the key is nearer than every negative; ``positive`` and ``negative``
    similarity; ``class_accuracy``, how often the nearest key of all queues is of the query's class; ``embedding_std``,
    the spread of the embeddings, 1 when they point everywhere and 0 when they have collapsed. Without a level's name:
    the sum of the losses and the means of the others. Per class id: ``queue_fill``, the keys in its queue, and
    ``queue_age``, how many keys have arrived since its oldest did; without an id, the least fill.
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
    """Most memory this process has had at once: of the GPU, or resident in the machine's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
