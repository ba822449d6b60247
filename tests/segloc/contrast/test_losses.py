import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.functional import normalize

from segloc.contrast.losses import info_nce
from segloc.training.schedules import cosine_schedule, step_schedule


def test_info_nce_equals_its_formula():
    generator = torch.Generator().manual_seed(0)
    query, key, bank = (normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (5, 5, 30))
    valid = torch.rand(5, 30, generator=generator) < 0.5
    result = info_nce(query, key, bank, valid, 0.2)
    losses = []
    for i in range(5):
        positive = np.exp(float(query[i] @ key[i]) / 0.2)
        negatives = sum(np.exp(float(query[i] @ bank[j]) / 0.2) for j in range(30) if valid[i, j])
        losses.append(-np.log(positive / (positive + negatives)))
    assert np.isclose(float(result.loss), np.mean(losses), rtol=1e-5)


def plain(query, key, bank, valid, temperature):
    """The loss by torch's cross-entropy and autograd."""
    negatives = (query @ bank.T).masked_fill(~valid, -torch.inf)
    logits = torch.cat([(query * key).sum(1, keepdim=True), negatives], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long)), logits


def test_a_collapsed_network_is_never_right():
    same = normalize(torch.ones(4, 16), dim=1)
    assert info_nce(same, same, same, torch.ones(4, 4, dtype=torch.bool), 0.2).top1 == 0


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.2, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_loss_gradient_and_metrics_equal_autograd(temperature, share):
    generator = torch.Generator().manual_seed(1)
    query, key, bank = (normalize(torch.randn(n, 16, generator=generator), dim=1) for n in (7, 7, 40))
    valid = torch.rand(7, 40, generator=generator) < share
    key[:3] = query[:3]  # some at distance 0
    ours, theirs = query.clone().requires_grad_(), query.clone().double().requires_grad_()
    result = info_nce(ours, key, bank, valid, temperature)
    loss, logits = plain(theirs, key.double(), bank.double(), valid, temperature)
    (3 * result.loss).backward()
    (3 * loss).backward()
    assert torch.isclose(result.loss.double(), loss, rtol=1e-5, atol=1e-5)
    assert (ours.grad - theirs.grad).abs().max() < 1e-5 / temperature
    assert result.top1 == (logits.argmax(1) == 0).float().mean()
    similarity = (query @ bank.T)[valid]
    assert torch.isclose(result.negative, similarity.mean() if len(similarity) else torch.zeros(()), atol=1e-6)


def test_masked_slots_have_no_influence_and_keys_no_gradient():
    query = normalize(torch.randn(3, 4), dim=1).requires_grad_()
    key = normalize(torch.randn(3, 4), dim=1).requires_grad_()
    bank = normalize(torch.randn(6, 4), dim=1)
    valid = torch.tensor([[True, True, False, False, True, False]]).repeat(3, 1)
    first = info_nce(query, key, bank, valid, 0.2)
    bank = bank.clone()
    bank[[2, 3, 5]] = 1e3
    second = info_nce(query, key, bank, valid, 0.2)
    assert torch.equal(first.loss, second.loss)
    second.loss.backward()
    assert key.grad is None
    assert query.grad.isfinite().all()


def test_equal_embeddings_give_the_loss_of_chance():
    same = normalize(torch.ones(4, 8), dim=1)
    bank = normalize(torch.ones(50, 8), dim=1)
    result = info_nce(same, same, bank, torch.ones(4, 50, dtype=torch.bool), 0.2)
    assert torch.isclose(result.loss, torch.log(torch.tensor(51.0)))


def many(seed, share):
    generator = torch.Generator().manual_seed(seed)
    query, key, bank = (normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (5, 5, 30))
    same = torch.rand(5, 30, generator=generator) < share
    return query, key, bank, ~same & (torch.rand(5, 30, generator=generator) < 0.7), same


def test_keys_of_the_class_are_positives_that_do_not_compete():
    query, key, bank, valid, same = many(0, 0.3)
    losses = []
    for i in range(5):
        negatives = sum(np.exp(float(query[i] @ bank[j]) / 0.2) for j in range(30) if valid[i, j])
        positives = [key[i], *(bank[j] for j in range(30) if same[i, j])]
        own = [np.exp(float(query[i] @ positive) / 0.2) for positive in positives]
        losses.append(np.mean([-np.log(one / (one + negatives)) for one in own]))
    assert np.isclose(float(info_nce(query, key, bank, valid, 0.2, same).loss), np.mean(losses), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
def test_with_no_other_key_of_its_class_a_query_has_the_loss_with_one_positive(temperature):
    query, key, bank, valid, same = many(1, 0.0)
    ours, theirs = query.clone().requires_grad_(), query.clone().requires_grad_()
    result, expected = (
        info_nce(ours, key, bank, valid, temperature, same),
        info_nce(theirs, key, bank, valid, temperature),
    )
    result.loss.backward()
    expected.loss.backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    for field in ("loss", "top1", "positive", "negative"):
        assert torch.isclose(getattr(result, field), getattr(expected, field), rtol=1e-5, atol=1e-6)


def plain_many(query, key, bank, valid, temperature, same_class):
    """The loss with many positives by its definition and torch's autograd."""
    own, stored = (query * key).sum(1, keepdim=True) / temperature, query @ bank.T / temperature
    negatives = stored.masked_fill(~valid, -1e30).logsumexp(1, keepdim=True)
    positives = torch.cat([torch.ones_like(own, dtype=torch.bool), same_class], 1)
    losses = F.softplus(negatives - torch.cat([own, stored], 1))
    return ((losses * positives).sum(1) / positives.sum(1)).mean()


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.2, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_many_positives_have_the_loss_and_gradient_of_autograd(temperature, share):
    query, key, bank, valid, same = many(3, share)
    key[:2] = query[:2]  # at distance 0
    ours, theirs = query.clone().requires_grad_(), query.clone().double().requires_grad_()
    loss = info_nce(ours, key, bank, valid, temperature, same).loss
    expected = plain_many(theirs, key.double(), bank.double(), valid, temperature, same)
    (3 * loss).backward()
    (3 * expected).backward()
    assert torch.isclose(loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert (ours.grad - theirs.grad).abs().max() < 1e-5 / temperature


@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
def test_the_written_gradient_is_that_of_the_loss(share):
    query, key, bank, valid, same = many(4, share or 0.0)
    key, bank, same = key.double(), bank.double(), None if share is None else same
    query = query.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda q: info_nce(q, key, bank, valid, 0.2, same).loss, query)


def test_many_positives_of_equal_embeddings_have_the_loss_of_chance():
    same = normalize(torch.ones(4, 8), dim=1)
    bank = normalize(torch.ones(50, 8), dim=1)
    others = torch.arange(50).expand(4, -1) < 30
    result = info_nce(same, same, bank, others, 0.2, ~others)
    assert torch.isclose(result.loss, torch.log(torch.tensor(31.0)))
    assert result.top1 == 0


def test_many_positives_without_a_negative_have_no_gradient():
    query, key, bank, _, same = many(2, 0.5)
    query.requires_grad_()
    info_nce(query, key, bank, torch.zeros_like(same), 0.01, same).loss.backward()
    assert (query.grad == 0).all()


def test_schedules():
    cosine = cosine_schedule(2.0, 11, warmup=1)
    assert len(cosine) == 11
    assert cosine[0] == 1.0
    assert cosine[1] == 2.0
    assert np.isclose(cosine[6], 1.0)
    assert 0 < cosine[-1] < 0.1
    steps = step_schedule(1.0, 12, warmup=2)
    assert np.allclose(steps, [1 / 3, 2 / 3, *[1] * 6, *[0.1] * 3, 0.01])
