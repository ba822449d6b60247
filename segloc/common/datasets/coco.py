"""Reads COCO files of any data set: annotations, results, and the instances that segments are cut from.

`segloc.common.datasets.coco_fields` has the table by which fields are read, `scan_paths` the rules by which file names
become paths.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from segloc.common.datasets import box_masks, coco_fields, corner_boxes, scan_paths
from segloc.common.datasets.coco_fields import Id, id_order, identifier, number, shown, whole
from segloc.common.datasets.leakage import is_test_scan
from segloc.common.datasets.records import Annotations, Instance
from segloc.common.errors import InputError
from segloc.common.files import existing_file
from segloc.common.parse import once, one_line
from segloc.common.skips import Skips
from segloc.common.text import utf8_text

T = TypeVar("T")

_GZIP = b"\x1f\x8b"
# Data sets have up to some ten thousand. Each class costs memory in every model, so a file with more is no data set.
MOST_CATEGORIES = 20_000


@dataclasses.dataclass(frozen=True, slots=True)
class CocoImage:
    """An entry of ``images``.

    Attributes:
        id: id of the image, which annotations refer to.
        name: file name as in the file.
        size: width and height in pixels; None if either is absent.
    """

    id: Id
    name: str
    size: tuple[int, int] | None


@dataclasses.dataclass(frozen=True, slots=True)
class CocoItem:
    """An entry of ``annotations``.

    Attributes:
        id: id of the annotation; None if absent.
        image_id: id of its image, which may be missing from the file; None if absent.
        category_id: id of its category, which may be missing from the file; None if absent.
        box: x, y, width, height in pixels; None if absent.
        area: square pixels; None if absent.
        crowd: ``iscrowd``.
        segmentation: polygons or RLE, unchecked.
        fault: why it cannot be used at all, such as a malformed field; None if there is no reason.
        problem: why no segment can be cut from it, not counting its mask; None if there is no reason.
    """

    id: Id | None
    image_id: Id | None
    category_id: Id | None
    box: list[float] | None
    area: float | None
    crowd: bool
    segmentation: Any
    fault: str | None
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
        InputError: no such file, not COCO, categories or images that lack a field or repeat, boxes that are corners, or
            boxes that do not fit their masks. Faults of single annotations do not raise; see `CocoItem`.
    """
    content = _read_json(path, "annotations")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: not a COCO annotation file (no list {key!r})")
    try:
        categories, images = _categories(content["categories"]), _images(content["images"])
    except ValueError as error:
        raise InputError(f"{path}: not COCO: {error}") from error
    items = [_item(entry, images, categories) for entry in content["annotations"]]
    placed = [
        _Placed(position, item, item.box, image.size)
        for position, item in enumerate(items)
        if item.fault is None and item.box is not None and item.image_id is not None
        for image in [images[item.image_id]]
        if image.size is not None
    ]
    _refuse_corners(path, placed)
    for position in _unlike_their_masks(path, placed):
        item = items[position]
        items[position] = dataclasses.replace(item, fault=box_masks.REASON, problem=item.problem or box_masks.REASON)
    return CocoFile(categories, images, tuple(items))


class _Placed(NamedTuple):
    """An annotation with a box on an image of known size, and its position in the file."""

    position: int
    item: CocoItem
    box: list[float]
    size: tuple[int, int]


def _refuse_corners(path: Path, placed: Sequence[_Placed]) -> None:
    """Refuse a file whose boxes are x0, y0, x1, y1."""
    places = corner_boxes.leaving([one.box for one in placed], [one.size for one in placed])
    wrong = [placed[place] for place in places]
    boxes, masks = [one.box for one in wrong], [one.item.segmentation for one in wrong]
    if wrong and corner_boxes.confirmed(boxes, masks, [one.size for one in wrong]):
        raise InputError(
            f"{path}: boxes look like x0, y0, x1, y1: {len(wrong)} of {len(placed)} leave their image as x, y, width, "
            f"height, such as bbox {shown(boxes[0])} of {wrong[0].item.shown}; {corner_boxes.HINT}"
        )


def _unlike_their_masks(path: Path, placed: Sequence[_Placed]) -> list[int]:
    """Find the annotations whose box does not fit their mask; refuse a file in which most are far apart."""
    fits = [(one, box_masks.fit(one.box, one.item.segmentation, one.size)) for one in placed]
    known = [(one, fit) for one, fit in fits if fit is not None]
    apart = [(one, fit) for one, fit in known if fit.overlap < box_masks.LOOSE]
    if 2 * len(apart) > len(known):
        one, fit = apart[0]
        raise InputError(
            f"{path}: boxes do not fit their masks: {len(apart)} of {len(known)} overlap by less than half (IoU), such "
            f"as bbox {shown(one.box)} of {one.item.shown}, whose mask has the box {shown(fit.mask_box)}; "
            f"{box_masks.HINT}"
        )
    return [one.position for one, fit in known if fit.is_wrong]


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read a COCO results file; `segloc.detection.coco_eval.match` checks its detections.

    Raises:
        InputError: no such file, not a results file, or an id is neither a whole number nor text.
    """
    content = _read_json(path, "results")
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise InputError(f"{path}: not COCO results (a list of detections)")
    try:
        return [_result(result, position) for position, result in enumerate(content)]
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def read_instances(path: Path, images: Path) -> Annotations:
    """Read the instances that segments are cut from.

    Unusable annotations are counted by reason: crowds, entries marked ``ignore``, degenerate boxes (no area, width or
    height below a pixel), unknown images or categories, missing files, repeated ids, malformed fields. Boxes may reach
    beyond the scan, because only the mask counts. Masks are checked when they are drawn.

    Args:
        path: a COCO instance file.
        images: folder of its file names.

    Raises:
        InputError: see `read_coco` and `scan_paths.resolve`; or a scan belongs to a test part.
    """
    content = _training_file(path)
    files = _training_scans(path, images, content.images)
    class_ids = {category_id: position for position, category_id in enumerate(content.categories)}
    skips = Skips("annotations", len(content.items))
    instances: dict[str, Instance] = {}
    for position, item in enumerate(content.items):
        problem, name = item.problem, item.shown
        if problem is None:
            assert item.image_id is not None  # because it has no problem
            image = content.images[item.image_id]
            instance = _instance(item, position, image, files, class_ids)
            if instance is None:
                problem, name = "image file missing", image.name
            elif instances.setdefault(instance.segment_id, instance) is not instance:
                problem = "annotation id repeats"
        if problem is not None:
            skips.add(problem, name)
    ordered = sorted(instances.values(), key=lambda instance: (instance.class_id, instance.segment_id))
    return Annotations(tuple(content.categories.values()), tuple(ordered), skips)


def unannotated(path: Path, images: Path) -> list[str]:
    """List the scans that a COCO file lists without any annotation, even an unusable one.

    Args:
        path: a COCO instance file.
        images: folder of its file names.

    Returns:
        Paths of files relative to `images`, ``/`` separators, sorted.

    Raises:
        InputError: see `read_instances`; or the file has annotations of images that it does not list, which could be
            any of its images.
    """
    content = _training_file(path)
    owners = {item.image_id for item in content.items}
    if unlisted := sorted(str(owner) for owner in owners - content.images.keys()):
        raise InputError(
            f"{path}: has annotations of images that it does not list (image_id {', '.join(unlisted[:3])}), "
            "so its benign scans are unknown; add these images to its list"
        )
    files = _training_scans(path, images, content.images)
    free = [image.name for image in content.images.values() if image.id not in owners]
    return sorted(files[name] for name in free if name in files)


def _read_json(path: Path, what: str) -> Any:
    data = existing_file(path, what).read_bytes()
    if data.startswith(_GZIP):
        raise InputError(f"{path}: is compressed; unpack it first (gunzip)")
    try:
        return json.loads(data, object_pairs_hook=once)  # accepts a byte order mark and UTF-16
    except RecursionError as error:
        raise InputError(f"{path}: not JSON of {what} (nested too deep)") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({one_line(error)})") from error


def _training_file(path: Path) -> CocoFile:
    content = read_coco(path)
    for image in content.images.values():
        _refuse_test_scan(path, image.name)
    return content


def _training_scans(path: Path, root: Path, images: dict[Id, CocoImage]) -> dict[str, str]:
    """Find the scans of a training file: paths relative to `root` by name, without missing ones."""
    files = scan_paths.resolve(root, [image.name for image in images.values()])
    found = {name: file.relative_to(root).as_posix() for name, file in files.items() if file is not None}
    for file in found.values():
        _refuse_test_scan(path, file)
    return found


def _refuse_test_scan(path: Path, name: str) -> None:
    if is_test_scan(name):
        raise InputError(f"{path}: {name!r} belongs to a test part; segments are cut from training data only")


def _instance(
    item: CocoItem, position: int, image: CocoImage, files: dict[str, str], class_ids: dict[Id, int]
) -> Instance | None:
    """Make the instance of an annotation without a problem; None if its scan is missing."""
    assert item.category_id is not None
    if image.name not in files:
        return None
    # In a segment's id, `#` ends the path of the scan.
    own_id = utf8_text(str(position if item.id is None else item.id)).replace("%", "%25").replace("#", "%23")
    path = files[image.name]
    segment_id = f"{utf8_text(path)}#{own_id}"
    return Instance(segment_id, own_id, class_ids[item.category_id], path, image.size, item.segmentation)


def _result(result: dict[str, Any], position: int) -> dict[str, Any]:
    """Normalise a detection, without the checks of single values that its evaluation makes."""
    result = {field: value for field, value in result.items() if value is not None}
    for field in ("image_id", "category_id"):
        if field in result:
            try:
                result[field] = identifier(result[field])
            except ValueError as error:
                raise ValueError(f"result {position}: {field} {error}") from error
    for field, parse in (("score", number), ("bbox", coco_fields.box)):
        if not isinstance(result.get(field), float):
            with contextlib.suppress(ValueError):
                if (value := parse(result[field]) if field in result else None) is not None:
                    result[field] = value
    return result


def _categories(entries: list[Any]) -> dict[Id, str]:
    """Name by category id, ascending: numbers first, then text."""
    if len(entries) > MOST_CATEGORIES:
        raise ValueError(f"{len(entries)} categories, at most {MOST_CATEGORIES} are read")
    names: dict[Id, str] = {}
    for entry in entries:
        category_id = _required(entry, "category", "id", identifier)
        name = _required(entry, "category", "name", coco_fields.class_name)
        if category_id in names:
            both = f"{names[category_id]!r} and {name!r}"
            raise ValueError(f"category id {shown(category_id)} occurs more than once: it stands for {both}")
        names[category_id] = name
    if not names:
        raise ValueError("no categories")
    first: dict[str, str] = {}
    for name in names.values():
        if (key := coco_fields.class_key(name)) in first:
            # As separate classes, each would be a negative of the other.
            raise ValueError(
                f"category name {shown(name)} occurs more than once, first as {shown(first[key])} (case, outer blanks "
                "and invisible characters are ignored)"
            )
        first[key] = name
    return {key: names[key] for key in sorted(names, key=id_order)}


def _images(entries: list[Any]) -> dict[Id, CocoImage]:
    images: dict[Id, CocoImage] = {}
    for entry in entries:
        image_id = _required(entry, "image", "id", identifier)
        name = _required(entry, "image", "file_name", coco_fields.text)
        if image_id in images:
            names = f"{images[image_id].name!r} and {name!r}"
            raise ValueError(f"image id {shown(image_id)} occurs more than once: it stands for {names}")
        try:
            width, height = _optional(entry, "image", "width", whole), _optional(entry, "image", "height", whole)
        except ValueError as error:
            raise ValueError(f"{error} (image {name!r})") from error
        images[image_id] = CocoImage(image_id, name, (width, height) if width and height else None)
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

    own_id, image_id, category_id = (read(field, identifier) for field in ("id", "image_id", "category_id"))
    box, area = read("bbox", coco_fields.box), read("area", coco_fields.area)
    crowd, ignore = read("iscrowd", coco_fields.flag), read("ignore", coco_fields.flag)
    mask = read("segmentation", coco_fields.shallow)
    fault = _fault(image_id, category_id, malformed, images, categories)
    if crowd:
        problem: str | None = "crowd"
    elif ignore:
        problem = "marked ignore"
    elif fault is None and (area == 0 or (box is not None and min(box[2:]) < 1)):
        problem = "degenerate"
    else:
        problem = fault
    return CocoItem(own_id, image_id, category_id, box, area, bool(crowd), mask, fault, problem)


def _fault(
    image_id: Id | None,
    category_id: Id | None,
    malformed: Sequence[str],
    images: dict[Id, CocoImage],
    categories: dict[Id, str],
) -> str | None:
    if malformed:
        return f"malformed {malformed[0]}"
    if image_id is None or category_id is None:
        return f"no {'image_id' if image_id is None else 'category_id'}"
    if image_id not in images:
        return "image not in the file"
    return None if category_id in categories else "category not in the file"
