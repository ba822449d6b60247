"""COCO instance files, from any data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segloc.common.datasets.leakage import is_test_scan
from segloc.common.datasets.records import Annotations, Instance
from segloc.common.errors import InputError
from segloc.common.files import existing_file, safe_relative


class _SkipError(Exception):
    """An annotation that cannot be used; the message is the reason."""


def read(path: Path) -> Annotations:
    """Read the instances of a COCO file.

    Class ids are positions in the file's own category list in ascending order of its ids. What cannot be used is
    counted by reason: crowds, entries marked ``ignore``, degenerate boxes (no area, width or height below a pixel),
    unknown images or categories, image paths that leave their folder, repeated ids, malformed entries. Boxes that reach
    beyond the scan are no reason: only the mask counts. Masks are checked later, when they are drawn.

    Raises:
        InputError: not a COCO instance file, an image id that stands for two files, or scans of a test part.
    """
    content = _load(path)
    classes = _classes(content["categories"], path)
    images = _images(content["images"], path)
    skipped: Counter[str] = Counter()
    instances: dict[str, Instance] = {}
    for position, entry in enumerate(content["annotations"]):
        try:
            instance = _instance(entry, position, classes, images)
            if instance.segment_id in instances:
                raise _SkipError("annotation id repeats")
            instances[instance.segment_id] = instance
        except _SkipError as reason:
            skipped[str(reason)] += 1
    ordered = sorted(instances.values(), key=lambda instance: (instance.class_id, instance.segment_id))
    return Annotations(tuple(name for _, name in classes.values()), tuple(ordered), dict(sorted(skipped.items())))


def unannotated(path: Path) -> set[str]:
    """Names of the images that a COCO file lists without a single annotation, usable or not.

    Each is given as it stands and, for re-packed copies, without its folders; not if an annotated image has that name.

    Raises:
        InputError: not a COCO instance file, scans of a test part, or annotations of images it does not list, so that
            any of its images could be theirs.
    """
    content = _load(path)
    names = {str(key): name for key, (name, _) in _images(content["images"], path).items()}
    owners = {str(entry.get("image_id")) if isinstance(entry, dict) else "None" for entry in content["annotations"]}
    if strangers := sorted(owners - names.keys()):
        raise InputError(
            f"{path}: annotations of images it does not list (image_id {', '.join(strangers[:3])}), "
            "so it cannot be told which of its scans are benign"
        )
    taken = _with_and_without_folders(names[key] for key in owners)
    return _with_and_without_folders(name for key, name in names.items() if key not in owners) - taken


def _with_and_without_folders(names: Iterable[str]) -> set[str]:
    return {form for name in names for form in (name, name.replace("\\", "/").rpartition("/")[2])}


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(existing_file(path, "annotations").read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: not a COCO instance file (no list {key!r})")
    return content


def _classes(categories: list[Any], path: Path) -> dict[int, tuple[int, str]]:
    """Category id -> (class id, name), ascending."""
    try:
        names = {int(category["id"]): str(category["name"]) for category in categories}
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path}: a category without id and name") from error
    if not names or len(names) < len(categories):
        raise InputError(f"{path}: {'category ids repeat' if names else 'no categories'}")
    repeated = [name for name, count in Counter(name.casefold() for name in names.values()).items() if count > 1]
    if repeated:
        # As two classes, each would be a negative of the other.
        raise InputError(f"{path}: several categories are called {repeated[0]!r}")
    return {key: (position, names[key]) for position, key in enumerate(sorted(names))}


def _images(entries: list[Any], path: Path) -> dict[Any, tuple[str, tuple[int, int] | None]]:
    """Image id -> (file name as it stands, claimed size)."""
    images: dict[Any, tuple[str, tuple[int, int] | None]] = {}
    for entry in entries:
        try:
            key, name = entry["id"], str(entry["file_name"])
            claimed = (entry.get("width"), entry.get("height"))
            size = (int(claimed[0]), int(claimed[1])) if all(claimed) else None
            same = images.setdefault(key, (name, size)) == (name, size)
        except (TypeError, KeyError, AttributeError, OverflowError, ValueError) as error:
            raise InputError(f"{path}: an image without a usable id, file_name, width or height") from error
        if not same:
            raise InputError(f"{path}: image id {key} stands for {images[key][0]!r} and {name!r}")
        if is_test_scan(name):
            raise InputError(f"{path}: {name!r} is a scan of a test part; segments are cut from training data only")
    return images


def _instance(
    entry: Any,
    position: int,
    classes: dict[int, tuple[int, str]],
    images: dict[Any, tuple[str, tuple[int, int] | None]],
) -> Instance:
    try:
        if entry.get("iscrowd"):
            raise _SkipError("crowd")
        if entry.get("ignore"):
            raise _SkipError("marked ignore")
        if entry["image_id"] not in images:
            raise _SkipError("image not in the file")
        if entry["category_id"] not in classes:
            raise _SkipError("category not in the file")
        name, size = images[entry["image_id"]]
        _, _, width, height = map(float, entry.get("bbox") or (0, 0, 1, 1))
        if not float(entry.get("area", 1)) > 0 or not width >= 1 or not height >= 1:
            raise _SkipError("degenerate")
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise _SkipError("malformed annotation") from error
    try:
        image = safe_relative(name)
    except ValueError as error:
        raise _SkipError("image path leaves its folder") from error
    annotation_id = str(entry.get("id", position))
    class_id = classes[entry["category_id"]][0]
    return Instance(f"{image}#{annotation_id}", annotation_id, class_id, image, size, entry.get("segmentation"))
