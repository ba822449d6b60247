from typing import ClassVar

import numpy as np
import pytest
import torch

from segloc.detection.trainer import FinetuneTrainer
from segloc.settings.finetuning import OptimSettings

START = torch.tensor([1.0, -2.0, 0.5])
GRADIENTS = torch.tensor([[0.3, -0.1, 2.0], [-0.5, 0.4, 1.0]])
RATES = np.array([0.1, 0.02])
DECAY = 0.05


class Linear(torch.nn.Module):
    """A detector whose loss has a given gradient: the batch is one example, which is the gradient."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(START.clone())

    def forward(self, batch):
        return {"loss_one": self.weight @ batch[0] / 4, "loss_two": self.weight @ batch[0] * 3 / 4}


class Gradients:
    unreadable: ClassVar = {}

    def __init__(self, rows):
        self.rows = rows

    def batches(self, start, stop, rank, world):
        yield from ([self.rows[iteration]] for iteration in range(start, stop))


def weights_after_two_steps(gradients, **settings):
    detector = Linear()
    settings = OptimSettings(batch=1, weight_decay=DECAY, clip=0.0, **settings)
    FinetuneTrainer(detector, Gradients(gradients), settings, RATES).fit(0)
    return detector.weight.detach()


def test_two_steps_of_sgd_by_hand():
    """The velocity holds decayed past gradients; the learning rate of a step scales all of it."""
    velocity = GRADIENTS[0] + DECAY * START
    one = START - 0.1 * velocity
    velocity = 0.8 * velocity + GRADIENTS[1] + DECAY * one
    expected = one - 0.02 * velocity
    assert torch.allclose(weights_after_two_steps(GRADIENTS, momentum=0.8), expected, rtol=1e-6)


def test_two_steps_of_adamw_by_hand():
    """For a constant gradient, a step is the learning rate times the gradient's sign, plus weight decay."""
    expected = START
    for rate in (0.1, 0.02):
        expected = expected * (1 - rate * DECAY) - rate * GRADIENTS[0].sign()
    found = weights_after_two_steps(GRADIENTS[[0, 0]], method="adamw")
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("clip", [0.5, 10.0])
def test_a_clipped_gradient_keeps_its_direction(clip):
    detector = Linear()
    settings = OptimSettings(batch=1, weight_decay=0.0, clip=clip)
    trainer = FinetuneTrainer(detector, Gradients(GRADIENTS), settings, RATES[:1])
    trainer.fit(0)
    norm = float(GRADIENTS[0].norm())
    expected = START - 0.1 * GRADIENTS[0] * min(1.0, clip / norm)
    assert torch.allclose(detector.weight.detach(), expected, rtol=1e-5)
    assert trainer.metrics["grad_norm"] == pytest.approx(norm)
