"""Fine-tuning into a run folder, resumed from its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segloc.common import white_level
from segloc.common.datasets.coco import read_coco
from segloc.common.errors import InputError
from segloc.common.files import sha256_of, write_json
from segloc.common.run_files import MODEL, START
from segloc.common.skips import MAX_SKIPPED, OPTION, Skips, require
from segloc.common.stops import handled
from segloc.detection.data import TrainingData, digest_of, evaluation_splits, train_split
from segloc.detection.detector import Detector, engine_label, engine_name, new_detector
from segloc.detection.holdout import hold_out
from segloc.detection.scan_headers import unreadable_scans
from segloc.detection.splits import CocoSplit, is_trainable, read_split, require_classes
from segloc.detection.trainer import FinetuneTrainer, Progress
from segloc.detection.validation import Validator
from segloc.detection.weights import checked_detector, detector_content, load_initial_weights, recipe_inside
from segloc.models.initial_weights import IMAGENET, RANDOM, Started, load_strict
from segloc.models.norm import share_statistics
from segloc.settings.finetuning import STAND_IN, DataSettings, FinetuneConfig, TrainSettings
from segloc.settings.loader import to_yaml
from segloc.training import checkpoint, memory, run_folder
from segloc.training.batch_norm import too_few
from segloc.training.processes import ALONE, Group
from segloc.training.run_folder import origin
from segloc.training.schedules import step_schedule
from segloc.training.stopping import Keeper, held_together

UNREADABLE = "unreadable during training"


def _train(
    trainer: FinetuneTrainer,
    folder: Path,
    settings: TrainSettings,
    first: int,
    validator: Validator,
    content: Callable[[int], dict[str, Any]],
) -> None:
    """Train from step `first`. Only the main process writes.

    Raises:
        Stopped: after a step, whose checkpoint is saved.
    """
    is_main = trainer.group.is_main

    def save(done: int) -> None:
        with trainer.group.together():
            if is_main:
                state = {**content(done), "optimizer": trainer.optimizer.state_dict()}
                run_folder.require_log(folder)
                checkpoint.save(folder / checkpoint.LAST, state)

    with held_together(trainer.group, trainer.detector.device) as stop:
        # The validation changes what the other two write, and the log of a step comes before its checkpoint.
        progress = [Progress(folder, settings.log_every)] if is_main else []
        trainer.register_hooks([validator, *progress, Keeper(save, settings.checkpoint_every, stop)])
        trainer.fit(first)


def _detector(config: FinetuneConfig, start: str, resuming: bool, group: Group) -> tuple[Detector, Started | None]:
    """Build the detector and, unless the run is resumed, load the initial weights."""
    torch.manual_seed(config.train.seed)
    detector = new_detector(config.model)
    if detector.engine == STAND_IN and config.model.heads.stages > 1:
        stages = config.model.heads.stages
        group.say(f"torchvision has no cascade: training a one-stage Mask R-CNN instead of {stages} stages")
    started = None if resuming else load_initial_weights(detector, start, config)
    if started:
        group.say(started.summary)
    # Convolutions are faster in this layout, on a CPU, too.
    return detector.to(group.device(), memory_format=torch.channels_last), started  # type: ignore[call-overload]


def _earlier_run(folder: Path, config: FinetuneConfig, start: str, digest: str) -> dict[str, Any]:
    """Read the checkpoint of an earlier run of the same command in `folder`; empty if there is none."""
    path = _checkpoint_in(folder)
    if path is None:
        return {}
    content = checkpoint.load(path)
    if content["format_version"] != checkpoint.FORMAT_VERSION:
        raise InputError(f"{folder}: a run of an earlier version cannot be resumed; choose another --out")
    checked_detector(content, path)
    if recipe_inside(content, str(path)) != config or content.get("start") != start:
        raise InputError(f"{folder}: holds a run with other settings or initial weights; choose another --out")
    if content.get("data_digest") != digest:
        raise InputError(f"{folder}: holds a run with another training set; choose another --out")
    now = _weights_digest(start)
    if now and now != content.get("start_digest", now):
        raise InputError(f"{folder}: the weights in {start} have changed since this run began; choose another --out")
    return content


def _white(config: FinetuneConfig, split: CocoSplit, folder: Path) -> int | None:
    """Return the white level of a run: the recipe's, an earlier run's in `folder`, or the one measured on `split`."""
    if config.data.white is None and _checkpoint_in(folder) and (folder / run_folder.CONFIG).is_file():
        level = run_folder.read_settings(folder).get("data.white")  # runs of earlier versions have none
        return white_level.stored({"white": level}, folder / run_folder.CONFIG)
    level, text = split.choose_white(config.data.white)
    if text:
        print(text)
    return level


def _checkpoint_in(folder: Path) -> Path | None:
    return next((folder / name for name in (MODEL, checkpoint.LAST) if (folder / name).is_file()), None)


def _weights_digest(start: str) -> str:
    """Compute the digest of the file of initial weights; empty if there is no file."""
    if start in (RANDOM, IMAGENET):
        return ""
    try:
        return sha256_of(checkpoint.find(start))
    except InputError:
        return ""


def _resume(trainer: FinetuneTrainer, content: dict[str, Any], folder: Path) -> int:
    """Load the checkpoint if there is one; return the next iteration."""
    if not content:
        return 0
    load_strict(trainer.detector.net, content["model"], str(folder))
    if "optimizer" in content:
        checkpoint.require_finite(content["optimizer"], folder)
        checkpoint.load_optimizer(trainer.optimizer, content["optimizer"], folder)
    return int(content["iteration"])


def run_name(start: str) -> str:
    """Name initial weights after their run folder; `start` is the folder or a file in it.

    The file's name is added unless it is one that stands for the folder.
    """
    path = Path(start)
    if not path.is_file():
        return path.name
    folder = path.resolve().parent.name
    return folder if path.name in (checkpoint.BACKBONE, MODEL, checkpoint.LAST) else f"{folder}-{path.stem}"


def _leave_out(data: TrainingData, problems: dict[int, str], before: dict[str, Any]) -> tuple[Skips, set[int]]:
    """Leave out the unusable files; return their counts and their positions in `data.listed`.

    A resumed run leaves out the same scans as before, even if a file was mended since, so that its batches stay the
    same. A file that became unreadable since is replaced by the next scan whenever it is drawn.

    Args:
        data: the training set.
        problems: see `unreadable_scans`.
        before: the checkpoint to resume from.

    Raises:
        InputError: no file can be used.
    """
    left_out = before.get("left_out", []) if before else sorted(problems)
    data.leave_out(left_out)
    data.unreadable.update(dict.fromkeys(before.get("unreadable", []), UNREADABLE))
    skips, known = Skips("scans", len(data.listed)), {*left_out, *problems}
    for position in sorted(known):
        skips.add(problems.get(position, "unreadable when the run began"), data.listed[position].path.name)
    if len(problems) == len(data.listed):
        raise InputError(f"none of the {len(data.listed)} training images can be read: {skips.reasons()}")
    return skips, known


def _skipped_annotations(split: CocoSplit) -> Skips:
    """Count the annotations that cannot be trained on. Crowds are valid, but not used."""
    skips = split.skips.merged(split.unmasked)
    for scan in split.scans:
        for annotation in scan.annotations:
            if annotation["iscrowd"]:
                skips.add("crowd", scan.path.name)
            elif not is_trainable(annotation, scan.height, scan.width):
                skips.add("degenerate", scan.path.name)
    return skips


def _check_tests(settings: DataSettings, split: CocoSplit, source: Path) -> None:
    """Refuse test sets with other classes than the training set's before the training, not after it.

    Raises:
        InputError: a test set has other classes, or its annotation file cannot be used.
    """
    try:
        tests = evaluation_splits(settings)
    except InputError:
        if settings.tests:
            raise
        return  # data.train without any test set
    missing = []
    for test in tests:
        if test.annotations.is_file():
            require_classes(split.classes, source, read_coco(test.annotations).categories.values(), test.annotations)
        else:
            missing.append(f"{test.name} ({test.annotations})")
    if missing:
        print(f"no annotation file for the test sets {', '.join(missing)}; training does not need them")


def finetune(
    config: FinetuneConfig, start: str, folder: Path, max_skipped: float = MAX_SKIPPED, group: Group = ALONE
) -> str:
    """Fine-tune a detector into a run folder; resume from the folder's last checkpoint if there is one.

    The main process looks at the scans (white level, headers) for all. Each process reads the annotations, the initial
    weights and the checkpoint itself.

    Args:
        config: the recipe.
        start: initial weights: a run, a checkpoint, ``random`` or ``imagenet``.
        folder: the run folder. Its ``skipped.json`` counts scans and annotations that were skipped.
        max_skipped: with a larger share of skipped inputs, a line before the first step says so.
        group: the processes that train together; a run may be resumed by another number of them.

    Returns:
        A sentence that says how the run ended.

    Raises:
        InputError: weights, data or settings cannot be used.
        DivergedError: the loss is not finite.
        Stopped: Ctrl-C, SIGTERM or SIGHUP stopped the training after a step, and its checkpoint is saved.
    """
    with group.together():
        run_folder.refuse_other_kind(folder, "finetune")
        source = train_split(config.data)
        split = read_split(source)
        config = config.resolved(list(split.classes), engine_name(config.model.engine), group.world)
    group.of_main(lambda: _check_tests(config.data, split, source.annotations))
    config = config.with_white(group.of_main(lambda: _white(config, split, folder)))
    split = split.with_white(config.data.white)
    with group.together():
        digest = digest_of(TrainingData(split, config.data, config.optim.batch, config.train.seed).listed)
    with group.in_main(run_folder.owned(folder)):
        return _finetune(config, start, folder, digest, split, max_skipped, group)


def _finetune(
    config: FinetuneConfig,
    start: str,
    folder: Path,
    digest: str,
    split: CocoSplit,
    max_skipped: float,
    group: Group,
) -> str:
    with group.together():
        run_folder.refuse_other_settings(folder, config, weights=start, data_digest=digest)
        before = _earlier_run(folder, config, start, digest)
        is_finished = (folder / MODEL).is_file()
    if is_finished:
        if group.is_main:
            (folder / checkpoint.LAST).unlink(missing_ok=True)  # the last process may have been killed before
        return f"{folder / MODEL}: this run is finished"
    training, held_out = hold_out(split, config.data, folder, group)
    if held_out is not None:
        group.say(
            f"validation: {len(held_out.scans)} of {len(split.scans)} scans are held out, near-duplicates together"
        )
    with group.together():
        data = TrainingData(training, config.data, config.optim.batch, config.train.seed)
        detector, started = _detector(config, start, bool(before), group)
    if (peers := config.passes_per_part(group.world)) > 1:
        share_statistics(detector, group.neighbours(peers))
    problems = group.of_main(lambda: unreadable_scans(data.listed, data.settings.threads))
    with group.together():
        skips, known = _leave_out(data, problems, before)
        trainer = FinetuneTrainer(detector, data, config.optim, _rates(config, len(data)), group)
        first = _resume(trainer, before, folder)
    run_folder.require_shared(folder, first, group)
    about = {
        "engine": engine_label(detector.engine), "weights": start, "classes": list(split.classes), "scans": len(data),
        "processes": group.world, "data_digest": digest, "validation": len(held_out.scans) if held_out else 0,
        "batch_norm_images": config.images_per_part(group.world),
    }  # fmt: skip
    parts = [skips, _skipped_annotations(split)]
    if group.is_main:
        _say_skips(parts, max_skipped)
        run_folder.write_description(folder, "finetune", to_yaml(config), **about)
        _write_start(folder, start, started)
        run_folder.write_skips(folder, parts)
    if few := too_few(config.images_per_part(group.world)):
        group.say(few)
    steps = len(trainer.learning_rates)
    length = f"{steps} steps ({config.train.length})"
    group.say(f"engine {about['engine']}, initial weights {start}, {len(data)} scans, {length}, run {folder}")
    inputs = {"start": start, "data_digest": digest, "left_out": data.left_out, "steps": steps}
    inputs["start_digest"] = started.digest if started else before.get("start_digest", "")

    def content(iteration: int) -> dict[str, Any]:
        found = {**inputs, "unreadable": sorted(data.unreadable)}
        return {**detector_content(detector, config, split.classes, iteration), **found}

    _train(trainer, folder, config.train, first, Validator(config, held_out, group), content)
    for position in sorted(data.unreadable.keys() - known):
        skips.add(UNREADABLE, data.listed[position].path.name)
    if group.is_main:
        if data.unreadable.keys() - known:
            print(skips.summary())
        run_folder.require_log(folder)
        run_folder.write_skips(folder, parts)
        checkpoint.save(folder / MODEL, content(steps))
        (folder / checkpoint.LAST).unlink(missing_ok=True)
        run_folder.require_log(folder)
    return f"wrote {folder / MODEL}"


def _rates(config: FinetuneConfig, scans: int) -> np.ndarray:
    """Return the learning rate of each step."""
    optim, steps = config.optim, config.train.steps(scans, config.optim.batch)
    return step_schedule(optim.lr, steps, min(optim.warmup, steps), optim.warmup_start, optim.milestones, optim.gamma)


def _say_skips(parts: Sequence[Skips], max_skipped: float) -> None:
    for part in parts:
        if part.counts:
            print(part.summary())
        if part.more_than(max_skipped):
            print(f"these are more than {OPTION} {max_skipped:g}: the run goes on, but its exit code will be 1")


def _write_start(folder: Path, start: str, started: Started | None) -> None:
    """Write which initial weights were loaded. Later, the pretraining's folder may be gone."""
    if started:
        source, seed = origin(start)
        write_json(folder / START, {**dataclasses.asdict(started), "origin": source, "pretraining_seed": seed})


@memory.advice("a smaller optim.micro_batch or data.image_size")
def train(config: FinetuneConfig, start: str, folder: Path, max_skipped: float, group: Group) -> int:
    """Fine-tune as one process of a group; see `finetune`. Returns the exit code.

    Raises:
        RunError: the memory was not enough.
        SkippedError: the model is written, but a larger share than `max_skipped` of the inputs was skipped.
    """
    with handled():
        group.say(finetune(config, start, folder, max_skipped, group))
    if group.is_main:
        require(run_folder.read_skips(folder), max_skipped, "check the training set", f"{folder / MODEL}")
    return 0
