import pytest
import torch
from torchvision.ops import box_iou

from segloc.data.box_augment import AUGMENTED, LEAST_IOU, NMS_IOU, anchors, augment_boxes, query_boxes
from segloc.models.backbone import LEVELS

SIZE = (128, 192)
BOXES = torch.tensor([[20.0, 30, 90, 100], [100, 10, 180, 60], [60, 40, 100, 120]])


def generators(seed=0, n=3):
    return [torch.Generator().manual_seed(100 * seed + i) for i in range(n)]


def iou(a, b):
    """Intersection over union of two boxes, written out."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def test_anchors_are_the_published_ones():
    grid = anchors(SIZE)
    assert grid.shape == (8 * 12 * 20, 4)
    centres = {((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in grid.round(decimals=2).tolist()}
    assert {(round(x), round(y)) for x, y in centres} == {(16 * i, 16 * j) for i in range(12) for j in range(8)}
    width, height = (grid[:, 2:] - grid[:, :2]).T
    kinds = set(zip((width * height).sqrt().round().tolist(), (height / width).round(decimals=2).tolist(), strict=True))
    assert kinds == {(side, ratio) for side in (32, 64, 128, 256) for ratio in (0.5, 0.75, 1.0, 1.5, 2.0)}


def test_every_drawn_box_is_an_anchor_that_overlaps_its_own_item():
    grid = {tuple(anchor) for anchor in anchors(SIZE).tolist()}
    drawn = [augment_boxes(BOXES, SIZE, generators(seed)) for seed in range(30)]
    for boxes in drawn:
        for box, item in zip(boxes.tolist(), BOXES.tolist(), strict=True):
            assert tuple(box) in grid
            assert iou(box, item) > LEAST_IOU
    assert len({tuple(boxes[0].tolist()) for boxes in drawn}) > 5


def thinned(candidates, scores):
    """Non-maximum suppression from its definition, best first."""
    left = []
    for _, anchor in sorted(zip(scores, candidates, strict=True), reverse=True):
        if all(iou(anchor, other) <= NMS_IOU for other in left):
            left.append(anchor)
    return left


@pytest.mark.parametrize("seed", range(5))
def test_anchors_are_thinned_and_those_left_are_equally_likely(seed):
    """All steps in plain loops, with the same random numbers."""
    grid = anchors(SIZE).tolist()
    drawn = [(torch.rand(len(grid), generator=g), torch.rand((), generator=g)) for g in generators(seed)]
    scores, draws = zip(*drawn, strict=True)
    shrunk = 0
    for number, drawn in enumerate(augment_boxes(BOXES, SIZE, generators(seed)).tolist()):
        chosen = [i for i, anchor in enumerate(grid) if iou(anchor, BOXES[number].tolist()) > LEAST_IOU]
        left = thinned([grid[i] for i in chosen], scores[number][chosen].tolist())
        assert drawn == left[int(draws[number] * len(left))]
        shrunk += len(chosen) - len(left)
    assert shrunk > 0


def test_an_item_that_no_anchor_fits_gets_a_box():
    tiny = torch.tensor([[50.0, 50, 54, 90]])
    assert box_iou(tiny, anchors(SIZE)).max() < LEAST_IOU
    box = augment_boxes(tiny, SIZE, generators(n=1))
    assert box.shape == (1, 4)
    assert tuple(box[0].tolist()) in {tuple(anchor) for anchor in anchors(SIZE).tolist()}


def test_fallback_keeps_to_the_best_anchors_of_a_large_image():
    size, tiny = (512, 512), torch.tensor([[250.0, 250, 254, 290]])
    overlaps = box_iou(tiny, anchors(size))[0]
    least = overlaps.topk(4000).values[-1]
    for seed in range(20):
        assert box_iou(tiny, augment_boxes(tiny, size, generators(seed, 1)))[0, 0] >= least


def test_draws_depend_on_the_generators_alone():
    first, again, other = (augment_boxes(BOXES, SIZE, generators(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_p5_uses_the_augmented_box():
    boxes = query_boxes(BOXES, SIZE, "insloc", generators())
    assert LEVELS[AUGMENTED] == "p5"
    for number, level in enumerate(boxes):
        assert torch.equal(level, BOXES) == (number != AUGMENTED)
    assert torch.equal(boxes[AUGMENTED], augment_boxes(BOXES, SIZE, generators()))


def test_none_leaves_the_boxes_and_the_generators_alone():
    own = generators()
    before = [g.get_state() for g in own]
    assert query_boxes(BOXES, SIZE, "none", own) is BOXES
    assert all(torch.equal(g.get_state(), state) for g, state in zip(own, before, strict=True))


@pytest.mark.parametrize("shift", [16, 64])
def test_moving_item_and_grid_moves_what_is_drawn(shift):
    """The set of possible boxes moves with the item while the grid surrounds it."""
    size = (512, 512)
    grid = anchors(size)
    item = torch.tensor([[200.0, 210, 260, 290]])
    here, there = (
        {tuple(a) for a in (grid[box_iou(box, grid)[0] > LEAST_IOU] - by).round(decimals=2).tolist()}
        for box, by in ((item, 0), (item + shift, shift))
    )
    assert here == there
    assert here
