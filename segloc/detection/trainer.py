"""The fine-tuning loop, on `segloc.training.loop` like pretraining's."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from segloc.common.errors import DivergedError
from segloc.detection.data import Example, TrainingData
from segloc.detection.detector import Detector
from segloc.detection.shared_step import SharedUnreadable, add_up
from segloc.settings.finetuning import OptimSettings
from segloc.training.loop import Hook, Trainer
from segloc.training.processes import ALONE, Group
from segloc.training.run_folder import MetricsLog

PREFIX = "validation_"  # of the metrics of a validation, which only some steps have


class FinetuneTrainer(Trainer):
    """Runs one optimiser step per iteration; all random numbers of a step derive from (seed, iteration, slot).

    Each process computes the gradient of its share of the batch, and their sum is the step's.

    Args:
        detector: the detector, on its device.
        data: the batches.
        settings: optimiser settings.
        learning_rates: [steps], the schedule.
        group: the processes that train together.
    """

    def __init__(
        self,
        detector: Detector,
        data: TrainingData,
        settings: OptimSettings,
        learning_rates: np.ndarray,
        group: Group = ALONE,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.data = data
        self.settings = settings
        self.learning_rates = learning_rates
        self.group = group
        self.per_pass = settings.per_pass(group.world)
        self.optimizer = make_optimizer(detector, settings)
        self._batches: Generator[list[Example], None, None]
        self._unreadable: SharedUnreadable

    def fit(self, start: int) -> None:
        """Train from iteration `start` to the end of the schedule."""
        self.detector.train()
        stop, group = len(self.learning_rates), self.group
        self._unreadable = SharedUnreadable(self.data, group)
        with contextlib.closing(self.data.batches(start, stop, group.rank, group.world)) as self._batches:
            self.train(start, stop)

    def run_step(self) -> None:
        """Load this process's part of the batch, run forward and backward for each micro-batch, then step.

        Raises:
            DivergedError: the loss is not finite; the message names the images.
        """
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.learning_rates[self.iter])
        self.optimizer.zero_grad()
        with self.group.together():
            batch = next(self._batches)
        loaded = time.perf_counter()
        micro_batches = [batch[first : first + self.per_pass] for first in range(0, len(batch), self.per_pass)]
        parts = [self._backward(micro_batch) for micro_batch in micro_batches]
        with self.group.together():
            self._check_finite(parts, micro_batches)
        losses = self._add_up(parts)
        norm = torch.nn.utils.clip_grad_norm_(self.detector.parameters(), self.settings.clip or float("inf"))
        self.optimizer.step()
        self.metrics = {
            "loss": torch.stack(list(losses.values())).sum().item(),
            **{name: value.item() for name, value in losses.items()},
            "grad_norm": norm.item(),
            "lr": float(self.learning_rates[self.iter]),
            "data_s": loaded - began,
            "step_s": time.perf_counter() - began,
        }

    def _add_up(self, parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Sum gradients and losses over the micro-batches `parts` of all processes; return the losses of the step."""
        names = dict.fromkeys(itertools.chain(*parts))
        own = {name: torch.stack([part[name] for part in parts if name in part]).sum() for name in names}
        news = self._unreadable.news()
        losses, unreadable = add_up(self.detector.parameters(), own, len(news), self.group)
        if unreadable:
            self._unreadable.tell(news)
        return losses

    def _backward(self, batch: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Add a micro-batch's share of the step's gradient; return its share of each loss.

        A loss that is not finite does not raise here: other processes may wait for the end of this pass.
        """
        share = len(batch) / self.settings.batch
        losses = {name: value * share for name, value in self._losses(batch).items()}
        torch.stack(list(losses.values())).sum().backward()
        return {name: value.detach() for name, value in losses.items()}

    def _losses(self, batch: Sequence[Example]) -> dict[str, torch.Tensor]:
        with torch.autocast(self.detector.device.type, torch.bfloat16, enabled=self.settings.amp):
            return {name: value.float() for name, value in self.detector(batch).items()}

    def _check_finite(self, parts: list[dict[str, torch.Tensor]], batches: list[list[Example]]) -> None:
        totals = torch.stack([torch.stack(list(part.values())).sum() for part in parts])
        for batch, is_finite in zip(batches, torch.isfinite(totals).tolist(), strict=True):
            if not is_finite:
                images = ", ".join(str(example.image_id) for example in batch)
                raise DivergedError(
                    f"the loss of iteration {self.iter} is not finite (images {images}); try a smaller optim.lr_per_16"
                )


def make_optimizer(detector: Detector, settings: OptimSettings) -> torch.optim.Optimizer:
    """Build the optimiser of all parameters; fused, which is a tenth of a short step faster on a CPU, too."""
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
    if settings.method == "adamw":
        return torch.optim.AdamW(detector.parameters(), **common)
    return torch.optim.SGD(detector.parameters(), momentum=settings.momentum, **common)


class Progress(Hook):
    """Shows a progress bar, writes metrics.json and prints the scans that cannot be read.

    Args:
        folder: the run folder.
        every: iterations between lines of metrics.json.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        self.every = every
        self.named: set[int] = set()

    def before_train(self) -> None:
        """Open the log and the bar."""
        self.log = MetricsLog(self.folder, self.trainer.start_iter)
        total = self.trainer.max_iter
        self.bar = tqdm(total=total, initial=self.trainer.start_iter, desc="fine-tuning", unit="step")

    def after_step(self) -> None:
        """Advance the bar; write metrics every `every` iterations, after a validation and at the end."""
        measured = self.trainer.metrics
        self.bar.set_postfix(loss=f"{measured['loss']:.3f}", refresh=False)
        self.bar.update()
        data = self.trainer.data
        unreadable = data.unreadable
        for position in unreadable.keys() - self.named:
            self.named.add(position)
            tqdm.write(f"replaced by another scan: {unreadable[position]}")
        done, validated = self.trainer.iter + 1, any(name.startswith(PREFIX) for name in measured)
        if done % self.every == 0 or done == self.trainer.max_iter or validated:
            self.log.write(self.trainer.iter, {**measured, "unreadable": len(data.left_out) + len(self.named)})

    def after_train(self) -> None:
        """Close the bar and the log."""
        self.bar.close()
        self.log.close()
