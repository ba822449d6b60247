import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segloc.contract import InputError
from segloc.detection.coco_eval import METRICS, evaluate, mean

from .toy_coco import CATEGORY_IDS, CLASSES, annotation, coco, rle

SIZE = 48


def random_mask(rng):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    w, h = rng.integers(6, 20, 2)
    x, y = rng.integers(0, SIZE - w), rng.integers(0, SIZE - h)
    mask[y : y + h, x : x + w] = 1
    return mask


def random_truth(rng, images=8, categories=CATEGORY_IDS):
    annotations = []
    for image_id in range(images):
        for _ in range(int(rng.integers(0, 4))):
            item = annotation(len(annotations) + 1, image_id, int(rng.choice(categories)), random_mask(rng))
            annotations.append(item)
    return coco([{"id": i, "width": SIZE, "height": SIZE} for i in range(images)], annotations)


def result(image_id, category_id, mask, score):
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    fields = {"image_id": image_id, "category_id": category_id, "score": float(score)}
    return {**fields, "bbox": box, "segmentation": rle(mask)}


def shifted(annotations, rng):
    """Predictions that are near the truth, far from it, or of another class."""
    results = []
    for item in annotations:
        x, y, w, h = item["bbox"]
        for _ in range(int(rng.integers(0, 4))):
            mask = np.zeros((SIZE, SIZE), np.uint8)
            dx, dy = rng.integers(0, 5, 2)
            mask[y + dy : y + dy + h, x + dx : x + dx + w] = 1
            if mask.any():
                category = item["category_id"] if rng.random() < 0.8 else int(rng.choice(CATEGORY_IDS))
                results.append(result(item["image_id"], category, mask, rng.random()))
    return results


def plain_pycocotools(truth, results, iou_type):
    """The six figures as pycocotools prints them, in per cent."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {"info": {}, **copy.deepcopy(truth)}
        ground_truth.createIndex()
        field = "bbox" if iou_type == "bbox" else "segmentation"
        stripped = [{k: r[k] for k in ("image_id", "category_id", "score", field)} for r in results]
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(stripped), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * evaluation.stats[i] for i in (0, 1, 2, 6, 7, 8)]


def figures(metrics):
    return [metrics[name] for name in METRICS]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_pycocotools(seed, iou_type):
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, categories=CATEGORY_IDS[: 2 + seed % 2])  # every other seed has a class without items
    for item in truth["annotations"][::5]:
        item["iscrowd"] = 1
    results = shifted(truth["annotations"], rng)
    ours = evaluate(truth, results, iou_type)
    assert figures(ours) == pytest.approx(plain_pycocotools(truth, results, iou_type), abs=1e-9)
    assert 0 < ours["AP"] < 100
    for category, name in zip(CATEGORY_IDS, CLASSES, strict=True):
        alone = {**truth, "annotations": [a for a in truth["annotations"] if a["category_id"] == category]}
        expected = evaluate(alone, [r for r in results if r["category_id"] == category], iou_type)
        assert figures(ours["per_class"][name]) == pytest.approx(figures(expected), nan_ok=True)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_a_perfect_prediction_gives_a_hundred(iou_type):
    truth = random_truth(np.random.default_rng(0), images=1)
    truth["annotations"] = [annotation(1, 0, 4, random_mask(np.random.default_rng(1)))]
    item = truth["annotations"][0]
    perfect = [{**{k: item[k] for k in ("image_id", "category_id", "bbox", "segmentation")}, "score": 0.9}]
    metrics = evaluate(truth, perfect, iou_type)
    assert figures(metrics) == pytest.approx([100.0] * 6)
    assert figures(metrics["per_class"]["Knife"]) == pytest.approx([100.0] * 6)
    assert figures(metrics["per_class"]["Gun"]) == [None] * 6  # nothing to find is not zero


def test_nothing_found_is_zero_and_nothing_to_find_is_none():
    truth = random_truth(np.random.default_rng(0))
    assert figures(evaluate(truth, [], "bbox")) == [0.0] * 6
    empty = {**truth, "annotations": []}
    assert figures(evaluate(empty, [], "segm")) == [None] * 6
    found = [result(0, 4, random_mask(np.random.default_rng(1)), 0.5)]
    assert figures(evaluate(empty, found, "segm")) == [None] * 6


def test_inputs_stay_as_they_were():
    rng = np.random.default_rng(3)
    truth = random_truth(rng)
    results = shifted(truth["annotations"], rng)
    before = copy.deepcopy((truth, results))
    evaluate(truth, results, "segm")
    assert (truth, results) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [({"image_id": 77}, "image 77"), ({"category_id": 2}, "category 2"), ({"score": ...}, "no 'score'")],
)
def test_results_of_another_data_set_are_refused(change, message):
    truth = random_truth(np.random.default_rng(0))
    found = {**result(0, 4, random_mask(np.random.default_rng(1)), 0.5), **change}
    with pytest.raises(InputError, match=message):
        evaluate(truth, [{k: v for k, v in found.items() if v is not ...}], "bbox")


def test_mean_is_the_mean_and_none_where_a_part_has_none():
    one = {"AP": 10.0, "AR1": 4.0, "per_class": {"Gun": {"AP": 10.0}, "Knife": {"AP": None}}}
    two = {"AP": 40.0, "AR1": None, "per_class": {"Gun": {"AP": 40.0}, "Knife": {"AP": 3.0}}}
    expected = {"AP": 25.0, "AR1": None, "per_class": {"Gun": {"AP": 25.0}, "Knife": {"AP": None}}}
    assert mean([one, two]) == expected
