"""Keeps scans of test parts out of pretraining (paper section 3.1: segments are PIDray's training items).

Test parts are recognised only by the words in their names.
"""

from __future__ import annotations

import re
from pathlib import Path

from segloc.common.errors import InputError

TEST_WORDS = ("test", "easy", "hard", "hidden")

_ANY = "|".join(TEST_WORDS)
_TEST_WORD = re.compile(rf"(?:^|[^a-z])(?:{_ANY})(?:[^a-z]|$)", re.IGNORECASE)
_TEST_FOLDER = re.compile(rf"(?:xray_)?(?:test_?)?(?:{_ANY})", re.IGNORECASE)
_TEST_SCAN = re.compile(rf"xray_(?:{_ANY})[_\d]", re.IGNORECASE)
_GENERIC_FOLDERS = frozenset({"data", "image", "images", "img", "jpegimages", "scans"})


def refuse_test_parts(annotations: Path, images: Path) -> None:
    """Refuse an annotation file or image folder with the name of a test part, or a link to one.

    Raises:
        InputError: it has such a name or target.
    """
    for path in (annotations, annotations.resolve()):
        _refuse(path.stem, _TEST_WORD.search(path.stem) is not None)
    for path in (images.absolute(), images.resolve()):
        _refuse(path.name, _TEST_WORD.search(path.name) is not None)
        if path.name.lower() in _GENERIC_FOLDERS:  # repacked copies have test/images
            _refuse(path.parent.name, _TEST_FOLDER.fullmatch(path.parent.name) is not None)


def _refuse(name: str, is_test: bool) -> None:
    if is_test:
        raise InputError(f"{name!r} looks like a test part; segments are cut from training data only")


def is_test_scan(image: str) -> bool:
    """Whether an image is named like a scan of PIDray's test parts, or lies in a folder of one.

    >>> is_test_scan("xray_hard00014.png"), is_test_scan("hidden/7.png"), is_test_scan("hard_shell/xray_00014.png")
    (True, True, False)
    """
    *folders, name = image.replace("\\", "/").split("/")
    return _TEST_SCAN.search(name) is not None or any(_TEST_FOLDER.fullmatch(folder) for folder in folders)
