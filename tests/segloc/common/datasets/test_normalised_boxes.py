import pytest

from segloc.common.datasets.normalised_boxes import are_normalised

LARGE = (80, 56)


@pytest.mark.parametrize(
    ("boxes", "size", "expected"),
    [
        ([[0.1, 0.2, 0.5, 0.8], [0, 0, 1, 1]], LARGE, True),
        ([[0.5, 0.5, 0.5000001, 0.5]], LARGE, True),  # rounding
        ([[0.1, 0.2, 0.5, 0.8], [10, 20, 30, 4]], LARGE, False),  # a tiny box among others
        ([[0.1, 0.2, 0.5, 0.8]], (4, 4), False),  # a tiny image
        ([[0, 0, 0, 0], [0, 0, 1, 1]], LARGE, False),  # stand for no box, beside masks
        ([[-20.5, 0, 0.5, 0.5]], LARGE, False),
        ([[1e308, 0, 1e308, 0.5]], LARGE, False),
        ([], LARGE, False),
    ],
)
def test_boxes_within_the_first_pixel_of_large_images(boxes, size, expected):
    assert are_normalised(boxes, [size] * len(boxes)) is expected
