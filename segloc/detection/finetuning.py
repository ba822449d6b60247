"""Fine-tuning into a run folder, resumed from its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from segloc.common.errors import InputError
from segloc.common.files import sha256_of, write_json
from segloc.detection.data import TrainingData, digest_of, train_split
from segloc.detection.detector import Detector, engine_label, engine_name, new_detector
from segloc.detection.splits import read_split
from segloc.detection.trainer import FinetuneTrainer, Progress
from segloc.detection.weights import detector_content, recipe_inside, start_detector
from segloc.models.initial_weights import IMAGENET, RANDOM, Started, load_strict
from segloc.settings.finetuning import STAND_IN, FinetuneConfig, TrainSettings
from segloc.settings.loader import to_yaml
from segloc.training import checkpoint, run_folder
from segloc.training.processes import ALONE
from segloc.training.run_folder import origin
from segloc.training.schedules import step_schedule
from segloc.training.stopping import Keeper, StopTraining, sigterm

MODEL = "model.pth"


def _train(
    trainer: FinetuneTrainer,
    folder: Path,
    settings: TrainSettings,
    first: int,
    content: Callable[[int], dict[str, Any]],
) -> bool:
    """Train from step `first` on; returns whether to the end."""

    def save(done: int) -> None:
        checkpoint.save(folder / checkpoint.LAST, {**content(done), "optimizer": trainer.optimizer.state_dict()})

    with sigterm() as stop:
        # In this order: the log of a step is on disk before a checkpoint that is past it.
        trainer.register_hooks([Progress(folder, settings.log_every), Keeper(save, settings.checkpoint_every, stop)])
        try:
            trainer.fit(first)
        except StopTraining:
            return False
    return True


def _detector(config: FinetuneConfig, start: str, resuming: bool) -> tuple[Detector, Started | None]:
    """Build the detector and, unless its weights are in a checkpoint, give it its start weights."""
    torch.manual_seed(config.train.seed)
    detector = new_detector(config.model)
    if detector.engine == STAND_IN and config.model.heads.stages > 1:
        print(
            f"torchvision has no cascade: instead of {config.model.heads.stages} stages, this is a Mask R-CNN, of one"
        )
    started = None if resuming else start_detector(detector, start, config)
    if started:
        print(started.summary)
    return detector.to(ALONE.device()), started


def _left_by(folder: Path, config: FinetuneConfig, start: str, digest: str) -> dict[str, Any]:
    """Read what an earlier run of the same command left in `folder`; nothing if there was none."""
    path = next((folder / name for name in (MODEL, checkpoint.LAST) if (folder / name).is_file()), None)
    if path is None:
        return {}
    content = checkpoint.load(path)
    if content["format_version"] != checkpoint.FORMAT_VERSION:
        raise InputError(f"{folder}: its run is of an earlier version, so it cannot go on; choose another --out")
    if recipe_inside(content, str(path)) != config or content.get("start") != start:
        raise InputError(f"{folder}: holds another run (other settings or start weights); choose another --out")
    if content.get("data_digest") != digest:
        raise InputError(f"{folder}: its run was on another training set; choose another --out")
    now = _digest_of_start(start)
    if now and now != content.get("start_digest", now):
        raise InputError(f"{folder}: its run started from {start} when that held other weights; choose another --out")
    return content


def _digest_of_start(start: str) -> str:
    """Digest of the file of start weights; empty where there is none, or no more."""
    if start in (RANDOM, IMAGENET):
        return ""
    try:
        return sha256_of(checkpoint.find(start))
    except InputError:
        return ""


def _resume(trainer: FinetuneTrainer, content: dict[str, Any], folder: Path) -> int:
    """Take over a checkpoint, if there is one; returns the next iteration."""
    if not content:
        return 0
    load_strict(trainer.detector.net, content["model"], str(folder))
    if "optimizer" in content:
        trainer.optimizer.load_state_dict(content["optimizer"])
    return int(content["iteration"])


def run_name(start: str) -> str:
    """Name start weights after their run folder, whether that or a file in it is given."""
    return Path(start).resolve().parent.name if Path(start).is_file() else Path(start).name


def finetune(config: FinetuneConfig, start: str, folder: Path) -> str:
    """Fine-tune a detector into a run folder, from its last checkpoint if it has one.

    Args:
        config: the recipe.
        start: start weights: a run, a checkpoint, ``random`` or ``imagenet``.
        folder: the run folder.

    Returns:
        How it ended, in a sentence.

    Raises:
        InputError: weights, data or settings that cannot be used.
        DivergedError: the loss is no longer finite.
    """
    run_folder.refuse_other_kind(folder, "finetune")
    split = read_split(train_split(config.data))
    if split.dropped:
        print(f"{split.name}: {split.dropped} annotations without a usable mask are left out")
    data = TrainingData(split, config.data, config.optim.batch, config.train.seed)
    classes = list(split.classes)
    config = config.resolved(classes, engine_name(config.model.engine))
    digest = digest_of(data.scans)
    before = _left_by(folder, config, start, digest)
    start_digest = before.get("start_digest") or _digest_of_start(start)
    detector, started = _detector(config, start, resuming=bool(before))
    optim, steps = config.optim, config.train.steps(len(data), config.optim.batch)
    rates = step_schedule(optim.lr, steps, min(optim.warmup, steps), optim.warmup_start, optim.milestones, optim.gamma)
    trainer = FinetuneTrainer(detector, data, optim, rates, config.train.seed)
    first = _resume(trainer, before, folder)
    print(f"engine {engine_label(detector.engine)}, start {start}, {len(data)} scans, {steps} steps, run {folder}")
    if (folder / MODEL).is_file():
        return f"{folder / MODEL}: this run is finished"
    details = {"engine": engine_label(detector.engine), "weights": start, "classes": classes, "scans": len(data)}
    run_folder.describe(folder, "finetune", to_yaml(config), **details, data_digest=digest)
    if started:
        # Noted now: the pretraining's folder may be gone when the runs are compared.
        source, seed = origin(start)
        notes = {**dataclasses.asdict(started), "origin": source, "pretraining_seed": seed}
        write_json(folder / run_folder.START, notes)

    def content(iteration: int) -> dict[str, Any]:
        inputs = {"start": start, "start_digest": start_digest, "data_digest": digest}
        return {**detector_content(detector, config, classes, iteration), "steps": steps, **inputs}

    if not _train(trainer, folder, config.train, first, content):
        return f"stopped early; the same command goes on from {folder}"
    checkpoint.save(folder / MODEL, content(steps))
    (folder / checkpoint.LAST).unlink(missing_ok=True)
    return f"wrote {folder / MODEL}"
