"""RoIAlign on a CPU equals torchvision's, values and gradients."""

import pytest
import torch
import torchvision

from segloc.models.roi_align import roi_align

HEIGHT, WIDTH = 24, 40


def boxes(kind, count=30):
    """Boxes as [count, 5] on two maps with a stride of 4."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([WIDTH, HEIGHT] * 2) * 4.0
    corners = torch.rand(count, 2, generator=generator), torch.rand(count, 2, generator=generator)
    found = {
        "inside": torch.cat([corners[0] * 0.7, corners[0] * 0.7 + corners[1] * 0.3], 1) * size,
        "leaving": torch.cat([corners[0] - 0.4, corners[0] + corners[1]], 1) * size,
        "outside": torch.cat([corners[0] + 1.1, corners[0] + 1.5], 1) * size,
        "empty": torch.cat([corners[0], corners[0]], 1) * size,
        "turned": torch.cat([corners[0] + 0.2, corners[0]], 1) * size,
        "tiny": torch.cat([corners[0], corners[0] + 0.001], 1) * size,
        "edges": size.expand(count, 4) * torch.tensor([0.0, 0.0, 1.0, 1.0]),
    }[kind]
    return torch.cat([torch.arange(count)[:, None] % 2, found], 1)


@pytest.mark.parametrize("kind", ["inside", "leaving", "outside", "empty", "turned", "tiny", "edges"])
@pytest.mark.parametrize(("size", "samples"), [(7, 2), (14, 1), (3, 0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_equal_those_of_torchvision(kind, size, samples, layout):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, HEIGHT, WIDTH, generator=generator, dtype=torch.float64).contiguous(memory_format=layout)
    weights, rois = torch.randn(30, 5, size, size, generator=generator, dtype=torch.float64), boxes(kind).double()
    results = []
    for pool in (
        lambda x: roi_align(x, rois, size, 0.25, samples),
        lambda x: torchvision.ops.roi_align(x, rois, size, 0.25, samples or -1, aligned=True),
    ):
        leaf = x.clone().requires_grad_()
        pooled = pool(leaf)
        (pooled * weights).sum().backward()
        results.append((pooled, leaf.grad))
    (ours, own_gradient), (theirs, gradient) = results
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(own_gradient, gradient)


def test_no_boxes_are_pooled_to_an_empty_tensor():
    x = torch.randn(2, 5, HEIGHT, WIDTH, requires_grad=True)
    pooled = roi_align(x, torch.zeros(0, 5), 7, 0.25, 2)
    assert pooled.shape == (0, 5, 7, 7)
    pooled.sum().backward()
    assert x.grad.abs().sum() == 0


def test_boxes_that_are_not_finite_do_not_read_outside_the_map():
    rois = torch.tensor([[0, float("nan"), 0, 8, 8], [1, 0, 0, float("inf"), 8]])
    assert roi_align(torch.ones(2, 5, HEIGHT, WIDTH), rois, 7, 0.25, 2).isfinite().all()
