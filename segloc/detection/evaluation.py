"""COCO AP and AR of a detector or of any results file, with tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from segloc.common.datasets import Split
from segloc.common.datasets.coco import read_results
from segloc.common.datasets.pidray import SUBSETS
from segloc.common.errors import InputError, unknown_key
from segloc.common.files import check_output, write_atomic, write_json
from segloc.common.output_kinds import Kind, check_replaces, starting
from segloc.common.skips import Skips
from segloc.detection import bootstrap, coco_eval, eval_tables
from segloc.detection.coco_eval import FIELDS, IOU_TYPES, MEAN, METRICS, POOLED, Matches
from segloc.detection.data import digest_of, evaluation_splits
from segloc.detection.detector import Detector, engine_label
from segloc.detection.predict import predict_split
from segloc.detection.splits import CocoSplit, read_split
from segloc.detection.weights import build_detector, read_detector, recipe_inside
from segloc.settings.finetuning import INCIDENTAL, DataSettings, FinetuneConfig
from segloc.settings.loader import flat, load, to_yaml
from segloc.training.processes import ALONE, Group


class Found(NamedTuple):
    """What was found in a test set.

    Attributes:
        split: the test set.
        file: the results file.
        results: its detections.
        scans: if a detector was run, the scans that it could not read.
    """

    split: CocoSplit
    file: Path
    results: list[dict[str, Any]]
    scans: Skips | None = None


# What the files of an evaluation may replace.
EVALUATION = starting("an evaluation of segloc.evaluate", rb'\{\s*"engine":\s*"[^\n]*",\s*"weights":')
_RESULTS = starting(
    "a results file of segloc.evaluate",
    rb'\[(\]|\{"image_id": [^\n]+?, "category_id": [^\n]+?, "bbox": \[[^\]]+\], "score": [^,]+, "segmentation": )',
)


def tables_beside(out: Path) -> dict[Path, Kind]:
    """Return the paths of the CSV and Markdown tables beside the JSON file `out`, and what they may replace.

    Raises:
        InputError: `out` has the name of one of them.
    """
    tables = {out.with_suffix(".csv"): eval_tables.CSV, out.with_suffix(".md"): eval_tables.MARKDOWN}
    if out in tables:
        raise InputError(f"{out}: --out names the JSON file; choose another suffix, .csv and .md are for the tables")
    return tables


def evaluate_results(
    results: Sequence[str], annotations: Sequence[str], resamples: int | None = None
) -> dict[str, Any]:
    """Evaluate COCO results files against their annotation files, one of each per test set.

    Args:
        results: COCO results files.
        annotations: COCO annotation files.
        resamples: bootstrap draws for 95 % confidence intervals; None for no intervals.

    Returns:
        The report: ``subsets`` by name, each with the number of ``images``, the ``digest`` of their names and
        annotations, and the metrics of ``bbox`` and ``segm`` (if the results have them); ``mean`` over the test sets;
        ``pooled``, like a subset; ``skipped``, by test set the counts of annotations (and of scans, if a detector was
        run) of `Skips.to_json`. With intervals, ``bbox`` and ``segm`` have ``interval`` (for each metric the lower
        and upper bound, or None) and ``bootstrap`` holds draws, seed and level.

    Raises:
        InputError: a file cannot be used, or results do not belong to their annotations.
    """
    if len(results) != len(annotations):
        raise InputError(
            f"{len(results)} --results but {len(annotations)} --annotations; give one of each per test set"
        )
    splits = [Split(_subset_name(Path(truth)), Path(truth), None) for truth in annotations]
    _check_names(splits)
    found: list[Found] = []
    for split, file in zip(splits, results, strict=True):
        read = read_split(split)
        read = read.with_classes(found[0].split.classes, annotations[0], split.annotations) if found else read
        found.append(Found(read, Path(file), read_results(Path(file))))
    _require_items([one.split for one in found])
    return _report({"engine": "results file", "weights": None, "iteration": None}, found, resamples)


def evaluate_weights(
    weights: str,
    out: Path,
    config: str | None = None,
    data: str | None = None,
    subsets: Sequence[str] = (),
    overrides: Sequence[str] = (),
    resamples: int | None = None,
    group: Group = ALONE,
) -> dict[str, Any] | None:
    """Run a fine-tuned detector on test sets, write its COCO results beside `out` and evaluate them.

    Args:
        weights: fine-tuning run or checkpoint.
        out: the JSON file of the report.
        config: recipe; None for the one in the checkpoint.
        data: PIDray folder; None for the recipe's data.
        subsets: test sets to evaluate; empty for all.
        overrides: ``key=value`` settings of the recipe.
        resamples: see `evaluate_results`.
        group: the processes that share the test scans. The main process writes the files, which do not depend on their
            number.

    Returns:
        The report: see `evaluate_results`; None in all but the main process.

    Raises:
        InputError: weights, data or settings cannot be used.
    """
    with group.together():
        test = _prepare(weights, out, config, data, overrides, subsets, group.device())
    found = _detect(test, group)
    return _report(test.about, found, resamples) if group.is_main else None


def write_evaluation(report: dict[str, Any], out: Path) -> list[Path]:
    """Write a report as CSV, Markdown and JSON; return the paths."""
    csv, markdown = tables_beside(out)
    write_atomic(csv, eval_tables.evaluation_csv(report).encode("utf-8", "backslashreplace"))
    write_atomic(markdown, eval_tables.evaluation_markdown(report).encode("utf-8", "backslashreplace"))
    write_json(out, report)  # last: once it exists, all three exist
    return [csv, markdown, out]


def _report(about: dict[str, Any], found: Sequence[Found], resamples: int | None) -> dict[str, Any]:
    matches = [(one.split, _match(one)) for one in found]
    skipped = {
        one.split.name: [one.split.faulty] if one.scans is None else [one.scans, one.split.faulty] for one in found
    }
    subsets: dict[str, dict[str, Any]] = {
        split.name: {
            "images": len(split.scans),
            "digest": digest_of(split.scans),
            **{kind: coco_eval.measure(of_kind) for kind, of_kind in of_set.items()},
        }
        for split, of_set in matches
    }
    kinds = [kind for kind in IOU_TYPES if all(kind in of_set for _, of_set in matches)]
    report = {
        **about,
        "units": "percent",
        "classes": list(found[0].split.classes),
        "subsets": subsets,
        "skipped": {name: [part.to_json() for part in parts] for name, parts in skipped.items()},
        MEAN: {kind: coco_eval.mean([part[kind] for part in subsets.values()]) for kind in kinds},
        POOLED: {
            "images": sum(part["images"] for part in subsets.values()),
            **{kind: coco_eval.measure(coco_eval.pool([of_set[kind] for _, of_set in matches])) for kind in kinds},
        },
    }
    if resamples is not None:
        _add_intervals(report, matches, resamples)
    return report


def _add_intervals(report: dict[str, Any], matches: list[tuple[CocoSplit, dict[str, Matches]]], resamples: int) -> None:
    for kind in IOU_TYPES:
        measured = {split.name: of_set[kind] for split, of_set in matches if kind in of_set}
        drawn = bootstrap.resample(measured, resamples) if measured else {}
        for name, part in coco_eval.parts(report).items():
            if kind in part:
                part[kind]["interval"] = dict(zip(METRICS, bootstrap.interval(drawn[name]), strict=True))
    about = {"resamples": resamples, "seed": bootstrap.SEED, "level_percent": bootstrap.LEVEL_PERCENT}
    report["bootstrap"] = about


def _match(found: Found) -> dict[str, Matches]:
    """Match the boxes and masks of the results."""
    split, results = found.split, found.results
    if split.dropped:
        print(f"{split.name}: {split.dropped} annotations without a usable mask are left out of the mask metrics")
    kinds = [kind for kind in IOU_TYPES if not results or any(FIELDS[kind] in result for result in results)]
    try:
        if not kinds:
            raise InputError("no result has 'bbox' or 'segmentation'")
        matches = {kind: coco_eval.match(split.ground_truth, results, kind) for kind in kinds}
    except InputError as error:
        raise type(error)(f"{found.file}: {error}") from error
    if above := [result["score"] for result in results if result["score"] > 1]:
        share = f"{len(above)} of {len(results)} scores are above 1, up to {max(above):g}"
        print(f"{found.file}: {share}; AP and AR use only their order")
    return matches


def _require_items(splits: Sequence[CocoSplit]) -> None:
    """Check that every test set has images, and that there is an item in one of them.

    A test set of clean scans beside others is legal: its detections are false positives of the pooled metrics.
    """
    for split in splits:
        if not split.scans:
            raise InputError(f"{split.name}: the annotations list no images, so there is nothing to evaluate")
    if not any(not item["iscrowd"] for split in splits for item in split.ground_truth["annotations"]):
        names = ", ".join(split.name for split in splits)
        raise InputError(f"{names}: no image has an item, so AP and AR are undefined; add a test set with items")


def _check_names(splits: Sequence[Split]) -> None:
    """Check that the names of test sets are unique and usable in file names."""
    names = [split.name for split in splits]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"several test sets are named {name!r}; rename all but one")
        if name in (MEAN, POOLED) or name != Path(name).name:
            raise InputError(f"a test set cannot be named {name!r}; choose another name without a slash")


class _Prepared(NamedTuple):
    """A detector and the test sets to run it on; `about` is the head of the report."""

    detector: Detector
    splits: list[CocoSplit]
    files: list[Path]
    settings: DataSettings
    about: dict[str, Any]


def _prepare(
    source: str,
    out: Path,
    recipe: str | None,
    data: str | None,
    overrides: Sequence[str],
    subsets: Sequence[str],
    device: torch.device,
) -> _Prepared:
    content = read_detector(source)
    trained = recipe_inside(content, source)
    config = load(FinetuneConfig, recipe, overrides) if recipe else recipe_inside(content, source, overrides)
    config = config.with_data(data)
    if config.data.white is None:  # test scans come from the scanner of the training scans
        config = config.with_white(trained.data.white)
    settings = config.data
    chosen = _chosen(evaluation_splits(settings), subsets)
    _check_names(chosen)
    files = [out.with_name(f"{out.stem}.{split.name}.results.json") for split in chosen]
    for file in files:
        check_output(file)
        check_replaces(file, _RESULTS)
    splits = [
        read_split(split).with_classes(content["classes"], source, split.annotations).with_white(settings.white)
        for split in chosen
    ]
    _require_items(splits)
    detector = build_detector(content, config, source).to(device)
    done, steps = content["iteration"], content.get("steps", content["iteration"])
    about = {"engine": engine_label(detector.engine), "weights": source, "iteration": done, "steps": steps}
    about |= {"changed": _changed(trained, config.resolved(content["classes"], trained.model.engine)), "unreadable": {}}
    return _Prepared(detector, splits, files, settings, about)


def _detect(test: _Prepared, group: Group) -> list[Found]:
    """Run a detector on the test sets and write what it finds; only the main process returns it."""
    about = test.about
    group.say(f"engine {about['engine']}, weights {about['weights']} after {about['iteration']} steps")
    if about["iteration"] < about["steps"]:
        group.say(f"training is not finished: {about['iteration']} of {about['steps']} steps")
    found: list[Found] = []
    for split, file in zip(test.splits, test.files, strict=True):
        predicted = predict_split(test.detector, split, test.settings.image_size, test.settings.threads, group)
        with group.together():
            if predicted is not None:
                if unreadable := predicted.unreadable:
                    about["unreadable"][split.name] = unreadable
                    share = f"{len(unreadable)} of {len(split.scans)} images"
                    print(f"{split.name}: {share} cannot be read and count as without detections; {unreadable[0]}")
                write_atomic(file, json.dumps(predicted.results).encode())
                print(f"wrote {file}")
                found.append(Found(split, file, predicted.results, predicted.skips))
    return found


def _changed(trained: FinetuneConfig, tested: FinetuneConfig) -> dict[str, str]:
    """Return the settings, by dotted key, that differ from the checkpoint's recipe; paths and speed are ignored."""
    before, now = (flat(yaml.safe_load(to_yaml(config))) for config in (trained, tested))
    keys = [key for key in {**before, **now} if key not in INCIDENTAL and before.get(key) != now.get(key)]
    return {key: repr(now.get(key)) for key in keys}


def _chosen(splits: list[Split], names: Sequence[str]) -> list[Split]:
    for name in names:
        if name not in [split.name for split in splits]:
            raise unknown_key(name, [split.name for split in splits], "--subset")
    return [split for split in splits if not names or split.name in names]


def _subset_name(annotations: Path) -> str:
    """Name a test set after its annotation file; PIDray's files get the name of their subset."""
    return next((name for name in SUBSETS if annotations.stem.endswith(f"_{name}")), annotations.stem)
