"""Batch norm over the images of two processes equals batch norm over all of them in one."""

import copy

import pytest
import torch
from torch import distributed

from segloc.models.norm import SplitBatchNorm2d, share_statistics
from segloc.training.processes import launch


def make(affine):
    torch.manual_seed(0)
    norm = SplitBatchNorm2d(3, images=8, affine=affine).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    return norm, 30 + torch.randn(8, 3, 5, 4, dtype=torch.float64), torch.randn(8, 3, 5, 4, dtype=torch.float64)


def step(norm, x, weights):
    x = x.clone().requires_grad_()
    normed = norm(x)
    (normed * weights).sum().backward()
    gradients = [parameter.grad for parameter in norm.parameters()]
    return normed.detach(), x.grad, gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked


def in_two(affine, folder, group):
    norm, x, weights = make(affine)
    share_statistics(norm, distributed.group.WORLD)
    mine = slice(4 * group.rank, 4 * group.rank + 4)
    normed, gradient, gradients, *statistics = step(norm, x[mine], weights[mine])
    for part in gradients:
        distributed.all_reduce(part)
    torch.save([normed, gradient, gradients, *statistics], f"{folder}/{group.rank}")
    return 0


@pytest.mark.parametrize("affine", [True, False])
def test_two_processes_equal_one(affine, tmp_path):
    norm, x, weights = make(affine)
    expected = step(copy.deepcopy(norm), x, weights)
    assert launch(in_two, 2, affine, str(tmp_path)) == 0
    first, second = (torch.load(tmp_path / rank) for rank in "01")
    for position in (0, 1):
        torch.testing.assert_close(torch.cat([first[position], second[position]]), expected[position])
    for found in (first, second):
        torch.testing.assert_close(found[2:], list(expected[2:]))
