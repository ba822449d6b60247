"""Faults of COCO results: ``segloc.evaluate`` scores them as they are meant, or refuses them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import common
from tests.faults.dirty.world import Problem, copied, ended, world, wrong_refusal

Results = list[dict[str, Any]]
# Changes the results, one of which was drawn.
Change = Callable[[Results, dict[str, Any]], object]


def _set(name: str, value: Any) -> Change:
    def change(results: Results, one: dict[str, Any]) -> None:
        one[name] = value(one[name]) if callable(value) else value

    return change


def _drop(name: str) -> Change:
    return lambda results, one: one.pop(name)


# What becomes of the average precision of boxes: the same as of perfect results; or words of the refusal.
CHANGED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "image id as text": (_set("image_id", str), ()),
    "category id as text": (_set("category_id", str), ()),
    "image id as float": (_set("image_id", float), ()),
    "other fields": (_set("caption", {"x": [None]}), ()),
    "score NaN": (_set("score", float("nan")), ("score",)),
    "score Infinity": (_set("score", float("inf")), ("score",)),
    "score a word": (_set("score", "high"), ("score",)),
    "score null": (_set("score", None), ("score",)),
    "score absent": (_drop("score"), ("score",)),
    "box absent": (_drop("bbox"), ("bbox",)),
    "box of three numbers": (_set("bbox", [1, 2, 3]), ("bbox",)),
    "box with NaN": (_set("bbox", [1, 2, float("nan"), 4]), ("bbox",)),
    "box of words": (_set("bbox", ["a"] * 4), ("bbox",)),
    "image unknown": (_set("image_id", 999), ("999",)),
    "image null": (_set("image_id", None), ("image_id",)),
    "category unknown": (_set("category_id", 999), ("999",)),
    "detection null": (lambda results, one: results.append(None), ("results",)),  # type: ignore[arg-type]
}


def _evaluate(root: Path, results: Any, truth: dict[str, Any]) -> tuple[Any, Any]:
    from segloc import evaluate

    (root / "truth.json").write_text(json.dumps(truth))
    (root / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
    out = root / "evaluation.json"
    options = ["--results", root / "results.json", "--annotations", root / "truth.json", "--out", out]
    done = ended(evaluate.main, *options)
    return done, json.loads(out.read_text()) if out.is_file() else None


def _results(truth: dict[str, Any]) -> Results:
    fields = ("image_id", "category_id", "bbox")
    return [{**{name: item[name] for name in fields}, "score": 0.9} for item in truth["annotations"]]


@functools.cache
def _perfect() -> Any:
    truth = world((0,)).content
    done, report = _evaluate(common.fresh("evaluation-clean"), _results(truth), truth)
    assert report is not None, done
    return report["subsets"]


def _problem(change: Change, words: tuple[str, ...], seed: tuple[int, ...]) -> str | None:
    truth, rng = world(seed).content, np.random.default_rng(seed)
    results = _results(truth)
    change(results, results[int(rng.integers(len(results)))])
    return _compare(truth, results, words)


def _compare(truth: dict[str, Any], results: Any, words: tuple[str, ...]) -> str | None:
    done, report = _evaluate(common.fresh("evaluation"), results, truth)
    if words:
        return wrong_refusal(done, words)
    if done.traceback or done.code:
        return f"{done}"[-300:]
    return None if _same(report["subsets"], _perfect()) else "other metrics than those of the clean results"


def _same(found: Any, wanted: Any) -> bool:
    """Whether reports agree, apart from names and digests of files."""
    keep = ("bbox", "AP", "AR1", "AR10", "AR100", "images")
    return [{k: v for k, v in part.items() if k in keep} for part in found.values()] == [
        {k: v for k, v in part.items() if k in keep} for part in wanted.values()
    ]


def _text(text: str, *words: str) -> Problem:
    return lambda seed: _compare(world(seed).content, text, words)


def _truth(change: Callable[[dict[str, Any]], object], *words: str) -> Problem:
    """Spoil the annotations instead of the results."""

    def problem(seed: tuple[int, ...]) -> str | None:
        spoiled = world(seed)
        results = _results(copied(spoiled.content))
        change(spoiled.item)
        return _compare(spoiled.content, results, words)

    return problem


FAULTS: Mapping[str, Problem] = {
    **{name: functools.partial(_problem, change, words) for name, (change, words) in CHANGED.items()},
    "results empty": _text("", "results.json", "JSON"),
    "results cut short": _text('[{"image_id": 1, ', "results.json", "JSON"),
    "results are a dict": _text('{"images": []}', "results.json"),
    "annotation id null": _truth(lambda item: item.update(id=None)),
    "annotation id as text": _truth(lambda item: item.update(id=str(item["id"]))),
    "annotated image as text": _truth(lambda item: item.update(image_id=str(item["image_id"]))),
    "annotated box absent": _truth(lambda item: item.pop("bbox")),
    "annotated area null": _truth(lambda item: item.update(area=None)),
    "annotated crowd null": _truth(lambda item: item.update(iscrowd=None)),
}
