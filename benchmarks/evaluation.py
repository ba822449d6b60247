"""Evaluation time for 18,220 images, the size of PIDray's test sets: ``python -m benchmarks.evaluation``.

Both variants read two files and evaluate boxes and masks. `plain` calls pycocotools as its documentation shows
(``loadRes``, ``evaluate``, ``accumulate``, ``summarize``). `ours` is the whole command ``python -m segloc.evaluate``
without its imports. A draw is a bootstrap draw of boxes for one test set, with mean and pooled. The files are
synthetic: 1 to 3 items per image with the mean of PIDray's test sets, 12 classes, and up to 10 or 100 detections per
image. The run stops if the two variants give different metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.common import arguments, interleave, ratio, save
from segloc import evaluate
from segloc.common.datasets import Split
from segloc.detection import bootstrap
from segloc.detection.coco_eval import IOU_TYPES, METRICS, match
from segloc.detection.splits import read_split

DRAWS = 20
CLASSES = 12
ITEMS = (0.8, 0.12, 0.08)  # shares of images with 1, 2 and 3 items; the mean is 1.28, as in PIDray's test sets
CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 24, endpoint=False)) for f in (np.cos, np.sin)], -1)


def ellipse(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw a random ellipse inside an image: centre x y, radii x y."""
    radii = rng.uniform(12, 90, 2)
    return np.concatenate([rng.uniform(radii, np.array([width, height]) - radii), radii])


def polygon(shape: np.ndarray) -> list[float]:
    """Return the outline of an ellipse as a COCO polygon."""
    return (shape[:2] + CIRCLE * shape[2:]).round(2).ravel().tolist()


def box(shape: np.ndarray) -> list[float]:
    """Return the box of an ellipse as x y w h."""
    return [*(shape[:2] - shape[2:]).round(2).tolist(), *(2 * shape[2:]).round(2).tolist()]


def make(images: int, most: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make annotations and 1 to `most` detections per image: two or three near each item, the rest random."""
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


def plain(folder: Path) -> list[list[float]]:
    """Compute the six metrics of boxes and of masks, in per cent, as pycocotools' documentation shows."""
    found = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(folder / "truth.json")
        for kind in IOU_TYPES:
            evaluation = COCOeval(truth, truth.loadRes(str(folder / "results.json")), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            found.append([100 * float(evaluation.stats[i]) for i in (0, 1, 2, 6, 7, 8)])
    return found


def ours(folder: Path) -> list[list[float]]:
    """Compute the same metrics with segloc.evaluate."""
    files = ["--results", str(folder / "results.json"), "--annotations", str(folder / "truth.json")]
    with contextlib.redirect_stdout(io.StringIO()):
        assert evaluate.main([*files, "--out", str(folder / "evaluation.json")]) == 0
    report = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return [[report["mean"][kind][metric] for metric in METRICS] for kind in IOU_TYPES]


def seconds_per_draw(folder: Path) -> float:
    """Time one bootstrap draw of boxes."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    split = read_split(Split("test", folder / "truth.json", None))
    matches = {"test": match(split.ground_truth, results, "bbox")}
    seconds = []
    for draws in (0, DRAWS):  # subtract the fixed cost
        start = time.perf_counter()
        bootstrap.resample(matches, draws)
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / DRAWS


def row(images: int, most: int, rounds: int) -> dict[str, Any]:
    """Measure one size of test set."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth, results = make(images, most)
        (folder / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
        number = len(results)
        del truth, results
        if plain(folder) != ours(folder):
            raise SystemExit("the metrics of pycocotools and segloc.evaluate differ")
        seconds = interleave({"plain": plain, "ours": ours}, [folder], rounds)
        return {
            "images": images,
            "detections": number,
            "rounds": rounds,
            "plain_s": round(min(seconds["plain"]), 1),
            "ours_s": round(min(seconds["ours"]), 1),
            "ours/plain": round(ratio(seconds, "ours", "plain"), 3),
            "ours_ms_per_image": round(1000 * min(seconds["ours"]) / images, 2),
            "draw_s": round(seconds_per_draw(folder), 3),
        }


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    options.add_argument("--images", type=int, default=18_220, help="default: %(default)s")
    options.add_argument("--detections", type=int, nargs="+", default=[10, 100], metavar="N", help="maximum per image")
    options.add_argument("--rounds", type=int, default=1, help="rounds after two warm-up rounds (default: %(default)s)")
    args = arguments(options)
    save("evaluation", [row(args.images, most, args.rounds) for most in args.detections])


if __name__ == "__main__":
    main()
