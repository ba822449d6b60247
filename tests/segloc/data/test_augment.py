import cv2
import numpy as np
import pytest
import torch

from segloc.data.augment import SETS, horizontal_flip, photometric


def images_of(n=4, h=40, w=56, seed=0):
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed)) * 255


def generators(n=4, seed=0):
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(n)]


@pytest.mark.parametrize("name", list(SETS))
def test_same_generator_same_images_and_range(name):
    images = images_of()
    first = photometric(images, name, generators(seed=1))
    assert torch.equal(first, photometric(images, name, generators(seed=1)))
    assert first.min() >= 0
    assert first.max() <= 255
    if name == "none":
        assert torch.equal(first, images)
    else:
        assert not torch.allclose(first, photometric(images, name, generators(seed=2)))


@pytest.mark.parametrize("name", ["xray", "paper"])
def test_no_set_makes_a_scan_grey(name):
    orange = torch.tensor([230.0, 140.0, 40.0])[None, :, None, None].expand(200, 3, 12, 12)
    out = photometric(orange, name, generators(200))
    assert ((out.amax(1) - out.amin(1)).amin((1, 2)) > 40).all()


def test_xray_keeps_the_hue():
    orange = torch.tensor([230.0, 140.0, 40.0])[None, :, None, None].expand(100, 3, 12, 12)
    out = photometric(orange, "xray", generators(100))
    assert (out[:, 0] > out[:, 1]).all()
    assert (out[:, 1] > out[:, 2]).all()


def test_blur_equals_opencv():
    import segloc.data.augment as augment

    image = images_of(2)
    out = augment._blur(image, torch.tensor([0.0, 0.9]))
    assert torch.allclose(out[0], image[0], atol=1e-3)
    expected = cv2.GaussianBlur(image[1].permute(1, 2, 0).numpy(), (9, 9), 0.9, borderType=cv2.BORDER_REPLICATE)
    assert np.allclose(out[1].permute(1, 2, 0).numpy(), expected, atol=1e-2)


def test_flip_moves_the_box_with_the_item():
    images, boxes = torch.zeros(6, 3, 20, 32), torch.tensor([[3.0, 5, 10, 9]]).repeat(6, 1)
    images[:, :, 5:9, 3:10] = 1
    flipped, moved = horizontal_flip(images, boxes, 0.5, generators(6, 4))
    assert len({tuple(box) for box in moved.tolist()}) == 2  # some flipped, some not
    for image, box in zip(flipped, moved, strict=True):
        x0, y0, x1, y1 = box.int().tolist()
        assert image[:, y0:y1, x0:x1].min() == 1
        assert image.sum() == 3 * 4 * 7
