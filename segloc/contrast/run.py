"""Pretrain into a run folder, and resume from its checkpoint (paper section 4)."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from segloc.common.errors import InputError
from segloc.common.run_files import KEPT, RUN
from segloc.common.skips import Skips, require
from segloc.contrast import duration
from segloc.contrast.fitting import decide
from segloc.contrast.pretrainer import Pretrainer, harmless
from segloc.data.stream import ShardFolder
from segloc.models.backbone import LEVELS
from segloc.models.initial_weights import BACKBONE_SETTINGS
from segloc.settings.loader import to_yaml
from segloc.settings.pretraining import PretrainConfig
from segloc.training import checkpoint, memory, run_folder
from segloc.training.batch_norm import FEWEST, images_per_part, too_few
from segloc.training.loop import DETECTRON2, Hook
from segloc.training.processes import ALONE, Group
from segloc.training.stopping import Keeper, held_together


class Writer(Hook):
    """Writes metrics and shows progress; used in the main process."""

    trainer: Pretrainer

    def before_train(self) -> None:
        """Open the logs."""
        trainer, start = self.trainer, self.trainer.start_iter
        self.log = run_folder.MetricsLog(trainer.out, start)
        self.bar = tqdm(total=trainer.steps, initial=start, desc="pretraining", unit="step")

    def after_step(self) -> None:
        """Write the metrics of the step."""
        trainer = self.trainer
        if trainer.metrics:
            self.log.write(trainer.iter, trainer.metrics)
            self.bar.set_postfix(
                loss=f"{trainer.metrics['loss']:.2f}/{trainer.chance_loss:.2f}",
                top1=f"{trainer.metrics['top1']:.2f}",
            )
        self.bar.update()

    def after_train(self) -> None:
        """Close the logs."""
        self.bar.close()
        self.log.close()


def save_checkpoint(trainer: Pretrainer, iteration: int) -> None:
    """Save the main process's state after `iteration` steps.

    The other processes differ only in the running statistics of batch norm, which training does not use.
    """
    skipped, filled = trainer.pairs_skipped(), trainer.pairs_filled
    counters = {"iteration": iteration, "pairs_skipped": skipped, "pairs_filled": filled}
    if trainer.group.is_main:
        run_folder.require_log(trainer.out)
        checkpoint.save(trainer.out / checkpoint.LAST, {**trainer.state(), **counters})


class EpochKeeper(Hook):
    """Keeps the backbone after chosen epochs.

    Args:
        steps: epochs by the number of steps after which they end.
    """

    trainer: Pretrainer

    def __init__(self, steps: dict[int, list[int]]) -> None:
        self.steps = steps

    def after_step(self) -> None:
        """Save the backbone at the end of a chosen epoch."""
        done = self.trainer.iter + 1
        for epoch in self.steps.get(done, ()):
            save_backbone(self.trainer, KEPT.format(epoch), done)


def steps_of_epochs(config: PretrainConfig, pairs: int, steps: int) -> dict[int, list[int]]:
    """Return the epochs of ``keep_epochs`` by the number of steps after which they end.

    Raises:
        InputError: an epoch ends after the last step, or before the first.
    """
    found = defaultdict[int, list[int]](list)
    for epoch in config.keep_epochs:
        done = epoch * pairs // config.optim.batch
        if not 1 <= done <= steps:
            raise InputError(f"keep_epochs: epoch {epoch} ends after {done} steps, but the run has {steps}")
        found[done].append(epoch)
    return found


def save_backbone(trainer: Pretrainer, name: str = checkpoint.BACKBONE, done: int | None = None) -> Path:
    """Save the backbone (ResNet, FPN and attention) and the RoI head of the query network.

    The running statistics of batch norm are those of the main process.

    Args:
        trainer: its state is saved.
        name: of the file in the run folder.
        done: finished steps; all of them if not given.
    """
    path = trainer.out / name
    content = {
        "kind": "backbone",
        **{name: getattr(trainer.config.model, name) for name in BACKBONE_SETTINGS},
        "iteration": trainer.steps if done is None else done,
        "backbone": trainer.model.query.backbone.state_dict(),
        "head": trainer.model.query.head.state_dict(),
    }
    if trainer.group.is_main:
        checkpoint.save(path, content)
    return path


def pretrain(config: PretrainConfig, shards: str, out: Path, group: Group = ALONE) -> Path:
    """Pretrain into the run folder `out`; resume from its checkpoint, written by any number of processes.

    Returns:
        Path of the backbone.

    Raises:
        InputError: invalid shards or settings.
        DivergedError: the loss is no longer finite.
        Stopped: Ctrl-C, SIGTERM or SIGHUP stopped the training after a step, and its checkpoint is saved.
    """
    run_folder.refuse_other_kind(out, "pretrain")
    folder = ShardFolder.open(shards)
    folder.check_sizes()
    if _classes(folder) < 2 and config.queue.kind == "class":
        raise InputError(
            f"{shards}: all pairs are of one class; class queues need two classes, or set queue.kind=single"
        )
    with run_folder.owned(out) if group.is_main else contextlib.nullcontext():
        return _pretrain(config, folder, out, group)


def _classes(folder: ShardFolder) -> int:
    """Count the classes that have pairs."""
    return int((np.sum([shard.classes for shard in folder.index.shards], axis=0) > 0).sum())


def _pretrain(config: PretrainConfig, folder: ShardFolder, out: Path, group: Group) -> Path:
    run_folder.refuse_other_settings(out, config, harmless(config), shards=folder.index.digest)
    queue, dim = config.queue, config.head.dim
    what = f"queue.size {queue.size} with head.dim {dim}"
    memory.require(4 * len(LEVELS) * queue.size * dim, group.device(), what)  # float32
    last = out / checkpoint.LAST
    state = checkpoint.load(last) if last.is_file() else None
    record = run_folder.read_run(out) if state is not None and (out / RUN).is_file() else None
    device = group.device()
    choices = decide(config, folder, out, device, group, record)
    trainer = Pretrainer(config, folder, out, device, group, state is not None, choices)
    kept, start = steps_of_epochs(config, folder.index.num_pairs, trainer.steps), 0
    if state is not None:
        trainer.load_state(state)
        start = state["iteration"]
    run_folder.require_shared(out, start, group)
    hooks = f"own and Detectron2 {DETECTRON2}'s" if DETECTRON2 else "own"
    group.say(
        f"device: {device.type}; precision: {choices.precision}; pairs per forward pass: {choices.micro_batch}; "
        f"processes: {group.world}; hooks: {hooks}"
    )
    if lacks := folder.index.lacks:
        group.say(f"{folder.store}: shards of format {folder.index.format_version}, without {', '.join(lacks)}")
    if start >= trainer.steps:
        group.say(f"already finished: {start} steps in {out}")
        _write_skips(trainer)  # the last process may have been killed before
        return save_backbone(trainer)
    part = images_per_part(config.model, choices.micro_batch, config.head.embedding_bn)
    if few := too_few(part):
        group.say(f"{few}; set model.bn_images to at least {FEWEST}")
    length = f"{trainer.steps} steps of {config.optim.batch} pairs ({config.length})"
    group.say(f"{length}; chance loss: {trainer.chance_loss:.2f}")
    if group.is_main:
        run_folder.write_description(
            out, "pretrain", to_yaml(config), shards=folder.index.digest, classes=list(folder.index.classes),
            chance_loss=trainer.chance_loss, chance_class_accuracy=1 / _classes(folder), steps=trainer.steps,
            processes=group.world, batch_norm_images=part, **choices._asdict(),
        )  # fmt: skip
    if not start:
        group.say(trainer.model.started_from)
    if device.type == "cpu" and (long := duration.warning(trainer, start)):
        group.say(long)
    _train(trainer, start, kept)
    if group.is_main:
        run_folder.require_log(out)
    _write_skips(trainer)
    path = save_backbone(trainer)
    if group.is_main:
        run_folder.require_log(out)
    return path


def _train(trainer: Pretrainer, start: int, kept: dict[int, list[int]]) -> None:
    """Do the steps from `start`, before the first one fill the queues.

    Raises:
        Stopped: after a step, whose checkpoint is saved.
    """
    with contextlib.closing(trainer), held_together(trainer.group, trainer.device) as stop:
        keeper = Keeper(partial(save_checkpoint, trainer), trainer.config.checkpoint_every, stop)
        # A kept backbone is written before the checkpoint of its step, so that a killed run does not miss it.
        keepers = [EpochKeeper(kept), keeper]
        trainer.register_hooks([Writer(), *keepers] if trainer.group.is_main else keepers)
        if not start:
            trainer.fill_queues(stop)
        trainer.train(start, trainer.steps)


def _write_skips(trainer: Pretrainer) -> None:
    """Count the damaged pairs that were replaced, in every pass. Their names are in the warnings of the stream."""
    damaged = trainer.pairs_skipped()
    skips = Skips("drawn pairs", trainer.pairs_filled + trainer.steps * trainer.config.optim.batch + damaged)
    if damaged:
        skips.add("damaged", "replaced by others", damaged)
    if trainer.group.is_main:
        run_folder.write_skips(trainer.out, [skips])
        if damaged:
            print(skips.summary())


@memory.advice("a smaller optim.micro_batch, optim.recompute=stages or a smaller data.image_size")
def train(config: PretrainConfig, shards: str, out: Path, max_skipped: float, group: Group) -> int:
    """Pretrain as one process of a group; return its exit code.

    Raises:
        RunError: the memory was not enough.
        SkippedError: the backbone is written, but a larger share than `max_skipped` of the pairs was damaged.
    """
    path = pretrain(config, shards, out, group)
    if group.is_main:
        print(f"pretrained backbone: {path}")
        require(run_folder.read_skips(out), max_skipped, "run pipeline.audit on the shards", str(path))
    return 0
