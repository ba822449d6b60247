"""What a fine-tuning recipe sets besides the model. The defaults are SDANet's settings (its released configuration)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from segloc.common.errors import InputError
from segloc.settings.backbone import BackboneSettings
from segloc.settings.fields import MAX_SEED, check_limits, setting

# What happens to tensors of the start weights without a counterpart.
REFUSE = "refuse"
START_ANEW = "start_anew"
UNMATCHED = (REFUSE, START_ANEW)


# Settings that do not change what is compared: seeds, paths (the data's digest counts instead), how often is logged.
INCIDENTAL = (
    "train.seed",
    "train.checkpoint_every",
    "train.log_every",
    "data.root",
    "data.train",
    "data.tests",
    "data.threads",
)
STAND_IN = "torchvision"
ENGINES = ("detectron2", STAND_IN)  # best first: ``auto`` takes the first that is installed
MAX_STAGES = 3  # of the cascade


@dataclasses.dataclass(frozen=True)
class HeadSettings:
    """What sits on the backbone. The defaults are SDANet's."""

    anchor_scale: int = setting(8, "Side of an anchor in strides of its level.", least=1)
    rpn_batch: int = setting(256, "Anchors per image that the proposal network's loss samples.", least=1)
    roi_batch: int = setting(512, "Proposals per image that the heads' losses sample.", least=1)
    train_proposals: int = setting(2000, "Proposals per image kept in training, before sampling.", least=1)
    test_proposals: int = setting(1000, "Proposals per image that are classified in testing.", least=1)
    fc_dim: int = setting(1024, "Width of the two layers of a box head.", least=1)
    mask_convs: int = setting(4, "Convolutions of the mask head before it is upsampled.", least=0)
    mask_dim: int = setting(256, "Their channels.", least=1)
    stages: int = setting(
        3,
        "Box heads one after another, each for better boxes than the one before: 3 make a Cascade Mask R-CNN, 1 a Mask "
        "R-CNN (Detectron2 only; the stand-in always has one).",
        least=1,
        most=MAX_STAGES,
    )
    smooth_l1_beta: float = setting(
        1.0, "Where the box heads' regression loss turns from L2 to L1 (Detectron2 only).", least=0
    )
    score_threshold: float = setting(0.05, "Detections below it are dropped.", least=0, most=1)
    nms_threshold: float = setting(
        0.5, "IoU above which the weaker of two detections of a class is dropped.", least=0, most=1
    )
    detections: int = setting(100, "Most detections per image.", least=1)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The detector."""

    engine: str = setting(
        "auto", "``auto`` is Detectron2 if it is installed, else torchvision's stand-in.", choices=("auto", *ENGINES)
    )
    num_classes: int = setting(0, "Classes without the background; 0 takes the annotations' number.", least=0)
    frozen: int = setting(
        0, "First parts of the ResNet that are not trained: 1 the stem and layer1, ... 4 all of it.", least=0, most=4
    )
    fixed_statistics: bool = setting(False, "Whether batch norm in the ResNet uses its running statistics in training.")
    backbone: BackboneSettings = BackboneSettings()
    heads: HeadSettings = HeadSettings()


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Where the scans are and how they enter the network."""

    root: str = setting("", "A PIDray folder of either release; ``--data`` sets it.")
    train: tuple[str, ...] = setting(
        (), "``[annotations, images]``, a COCO file and its folder, instead of PIDray's training set."
    )
    tests: tuple[tuple[str, ...], ...] = setting(
        (), "``[[name, annotations, images], ...]`` instead of PIDray's easy, hard and hidden."
    )
    image_size: int = setting(
        500, "Scans are scaled to fit a square of this many pixels, keeping their ratio.", least=1
    )
    flip: float = setting(0.5, "Probability of a horizontal flip in training.", least=0, most=1)
    train_empty: bool = setting(False, "Whether scans without annotations take part in training.")
    fraction: float = setting(
        1.0,
        "Share of the training scans that take part. Which ones is decided by their file names, whatever the seed, and "
        "a smaller share is part of a larger one.",
        least=0,
        most=1,
    )
    threads: int = setting(4, "Decoding threads.", least=1)


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """The optimiser under a step schedule."""

    method: str = setting(
        "sgd",
        "``sgd`` with momentum, as in SDANet, or ``adamw``, which gets further in very short runs.",
        choices=("sgd", "adamw"),
    )
    batch: int = setting(2, "Scans per step.", least=1)
    micro_batch: int = setting(
        0,
        "Scans per forward pass; less than `batch` accumulates gradients, 0 takes all at once. A step's loss is the "
        "mean of its micro-batches' losses, as in every library. The detector's losses are means over sampled "
        "proposals, so that is the loss of the whole batch where all scans have as many samples, and close elsewhere.",
        least=0,
    )
    lr_per_16: float = setting(0.02, "Learning rate at 16 scans per step; it scales with `batch`.", least=0)
    momentum: float = setting(0.9, "Of SGD; AdamW keeps its own.", least=0, most=1)
    weight_decay: float = setting(0.0001, "On every parameter.", least=0)
    warmup: int = setting(500, "Steps of the linear warm-up.", least=0)
    warmup_start: float = setting(1 / 3, "Share of the learning rate at the first step.", least=0)
    milestones: tuple[float, ...] = setting(
        (8 / 12, 11 / 12), "Fractions of the run at which the learning rate is multiplied by `gamma`."
    )
    gamma: float = setting(0.1, "The factor.", least=0)
    clip: float = setting(35.0, "Largest L2 norm of the gradient; 0 leaves it alone.", least=0)
    amp: bool = setting(False, "Bfloat16 autocast.")

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
    """How long, and how often things are written."""

    epochs: float = setting(12.0, "Passes over the training set.", least=0)
    iterations: int = setting(0, "Steps; 0 leaves it to `epochs`.", least=0)
    seed: int = setting(
        0,
        "Seeds the new weights, the order of the scans, the flips and the sampling of proposals.",
        least=0,
        most=MAX_SEED,
    )
    checkpoint_every: int = setting(1000, "Steps between checkpoints.", least=1)
    log_every: int = setting(20, "Steps between lines of metrics.json.", least=1)
    box_heads: str = setting(
        "random",
        "``random``, or ``pretrained``: every box head starts from the layers that were pretrained along with the "
        "backbone, which takes start weights of a pretraining with ``head.kind=box2fc``.",
        choices=("random", "pretrained"),
    )
    unmatched: str = setting(
        REFUSE,
        "``refuse``: start weights have to fit the backbone tensor by tensor; ``start_anew``: what fits by name and "
        "shape is taken over, the rest starts at random, and start.json lists both. So weights pretrained without "
        "batch norm go into a backbone with it, as in the paper, which names that as its weak spot. Where its "
        "statistics are fixed or it is frozen, the new batch norm keeps their residual scales.",
        choices=UNMATCHED,
    )

    def steps(self, images: int, batch: int) -> int:
        """Length of the run in steps on a training set of so many images."""
        return self.iterations or max(1, round(self.epochs * images / batch))


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """All settings of a fine-tuning run."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    optim: OptimSettings = OptimSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        check_limits(self)
        if self.optim.batch % self.optim.per_pass:
            raise InputError(
                f"optim.batch {self.optim.batch} is no multiple of optim.micro_batch {self.optim.micro_batch}"
            )
        if self.model.fixed_statistics and self.model.backbone.norm != "bn":
            raise InputError("model.fixed_statistics=true needs model.backbone.norm=bn; other norms have no statistics")

    def with_data(self, root: str | None) -> FinetuneConfig:
        """Take a PIDray folder instead of all data that the recipe names; None changes nothing."""
        if not root:
            return self
        return dataclasses.replace(self, data=dataclasses.replace(self.data, root=str(root), train=(), tests=()))

    def resolved(self, classes: Sequence[str], engine: str) -> FinetuneConfig:
        """Fix what depends on the data and the machine: the number of classes and the engine.

        Raises:
            InputError: the recipe's number of classes is not the data's, or batch norm sees a single scan.
        """
        if self.model.num_classes not in (0, len(classes)):
            raise InputError(
                f"the annotations have {len(classes)} categories, but model.num_classes is {self.model.num_classes}; "
                "leave it at 0 to take the annotations' number"
            )
        backbone, optim = self.model.backbone, self.optim
        if backbone.sda_norm == "bn" and backbone.attention and optim.per_pass < 2:
            name = "micro_batch" if optim.micro_batch else "batch"
            raise InputError(f"model.backbone.sda_norm=bn needs optim.{name} of at least 2; use sda_norm=gn or ln")
        return dataclasses.replace(self, model=dataclasses.replace(self.model, num_classes=len(classes), engine=engine))
