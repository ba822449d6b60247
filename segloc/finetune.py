"""``python -m segloc.finetune``: train a detector on labelled scans, starting from pretrained weights or from none."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from segloc.common import cli
from segloc.common.files import write_atomic
from segloc.detection import recipe
from segloc.detection.data import digest_of
from segloc.detection.detector import engine_label
from segloc.detection.finetuning import (
    MODEL,
    _data,
    _detector,
    _digest_of_start,
    _left_by,
    _resume,
    _run_name,
    _train,
    _trainer,
)
from segloc.detection.weights import detector_content
from segloc.reporting.run_results import origin
from segloc.settings import lazy
from segloc.training import checkpoint, run_folder

EXAMPLES = """\
  python -m segloc.finetune --weights runs/pretrain --config detectron_configs/finetune/sdanet_r101_fair.py \\
      --data data/raw/pidray --out runs/finetune-segloc
  python -m segloc.finetune --weights imagenet --config detectron_configs/finetune/sdanet_r101_published.py \\
      --data data/raw/pidray --out runs/finetune-imagenet
  python -m segloc.finetune --weights random --config detectron_configs/finetune/demo_r18.py \\
      --data data/simulated/pidray --out runs/demo-random train.iterations=20 optim.batch=2
The same command resumes a run that was stopped, by SIGTERM or otherwise.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = cli.parser("segloc.finetune", "Fine-tune a detector.", EXAMPLES)
    options.add_argument(
        "--weights",
        required=True,
        help="start of the backbone: a pretraining run or checkpoint, a torchvision ResNet's .pth, 'random', or "
        "'imagenet' (torchvision's ResNet, downloaded)",
    )
    options.add_argument("--config", required=True, help="recipe, a .py file of detectron_configs/finetune")
    options.add_argument("--data", help="PIDray folder of either release; otherwise the recipe's data section")
    options.add_argument("--out", help="run folder (default: runs/finetune-CONFIG-WEIGHTS)")
    cli.add_overrides(options)
    return cli.run(finetune, options, argv)


def finetune(args: argparse.Namespace) -> int:
    """Carry out the command; returns 1 when the training diverges, 0 also when SIGTERM stopped it."""
    overrides = [*recipe.data_overrides(args.data), *args.overrides]
    config = recipe.read(args.config, overrides)
    start = str(args.weights)
    folder = Path(args.out or f"runs/finetune-{Path(args.config).stem}-{_run_name(start)}")
    run_folder.refuse_other_kind(folder, "finetune")
    data, classes = _data(config)
    digest = digest_of(data.scans)
    text = lazy.to_yaml(config)
    before = _left_by(folder, text, start, digest)
    start_digest = before.get("start_digest") or _digest_of_start(start)
    detector, started = _detector(config, start, resuming=bool(before))
    trainer = _trainer(config, detector, data)
    first, steps = _resume(trainer, before, folder), len(trainer.learning_rates)
    print(f"engine {engine_label(detector.engine)}, start {start}, {len(data)} scans, {steps} steps, run {folder}")
    if (folder / MODEL).is_file():
        print(f"{folder / MODEL}: this run is finished")
        return 0
    details = {"engine": engine_label(detector.engine), "weights": start, "classes": classes, "scans": len(data)}
    run_folder.describe(folder, "finetune", text, **details, data_digest=digest)
    if started:
        # Noted now: the pretraining's folder may be gone when the runs are compared.
        source, seed = origin(start)
        notes = {**dataclasses.asdict(started), "origin": source, "pretraining_seed": seed}
        write_atomic(folder / run_folder.START, (json.dumps(notes, indent=1, ensure_ascii=False) + "\n").encode())

    def content(iteration: int) -> dict[str, Any]:
        inputs = {"start": start, "start_digest": start_digest, "data_digest": digest}
        return {**detector_content(detector, config, classes, iteration), "steps": steps, **inputs}

    try:
        finished = _train(trainer, folder, recipe.settings(config)[2], first, content)
    except FloatingPointError as error:
        print(f"python -m segloc.finetune: {error}", file=sys.stderr)
        return 1
    if not finished:
        print(f"stopped early; the same command goes on from {folder}")
        return 0
    checkpoint.save(folder / MODEL, content(steps))
    (folder / checkpoint.LAST).unlink(missing_ok=True)
    print(f"wrote {folder / MODEL}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
