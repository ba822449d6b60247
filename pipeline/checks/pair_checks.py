"""Checks of a stored pair against the contract, the index and its own recipe."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.pairing.blends import BLENDS
from pipeline.pairing.geometry import Geometry, extent, render
from pipeline.tables.segment_table import Segment, SegmentTable
from segloc.common.contract import Box, Index, Occluder, Pair, View
from segloc.common.images import ImageError, decode
from segloc.common.masks import Mask, MaskError, decode_rle, tight_box

# Standard deviations. With 12 classes and some thousand pairs, a class exceeds this in one of ten million data sets.
_BALANCE_SIGMAS = 6
# A larger share of a class's items in one bag is taken for a fault of the grouping, if enough scans were chained.
_BAG_SHARE, _CHAIN_SCANS = 0.1, 3


def pair_problems(pair: Pair, number: int, index: Index) -> Iterator[str]:
    """Yield contradictions between a pair's description and the index or the definition of a positive pair."""
    if pair.pair != number:
        yield f"its number is {pair.pair}"
    if not 0 <= pair.class_id < len(index.classes):
        yield f"class id {pair.class_id} is not in the index"
    elif pair.class_name != index.classes[pair.class_id]:
        yield f"class {pair.class_name!r} is {index.classes[pair.class_id]!r} in the index"
    if pair.query.background == pair.key.background:
        yield f"both views have background {pair.key.background!r}"
    if pair.query.segment == pair.key.segment:
        yield f"both views have segment {pair.key.segment!r}"
        return
    scans = scan_of(pair.query.segment), scan_of(pair.key.segment)
    if index.parameters.get("positives") == "instance":
        if scans[0] != scans[1]:
            yield f"the crops come from two scans, {scans[0]!r} and {scans[1]!r}"
    elif scans[0] == scans[1]:
        yield f"both items come from scan {scans[0]!r}"


def scan_of(segment_id: str) -> str:
    """Name the scan of a segment; ids are the scan's path, ``#``, the annotation's id."""
    return segment_id.rpartition("#")[0]


def view_problems(view: View, index: Index) -> Iterator[str]:
    """Yield impossible values in a view's description."""
    if not (_inside(view.region, (0, 0, *view.size)) and _inside(view.box, view.region)):
        yield f"box {view.box} is not inside region {view.region} inside image {view.size}"
    if view.blend != index.parameters.get("blend"):
        yield f"blend {view.blend!r} differs from the index's {index.parameters.get('blend')!r}"
    elif view.blend not in BLENDS:
        yield f"blend {view.blend!r} is unknown"
    else:
        yield from _coefficient_problems(view.coefficient, index.parameters.get("coefficient_range"))
    if not view.scale > 0:
        yield f"scale {view.scale} is not positive"
    if view.occluder is not None:
        yield from _occluder_problems(view, view.occluder, index)


def _coefficient_problems(coefficient: float, span: object) -> Iterator[str]:
    if not (isinstance(span, list) and len(span) == 2 and all(isinstance(value, (int, float)) for value in span)):
        yield f"the index's coefficient_range is {span!r}, not two numbers"
    elif not span[0] <= coefficient <= span[1]:
        yield f"coefficient {coefficient} is not in {span[0]}..{span[1]}"


def _occluder_problems(view: View, occluder: Occluder, index: Index) -> Iterator[str]:
    if not index.parameters.get("occluded"):
        yield "has an occluder, but the index's parameters allow none"
    if occluder.background == view.background:
        yield f"occluder comes from the view's own background {view.background!r}"
    x0, y0, x1, y1 = occluder.box
    if not (0 <= x0 < x1 <= view.size[0] and 0 <= y0 < y1):
        yield f"occluder's box {occluder.box} is empty or outside its scan"
        return
    x, y = occluder.corner
    laid = (x, y, x + x1 - x0, y + y1 - y0)
    if not _inside(laid, view.region):
        yield f"occluder at {laid} is not inside region {view.region}"
    if min(laid[2], view.box[2]) <= max(x, view.box[0]) or min(laid[3], view.box[3]) <= max(y, view.box[1]):
        yield f"occluder at {laid} does not overlap box {view.box}"


def image_problems(view: View, data: bytes) -> Iterator[str]:
    """Yield contradictions between a stored image and its view."""
    try:
        image = decode(data)
    except ImageError as error:
        yield f"image: {error}"
        return
    if (image.shape[1], image.shape[0]) != view.size:
        yield f"image is {image.shape[1]}x{image.shape[0]}, but its description gives {view.size[0]}x{view.size[1]}"


def mask_problems(view: View) -> Iterator[str]:
    """Yield impossible values in a view's mask. Format 1 has no masks.

    Call it only after `image_problems` found nothing, so that a mask of the view's size fits in memory.
    """
    if view.mask is None or view.on_matter is None:
        return
    try:
        box = tight_box(decode_rle(view.mask, *view.size))
    except MaskError as error:
        yield f"mask: {error}"
    else:
        if box != view.box:
            yield f"mask has tight box {box}, not box {view.box}"
    if not 0 <= view.on_matter <= 1:
        yield f"on_matter {view.on_matter} is not in 0..1"


def _inside(inner: Box, outer: Box) -> bool:
    """Whether half-open box `inner` is non-empty and lies within `outer`."""
    x0, y0, x1, y1 = inner
    return outer[0] <= x0 < x1 <= outer[2] and outer[1] <= y0 < y1 <= outer[3]


@functools.lru_cache(maxsize=1)
def segment_table(path: Path) -> SegmentTable:
    """Open a table of segments, once per process."""
    return SegmentTable(path)


def recipe_problems(pair: Pair, table: SegmentTable) -> Iterator[str]:
    """Render the items of a pair again and yield differences to the stored boxes and masks.

    Call it only for pairs without other problems, because the values of other recipes are unchecked.

    Args:
        pair: description of the pair.
        table: the segments that the shards were made from.
    """
    bags = []
    for side, view in (("query", pair.query), ("key", pair.key)):
        found = table.find(view.segment)
        if found is None:
            yield f"{side} segment {view.segment!r} is not in the table"
            continue
        bags.append(found.bag)
        if found.class_id != pair.class_id:
            yield f"{side} segment {view.segment!r} is of class {table.classes[found.class_id]!r} in the table"
        drawn = _drawn(table.segment(found.row), view)
        x0, y0, x1, y1 = view.box
        if drawn is None or drawn.shape != (y1 - y0, x1 - x0):
            size = "nothing that fits the image" if drawn is None else f"{drawn.shape[1]}x{drawn.shape[0]}"
            yield f"{side} box is {x1 - x0}x{y1 - y0}, but the recipe gives {size}"
        elif view.mask is not None:
            mask = decode_rle(view.mask, *view.size)[y0:y1, x0:x1]
            if (mask != drawn).any():
                yield f"{side} mask, of {mask.sum()} pixels, differs from the recipe's mask, of {drawn.sum()} pixels"
    if len(bags) == 2 and bags[0] == bags[1] and not table.instances:
        yield "both items come from scans of one bag"


def _drawn(segment: Segment, view: View) -> Mask | None:
    """Render the item's mask from the recipe; None if it has no pixel or does not fit the image."""
    if not (math.isfinite(view.rotation_deg) and math.isfinite(view.scale)):
        return None
    geometry = Geometry(view.rotation_deg, view.scale, view.flip_h, view.flip_v)
    wide, high = extent(segment, geometry)
    if not (wide <= view.size[0] + 2 and high <= view.size[1] + 2):  # also true for NaN
        return None
    patch = render(segment, geometry)
    return None if patch is None else patch.mask


def chained_bags(table: SegmentTable) -> Iterator[str]:
    """Yield classes with too many items in one bag, because similar scans were chained to it.

    A chain has at least `_CHAIN_SCANS` scans. Pairs take two bags, so the items of such a bag rarely meet each other.
    """
    for name, bags in zip(table.classes, table.rows if not table.instances else [], strict=False):
        items, most = sum(map(len, bags)), max(bags, key=len, default=[])
        scans = len({scan_of(table.segment_id(row)) for row in most}) if len(most) > _BAG_SHARE * items else 0
        if scans >= _CHAIN_SCANS:
            yield (
                f"class {name!r}: {len(most)} of {items} items, on {scans} scans, count as one bag, which is more than "
                f"{_BAG_SHARE:.0%}; make the table of segments again with a lower --same-bag-bits "
                f"(it was {table.same_bag_bits or 'not recorded'}) or segments.same_bag_bits in params.yaml"
            )


def balance_problems(pairs: Counter[str], index: Index) -> Iterator[str]:
    """Yield classes with more or fewer pairs than a uniform draw gives.

    Args:
        pairs: number of pairs by class name.
        index: index with the classes and the excluded classes.
    """
    left_out = index.parameters.get("excluded_classes", [])
    if not (isinstance(left_out, list) and all(isinstance(name, str) for name in left_out)):
        yield f"index: excluded_classes is {left_out!r}, not a list of names"
        return
    drawn = [name for name in index.classes if name not in left_out]
    total = sum(pairs.values())
    for name in left_out:
        if pairs[name]:
            yield f"class {name!r} is excluded by the index, but has {pairs[name]} pairs"
    for name in drawn:
        expected = total / len(drawn)
        allowed = _BALANCE_SIGMAS * math.sqrt(expected * (1 - 1 / len(drawn))) + 1
        if abs(pairs[name] - expected) > allowed:
            yield f"class {name!r} has {pairs[name]} of {total} pairs, but a uniform draw gives {expected:.0f}"


def wanted_on_matter(index: Index) -> float | None:
    """The share of an item that the recipe puts on matter.

    Returns:
        None for shards made before there was such a rule, and for an impossible value.
    """
    wanted = index.parameters.get("on_matter")
    is_number = isinstance(wanted, (int, float)) and not isinstance(wanted, bool)
    return float(wanted) if is_number and 0 <= wanted <= 1 else None  # type: ignore[operator, arg-type]


def off_matter(shares: Sequence[float], index: Index) -> float:
    """Share of the items that lie on less matter than the recipe asks for; 0 without items or without such a rule.

    Args:
        shares: `View.on_matter` of the items.
        index: index with the recipe.
    """
    wanted = wanted_on_matter(index)
    return sum(not share >= wanted for share in shares) / len(shares) if shares and wanted else 0.0


def matter_problems(shares: Sequence[float], index: Index, most: float) -> Iterator[str]:
    """Yield a sentence if too many items lie on empty belt.

    Args:
        shares: `View.on_matter` of the items.
        index: index with the recipe.
        most: largest allowed share of items below what the recipe asks for.
    """
    wanted, found = wanted_on_matter(index), off_matter(shares, index)
    if wanted is None and "on_matter" in index.parameters:
        yield f"index: on_matter is {index.parameters['on_matter']!r}, not a share from 0 to 1"
    elif found > most:
        yield (
            f"{found:.1%} of the items have less than {wanted:g} of their pixels on a bag (on_matter), more than "
            f"--max-off-matter {most:g}: look at the regions (pipeline.regions --gallery), make the items smaller "
            "(pipeline.synthesize --scale), or allow a larger share"
        )
