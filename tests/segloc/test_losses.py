import numpy as np
import torch
from torch.nn.functional import normalize

from segloc.losses import info_nce
from segloc.schedules import cosine_schedule, step_schedule


def test_info_nce_equals_the_formula_written_out():
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


def test_schedules():
    cosine = cosine_schedule(2.0, 11, warmup=1)
    assert len(cosine) == 11
    assert cosine[0] == 1.0
    assert cosine[1] == 2.0
    assert np.isclose(cosine[6], 1.0)
    assert 0 < cosine[-1] < 0.1
    steps = step_schedule(1.0, 12, warmup=2)
    assert np.allclose(steps, [1 / 3, 2 / 3, *[1] * 6, *[0.1] * 3, 0.01])
