"""Time of evaluating PIDray's 18,220 test images, against pycocotools called plainly: ``python -m benchmarks.evaluation``.

Both start from the parsed files and give the six figures over all classes (ours those of every class too). The plain
call is what its documentation shows: ``loadRes``, ``evaluate``, ``accumulate``, ``summarize``. Ours checks the results first
and measures objects of all sizes alone. Bootstrap intervals are timed per resample, from matches made once.
Annotations and results are made up: 1 to 3 items an image, as many on average as PIDray's test sets have, 12 classes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CLASSES = 12
ITEMS = (0.8, 0.12, 0.08)  # share of images with 1, 2 and 3 items: 1.28 an image, as in PIDray's test sets
CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 24, endpoint=False)) for f in (np.cos, np.sin)], -1)


def ellipse(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw an ellipse in an image: centre x y, radii x y."""
    radii = rng.uniform(12, 90, 2)
    return np.concatenate([rng.uniform(radii, np.array([width, height]) - radii), radii])


def polygon(shape: np.ndarray) -> list[float]:
    """Outline of an ellipse as COCO has it."""
    return (shape[:2] + CIRCLE * shape[2:]).round(2).ravel().tolist()


def box(shape: np.ndarray) -> list[float]:
    """Box of an ellipse as x y w h."""
    return [*(shape[:2] - shape[2:]).round(2).tolist(), *(2 * shape[2:]).round(2).tolist()]


def make(images: int, most: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make annotations and results with 1 to `most` detections an image: each item found two or three times, else noise."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {"info": {}, "images": [], "annotations": []}
    truth["categories"] = [{"id": k + 1, "name": f"class {k + 1}"} for k in range(CLASSES)]
    results = []
    for image_id in range(images):
        width, height = (int(side) for side in rng.integers((450, 400), (550, 500)))
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})
        near = []
        for _ in range(1 + int(rng.choice(3, p=ITEMS))):
            shape, category = ellipse(rng, width, height), int(rng.integers(CLASSES)) + 1
            item = {"id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0}
            area = float(np.pi * shape[2] * shape[3])
            truth["annotations"].append(item | {"bbox": box(shape), "area": area, "segmentation": [polygon(shape)]})
            near += [(shape * rng.normal(1, 0.05, 4), category) for _ in range(int(rng.integers(2, 4)))]
        for number in range(int(rng.integers(1, most + 1))):
            far = (ellipse(rng, width, height), int(rng.integers(CLASSES)) + 1)
            shape, category = near[number] if number < len(near) else far
            mask = mask_api.frPyObjects([polygon(shape)], height, width)[0]
            found = {"image_id": image_id, "category_id": category, "score": float(rng.random()), "bbox": box(shape)}
            results.append(found | {"segmentation": {"size": mask["size"], "counts": mask["counts"].decode()}})
    return truth, results


def plain(truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str) -> list[float]:
    """The six figures as pycocotools' documentation gets them, in per cent."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = truth
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * float(evaluation.stats[i]) for i in (0, 1, 2, 6, 7, 8)]
