"""What a fine-tuning recipe sets besides the model. The defaults are SDANet's settings (its released configuration)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from segloc.settings.pretraining import MAX_SEED

# What happens to tensors of the start weights without a counterpart.
REFUSE = "refuse"
START_ANEW = "start_anew"
UNMATCHED = (REFUSE, START_ANEW)


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Where the scans are and how they enter the network.

    Attributes:
        root: a PIDray folder of either release; ``--data`` sets it.
        train: ``[annotations, images]``, a COCO file and its folder, instead of PIDray's training set.
        tests: ``[[name, annotations, images], ...]`` instead of PIDray's easy, hard and hidden.
        image_size: scans are scaled to fit a square of this many pixels, keeping their ratio.
        flip: probability of a horizontal flip in training.
        train_empty: whether scans without annotations take part in training.
        fraction: share of the training scans that take part. Which ones is decided by their file names, whatever the
            seed, and a smaller share is part of a larger one.
        threads: decoding threads.
    """

    root: str = ""
    train: tuple[str, ...] = ()
    tests: tuple[Any, ...] = ()
    image_size: int = 500
    flip: float = 0.5
    train_empty: bool = False
    fraction: float = 1.0
    threads: int = 4

    def __post_init__(self) -> None:
        for name in ("image_size", "threads"):
            _within(self, name, 1)
        _within(self, "flip", 0, 1)
        _within(self, "fraction", 0, 1)


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """The optimiser under a step schedule.

    Attributes:
        method: ``sgd`` with momentum, as in SDANet, or ``adamw``, which gets further in very short runs.
        batch: scans per step.
        micro_batch: scans per forward pass; less than `batch` accumulates gradients, 0 takes all at once. A step's loss
            is the mean of its micro-batches' losses, as in every library. The detector's losses are means over sampled
            proposals, so that is the loss of the whole batch where all scans have as many samples, and close elsewhere.
        lr_per_16: learning rate at 16 scans per step; it scales with `batch`.
        momentum: of SGD; AdamW keeps its own.
        weight_decay: on every parameter.
        warmup: steps of the linear warm-up.
        warmup_start: share of the learning rate at the first step.
        milestones: fractions of the run at which the learning rate is multiplied by `gamma`.
        gamma: the factor.
        clip: largest L2 norm of the gradient; 0 leaves it alone.
        amp: bfloat16 autocast.
    """

    method: str = "sgd"
    batch: int = 2
    micro_batch: int = 0
    lr_per_16: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: int = 500
    warmup_start: float = 1 / 3
    milestones: tuple[float, ...] = (8 / 12, 11 / 12)
    gamma: float = 0.1
    clip: float = 35.0
    amp: bool = False

    def __post_init__(self) -> None:
        _within(self, "batch", 1)
        for name in ("lr_per_16", "weight_decay", "warmup", "warmup_start", "gamma", "clip"):
            _within(self, name, 0)
        _within(self, "momentum", 0, 1)
        _within(self, "micro_batch", 0)
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is no multiple of micro_batch {self.micro_batch}")
        if self.method not in ("sgd", "adamw"):
            raise ValueError(f"method is {self.method!r}, not one of sgd, adamw")

    @property
    def lr(self) -> float:
        """Learning rate after the warm-up."""
        return self.lr_per_16 * self.batch / 16

    @property
    def per_pass(self) -> int:
        """Scans per forward pass."""
        return self.micro_batch or self.batch


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How long, and how often things are written.

    Attributes:
        epochs: passes over the training set.
        iterations: steps; 0 leaves it to `epochs`.
        seed: seeds the new weights, the order of the scans, the flips and the sampling of proposals.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.json.
        box_heads: ``random``, or ``pretrained``: every box head starts from the layers that were pretrained along with
            the backbone, which takes start weights of a pretraining with ``head.kind=box2fc``.
        unmatched: ``refuse``: start weights have to fit the backbone tensor by tensor; ``start_anew``: what fits by
            name and shape is taken over, the rest starts at random, and start.json lists both. So weights pretrained
            without batch norm go into a backbone with it, as in the paper, which names that as its weak spot. Where
            its statistics are fixed or it is frozen, the new batch norm keeps their residual scales.
    """

    epochs: float = 12.0
    iterations: int = 0
    seed: int = 0
    checkpoint_every: int = 1000
    log_every: int = 20
    box_heads: str = "random"
    unmatched: str = REFUSE

    def __post_init__(self) -> None:
        if self.unmatched not in UNMATCHED:
            raise ValueError(f"unmatched is {self.unmatched!r}, not one of {', '.join(UNMATCHED)}")
        if self.box_heads not in ("random", "pretrained"):
            raise ValueError(f"box_heads is {self.box_heads!r}, not one of random, pretrained")
        for name in ("checkpoint_every", "log_every"):
            _within(self, name, 1)
        for name in ("epochs", "iterations"):
            _within(self, name, 0)
        _within(self, "seed", 0, MAX_SEED)

    def steps(self, images: int, batch: int) -> int:
        """Length of the run in steps on a training set of so many images."""
        return self.iterations or max(1, round(self.epochs * images / batch))


def _within(settings: Any, name: str, least: float, most: float = math.inf) -> None:
    value = getattr(settings, name)
    if not (least <= value <= most and math.isfinite(value)):
        wanted = f"at least {least}" if most == math.inf else f"within {least} and {most}"
        raise ValueError(f"{name} is {value}, it must be {wanted}")
