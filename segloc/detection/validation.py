"""Validation during training: batch-norm statistics of the weights as they are, then AP on held-out scans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from segloc.detection import coco_eval
from segloc.detection.coco_eval import IOU_TYPES
from segloc.detection.data import TrainingData
from segloc.detection.detector import Detector
from segloc.detection.norm_statistics import estimate, trained_norms
from segloc.detection.predict import predict_split
from segloc.detection.splits import CocoSplit
from segloc.detection.trainer import PREFIX
from segloc.models.backbone import pad_batch
from segloc.settings.finetuning import FinetuneConfig
from segloc.training.loop import Hook
from segloc.training.processes import Group

AP = PREFIX + "{}_AP"  # names of the metrics; {} is bbox or segm, the values are per cent


class Validator(Hook):
    """Estimates the batch-norm statistics again and validates, at intervals and after the last step.

    What it writes to the running statistics belongs to the checkpoint of the step, so that a resumed run has it, too.

    Args:
        config: the recipe.
        held_out: the scans to validate on, or None.
        group: the processes.
    """

    def __init__(self, config: FinetuneConfig, held_out: CocoSplit | None, group: Group) -> None:
        self.config, self.held_out, self.group = config, held_out, group

    def before_train(self) -> None:
        """Convert the interval to steps."""
        images = len(self.trainer.data)
        self.every = max(1, round(self.config.train.validate_every * images / self.config.optim.batch))

    def after_step(self) -> None:
        """Validate if it is time; the figures become metrics of the step."""
        done, trainer = self.trainer.iter + 1, self.trainer
        is_last = done == trainer.max_iter
        if not is_last and (self.held_out is None or done % self.every):
            return
        estimate_statistics(trainer.detector, trainer.data, self.config, self.group)
        if self.held_out is not None:
            data = self.config.data
            found = predict_split(trainer.detector, self.held_out, data.image_size, data.threads, self.group)
            if found is not None:
                trainer.metrics |= _measured(self.held_out, found.results)
            trainer.detector.train()


def _measured(held_out: CocoSplit, results: list[dict[str, Any]]) -> dict[str, float]:
    """Return AP by the name of its metric, without those that are undefined."""
    found = {kind: coco_eval.evaluate(held_out.ground_truth, results, kind)["AP"] for kind in IOU_TYPES}
    return {AP.format(kind): value for kind, value in found.items() if value is not None}


def estimate_statistics(detector: Detector, data: TrainingData, config: FinetuneConfig, group: Group) -> int:
    """Estimate the trained batch-norm statistics over ``train.statistics`` scans; return how many were used.

    The scans are those of the first steps, with their flips, so they are the same for every process count and after a
    resume.
    """
    per_pass, steps = config.optim.per_pass(group.world), min(config.train.statistics, len(data)) // config.optim.batch
    if not config.train.statistics or not trained_norms(detector.backbone):
        return 0

    def images() -> Iterator[torch.Tensor]:
        for examples in data.batches(0, max(1, steps), group.rank, group.world):
            for first in range(0, len(examples), per_pass):
                yield pad_batch([example.image for example in examples[first : first + per_pass]], detector.device)[0]

    with torch.autocast(detector.device.type, torch.bfloat16, enabled=config.optim.amp):
        return estimate(detector.backbone, images(), group)
