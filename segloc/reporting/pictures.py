"""Pictures of ground truth beside detections, for the best, median and worst images."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from pycocotools import mask as mask_api

from segloc.common import white_level
from segloc.common.datasets import Split
from segloc.common.datasets.coco import read_results
from segloc.common.datasets.coco_fields import Id
from segloc.common.errors import InputError
from segloc.common.files import check_output, write_atomic
from segloc.common.images import Image
from segloc.common.masks import to_rle
from segloc.common.skips import Skips
from segloc.detection.coco_eval import FIELDS, IOU_TYPES, evaluate
from segloc.detection.data import read_scan, reason_of
from segloc.detection.image_scores import Judged, examples, rank
from segloc.detection.splits import CocoSplit, read_split
from segloc.reporting.charts import known_letters, plain

PANEL_INCHES = (3.9, 3.3)
DPI = 100


def draw(split: CocoSplit, chosen: Mapping[str, Sequence[Judged]], images: Mapping[Id, Image], title: str) -> bytes:
    """Draw a row for each kind of image (best, median, worst), with two panels per image, as PNG.

    Args:
        split: the test set.
        chosen: images of each kind.
        images: their pixels [h, w, 3] by image id.
        title: of the picture.
    """
    rows = {kind: some for kind, some in chosen.items() if some}
    columns = 2 * max(map(len, rows.values()))
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * len(rows) + 0.5), dpi=DPI, layout="constrained")
    figure.suptitle(plain(title), fontsize=11)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for row, (kind, some) in zip(panels, rows.items(), strict=True):
        for place, one in enumerate(some):
            image = images[one.scan.image_id]
            counts = f"{len(one.pairs)} found, {one.missed} missed, {one.false_alarms} false"
            _panel(row[2 * place], image, split, one.items, one.pairs, f"{kind}: {one.scan.path.name}")
            _panel(row[2 * place + 1], image, split, one.found, one.pairs.values(), f"{one.score:.2f}: {counts}")
    buffer = io.BytesIO()
    # The mark of `output_kinds.PNG`, without a version: equal results give equal bytes.
    with known_letters():
        figure.savefig(buffer, format="png", metadata={"Software": "segloc"})
    return buffer.getvalue()


def _readable_examples(
    ranked: Sequence[Judged], each: int
) -> tuple[dict[str, Sequence[Judged]], dict[Id, Image], Skips]:
    """Choose examples whose images can be read; return them, their pixels, and the images that cannot be read.

    Raises:
        InputError: no image can be read.
    """
    images: dict[Id, Image] = {}
    skips, left = Skips("images"), list(ranked)
    while left:
        chosen = examples(left, each)
        new = {one.scan.image_id: one for some in chosen.values() for one in some if one.scan.image_id not in images}
        if not new:
            return chosen, images, skips
        unreadable = set()
        for key, one in new.items():
            skips.total += 1
            try:
                images[key] = read_scan(one.scan)
            except InputError as error:
                skips.add(reason_of(one.scan, error), one.scan.path.name)
                unreadable.add(key)
        left = [one for one in left if one.scan.image_id not in unreadable]
    raise InputError(f"no image with an item or a detection can be read: {skips.reasons()}; check --images")


def _panel(
    axes: Any, image: np.ndarray, split: CocoSplit, shown: Sequence[dict[str, Any]], paired: Collection[int], title: str
) -> None:
    """Show an image [h, w, 3] with outlined annotations or detections; positions not in `paired` are dashed."""
    height, width = image.shape[:2]
    axes.imshow(image)
    axes.set_title(plain(title), fontsize=9, loc="left")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for place, one in enumerate(shown):
        class_id = split.category_ids.index(one["category_id"])
        # First the ten strong colours of the map, then the pale ones.
        colour = matplotlib.colormaps["tab20"]((2 * class_id + class_id // 10) % 20)
        line = "-" if place in paired else (0, (2, 1.5))
        outlines = _outlines(one, height, width)
        x, y = np.concatenate(outlines).min(axis=0) if outlines else one.get("bbox", (0, 0))[:2]
        for outline in outlines:
            # A white rim separates the line from the scan, which has the same colours.
            axes.plot(*outline.T, color="white", linewidth=3.2)
            axes.plot(*outline.T, color=colour, linewidth=1.6, linestyle=line)
        score = f" {one['score']:.2f}" if "score" in one else ""
        axes.text(
            min(max(x, 0), width * 0.8),
            max(y, height * 0.05),
            plain(split.classes[class_id]) + score,
            fontsize=7,
            color="black" if sum(colour[:3]) > 1.8 else "white",
            verticalalignment="bottom",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.2},
            clip_on=True,
        )


def _outlines(one: dict[str, Any], height: int, width: int) -> list[np.ndarray]:
    """Return closed outlines [n, 2] of the mask, or of the box without a mask."""
    if "segmentation" not in one:
        x, y, w, h = one["bbox"]
        return [np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)])]
    mask = mask_api.decode(to_rle(one["segmentation"], height, width))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [np.concatenate([contour[:, 0], contour[:1, 0]]) for contour in contours]


def write_picture(
    results: str, annotations: str, images: str, out: str, score: float, each: int, white: int | None = None
) -> tuple[Path, list[Skips]]:
    """Rank the images of a test set by their detections and draw the best, median and worst as PNG.

    Args:
        results: COCO results file.
        annotations: COCO file of the test set.
        images: folder of its images.
        out: the PNG file.
        score: lowest score of a detection to show, 0 to 1.
        each: images of each kind.
        white: white level of 16-bit scans; None measures it.

    Returns:
        The file written; the images that could not be read, of those chosen, and the annotations that were left out.

    Raises:
        InputError: a file cannot be used, or a number is out of range.
    """
    check_output(out)
    if Path(out).suffix.lower() != ".png":
        raise InputError(f"{out}: is not a .png file; give --out a name that ends in .png")
    if each < 1 or not 0 <= score <= 1:
        raise InputError(f"--each {each} --score {score:g}: give at least 1 for --each and 0 to 1 for --score")
    detections = read_results(Path(results))
    split = read_split(Split(Path(annotations).stem, Path(annotations), Path(images)))
    level, text = split.choose_white(white, white_level.OPTION)
    if text:
        print(text)
    split = split.with_white(level)
    kinds = [kind for kind in IOU_TYPES if any(FIELDS[kind] in result for result in detections)] or ["bbox"]
    try:
        figures = {kind: evaluate(split.ground_truth, detections, kind)["AP"] for kind in kinds}  # also checks them
    except InputError as error:
        raise type(error)(f"{results}: {error}") from error
    ranked = rank(split, detections, score)
    if not ranked:
        raise InputError(f"{annotations}: no image has an item or a detection; nothing to draw")
    aps = ", ".join(f"{kind} AP {value:.1f}" for kind, value in figures.items() if value is not None)
    title = f"{split.name}: {len(split.scans)} images, {aps}; detections with a score of at least {score:g}"
    chosen, pixels, skips = _readable_examples(ranked, each)
    write_atomic(out, draw(split, chosen, pixels, title))
    return Path(out), [skips, split.faulty]
