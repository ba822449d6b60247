"""Reads COCO files of any data set: annotations, results, and the instances that segments are cut from.

In every field, null means absent, and text that is a number is read as that number. Other text can be an id.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from segloc.common.datasets.leakage import is_test_scan
from segloc.common.datasets.records import Annotations, Instance
from segloc.common.errors import InputError
from segloc.common.files import existing_file, safe_relative
from segloc.common.skips import Skips

T = TypeVar("T")
Id = int | str

_WHOLE = re.compile(r"\s*([+-]?[0-9]{1,20})(?:\.0*)?\s*")


@dataclasses.dataclass(frozen=True, slots=True)
class CocoImage:
    """An entry of ``images``.

    Attributes:
        id: id of the image, which annotations refer to.
        name: file name as in the file.
        path: the name with ``/`` separators; None if it leaves the image folder.
        size: width and height in pixels; None if either is absent.
    """

    id: Id
    name: str
    path: str | None
    size: tuple[int, int] | None


@dataclasses.dataclass(frozen=True, slots=True)
class CocoItem:
    """An entry of ``annotations``.

    Attributes:
        id: id of the annotation; None if absent.
        image_id: id of its image, which may be missing from the file; None if absent.
        category_id: id of its category, which may be missing from the file; None if absent.
        box: x, y, width, height in pixels; None if absent.
        area: square pixels, possibly NaN or infinity; None if absent.
        crowd: ``iscrowd``.
        segmentation: polygons or RLE, unchecked.
        malformed: names of fields with a wrong type; they are read as absent.
        problem: why no segment can be cut from it, not counting its mask; None if there is no reason.
    """

    id: Id | None
    image_id: Id | None
    category_id: Id | None
    box: list[float] | None
    area: float | None
    crowd: bool
    segmentation: Any
    malformed: tuple[str, ...]
    problem: str | None

    @property
    def shown(self) -> str:
        """Name of the annotation in messages."""
        return f"annotation {self.id!r} of image {self.image_id!r}"


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """A COCO instance file.

    Attributes:
        categories: name by category id, ascending; the position is the project's class id.
        images: by image id, in the file's order.
        items: the annotations, in the file's order.
    """

    categories: dict[Id, str]
    images: dict[Id, CocoImage]
    items: tuple[CocoItem, ...]


def read_coco(path: Path) -> CocoFile:
    """Read a COCO instance file and normalise its fields.

    Raises:
        InputError: no such file, not COCO, or categories or images that lack a field or repeat. Faults of single
            annotations do not raise; see `CocoItem`.
    """
    content = _read_json(path, "annotations")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: not a COCO annotation file (no list {key!r})")
    try:
        categories, images = _categories(content["categories"]), _images(content["images"])
    except ValueError as error:
        raise InputError(f"{path}: not COCO: {error}") from error
    return CocoFile(categories, images, tuple(_item(entry, images, categories) for entry in content["annotations"]))


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read a COCO results file; `segloc.detection.coco_eval.match` checks its detections.

    Raises:
        InputError: no such file, or not a results file.
    """
    content = _read_json(path, "results")
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise InputError(f"{path}: not COCO results (a list of detections)")
    for result in content:
        for field in ("image_id", "category_id"):
            if isinstance(value := result.get(field), str):
                result[field] = identifier(value)
    return content


def read_instances(path: Path) -> Annotations:
    """Read the instances that segments are cut from.

    Unusable annotations are counted by reason: crowds, entries marked ``ignore``, degenerate boxes (no area, width or
    height below a pixel), unknown images or categories, image paths that leave their folder, repeated ids, malformed
    entries. Boxes may reach beyond the scan, because only the mask counts. Masks are checked when they are drawn.

    Raises:
        InputError: see `read_coco`; or the file lists scans of a test part.
    """
    content = _training_file(path)
    class_ids = {category_id: position for position, category_id in enumerate(content.categories)}
    skips = Skips("annotations", len(content.items))
    instances: dict[str, Instance] = {}
    for position, item in enumerate(content.items):
        problem = item.problem
        if problem is None:
            instance = _instance(item, position, content.images, class_ids)
            if instances.setdefault(instance.segment_id, instance) is not instance:
                problem = "annotation id repeats"
        if problem is not None:
            skips.add(problem, item.shown)
    ordered = sorted(instances.values(), key=lambda instance: (instance.class_id, instance.segment_id))
    return Annotations(tuple(content.categories.values()), tuple(ordered), skips)


def unannotated(path: Path) -> set[str]:
    """Names of the images that a COCO file lists without any annotation, even an unusable one.

    Each name is given as in the file and, for repacked copies, without its folders. A name that an annotated image also
    has is left out.

    Raises:
        InputError: see `read_coco`; or the file lists scans of a test part, or has annotations of images that it does
            not list, which could be any of its images.
    """
    content = _training_file(path)
    owners = {item.image_id for item in content.items}
    if unlisted := sorted(str(owner) for owner in owners - content.images.keys()):
        raise InputError(
            f"{path}: has annotations of images that it does not list (image_id {', '.join(unlisted[:3])}), "
            "so its benign scans are unknown; add these images to its list"
        )
    taken = _with_and_without_folders(image.name for image in content.images.values() if image.id in owners)
    free = _with_and_without_folders(image.name for image in content.images.values() if image.id not in owners)
    return free - taken


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def whole(value: Any) -> int:
    """Read a whole number, which may be written as 7.0 or as text.

    Raises:
        ValueError: it is not a whole number.
    """
    if isinstance(value, str) and (match := _WHOLE.fullmatch(value)):
        return int(match[1])
    if not is_number(value) or value != int(value):
        raise ValueError(f"{str(value)[:40]!r} is not a whole number")
    return int(value)


def identifier(value: Any) -> Id:
    """Read an id: a whole number, or text that is not a whole number.

    >>> identifier(7), identifier(7.0), identifier("7"), identifier("a7")
    (7, 7, 7, 'a7')

    Raises:
        ValueError: it is neither.
    """
    return value if isinstance(value, str) and not _WHOLE.fullmatch(value) else whole(value)


def _read_json(path: Path, what: str) -> Any:
    try:
        return json.loads(existing_file(path, what).read_bytes())  # accepts a byte order mark
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error


def _training_file(path: Path) -> CocoFile:
    content = read_coco(path)
    for image in content.images.values():
        if is_test_scan(image.name):
            raise InputError(f"{path}: {image.name!r} belongs to a test part; segments are cut from training data only")
    return content


def _instance(item: CocoItem, position: int, images: dict[Id, CocoImage], class_ids: dict[Id, int]) -> Instance:
    assert item.image_id is not None  # because it has no problem
    assert item.category_id is not None
    image, number = images[item.image_id], str(position if item.id is None else item.id)
    assert image.path is not None
    class_id = class_ids[item.category_id]
    return Instance(f"{image.path}#{number}", number, class_id, image.path, image.size, item.segmentation)


def _with_and_without_folders(names: Iterable[str]) -> set[str]:
    return {form for name in names for form in (name, name.replace("\\", "/").rpartition("/")[2])}


def _categories(entries: list[Any]) -> dict[Id, str]:
    """Name by category id, ascending: numbers first, then text."""
    names: dict[Id, str] = {}
    for entry in entries:
        category_id = _required(entry, "category", "id", identifier)
        if category_id in names:
            raise ValueError(f"category id {category_id!r} occurs more than once")
        names[category_id] = _required(entry, "category", "name", str)
    if not names:
        raise ValueError("no categories")
    counts = Counter(name.casefold() for name in names.values())
    if repeated := [name for name in names.values() if counts[name.casefold()] > 1]:
        # As separate classes, each would be a negative of the other.
        raise ValueError(f"category name {repeated[-1]!r} occurs more than once (case is ignored)")
    return {key: names[key] for key in sorted(names, key=lambda key: (isinstance(key, str), key))}


def _images(entries: list[Any]) -> dict[Id, CocoImage]:
    images: dict[Id, CocoImage] = {}
    for entry in entries:
        image_id, name = _required(entry, "image", "id", identifier), _required(entry, "image", "file_name", str)
        if image_id in images:
            names = f"{images[image_id].name!r} and {name!r}"
            raise ValueError(f"image id {image_id!r} occurs more than once: it stands for {names}")
        width, height = _optional(entry, "image", "width", whole), _optional(entry, "image", "height", whole)
        try:
            path = safe_relative(name)
        except ValueError:
            path = None
        images[image_id] = CocoImage(image_id, name, path, (width, height) if width and height else None)
    return images


def _optional(entry: Any, kind: str, field: str, parse: Callable[[Any], T]) -> T | None:
    value = entry.get(field) if isinstance(entry, dict) else None
    try:
        return None if value is None else parse(value)
    except ValueError as error:
        raise ValueError(f"{kind} {field} {error}") from error


def _required(entry: Any, kind: str, field: str, parse: Callable[[Any], T]) -> T:
    value = _optional(entry, kind, field, parse)
    if value is None:
        raise ValueError(f"{'an' if kind == 'image' else 'a'} {kind} without {field}")
    return value


def _item(entry: Any, images: dict[Id, CocoImage], categories: dict[Id, str]) -> CocoItem:
    entry = entry if isinstance(entry, dict) else {}
    malformed: list[str] = []

    def read(field: str, parse: Callable[[Any], T]) -> T | None:
        try:
            return None if (value := entry.get(field)) is None else parse(value)
        except ValueError:
            malformed.append(field)
            return None

    number, image_id, category_id = (read(field, identifier) for field in ("id", "image_id", "category_id"))
    box, area, crowd, ignore = read("bbox", _box), read("area", _number), read("iscrowd", _flag), read("ignore", _flag)
    problem = None
    if crowd:
        problem = "crowd"
    elif ignore:
        problem = "marked ignore"
    elif malformed or image_id is None or category_id is None:
        problem = "malformed annotation"
    elif image_id not in images:
        problem = "image not in the file"
    elif category_id not in categories:
        problem = "category not in the file"
    elif (area is not None and not area > 0) or (box is not None and min(box[2:]) < 1):
        problem = "degenerate"
    elif images[image_id].path is None:
        problem = "image path leaves its folder"
    mask = entry.get("segmentation")
    return CocoItem(number, image_id, category_id, box, area, bool(crowd), mask, tuple(malformed), problem)


def _number(value: Any) -> float:
    value = float(value) if isinstance(value, str) else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("not a number")
    return value


def _flag(value: Any) -> bool:
    return value if isinstance(value, bool) else bool(_number(value))


def _box(value: Any) -> list[float] | None:
    if value == []:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError("not four numbers")
    box = [_number(edge) for edge in value]
    if not all(map(is_number, box)):
        raise ValueError("not four finite numbers")
    return box
