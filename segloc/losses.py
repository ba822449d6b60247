"""InfoNCE against a shared store of keys, of which each query may see only some."""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class InfoNCE:
    """What one level's comparison gave.

    Attributes:
        loss: mean over the queries, differentiable.
        top1: share of queries closer to their key than to every negative.
        positive: mean cosine of query and key.
        negative: mean cosine of query and its negatives.
    """

    loss: torch.Tensor
    top1: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor


def info_nce(
    query: torch.Tensor, key: torch.Tensor, bank: torch.Tensor, valid: torch.Tensor, temperature: float
) -> InfoNCE:
    """Compute -log( exp(q.k/T) / (exp(q.k/T) + sum over negatives n of exp(q.n/T)) ), in float32.

    Args:
        query: [n, d] unit vectors.
        key: [n, d] unit vectors, the positives; no gradient flows into them.
        bank: [m, d] unit vectors.
        valid: [n, m] bool, which rows of `bank` are negatives of which query.
        temperature: T.
    """
    query, key = query.float(), key.detach().float()
    positive = (query * key).sum(1)
    similarity = query @ bank.float().T  # [n, m]
    negatives = similarity.masked_fill(~valid, -torch.inf)
    logits = torch.cat([positive[:, None], negatives], 1) / temperature
    target = torch.zeros(len(query), dtype=torch.long, device=query.device)
    loss = F.cross_entropy(logits, target)
    with torch.no_grad():
        top1 = (logits.argmax(1) == 0).float().mean()
        negative = similarity.masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)
    return InfoNCE(loss, top1, positive.detach().mean(), negative)
