"""InfoNCE with one or many positives, against a shared store of keys with a mask per query."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Added to the logits of slots that are not negatives. Its exponential is 0, as for -inf. Unlike -inf, it can be
# computed from a mask by arithmetic, which is faster than masked_fill, and gives no NaN for a query without negatives.
MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class InfoNCE:
    """Loss of one level; every loss function returns this.

    The trainer uses `loss`. `segloc.contrast.metrics.training_metrics` uses `loss`, `top1`, `positive` and `negative`.

    Attributes:
        loss: mean over the queries, differentiable.
        top1: fraction of queries that are closer to their key than to every negative.
        positive: mean cosine of query and key.
        compared: queries, bank and mask, from which `negative` is computed.
    """

    loss: torch.Tensor
    top1: torch.Tensor
    positive: torch.Tensor
    compared: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    @property
    @torch.no_grad()
    def negative(self) -> torch.Tensor:
        """Mean cosine of the queries and their negatives; read it before the bank changes."""
        query, bank, valid = self.compared
        return (query @ bank.T).masked_fill(~valid, 0).sum() / valid.sum().clamp(min=1)


def info_nce(
    query: torch.Tensor,
    key: torch.Tensor,
    bank: torch.Tensor,
    valid: torch.Tensor,
    temperature: float,
    same_class: torch.Tensor | None = None,
) -> InfoNCE:
    """Compute the mean over a query's positives p of -log( exp(q.p/T) / (exp(q.p/T) + sum over negatives exp(q.n/T)) ).

    With `same_class`, every stored key of the query's class is a positive, too. Early in training a single key says
    little about its class; the mean over many says more. The positives do not compete with each other, so chance is
    log(1 + K) for any number of positives. Khosla et al. (NeurIPS 2020, "Supervised Contrastive Learning") instead put
    the other positives in the denominator as well.

    Args:
        query: [n, d] unit vectors.
        key: [n, d] unit vectors, each query's own positive; no gradient flows into them.
        bank: [m, d] unit vectors, the stored keys; no gradient flows into them.
        valid: [n, m] bool, True where a row of `bank` is a negative of the query.
        temperature: T.
        same_class: [n, m] bool, True where a row of `bank` is a further positive; None: no further positives.

    Returns:
        The result in float32, or in float64 if `query` is float64.
    """
    query = query.to(torch.promote_types(query.dtype, torch.float32))
    key, bank = key.detach().to(query), bank.detach().to(query)
    losses, top1 = _Contrast.apply(query, key, bank, valid, temperature, same_class)
    positive = (query.detach() * key).sum(1).mean()
    return InfoNCE(losses.mean(), top1.float().mean(), positive, (query.detach(), bank, valid))


class _Contrast(torch.autograd.Function):
    """Loss per query, with an explicit gradient.

    The gradient of a query is (weight of its key * key + weights of the bank @ bank) / T. The weights are the
    derivatives of the loss by the logits. With one positive they are softmax - 1 for the key and softmax for the rest.
    With many positives, let Z be the log of the sum over the negatives. The loss of a positive p is
    softplus(Z - q.p/T), and its weight is -sigmoid(Z - q.p/T) times its share of the mean. The weight of a negative is
    its softmax among the negatives times minus the sum of the positives' weights.

    Autograd keeps further [n, m] matrices and takes 1.4 to 1.8 times as long as MoCo's single queue
    (``python -m benchmarks.queues`` compares this function with such a queue).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        bank: torch.Tensor,
        valid: torch.Tensor,
        temperature: float,
        same_class: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses [n], and [n] bool: the query's key is closer than every negative."""
        logits = query.new_empty(len(query), 1 + len(bank))
        own, stored = logits[:, :1], logits[:, 1:]
        torch.sum(query * key, 1, keepdim=True, out=own).div_(temperature)
        seen = valid if same_class is None else valid | same_class
        stored.copy_(seen.view(torch.uint8)).sub_(1).mul_(-MASKED)
        stored.addmm_(query, bank.T, alpha=1 / temperature)
        negatives = stored if same_class is None else torch.where(valid, stored, MASKED)
        greatest = negatives.amax(1, keepdim=True)
        # Log-sum-exp is the greatest logit minus the log of its softmax, which never underflows.
        if same_class is None:
            weights = logits.softmax(1)
            losses = (torch.maximum(own, greatest) - weights.amax(1, keepdim=True).log() - own)[:, 0]
            weights[:, 0] -= 1
        else:
            share = torch.cat([torch.ones_like(own), same_class], 1)
            share /= share.sum(1, keepdim=True)
            softmax = negatives.softmax(1)
            margins = greatest - softmax.amax(1, keepdim=True).log() - logits
            losses = (F.softplus(margins) * share).sum(1)
            weights = -margins.sigmoid() * share
            weights[:, 1:] -= softmax * weights.sum(1, keepdim=True)
        ctx.temperature = temperature
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.addmm(weights[:, :1] * key, weights[:, 1:], bank))
        top1 = (own > greatest)[:, 0]  # strict, so that a collapsed network scores 0
        ctx.mark_non_differentiable(top1)
        return losses, top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the queries [n, d]."""
        (pull,) = ctx.saved_tensors
        return pull * (gradient / ctx.temperature)[:, None], None, None, None, None, None
