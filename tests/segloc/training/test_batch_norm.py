import pytest

from segloc.settings.backbone import BackboneSettings
from segloc.training.batch_norm import images_per_part, too_few


@pytest.mark.parametrize(
    ("norm", "sda_norm", "attention", "others", "bn_images", "expected"),
    [
        ("bn", "ln", True, False, 0, 16),
        ("gn", "bn", True, False, 8, 8),
        ("gn", "bn", False, False, 8, None),
        ("none", "ln", True, True, 2, 2),
        ("bn", "bn", True, False, 64, 16),
    ],
)
def test_images_that_batch_norm_sees_of_sixteen(norm, sda_norm, attention, others, bn_images, expected):
    model = BackboneSettings("resnet18", norm, sda_norm, attention, bn_images)
    assert images_per_part(model, 16, others) == expected


def test_fewer_than_eight_are_told():
    assert "batch norm sees 7 images at a time" in too_few(7)
    assert not too_few(8)
    assert not too_few(None)
