"""Batch-norm statistics are those over all images, as if they were one batch."""

import copy

import pytest
import torch
from torch import nn

from segloc.detection.norm_statistics import estimate, trained_norms
from segloc.models.backbone import SegLocBackbone
from segloc.models.norm import SplitBatchNorm2d


@pytest.mark.parametrize("parts", [[40], [8] * 5, [16, 16, 8]])
@pytest.mark.parametrize("images", [0, 8])
@pytest.mark.parametrize("size", [(9, 7), (1, 1)])
def test_statistics_are_those_of_one_large_batch(parts, images, size):
    torch.manual_seed(0)
    data = torch.randn(40, 3, *size) + 5 * torch.randn(40, 3, 1, 1) + 20  # most of the variance is between images
    norm = SplitBatchNorm2d(3, images).train()
    assert estimate(norm, data.split(parts)) == 40
    every = data.double().permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(norm.running_mean.double(), every.mean(1), rtol=1e-5)
    assert torch.allclose(norm.running_var.double(), every.var(1, correction=0), rtol=1e-4)


def test_nothing_else_changes():
    torch.manual_seed(0)
    network = SegLocBackbone(arch="resnet18", fpn_channels=64).train()
    before = copy.deepcopy(network.state_dict())
    assert estimate(network, [torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)]) == 4
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert all(norm.updates for norm in trained_norms(network))
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_fixed_and_frozen_statistics_stay():
    network = SegLocBackbone(arch="resnet18", fpn_channels=64)
    network.freeze(1, fixed_statistics=True)
    network.train()
    before = copy.deepcopy(network.state_dict())
    estimate(network, [torch.rand(2, 3, 64, 64)])
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("attention.") for name in changed)


def test_without_batches_nothing_changes():
    norm = SplitBatchNorm2d(3)
    assert estimate(nn.Sequential(norm, nn.Conv2d(3, 1, 1)), []) == 0
    assert norm.running_var.tolist() == [1, 1, 1]
