"""Faults of the fields of an annotation file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.faults.dirty.world import PROCESSED, Expect, Fault, World, copied, faults

_BIG = 9_007_199_254_740_993  # 2^53 + 1, which a float cannot hold
_ABSENT = object()


def _field(name: str, value: Any, expect: str = "", part: str = "item") -> Fault:
    """Set a field of the annotation (or its image or category); `expect` is the reason, or empty if processed."""

    def fault(world: World) -> Expect:
        entry = {"item": world.item, "image": world.image, "category": world.content["categories"][0]}[part]
        expected = world.skip(expect) if expect else PROCESSED
        if value is _ABSENT:
            del entry[name]
        else:
            entry[name] = value(entry[name]) if callable(value) else value
        return expected

    return fault


def _refused(name: str, value: Any, *words: str, part: str = "item") -> Fault:
    """Set a field so that the file is refused with these words."""

    def fault(world: World) -> Expect:
        _field(name, value, part=part)(world)
        return Expect(refused=words)

    return fault


def _renamed(value: Any, shown: str) -> Fault:
    """Give the annotation another id, which is shown so."""

    def fault(world: World) -> Expect:
        key, new = world.key, f"{world.image['file_name']}#{shown}"
        world.item["id"] = value
        return Expect(changed={key: {"segment_id": new, "annotation_id": shown}})

    return fault


def _no_id(value: Any) -> Fault:
    """Take the annotation's id away: its position in the file stands for it."""

    def fault(world: World) -> Expect:
        position = world.content["annotations"].index(world.item)
        return _renamed(value, str(position))(world)

    return fault


def _absent_id(world: World) -> Expect:
    expected = _no_id(None)(world)
    del world.item["id"]
    return expected


def _entry(value: Any) -> Fault:
    """Replace the whole annotation."""

    def fault(world: World) -> Expect:
        expected, items = world.skip("no image_id"), world.content["annotations"]
        items[items.index(world.item)] = value
        return expected

    return fault


def _repeated_id(change: Callable[[Any], Any]) -> Fault:
    """Another annotation of the same image gets the same id, perhaps written differently: the later is skipped."""

    def fault(world: World) -> Expect:
        pair = sorted((world.item, world.other), key=world.content["annotations"].index)
        key = str(pair[1]["id"])
        pair[1]["id"] = change(pair[0]["id"])
        return Expect({"annotation id repeats": 1}, frozenset({key}))

    return fault


def _image_ids(change: Callable[[Any], Any]) -> Fault:
    """Write the id of the image, and the reference to it, differently."""

    def fault(world: World) -> Expect:
        world.image["id"] = change(world.image["id"])
        return PROCESSED

    return fault


def _all_ids_big(world: World) -> Expect:
    for image in world.content["images"]:
        image["id"] += _BIG
    for item in world.content["annotations"]:
        item["image_id"] += _BIG
    return PROCESSED


def _big_id(world: World) -> Expect:
    """Two ids that a float cannot tell apart."""
    other, name = str(world.other["id"]), world.image["file_name"]
    world.other["id"] = _BIG - 1
    changed = _renamed(_BIG, str(_BIG))(world).changed
    return Expect(changed={**changed, other: {"segment_id": f"{name}#{_BIG - 1}", "annotation_id": str(_BIG - 1)}})


def _repeat_image(change: Callable[[Any], Any]) -> Fault:
    def fault(world: World) -> Expect:
        world.content["images"].append(copied(world.image, file_name="more.png", id=change(world.image["id"])))
        return Expect(refused=("image", str(world.image["id"]), str(world.image["file_name"]), "more.png"))

    return fault


def _repeat_category(**changes: Any) -> Fault:
    def fault(world: World) -> Expect:
        categories = world.content["categories"]
        categories.append(copied(categories[0], **changes))
        return Expect(refused=("category",))

    return fault


def _listed(name: str, value: Any, *words: str) -> Fault:
    """Replace a whole list of the file."""

    def fault(world: World) -> Expect:
        world.content[name] = value
        return Expect(refused=words or (name,))

    return fault


def _raw(change: Callable[[bytes], bytes], *words: str) -> Fault:
    """Change the bytes of the file."""

    def fault(world: World) -> Expect:
        world.raw = change(json.dumps(world.content).encode())
        return Expect(refused=words)

    return fault


def _extra_fields(world: World) -> Expect:
    world.item |= {"attributes": {"occluded": [True, None]}, "score": 0.5, "id_": {}}
    world.image |= {"license": None, "date_captured": 7}
    world.content |= {"licenses": None, "videos": [{}]}
    return PROCESSED


def _unused_category(world: World) -> Expect:
    world.content["categories"].append({"id": 9, "name": "Baton"})
    return PROCESSED


FAULTS = faults(
    {
        "box null": _field("bbox", None),
        "box absent": _field("bbox", _ABSENT),
        "box empty": _field("bbox", []),
        "box as text": _field("bbox", lambda box: [str(value) for value in box]),
        "box beyond the scan": _field("bbox", lambda box: [box[0] - 5, box[1] - 5, box[2] + 10, box[3] + 10]),
        "box around all": _field("bbox", [-5, -5, 500, 500], "box does not fit its mask"),
        "box of three numbers": _field("bbox", [1, 2, 3], "malformed bbox"),
        "box is a dict": _field("bbox", {"x": 1}, "malformed bbox"),
        "box with words": _field("bbox", ["a", "b", "c", "d"], "malformed bbox"),
        "box without width": _field("bbox", [1, 2, 0, 9], "degenerate"),
        "box of negative height": _field("bbox", [1, 2, 9, -9], "malformed bbox"),
        "area null": _field("area", None),
        "area absent": _field("area", _ABSENT),
        "area as text": _field("area", "900"),
        "area zero": _field("area", 0, "degenerate"),
        "area negative": _field("area", -4.5, "malformed area"),
        "area is a list": _field("area", [], "malformed area"),
        "area is a word": _field("area", "large", "malformed area"),
        "crowd": _field("iscrowd", 1, "crowd"),
        "crowd true": _field("iscrowd", True, "crowd"),
        "crowd as text": _field("iscrowd", "1", "crowd"),
        "no crowd, as text": _field("iscrowd", "0"),
        "no crowd, null": _field("iscrowd", None),
        "no crowd, absent": _field("iscrowd", _ABSENT),
        "crowd is a word": _field("iscrowd", "maybe", "malformed iscrowd"),
        "marked ignore": _field("ignore", 1, "marked ignore"),
        "ignore null": _field("ignore", None),
        "image unknown": _field("image_id", 99, "image not in the file"),
        "image unknown, text": _field("image_id", "x9", "image not in the file"),
        "image null": _field("image_id", None, "no image_id"),
        "image absent": _field("image_id", _ABSENT, "no image_id"),
        "image is a list": _field("image_id", [1], "malformed image_id"),
        "image as text": _field("image_id", str),
        "image as float": _field("image_id", float),
        "image with spaces": _field("image_id", lambda value: f" {value} "),
        "image between two numbers": _field("image_id", 1.5, "malformed image_id"),
        "category unknown": _field("category_id", 77, "category not in the file"),
        "category null": _field("category_id", None, "no category_id"),
        "category as text": _field("category_id", str),
        "category as float": _field("category_id", float),
        "id null": _no_id(None),
        "id absent": _absent_id,
        "id is a word": _renamed("a7", "a7"),
        "id as text": _field("id", str),
        "id as float": _field("id", float),
        "id above 2^53": _big_id,
        "all image ids above 2^53": _all_ids_big,
        "id between two numbers": _field("id", 7.5, "malformed id"),
        "id repeats": _repeated_id(lambda value: value),
        "id repeats as text": _repeated_id(str),
        "id repeats as float": _repeated_id(float),
        "annotation null": _entry(None),
        "annotation is a list": _entry([1, 2]),
        "annotation is a word": _entry("gun"),
        "annotation is empty": _entry({}),
        "fields of others": _extra_fields,
        "id of an image as text": _image_ids(str),
        "id of an image as float": _image_ids(float),
        "image id repeats": _repeat_image(lambda value: value),
        "image id repeats as text": _repeat_image(str),
        "image without id": _refused("id", _ABSENT, "image without id", part="image"),
        "image with id null": _refused("id", None, "image without id", part="image"),
        "image without name": _refused("file_name", _ABSENT, "file_name", part="image"),
        "image with name null": _refused("file_name", None, "file_name", part="image"),
        "size as text": _field("width", str, part="image"),
        "size null": _field("height", None, part="image"),
        "size absent": _field("width", _ABSENT, part="image"),
        "size is a word": _refused("width", "wide", "width", part="image"),
        "images null": _listed("images", None),
        "annotations absent": _listed("annotations", "none"),
        "categories empty": _listed("categories", [], "categor"),
        "categories are words": _listed("categories", ["Gun", "Knife"], "category"),
        "category id repeats": _repeat_category(name="Gun 2"),
        "category id repeats as text": _repeat_category(id="1", name="Gun 2"),
        "category name repeats": _repeat_category(id=3),
        "category name repeats in capitals": _repeat_category(id=3, name="GUN"),
        "category without name": _refused("name", _ABSENT, "category", "name", part="category"),
        "category with name null": _refused("name", None, "category", "name", part="category"),
        "category without items": _unused_category,
        "file with byte order mark": _raw(lambda data: b"\xef\xbb\xbf" + data),
        "file empty": _raw(lambda data: b"", "train.json", "JSON"),
        "file cut short": _raw(lambda data: data[: len(data) // 2], "train.json", "JSON"),
        "file with more behind it": _raw(lambda data: data + b"{}", "train.json", "JSON"),
        "file compressed": _raw(lambda data: b"\x1f\x8b\x08" + data, "train.json", "JSON"),
        "file of zeros": _raw(lambda data: bytes(len(data)), "train.json", "JSON"),
        "file is a list": _raw(lambda data: b"[" + data + b"]", "train.json", "COCO"),
        "file nested too deep": _raw(lambda data: b"[" * 200_000, "train.json"),
        "box holds NaN": _field("bbox", [1, 2, float("nan"), 4], "malformed bbox"),
        "box holds Infinity": _field("bbox", [1, 2, float("inf"), 4], "malformed bbox"),
        "area is NaN": _field("area", float("nan"), "malformed area"),
        "width is Infinity": _refused("width", float("inf"), "width", part="image"),
        "id is NaN": _field("id", float("nan"), "malformed id"),
    }
)
