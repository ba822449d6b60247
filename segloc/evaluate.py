"""``python -m segloc.evaluate``: COCO average precision and recall of a fine-tuned detector or of any results file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from segloc import cli
from segloc.contract import InputError, check_output, write_atomic
from segloc.detection import recipe
from segloc.detection.coco import SUBSETS, CocoSplit, Split, read_split
from segloc.detection.coco_eval import IOU_TYPES, METRICS, evaluate, mean
from segloc.detection.data import evaluation_splits
from segloc.detection.detector import engine_label
from segloc.detection.predict import predict_split
from segloc.detection.weights import build_detector, read_detector

EXAMPLES = """\
  python -m segloc.evaluate --weights runs/segloc --data data/raw/pidray --out runs/segloc/evaluation.json
  python -m segloc.evaluate --results hidden.results.json --annotations xray_test_hidden.json --out hidden.json
All figures are per cent.
"""
Found = list[tuple[CocoSplit, list[dict[str, Any]]]]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = cli.parser("segloc.evaluate", "Measure COCO AP and AR of boxes and masks.", EXAMPLES)
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", help="fine-tuning run or checkpoint")
    source.add_argument("--results", nargs="+", metavar="FILE", help="COCO results files instead of a detector")
    options.add_argument(
        "--annotations", nargs="+", default=[], metavar="FILE", help="COCO files, one per results file"
    )
    options.add_argument("--config", help="recipe (default: the one inside the checkpoint)")
    options.add_argument("--data", help="PIDray folder of either release; otherwise the recipe's data section")
    options.add_argument("--subset", action="append", default=[], help="test set to measure (repeatable; default: all)")
    options.add_argument("--out", required=True, help="JSON file; a detector's results go beside it")
    options.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the recipe")
    return cli.run(run, options, argv)


def run(args: argparse.Namespace) -> None:
    """Carry out the command."""
    out = Path(args.out)
    check_output(out)
    if args.results:
        about = {"engine": "results file", "weights": None, "iteration": None}
        found = _read_results(args.results, args.annotations)
    else:
        about, found = _detect(args)
        for split, results in found:
            path = out.with_name(f"{out.stem}.{split.name}.results.json")
            write_atomic(path, json.dumps(results).encode())
            print(f"wrote {path}")
    report = {**about, "units": "percent", "classes": list(found[0][0].classes), **measure(found)}
    write_atomic(out, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    print(table(report))
    print(f"wrote {out}")


def measure(found: Found) -> dict[str, Any]:
    """Measure the results of each test set.

    Returns:
        ``subsets`` by name, each with its number of ``images`` and the metrics of ``bbox`` and ``segm`` (only where
        the results hold them), and ``mean`` over the test sets.

    Raises:
        InputError: a results file does not belong to its annotations.
    """
    subsets: dict[str, dict[str, Any]] = {}
    for split, results in found:
        if split.dropped:
            print(f"{split.name}: {split.dropped} annotations without a usable mask are left out")
        types = [kind for kind in IOU_TYPES if kind == "bbox" or all("segmentation" in result for result in results)]
        try:
            metrics = {kind: evaluate(split.ground_truth, results, kind) for kind in types}
        except InputError as error:
            raise InputError(f"{split.name}: {error}") from error
        subsets[split.name] = {"images": len(split.scans), **metrics}
    common = [kind for kind in IOU_TYPES if all(kind in metrics for metrics in subsets.values())]
    return {
        "subsets": subsets,
        "mean": {kind: mean([metrics[kind] for metrics in subsets.values()]) for kind in common},
    }


def table(report: dict[str, Any]) -> str:
    """Lay the figures out for the terminal: a line per test set and kind, one figure per metric."""
    parts = {**report["subsets"], "mean": report["mean"]}
    width = max(len(name) for name in parts)
    lines = [f"engine: {report['engine']}; per cent", " ".join([" " * (width + 5), *(f"{m:>6}" for m in METRICS)])]
    for kind in IOU_TYPES:
        for name, metrics in parts.items():
            if kind in metrics:
                lines.append(" ".join([f"{name:<{width}} {kind}", *(_cell(metrics[kind][m]) for m in METRICS)]))
    return "\n".join(lines)


def _detect(args: argparse.Namespace) -> tuple[dict[str, Any], Found]:
    """Run the detector of ``--weights`` over the test sets."""
    content = read_detector(args.weights)
    source = str(args.weights)
    overrides = [*recipe.data_overrides(args.data), *args.overrides]
    config = recipe.read(args.config, overrides) if args.config else recipe.parse(content["config"], overrides, source)
    settings = recipe.settings(config)[0]
    splits = [read_split(split) for split in _chosen(evaluation_splits(settings), args.subset)]
    for split in splits:
        if list(split.classes) != content["classes"]:
            raise InputError(f"{split.name}: its categories are not those of {source}: {', '.join(content['classes'])}")
    detector = build_detector(content, config, source).to("cuda" if torch.cuda.is_available() else "cpu")
    about = {"engine": engine_label(detector.engine), "weights": source, "iteration": content["iteration"]}
    print(f"engine {about['engine']}, weights {source} after {content['iteration']} steps")
    found = [(split, predict_split(detector, split, settings.image_size, settings.threads)) for split in splits]
    return about, found


def _chosen(splits: list[Split], names: Sequence[str]) -> list[Split]:
    for name in names:
        if name not in [split.name for split in splits]:
            raise cli.unknown_key(name, [split.name for split in splits], "--subset")
    return [split for split in splits if not names or split.name in names]


def _read_results(results: Sequence[str], annotations: Sequence[str]) -> Found:
    if len(results) != len(annotations):
        raise InputError(
            f"{len(results)} --results and {len(annotations)} --annotations; give one of each per test set"
        )
    found: Found = []
    for file, truth in zip(results, annotations, strict=True):
        split = read_split(Split(_subset_name(Path(truth)), Path(truth), None))
        if split.name in [other.name for other, _ in found]:
            raise InputError(f"{truth}: a second test set named {split.name!r}")
        found.append((split, _read_list(Path(file))))
    return found


def _read_list(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such results file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise InputError(f"{path}: not COCO results (a list of detections)")
    return content


def _subset_name(annotations: Path) -> str:
    """Name a test set after its annotation file, PIDray's by their subset."""
    return next((name for name in SUBSETS if annotations.stem.endswith(f"_{name}")), annotations.stem)


def _cell(value: float | None) -> str:
    return f"{'-':>6}" if value is None else f"{value:6.1f}"


if __name__ == "__main__":
    sys.exit(main())
