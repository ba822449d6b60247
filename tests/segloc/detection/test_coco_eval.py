import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segloc.common.datasets import Split
from segloc.common.errors import InputError
from segloc.detection.coco_eval import METRICS, evaluate, match, mean, measure, pool
from segloc.detection.splits import read_split
from tests.segloc.toy_coco import CATEGORY_IDS, CLASSES, annotation, coco, rle

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
    listed = [{"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in range(images)]
    return coco(listed, annotations)


def result(image_id, category_id, mask, score):
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    fields = {"image_id": image_id, "category_id": category_id, "score": float(score)}
    return {**fields, "bbox": box, "segmentation": rle(mask)}


def shifted(annotations, rng):
    """Make predictions near the truth, far from it, or of another class."""
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


def plain_pycocotools(folder, truth, results, iou_type):
    """The six figures as pycocotools prints them of two files, in per cent; None for its -1."""
    (folder / "truth.json").write_text(json.dumps({"info": {}, **truth}))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "nothing.json").write_text(json.dumps({"info": {}, **truth, "annotations": []}))
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(folder / "truth.json")
        found = ground_truth.loadRes(str(folder / "results.json")) if results else COCO(folder / "nothing.json")
        evaluation = COCOeval(ground_truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if evaluation.stats[i] == -1 else 100 * evaluation.stats[i] for i in (0, 1, 2, 6, 7, 8)]


def figures(metrics):
    return [metrics[name] for name in METRICS]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_pycocotools(tmp_path, seed, iou_type):
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, categories=CATEGORY_IDS[: 2 + seed % 2])  # every other seed has a class without items
    for item in truth["annotations"][::5]:
        item["iscrowd"] = 1
    results = shifted(truth["annotations"], rng)
    ours = evaluate(truth, results, iou_type)
    assert figures(ours) == plain_pycocotools(tmp_path, truth, results, iou_type)
    assert 0 < ours["AP"] < 100
    for category, name in zip(CATEGORY_IDS, CLASSES, strict=True):
        alone = {**truth, "annotations": [a for a in truth["annotations"] if a["category_id"] == category]}
        expected = evaluate(alone, [r for r in results if r["category_id"] == category], iou_type)
        assert figures(ours["per_class"][name]) == figures(expected)


def crowded(truth, results, rng):
    """Make every second item a crowd: any number of detections match it and count as neither true nor false."""
    for item in truth["annotations"][::2]:
        item["iscrowd"] = 1
    return truth, results + results


def over_the_limit(truth, results, rng):
    """Add 150 detections of one class in one image; COCO counts the best 100."""
    category = truth["annotations"][0]["category_id"]
    image = truth["annotations"][0]["image_id"]
    return truth, results + [result(image, category, random_mask(rng), rng.random()) for _ in range(150)]


def equal_scores(truth, results, rng):
    """Make ties, which COCO breaks by image and by position in the file."""
    return truth, [{**r, "score": round(r["score"], 1)} for r in results]


def odd_areas(truth, results, rng):
    """Set areas outside COCO's "all"; COCO uses the file's areas and ignores these items."""
    for item, area in zip(truth["annotations"], (-5, 2e10, 0, 1e10, 0.5), strict=False):
        item["area"] = area
    return truth, results


def masks_without_pixels(truth, results, rng):
    """Make items with empty masks, which COCO counts but no detection can match."""
    for item, mask in zip(truth["annotations"], ([[5, 5, 5, 5, 5, 5]], empty_rle(truth)), strict=False):
        item["segmentation"] = mask
    return truth, results


def empty_rle(truth):
    size = [truth["images"][0][side] for side in ("height", "width")]
    return {"size": size, "counts": [size[0] * size[1]]}


CASES = {
    "no ground truth": lambda truth, results, rng: ({**truth, "annotations": []}, results),
    "no images": lambda truth, results, rng: ({**truth, "annotations": [], "images": []}, []),
    "no predictions": lambda truth, results, rng: (truth, []),
    "neither": lambda truth, results, rng: ({**truth, "annotations": []}, []),
    "crowds": crowded,
    "crowds alone": lambda truth, results, rng: (
        {**truth, "annotations": [{**a, "iscrowd": 1} for a in truth["annotations"]]},
        results,
    ),
    "a class without items": lambda truth, results, rng: (
        {**truth, "annotations": [a for a in truth["annotations"] if a["category_id"] != CATEGORY_IDS[0]]},
        results,
    ),
    "a class without predictions": lambda truth, results, rng: (
        truth,
        [r for r in results if r["category_id"] != CATEGORY_IDS[0]],
    ),
    "over the limit": over_the_limit,
    "equal scores": equal_scores,
    "odd areas": odd_areas,
    "masks without pixels": masks_without_pixels,
    "boxes without size": lambda truth, results, rng: (truth, [{**r, "bbox": [*r["bbox"][:2], 0, 0]} for r in results]),
    "boxes outside": lambda truth, results, rng: (truth, [{**r, "bbox": [-9, 40.5, 9e4, 9e4]} for r in results]),
}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("case", CASES)
def test_degenerate_cases_are_those_of_pycocotools(tmp_path, case, iou_type):
    rng = np.random.default_rng(7)
    truth = random_truth(rng)
    truth, results = CASES[case](truth, shifted(truth["annotations"], rng), rng)
    (tmp_path / "t.json").write_text(json.dumps(truth))
    read = read_split(Split("test", tmp_path / "t.json", None)).ground_truth
    expected = plain_pycocotools(tmp_path, truth, results, iou_type)
    assert figures(evaluate(read, results, iou_type)) == expected


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_pooled_equals_pycocotools_on_one_file_with_all_images(tmp_path, iou_type):
    rng = np.random.default_rng(11)
    truths = [random_truth(rng, images=n) for n in (4, 7, 1)]  # ids repeat between them
    results = [equal_scores(truth, shifted(truth["annotations"], rng), rng)[1] for truth in truths]
    merged, found = coco(), []
    for number, (truth, of_set) in enumerate(zip(truths, results, strict=True)):
        merged["images"] += [{**image, "id": image["id"] + 100 * number} for image in truth["images"]]
        for item in truth["annotations"]:
            numbers = {"id": len(merged["annotations"]) + 1, "image_id": item["image_id"] + 100 * number}
            merged["annotations"].append(item | numbers)
        found += [r | {"image_id": r["image_id"] + 100 * number} for r in of_set]
    matches = [match(truth, of_set, iou_type) for truth, of_set in zip(truths, results, strict=True)]
    pooled = measure(pool(matches))
    assert figures(pooled) == plain_pycocotools(tmp_path, merged, found, iou_type)
    assert pooled["per_class"] == evaluate(merged, found, iou_type)["per_class"]


def test_an_item_without_a_mask_counts_for_boxes_as_in_pycocotools(tmp_path):
    rng = np.random.default_rng(5)
    truth = random_truth(rng)
    results = shifted(truth["annotations"], rng)
    with_mask = copy.deepcopy(truth)
    del truth["annotations"][0]["segmentation"]
    del with_mask["annotations"][0]
    (tmp_path / "t.json").write_text(json.dumps(truth))
    split = read_split(Split("test", tmp_path / "t.json", None))
    assert split.dropped == 1
    boxes = [{k: v for k, v in r.items() if k != "segmentation"} for r in results]
    expected = plain_pycocotools(tmp_path, truth, boxes, "bbox")
    assert figures(evaluate(split.ground_truth, results, "bbox")) == expected
    expected = plain_pycocotools(tmp_path, with_mask, results, "segm")
    assert figures(evaluate(split.ground_truth, results, "segm")) == expected


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


def test_ids_that_a_float_cannot_represent_stay_distinct(tmp_path):
    truth = random_truth(np.random.default_rng(2))
    results = shifted(truth["annotations"], np.random.default_rng(2))
    expected = evaluate(truth, results, "bbox")
    new = {image["id"]: 11 if not image["id"] else 2**63 + image["id"] for image in truth["images"]}
    for image in truth["images"]:
        image["id"] = new[image["id"]]
    for one in truth["annotations"] + results:
        one["image_id"] = new[one["image_id"]]
    (tmp_path / "t.json").write_text(json.dumps(truth))
    assert evaluate(read_split(Split("test", tmp_path / "t.json", None)).ground_truth, results, "bbox") == expected


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
    [({"image_id": 77}, "image_id 77"), ({"category_id": 2}, "category_id 2"), ({"score": ...}, "no 'score'")],
)
def test_results_of_another_data_set_are_refused(change, message):
    truth = random_truth(np.random.default_rng(0))
    found = {**result(0, 4, random_mask(np.random.default_rng(1)), 0.5), **change}
    with pytest.raises(InputError, match=message):
        evaluate(truth, [{k: v for k, v in found.items() if v is not ...}], "bbox")


def test_mean_is_none_where_a_part_is_none():
    one = {"AP": 10.0, "AR1": 4.0, "per_class": {"Gun": {"AP": 10.0}, "Knife": {"AP": None}}}
    two = {"AP": 40.0, "AR1": None, "per_class": {"Gun": {"AP": 40.0}, "Knife": {"AP": 3.0}}}
    expected = {"AP": 25.0, "AR1": None, "per_class": {"Gun": {"AP": 25.0}, "Knife": {"AP": None}}}
    assert mean([one, two]) == expected
