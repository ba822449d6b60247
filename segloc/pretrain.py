"""Pretraining: ``python -m segloc.pretrain --shards DIR`` (paper section 4); the loop is `segloc.pretrainer`."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from segloc import checkpoint, cli, runs
from segloc.config import PretrainConfig, load_config
from segloc.contract import InputError
from segloc.engine import NAME, HookBase
from segloc.pretrainer import Pretrainer, config_yaml, index_digest
from segloc.stream import ShardFolder


class StopTraining(Exception):
    """Raised between two steps to leave the loop early."""


class Writer(HookBase):
    """Writes metrics, shows progress, saves checkpoints, and stops when asked to by SIGTERM."""

    trainer: Pretrainer

    def __init__(self, start: int) -> None:
        self.start = start
        self.stop = False

    def before_train(self) -> None:
        """Open the logs."""
        trainer = self.trainer
        self.log = runs.MetricsLog(trainer.out, self.start)
        self.bar = tqdm(total=trainer.steps, initial=self.start, desc="pretraining", unit="step")
        self.previous = signal.signal(signal.SIGTERM, self._on_sigterm)

    def after_step(self) -> None:
        """Write what the step measured; save now and then."""
        trainer, done = self.trainer, self.trainer.iter + 1
        if trainer.metrics:
            self.log.write(trainer.iter, trainer.metrics)
            self.bar.set_postfix(
                loss=f"{trainer.metrics['loss']:.2f}/{trainer.chance_loss:.2f}",
                top1=f"{trainer.metrics['top1']:.2f}",
            )
            trainer.metrics = {}
        self.bar.update()
        if done % trainer.config.checkpoint_every == 0 or done == trainer.steps or self.stop:
            save_checkpoint(trainer, done)
        if self.stop:
            raise StopTraining

    def after_train(self) -> None:
        """Close the logs."""
        signal.signal(signal.SIGTERM, self.previous)
        self.bar.close()
        self.log.close()

    def _on_sigterm(self, *_: object) -> None:
        self.stop = True


def save_checkpoint(trainer: Pretrainer, iteration: int) -> None:
    """Save the state after `iteration` steps for resuming."""
    checkpoint.save(trainer.out / checkpoint.LAST, {**trainer.state(), "iteration": iteration})


def save_backbone(trainer: Pretrainer) -> Path:
    """Save what is transferred: backbone, FPN and attention of the query network, and its head."""
    model = trainer.config.model
    path = trainer.out / checkpoint.BACKBONE
    content = {
        "kind": "backbone",
        "arch": model.arch,
        "norm": model.norm,
        "sda_norm": model.sda_norm,
        "attention": model.attention,
        "iteration": trainer.steps,
        "backbone": trainer.model.query.backbone.state_dict(),
        "head": trainer.model.query.head.state_dict(),
    }
    checkpoint.save(path, content)
    return path


def pretrain(config: PretrainConfig, shards: str, out: Path, device: torch.device) -> Path | None:
    """Pretrain into the run folder `out`, from its last checkpoint if it has one.

    Returns:
        Path of the backbone, or None when stopped early by SIGTERM.

    Raises:
        InputError: shards or settings that cannot be used.
        FloatingPointError: the loss is no longer finite.
    """
    runs.refuse_other_kind(out, "pretrain")
    folder = ShardFolder.open(shards)
    present = np.sum([shard.classes for shard in folder.index.shards], axis=0) > 0
    if present.sum() < 2 and config.queue.kind == "class":
        raise InputError(f"{shards}: pairs of one class only; class queues need two, or set queue.kind=single")
    trainer = Pretrainer(config, folder, out, device)
    last = out / checkpoint.LAST
    start = 0
    if last.is_file():
        state = checkpoint.load(last)
        trainer.load_state(state)
        start = state["iteration"]
    if start >= trainer.steps:
        print(f"already finished: {start} steps in {out}")
        return save_backbone(trainer)
    print(f"{trainer.steps} steps of {config.optim.batch} pairs; a loss of {trainer.chance_loss:.2f} is chance")
    runs.describe(
        out, "pretrain", config_yaml(config), shards=index_digest(folder), classes=list(folder.index.classes),
        chance_loss=trainer.chance_loss, chance_class_accuracy=1 / int(present.sum()), steps=trainer.steps,
    )  # fmt: skip
    if not start:
        trainer.fill_queues()
    trainer.register_hooks([Writer(start)])
    try:
        trainer.train(start, trainer.steps)
    except StopTraining:
        return None
    finally:
        trainer.close()
    return save_backbone(trainer)


def _command(args: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("this version trains in one process; start it without torchrun")
    config = load_config(args.config, args.overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"engine: {NAME}; device: {device.type}")
    try:
        path = pretrain(config, args.shards, Path(args.out), device)
    except FloatingPointError as error:
        print(f"stopped: {error}")
        return 1
    print(f"pretrained backbone: {path}" if path else f"stopped early; the same command goes on from {args.out}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = cli.parser(
        "segloc.pretrain",
        "Pretrain a backbone on shards of positive pairs. The same command resumes a run that was stopped.",
        "  python -m segloc.pretrain --shards data/shards\n"
        "  python -m segloc.pretrain --shards data/shards --config detectron_configs/pretrain/paper_r101.yaml\n"
        "  python -m segloc.pretrain --shards data/shards --out runs/r50 model.arch=resnet50 optim.micro_batch=16",
    )
    options.add_argument("--shards", required=True, metavar="DIR_OR_URL", help="finished folder of shards")
    options.add_argument("--config", metavar="YAML", help="recipe (default: the recommended ResNet-101 recipe)")
    options.add_argument("--out", default="runs/pretrain", metavar="RUN", help="run folder (default: %(default)s)")
    cli.add_overrides(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
