"""Faults of the masks of annotations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from tests.faults.dirty.world import HEIGHT, PIXELS, PROCESSED, WIDTH, Expect, Fault, World, faults, square

_FAR = 10**9


def _mask(make: Callable[[World], Any], reason: str = "") -> Fault:
    """Set the segmentation; `reason` is the reason why it is skipped, or empty if it is processed."""

    def fault(world: World) -> Expect:
        expected = world.skip(reason) if reason else PROCESSED
        world.item["segmentation"] = make(world)
        return expected

    return fault


def _box(world: World) -> tuple[int, int, int, int]:
    x, y, wide, high = world.item["bbox"]
    return x, y, x + wide, y + high


def _drawn(world: World) -> np.ndarray:
    x0, y0, x1, y1 = _box(world)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def _compressed(world: World, size: tuple[int, int] = (HEIGHT, WIDTH), text: Callable[[str], str] = str) -> dict:
    counts = coco_mask.encode(np.asfortranarray(_drawn(world)))["counts"].decode()
    return {"size": list(size), "counts": text(counts)}


def _uncompressed(world: World, change: Callable[[list[int]], list] = list) -> dict:
    flat = _drawn(world).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": change(counts)}


def _two_parts(world: World) -> Expect:
    """Two polygons: their union is the mask, and its box is around both."""
    x0, y0, x1, y1 = _box(world)
    world.item["segmentation"] = [square((x0, y0, x0 + 10, y1)), square((x1 - 10, y0, x1, y1))]
    return Expect(changed={world.key: {"area": 20 * (y1 - y0), "whole": False, **PIXELS}})


def _absent(world: World) -> Expect:
    expected = world.skip("no mask")
    del world.item["segmentation"]
    return expected


def _with(value: float) -> Fault:
    """Put a number into the polygon that is none."""

    def fault(world: World) -> Expect:
        world.item["segmentation"][0][2] = value
        return world.skip("malformed polygon")

    return fault


def _without_last(counts: str) -> str:
    return counts[:-1]


FAULTS = faults(
    {
        "compressed run lengths": _mask(_compressed),
        "uncompressed run lengths": _mask(_uncompressed),
        "polygon closed by its first point": _mask(lambda w: [[*square(_box(w)), *square(_box(w))[:2]]]),
        "two polygons": _two_parts,
        "polygon and a line": _mask(lambda w: [square(_box(w)), [1, 1, 5, 5]]),
        "mask absent": _absent,
        "mask null": _mask(lambda w: None, "no mask"),
        "mask empty": _mask(lambda w: [], "no mask"),
        "mask is a word": _mask(lambda w: "polygon", "no mask"),
        "mask is a number": _mask(lambda w: 7, "no mask"),
        "polygon of two points": _mask(lambda w: [[10, 10, 20, 20]], "polygon of fewer than three points"),
        "polygon without points": _mask(lambda w: [[]], "polygon of fewer than three points"),
        "polygon with an odd number": _mask(lambda w: [[1, 2, 3, 4, 5, 6, 7]], "malformed polygon"),
        "polygon with a null": _mask(lambda w: [[1, 2, None, 4, 5, 6]], "malformed polygon"),
        "polygon not nested": _mask(lambda w: square(_box(w)), "malformed polygon"),
        "polygon nested twice": _mask(lambda w: [[square(_box(w))]], "malformed polygon"),
        "polygon of points": _mask(lambda w: [[[1, 2], [3, 4], [5, 6]]], "malformed polygon"),
        "polygon far away": _mask(lambda w: [[1, 1, _FAR, 1, _FAR, _FAR]], "polygon far outside the image"),
        "polygon below the scan": _mask(lambda w: [square((5, HEIGHT + 2, 20, HEIGHT + 9))], "empty mask"),
        "polygon without area": _mask(lambda w: [[5, 5, 5, 5, 5, 5]], "empty mask"),
        "polygon with NaN": _with(float("nan")),
        "polygon with Infinity": _with(float("-inf")),
        "run lengths of another size": _mask(
            lambda w: _compressed(w, (WIDTH, HEIGHT)), "RLE made for another image size"
        ),
        "run lengths cut short": _mask(lambda w: _compressed(w, text=_without_last), "broken RLE"),
        "run lengths with other characters": _mask(lambda w: _compressed(w, text=lambda t: t + "\x01é"), "broken RLE"),
        "run lengths too long": _mask(lambda w: _uncompressed(w, lambda c: [*c, 5]), "broken RLE"),
        "run lengths below zero": _mask(lambda w: _uncompressed(w, lambda c: [*c, -5, 5]), "broken RLE"),
        "run lengths of words": _mask(lambda w: _uncompressed(w, lambda c: [*c, "5"]), "broken RLE"),
        "run lengths of nothing": _mask(lambda w: _uncompressed(w, lambda c: [HEIGHT * WIDTH]), "empty mask"),
        "run lengths absent": _mask(lambda w: {"size": [HEIGHT, WIDTH]}, "broken RLE"),
        "run lengths without size": _mask(lambda w: {"counts": "abc"}, "RLE made for another image size"),
    }
)
