import copy

import numpy as np
import pytest

from segloc.detection import bootstrap
from segloc.detection.coco_eval import METRICS, evaluate, match, pool
from segloc.detection.coco_eval import figures as read
from tests.segloc.detection.test_coco_eval import coco, crowded, equal_scores, figures, random_truth, result, shifted


def random_case(seed, images=8):
    """Truth with crowds, and results with many equal scores."""
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, images)
    return equal_scores(*crowded(truth, shifted(truth["annotations"], rng), rng), rng)


def accumulated(matches, weights):
    return list(read(*bootstrap.accumulate(bootstrap.arrange(matches), weights)).values())


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(5))
def test_every_image_once_gives_the_figures_of_pycocotools(seed, iou_type):
    truth, results = random_case(seed)
    once = np.ones(len(truth["images"]), int)
    expected = figures(evaluate(truth, results, iou_type))
    assert accumulated(match(truth, results, iou_type), once) == expected
    assert 0 < expected[0] < 100


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(8))
def test_a_weight_of_n_equals_n_copies_of_the_image(seed, iou_type):
    truth, results = random_case(seed)
    weights = np.random.default_rng(seed).integers(0, 4, len(truth["images"]))
    copied, found = {**truth, "images": [], "annotations": []}, []
    for image, weight in zip(truth["images"], weights, strict=True):
        for number in range(weight):
            new = {"image_id": 10 * image["id"] + number}
            copied["images"].append({**image, "id": new["image_id"]})
            items = [copy.deepcopy(a) for a in truth["annotations"] if a["image_id"] == image["id"]]
            copied["annotations"] += [
                {**a, **new, "id": len(copied["annotations"]) + i} for i, a in enumerate(items, 1)
            ]
            found += [{**r, **new} for r in results if r["image_id"] == image["id"]]
    expected = figures(evaluate(copied, found, iou_type))
    assert accumulated(match(truth, results, iou_type), weights) == expected


def test_degenerate_sets_are_measured_as_pycocotools_measures_them():
    truth, results = random_case(0)
    once = np.ones(len(truth["images"]), int)
    for annotations, found in (([], results), (truth["annotations"], []), ([], [])):
        case = {**truth, "annotations": annotations}
        assert accumulated(match(case, found, "bbox"), once) == figures(evaluate(case, found, "bbox"))
    assert accumulated(match(truth, results, "bbox"), 0 * once) == [None] * 6


def hits_and_misses(share, images, seed):
    """One item and one detection per image; the detection is exact in this share of the images and wrong in others."""
    rng = np.random.default_rng(seed)
    item, miss = np.zeros((48, 48), np.uint8), np.zeros((48, 48), np.uint8)
    item[4:20, 4:20], miss[30:40, 30:40] = 1, 1
    scores = rng.permutation(images)
    found = [result(i, 4, item if i < share * images else miss, scores[i]) for i in range(images)]
    annotations = [{**result(i, 4, item, 0), "id": i + 1, "area": 256, "iscrowd": 0} for i in range(images)]
    return coco([{"id": i, "width": 48, "height": 48} for i in range(images)], annotations), found


@pytest.mark.parametrize("images", [100, 400])
def test_the_interval_of_a_share_is_the_binomial_one(images):
    matches = {"test": match(*hits_and_misses(0.6, images, 0), "bbox")}
    values = bootstrap.resample(matches, 400)
    low, high = bootstrap.interval(values["test"])[METRICS.index("AR1")]
    half = 196 * np.sqrt(0.6 * 0.4 / images)
    assert (low, high) == (pytest.approx(60 - half, abs=0.2 * half), pytest.approx(60 + half, abs=0.2 * half))


def test_draws_are_fixed_and_shared_by_mean_and_pooled():
    easy, hard = match(*hits_and_misses(0.8, 30, 0), "bbox"), match(*hits_and_misses(0.2, 60, 1), "bbox")
    values = bootstrap.resample({"easy": easy, "hard": hard}, 20)
    again = bootstrap.resample({"hard": hard}, 20)
    assert (values["hard"] == again["hard"]).all()
    assert len(np.unique(values["hard"][:, 3])) > 5
    ar1 = {name: part[:, METRICS.index("AR1")] for name, part in values.items()}
    assert ar1["mean"] == pytest.approx((ar1["easy"] + ar1["hard"]) / 2)
    assert ar1["pooled"] == pytest.approx((30 * ar1["easy"] + 60 * ar1["hard"]) / 90)
    assert pool([easy, hard]).images == 90


def test_the_interval_is_the_middle_95_per_cent():
    draws = np.random.default_rng(0).permutation(np.arange(1001.0))
    values = np.stack([draws, draws / 10, np.where(draws < 500, np.nan, draws)], 1)
    assert bootstrap.interval(values) == [[25, 975], pytest.approx([2.5, 97.5]), pytest.approx([512.5, 987.5])]


def test_draws_without_items_are_nan():
    truth, found = hits_and_misses(1, 2, 0)
    truth["annotations"] = truth["annotations"][:1]
    values = bootstrap.resample({"test": match(truth, found, "bbox")}, 40)["test"]
    assert 0 < np.isnan(values[:, 0]).sum() < 40
    assert bootstrap.interval(values)[METRICS.index("AR1")] == [100, 100]
    assert bootstrap.interval(np.full((40, 6), np.nan)) == [None] * 6
