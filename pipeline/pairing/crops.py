"""InsLoc's items: rectangular crops of unlabelled scans, as a baseline (paper section 1)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.common.executors import run_tasks
from pipeline.common.seeds import generator
from pipeline.pairing import segments
from pipeline.pairing.geometry import fit
from pipeline.pairing.segments import Row
from pipeline.tables import region_table, segment_table
from segloc.common import white_level
from segloc.common.contract import Box
from segloc.common.datasets import near_duplicates
from segloc.common.datasets.scan_paths import below
from segloc.common.errors import InputError
from segloc.common.files import check_output, existing_folder
from segloc.common.images import BROKEN_LINK, encode_rgba, read_image
from segloc.common.skips import Skips

CLASS = "crop"
# InsLoc's random-resized crop: share of the scan's area, width over height, and draws before the centre crop is used.
AREA, ASPECT, DRAWS = (0.2, 1.0), (0.5, 2.0), 10
FRAME_PX = 500  # maximum width of the stored scans: the paper's frame


def draw_crop(rng: np.random.Generator, width: int, height: int) -> Box:
    """Draw a crop of a scan of `width` x `height` pixels: area uniform, logarithm of the aspect uniform."""
    low, high = (math.log(aspect) for aspect in ASPECT)
    for _ in range(DRAWS):
        area, aspect = width * height * rng.uniform(*AREA), math.exp(rng.uniform(low, high))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            x, y = int(rng.integers(width - wide, endpoint=True)), int(rng.integers(height - tall, endpoint=True))
            return x, y, x + wide, y + tall
    wide, tall = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    x, y = (width - wide) // 2, (height - tall) // 2
    return x, y, x + wide, y + tall


def cut_crops(
    scan: tuple[int, str], *, root: Path, per_scan: int, seed: int, white: int | None = None
) -> list[Row] | str:
    """Cut crops out of a scan.

    Args:
        scan: its number, which seeds the draws and is its group, and its path relative to `root`.
        root: folder of the scans.
        per_scan: number of crops.
        seed: seed of the command.
        white: white level of the scans; None if they have none.

    Returns:
        Rows of the table of segments, or the reason why there are none.
    """
    number, name = scan
    try:
        image = read_image(below(root, name), white=white)
    except ValueError as error:  # ImageError is one
        reason = str(error).partition(":")[0]
        # It had a target when the regions were made.
        return "no such file" if reason == BROKEN_LINK else reason
    if image.shape[1] > FRAME_PX:
        image = fit(image, (FRAME_PX, max(1, round(image.shape[0] * FRAME_PX / image.shape[1]))))
    height, width = image.shape[:2]
    rng, whole = generator(seed, "crops", number), np.ones((height, width), bool)
    about = {
        "class_id": 0, "class_name": CLASS, "image": name, "scan_width": width, "scan_height": height,
        "background_r": 255.0, "background_g": 255.0, "background_b": 255.0, "cut_by_frame": False, "whole": True,
        "scan_group": number, "scan_fingerprint": near_duplicates.fingerprint(image),
    }  # fmt: skip
    rows = []
    for crop in range(per_scan):
        x0, y0, x1, y1 = box = draw_crop(rng, width, height)
        where = {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "area": (x1 - x0) * (y1 - y0)}
        name_of_crop = {"segment_id": f"{name}#{crop}", "annotation_id": str(crop)}
        rows.append({**about, **name_of_crop, **where, "png": encode_rgba(segments.crop(image, whole, box))})
    return rows


def write_crops(
    backgrounds: Path, regions: Path, out: Path, scans: int, per_scan: int, seed: int, workers: int, executor: str
) -> tuple[int, Skips]:
    """Cut crops out of randomly drawn scans and write them as a table of segments.

    Args:
        backgrounds: folder of the scans.
        regions: table of their regions.
        out: output file.
        scans: maximum number of scans.
        per_scan: crops per scan.
        seed: seed of the draws.
        workers: see `pipeline.common.executors.run_tasks`.
        executor: see `pipeline.common.executors.run_tasks`.

    Returns:
        Number of crops, and the unreadable ones of the drawn scans.

    Raises:
        InputError: a number is out of range, or no scan can be read.
    """
    check_output(out)
    if per_scan < 2:
        raise InputError(f"--per-scan is {per_scan}, but a pair needs two crops of one scan; use 2 or more")
    if scans < 1:
        raise InputError(f"--scans is {scans}; use 1 or more")
    root = existing_folder(backgrounds, "backgrounds").absolute()
    table_of_regions = region_table.load(regions)
    names, white = table_of_regions.images, table_of_regions.white
    chosen = np.sort(generator(seed, "crops").permutation(len(names))[:scans]).tolist()
    drawn = [(number, names[number].as_py()) for number in chosen]
    task = functools.partial(cut_crops, root=root, per_scan=per_scan, seed=seed, white=white)
    results: Iterator[list[Row] | str] = run_tasks(task, drawn, workers=workers, executor=executor, chunk=4)
    crops, skips = 0, Skips("scans", len(drawn))
    with segment_table.writer(out) as table:
        bar = tqdm(results, total=len(drawn), unit="scan", desc="crops", disable=None)
        for (_, name), result in zip(drawn, bar, strict=True):
            if isinstance(result, str):
                skips.add(result, name)
            for row in result if isinstance(result, list) else ():
                crops += 1
                table.write(row)
        if not crops:
            raise InputError(f"{backgrounds}: no scan can be read; run pipeline.regions again")
        table.parameters |= {
            "classes": [CLASS], "counts": {CLASS: crops}, **skips.table_parameters(), "seed": seed,
            "positives": "instance", "per_scan": per_scan, **white_level.parameters(white),
        }  # fmt: skip
    return crops, skips
