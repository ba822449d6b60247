"""InfoNCE against a shared store of keys, of which each query may see only some, with one positive or with many."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Added to the logit of a slot that is no negative. Its exponential is 0, like that of -inf, but it can be made from a
# mask by arithmetic, which is several times faster than filling in -inf.
MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class InfoNCE:
    """What one level's comparison gave.

    Attributes:
        loss: mean over the queries, differentiable.
        top1: share of queries closer to their key than to every negative.
        positive: mean cosine of query and key.
        compared: the queries, the bank and the mask, from which `negative` is computed when somebody asks.
    """

    loss: torch.Tensor
    top1: torch.Tensor
    positive: torch.Tensor
    compared: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    @property
    @torch.no_grad()
    def negative(self) -> torch.Tensor:
        """Mean cosine of query and its negatives; ask before the bank changes."""
        query, bank, valid = self.compared
        return (query @ bank.T).masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)


def info_nce(
    query: torch.Tensor, key: torch.Tensor, bank: torch.Tensor, valid: torch.Tensor, temperature: float
) -> InfoNCE:
    """Compute -log( exp(q.k/T) / (exp(q.k/T) + sum over negatives n of exp(q.n/T)) ), in float32.

    Args:
        query: [n, d] unit vectors.
        key: [n, d] unit vectors, the positives; no gradient flows into them.
        bank: [m, d] unit vectors; no gradient flows into them either.
        valid: [n, m] bool, which rows of `bank` are negatives of which query.
        temperature: T.
    """
    query, key, bank = query.float(), key.detach().float(), bank.detach().float()
    losses, top1 = _Contrast.apply(query, key, bank, valid, temperature)
    positive = (query.detach() * key).sum(1).mean()
    return InfoNCE(losses.mean(), top1.float().mean(), positive, (query.detach(), bank, valid))


def class_info_nce(
    query: torch.Tensor,
    key: torch.Tensor,
    bank: torch.Tensor,
    valid: torch.Tensor,
    same_class: torch.Tensor,
    temperature: float,
) -> InfoNCE:
    """Compute `info_nce` with every stored key of the query's class as a further positive, and the mean over them.

    The positives do not compete with each other: each has its own ``-log( exp(q.p/T) / (exp(q.p/T) + sum over
    negatives n of exp(q.n/T)) )``. Khosla et al. (NeurIPS 2020, "Supervised Contrastive Learning") have the other
    positives in the denominator as well; without them chance is log(1 + K) as with one positive. One key says little
    about its class as long as the key network knows little; the mean of many says more.

    Args:
        query: [n, d] unit vectors.
        key: [n, d] unit vectors, each query's own positive; no gradient flows into them.
        bank: [m, d] unit vectors; no gradient flows into them either.
        valid: [n, m] bool, which rows of `bank` are negatives of which query.
        same_class: [n, m] bool, which rows are further positives.
        temperature: T.
    """
    query, key, bank = query.float(), key.detach().float(), bank.detach().float()
    own, stored = (query * key).sum(1, keepdim=True) / temperature, query @ bank.T / temperature
    negatives = stored.masked_fill(~valid, MASKED)
    positives = torch.cat([torch.ones_like(own, dtype=torch.bool), same_class], 1)
    losses = F.softplus(negatives.logsumexp(1, keepdim=True) - torch.cat([own, stored], 1))
    loss = ((losses * positives).sum(1) / positives.sum(1)).mean()
    top1 = (own > negatives.amax(1, keepdim=True)).float().mean()
    return InfoNCE(loss, top1, own.detach().mean() * temperature, (query.detach(), bank, valid))


class _Contrast(torch.autograd.Function):
    """The loss of every query, with one matrix [n, 1 + m] in memory and the gradient written out.

    With p = softmax of the logits (positive first), the gradient to q is ((p_0 - 1) k + sum over j of p_j n_j) / T.
    Left to autograd, the same takes a further matrix of this size for each of masking, joining, dividing and the
    gradients of these, and the time that takes (``python -m benchmarks.queues`` compares with such a loss).
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, bank: torch.Tensor, valid: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses [n] and whether the positive is the greatest logit [n]."""
        logits = query.new_empty(len(query), 1 + len(bank))
        positive, negatives = logits[:, 0], logits[:, 1:]
        torch.sum(query * key, 1, out=positive).div_(temperature)
        negatives.copy_(valid.view(torch.uint8)).sub_(1).mul_(-MASKED)
        negatives.addmm_(query, bank.T, alpha=1 / temperature)
        greatest_negative = negatives.amax(1)
        greatest = torch.maximum(positive, greatest_negative)
        probabilities = torch.softmax(logits, 1)
        # log of the sum of exponentials: the greatest logit has the greatest probability, which never underflows.
        losses = greatest - probabilities.amax(1).log() - positive
        ctx.save_for_backward(key, bank, probabilities)
        ctx.temperature = temperature
        top1 = positive > greatest_negative  # of equals, as after a collapse, none is closer
        ctx.mark_non_differentiable(top1)
        return losses, top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient to the queries [n, d]."""
        key, bank, probabilities = ctx.saved_tensors
        pull = (probabilities[:, :1] - 1) * key
        pull = pull.addmm_(probabilities[:, 1:], bank)
        return pull * (gradient / ctx.temperature)[:, None], None, None, None, None
