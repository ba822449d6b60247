"""A small clean data set to spoil, what has to follow, and the comparison of both."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import json
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from pipeline import segments
from tests.faults import common
from tests.faults.common import Count

WIDTH, HEIGHT, SCANS = 120, 90, 8
Item = dict[str, Any]
Row = dict[str, Any]
# Numbers of a group of near-duplicates depend on which other scans are in the table.
_NOT_COMPARED = ("scan_group",)
ANY = object()
# Columns that follow from pixels, and from names.
PIXELS = dict.fromkeys(("png", "background_r", "background_g", "background_b", "scan_fingerprint"), ANY)
NAMES = dict.fromkeys(("segment_id", "image"), ANY)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended in this process: exit code, what it printed, and the traceback of an unexpected error."""

    code: int
    output: str
    errors: str
    traceback: str = ""

    @property
    def shown(self) -> str:
        """Everything that it printed."""
        return self.output + self.errors


@dataclasses.dataclass(frozen=True)
class Expect:
    """What has to follow from a fault. Without arguments: it is processed as if it were clean.

    Attributes:
        skipped: count by reason.
        gone: keys of clean rows that are missing.
        changed: new values of columns, by key of the clean row; `ANY` is not compared.
        refused: words that the one sentence of the refusal has; empty if the data are not refused.
    """

    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    changed: Mapping[str, Row] = dataclasses.field(default_factory=dict)
    refused: tuple[str, ...] = ()


PROCESSED = Expect()


@dataclasses.dataclass
class World:
    """Eight scans with two items each, in ``train.json`` and ``scans``.

    Attributes:
        root: its folder.
        content: what train.json will hold; change it, or set `raw`.
        item: the annotation to spoil.
        image: the entry of its image.
        rng: for further choices.
        raw: bytes of train.json instead of `content`.
    """

    root: Path
    content: dict[str, Any]
    item: Item
    image: Item
    rng: np.random.Generator
    raw: bytes | None = None

    @property
    def scan(self) -> Path:
        """The file of the spoiled annotation's image."""
        return self.root / "scans" / str(self.image["file_name"])

    @property
    def key(self) -> str:
        """Key of the clean row of the annotation to spoil."""
        return str(self.item["id"])

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the clean rows of its image."""
        items = self.content["annotations"]
        return frozenset(str(item["id"]) for item in items if item["image_id"] == self.image["id"])

    @property
    def other(self) -> Item:
        """The other annotation of the same image."""
        items = self.content["annotations"]
        return next(i for i in items if i["image_id"] == self.image["id"] and i["id"] != self.item["id"])

    @property
    def other_image(self) -> Item:
        """An entry of another image."""
        return self.content["images"][self.content["images"].index(self.image) - 1]

    def skip(self, reason: str) -> Expect:
        """Expect that only the spoiled annotation is skipped."""
        return Expect({reason: 1}, frozenset({self.key}))

    def skip_scan(self, reason: str) -> Expect:
        """Expect that both annotations of the scan are skipped."""
        return Expect({reason: 2}, self.keys)

    def write(self) -> None:
        """Write train.json."""
        data = self.raw if self.raw is not None else json.dumps(self.content).encode()
        (self.root / "train.json").write_bytes(data)


# Several expectations are alternatives.
Fault = Callable[[World], "Expect | tuple[Expect, ...]"]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of segments: rows by annotation id, and counts of skipped annotations by reason."""

    rows: dict[str, Row]
    skipped: dict[str, int]


def picture(number: int) -> np.ndarray:
    """Scan `number`, BGR: a bag on white belt, two dark items."""
    rng = np.random.default_rng(number)
    scan = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    scan[8 : HEIGHT - 8, 8 : WIDTH - 8] = (130, 190, 230)
    scan[8 : HEIGHT - 8, 8 : WIDTH - 8] -= rng.integers(0, 60, (HEIGHT - 16, WIDTH - 16, 1), np.uint8)
    for x0, y0, x1, y1 in boxes(number):
        scan[y0:y1, x0:x1] = (90, 60, 30)
    return scan


def boxes(number: int) -> list[tuple[int, int, int, int]]:
    """Boxes of both items of scan `number`."""
    return [(20 + number, 20, 50 + number, 50), (60, 30 + number, 90, 60 + number)]


def square(box: tuple[int, int, int, int]) -> list[int]:
    """A box as polygon."""
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


@functools.cache
def _files() -> Path:
    root = common.scratch() / "clean"
    (root / "scans").mkdir(parents=True)
    for number in range(SCANS):
        (root / "scans" / f"s{number}.png").write_bytes(cv2.imencode(".png", picture(number))[1].tobytes())
    return root


def _content() -> dict[str, Any]:
    size = {"width": WIDTH, "height": HEIGHT}
    images = [{"id": number + 1, "file_name": f"s{number}.png", **size} for number in range(SCANS)]
    items: list[Item] = []
    for number in range(SCANS):
        for place, (x0, y0, x1, y1) in enumerate(boxes(number)):
            shape = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            outline = [square((x0, y0, x1, y1))]
            owner = {"id": 100 + len(items), "image_id": number + 1, "category_id": 1 + place}
            items.append({**owner, **shape, "segmentation": outline})
    categories = [{"id": 1, "name": "Gun"}, {"id": 2, "name": "Knife"}]
    return {"info": {}, "images": images, "annotations": items, "categories": categories}


def world(seed: tuple[int, ...]) -> World:
    """A clean data set, with an annotation drawn to be spoiled."""
    root, rng = common.fresh("world"), np.random.default_rng(seed)
    shutil.copytree(_files(), root, dirs_exist_ok=True)
    content = _content()
    item = content["annotations"][int(rng.integers(len(content["annotations"])))]
    return World(root, content, item, content["images"][item["image_id"] - 1], rng)


def ended(main: Callable[[list[str]], int], *arguments: object) -> Ended:
    """Run a command in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code, trace = main([str(argument) for argument in arguments]), ""
        except SystemExit as stop:
            code, trace = int(stop.code or 0), ""
        except Exception:
            code, trace = -1, traceback.format_exc()
    return Ended(code, output.getvalue(), errors.getvalue(), trace)


def cut(root: Path, max_skipped: float = 1) -> tuple[Ended, Table | None]:
    """Cut the segments of a world; the table is None if there is none."""
    out = root / "segments.parquet"
    out.unlink(missing_ok=True)
    files = ["--annotations", root / "train.json", "--images", root / "scans", "--out", out]
    done = ended(segments.main, *files, "--workers", 1, "--max-skipped", max_skipped)
    if not out.is_file():
        return done, None
    table = pq.read_table(out)
    rows = [{name: value for name, value in row.items() if name not in _NOT_COMPARED} for row in table.to_pylist()]
    parameters = json.loads(table.schema.metadata[b"segloc.parameters"])
    return done, Table({row["annotation_id"]: row for row in rows}, parameters["skipped"])


@functools.cache
def clean() -> Table:
    """The table of the clean data set."""
    root = common.fresh("clean-world")
    shutil.copytree(_files(), root, dirs_exist_ok=True)
    (root / "train.json").write_text(json.dumps(_content()))
    done, table = cut(root)
    assert table is not None, done
    assert len(table.rows) == 2 * SCANS, done
    assert not table.skipped, done
    return table


def wrong_refusal(done: Ended, words: tuple[str, ...]) -> str | None:
    """What is wrong with a refusal: None if it is one sentence with these words and exit code 2."""
    if done.traceback:
        return f"traceback: {done.traceback.strip().splitlines()[-1][:300]}"
    sentence = common.last_line(done.errors)
    if done.code != 2:
        return f"exit code {done.code} instead of a refusal: {done.shown.strip()[-300:]}"
    if missing := [word for word in words if word.casefold() not in sentence.casefold()]:
        return f"the refusal lacks {missing}: {sentence[:300]}"
    return None


def compare(done: Ended, table: Table | None, expect: Expect) -> str | None:
    """What differs from what has to follow; None if nothing does."""
    if expect.refused:
        return wrong_refusal(done, expect.refused)
    if done.traceback:
        return f"traceback: {done.traceback.strip().splitlines()[-1][:300]}"
    if done.code or table is None:
        return f"exit code {done.code}: {common.last_line(done.errors)[:300]}"
    if table.skipped != dict(expect.skipped):
        return f"skipped {table.skipped}, planted {dict(expect.skipped)}"
    wanted = {key: row | expect.changed.get(key, {}) for key, row in clean().rows.items() if key not in expect.gone}
    rows = {row["annotation_id"]: row for row in wanted.values()}
    if rows.keys() != table.rows.keys():
        return f"rows {sorted(rows.keys() ^ table.rows.keys())} are missing or new"
    for key, row in rows.items():
        for name, value in row.items():
            if value is not ANY and table.rows[key][name] != value:
                return f"{name} of {key} is {str(table.rows[key][name])[:60]}, not {str(value)[:60]}"
    total = sum(expect.skipped.values())
    return (
        None if not total or f"skipped {total} of" in done.shown or "not used" in done.shown else "not told on screen"
    )


def segments_problem(fault: Fault, seed: tuple[int, ...]) -> str | None:
    """Spoil a world and cut its segments."""
    spoiled = world(seed)
    expected = fault(spoiled)
    spoiled.write()
    done, table = cut(spoiled.root)
    alternatives = expected if isinstance(expected, tuple) else (expected,)
    problems = [compare(done, table, expect) for expect in alternatives]
    return None if None in problems else problems[0]


Problem = Callable[[tuple[int, ...]], "str | None"]


def faults(module_faults: Mapping[str, Fault]) -> dict[str, Problem]:
    """Turn faults of annotation files and scans into checks of ``pipeline.segments``."""
    return {name: functools.partial(segments_problem, fault) for name, fault in module_faults.items()}


def count(kind: str, checks: Mapping[str, Problem], cases: int, seed: int) -> Count:
    """Run every check of a group equally often, at least once."""
    result = Count(kind)
    for number in range(max(1, cases // len(checks))):
        for place, (name, check) in enumerate(checks.items()):
            try:
                with limit():
                    problem = check((seed, number, place))
            except Exception as error:  # of the reading of a table, or a traceback of a command
                problem = f"{type(error).__name__}: {error}"
            result.add(f"{name} (seed {seed}, {number}, {place})", problem)
    result.measured["kinds of fault"] = len(checks)
    return result


@contextlib.contextmanager
def limit(seconds: int = 60) -> Iterator[None]:
    """Raise `TimeoutError` in a block that takes longer."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def copied(item: Item, **changes: Any) -> Item:
    """A copy with other fields."""
    return {**copy.deepcopy(item), **changes}
