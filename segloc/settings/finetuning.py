"""Settings of fine-tuning. The defaults are those of SDANet's released configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from segloc.common.errors import InputError
from segloc.settings.backbone import BackboneSettings
from segloc.settings.fields import (
    MAX_BATCH,
    MAX_CHANNELS,
    MAX_CLASSES,
    MAX_EPOCHS,
    MAX_IMAGE_SIZE_PX,
    MAX_LAYERS,
    MAX_PER_IMAGE,
    MAX_SEED,
    MAX_STEPS,
    MAX_THREADS,
    MAX_WIDTH,
    check_limits,
    setting,
)

# What to do with initial weights whose name or shape does not match.
REFUSE = "refuse"
START_ANEW = "start_anew"
UNMATCHED = (REFUSE, START_ANEW)

# Settings that runs to compare may differ in: seeds, paths (the data's digest is compared), logging.
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
ENGINES = ("detectron2", STAND_IN)  # ``auto`` uses the first that is installed
MAX_STAGES = 3  # of the cascade
MOST_FROZEN = 4


@dataclasses.dataclass(frozen=True)
class HeadSettings:
    """The detector's heads. The defaults are SDANet's."""

    anchor_scale: int = setting(8, "Anchor side, in strides of its level.", least=1, most=1024)
    rpn_batch: int = setting(256, "Anchors sampled per image for the RPN loss.", least=1, most=MAX_PER_IMAGE)
    roi_batch: int = setting(
        512, "Proposals sampled per image for the losses of the heads.", least=1, most=MAX_PER_IMAGE
    )
    train_proposals: int = setting(
        2000, "Proposals kept per image in training, before sampling.", least=1, most=MAX_PER_IMAGE
    )
    test_proposals: int = setting(1000, "Proposals classified per image in testing.", least=1, most=MAX_PER_IMAGE)
    fc_dim: int = setting(1024, "Width of the two fully connected layers of a box head.", least=1, most=MAX_WIDTH)
    mask_convs: int = setting(4, "Convolutions of the mask head before upsampling.", least=0, most=MAX_LAYERS)
    mask_dim: int = setting(256, "Channels of these convolutions.", least=1, most=MAX_CHANNELS)
    stages: int = setting(
        3,
        "Box heads in a cascade: 3 make a Cascade Mask R-CNN, 1 a Mask R-CNN. Detectron2 only; the torchvision engine "
        "always has one.",
        least=1,
        most=MAX_STAGES,
    )
    smooth_l1_beta: float = setting(
        1.0, "Error at which the box regression loss changes from L2 to L1 (Detectron2 only).", least=0
    )
    score_threshold: float = setting(0.05, "Lowest score of a detection that is kept.", least=0, most=1)
    nms_threshold: float = setting(
        0.5, "IoU above which NMS drops the lower-scoring of two detections of a class.", least=0, most=1
    )
    detections: int = setting(100, "Maximum number of detections per image.", least=1, most=MAX_PER_IMAGE)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The detector."""

    engine: str = setting(
        "auto", "Detector library; ``auto``: Detectron2 if installed, else torchvision.", choices=("auto", *ENGINES)
    )
    num_classes: int = setting(
        0, "Classes without background; 0 uses the number in the annotations.", least=0, most=MAX_CLASSES
    )
    frozen: int = setting(
        0, "Frozen ResNet stages: 0 none, 1 the stem and layer1, up to 4, the whole ResNet.", least=0, most=MOST_FROZEN
    )
    fixed_statistics: bool = setting(False, "Use the running statistics of the ResNet's batch norm in training, too.")
    backbone: BackboneSettings = BackboneSettings()
    heads: HeadSettings = HeadSettings()


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The scans, and how they are loaded."""

    root: str = setting("", "PIDray folder, of either release; set by ``--data``.")
    train: tuple[str, ...] = setting(
        (), "``[annotations, images]``, a COCO file and its image folder, to use instead of PIDray's training set."
    )
    tests: tuple[tuple[str, ...], ...] = setting(
        (), "``[[name, annotations, images], ...]`` to use instead of PIDray's easy, hard and hidden."
    )
    image_size: int = setting(
        500,
        "Side of the square that scans are scaled to fit, keeping their aspect ratio, pixels.",
        least=1,
        most=MAX_IMAGE_SIZE_PX,
    )
    flip: float = setting(0.5, "Probability of a horizontal flip in training.", least=0, most=1)
    train_empty: bool = setting(False, "Also train on scans without annotations.")
    fraction: float = setting(
        1.0,
        "Fraction of the training scans to use. Selection depends on the file names, not on the seed, and a smaller "
        "fraction is a subset of a larger one.",
        least=0,
        most=1,
    )
    validation: float = setting(
        0.0,
        "Fraction of the training scans that is held out: AP on it goes to metrics.json during training. Scans of one "
        "bag stay on one side; the choice does not depend on the seed.",
        least=0,
        most=0.5,
    )
    threads: int = setting(4, "Decoding threads.", least=1, most=MAX_THREADS)
    white: int | None = setting(
        None,
        "White level of 16-bit scans: the value of the empty belt, which divides training and test scans. Empty: it is "
        "measured on the training scans when the run begins. Scans of 8 bits are not changed.",
        least=1,
        most=65_535,
    )


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """The optimiser under a step schedule."""

    method: str = setting(
        "sgd",
        "``sgd`` with momentum, as in SDANet, or ``adamw``, which learns faster in very short runs.",
        choices=("sgd", "adamw"),
    )
    batch: int = setting(2, "Scans per step, over all processes; each takes an equal share.", least=1, most=MAX_BATCH)
    micro_batch: int = setting(
        0,
        "Scans per forward pass of a process; less than its share of `batch` accumulates gradients, 0 uses the whole "
        "share. The loss of a step is the mean over its micro-batches. It equals the loss of the whole batch if all "
        "scans have equally many sampled proposals, and is close to it otherwise.",
        least=0,
        most=MAX_BATCH,
    )
    lr_per_16: float = setting(0.02, "Learning rate for 16 scans per step; scaled linearly with `batch`.", least=0)
    momentum: float = setting(0.9, "Momentum of SGD; AdamW uses its default betas.", least=0, most=1)
    weight_decay: float = setting(0.0001, "Weight decay of all parameters.", least=0)
    warmup: int = setting(500, "Steps of linear warm-up.", least=0, most=MAX_STEPS)
    warmup_start: float = setting(1 / 3, "Fraction of the learning rate at the first step.", least=0)
    milestones: tuple[float, ...] = setting(
        (8 / 12, 11 / 12),
        "Fractions of the run at which the learning rate is multiplied by `gamma`.",
        least=0,
        most=1,
    )
    gamma: float = setting(0.1, "Factor of the learning rate at each milestone.", least=0)
    clip: float = setting(35.0, "Maximum L2 norm of the gradient; 0 disables clipping.", least=0)
    amp: bool = setting(False, "Use bfloat16 autocast.")

    @property
    def lr(self) -> float:
        """Learning rate after the warm-up."""
        return self.lr_per_16 * self.batch / 16

    def per_pass(self, processes: int = 1) -> int:
        """Return the scans per forward pass of each process.

        Raises:
            InputError: the processes cannot share the batch evenly.
        """
        scans = min(self.micro_batch or self.batch, max(1, self.batch // processes))
        if self.batch % (scans * processes):
            raise InputError(
                f"optim.batch {self.batch} cannot be shared by {processes} processes in micro-batches of {scans}; set "
                "another optim.batch or optim.micro_batch"
            )
        return scans


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Length of the run, initialisation, checkpoints and logs."""

    epochs: float = setting(12.0, "Passes over the training set.", least=0, most=MAX_EPOCHS)
    iterations: int = setting(0, "Steps; 0 uses `epochs`.", least=0, most=MAX_STEPS)
    seed: int = setting(
        0,
        "Seed of the random initialisation, the order of the scans, the flips and the sampling of proposals.",
        least=0,
        most=MAX_SEED,
    )
    validate_every: float = setting(
        1.0, "Epochs between two validations, with a `data.validation` above 0.", least=0.01, most=MAX_EPOCHS
    )
    statistics: int = setting(
        0,
        "Training scans, at most all of them, over which the batch-norm statistics are estimated again before every "
        "validation and before the last checkpoint; fixed statistics stay. 0 keeps the running averages.",
        least=0,
        most=MAX_STEPS,
    )
    checkpoint_every: int = setting(1000, "Steps between checkpoints.", least=1, most=MAX_STEPS)
    log_every: int = setting(20, "Steps between lines of metrics.json.", least=1, most=MAX_STEPS)
    box_heads: str = setting(
        "random",
        "Initialisation of the box heads: ``random``, or ``pretrained``, which copies the pretrained RoI head to each "
        "box head and needs initial weights of a pretraining with ``head.kind=box2fc``.",
        choices=("random", "pretrained"),
    )
    unmatched: str = setting(
        REFUSE,
        "``refuse``: all initial weights must match the backbone by name and shape. ``start_anew``: matching tensors "
        "are loaded, the others keep their random initialisation, and start.json lists both. This loads weights "
        "pretrained without batch norm into a backbone with it, as in the paper, which calls this a weak spot. Batch "
        "norm that is frozen or has fixed statistics keeps the residual scales of such weights.",
        choices=UNMATCHED,
    )

    @property
    def length(self) -> str:
        """Which setting gives the number of steps."""
        return "train.iterations; train.epochs is not used" if self.iterations else f"train.epochs {self.epochs:g}"

    def steps(self, images: int, batch: int) -> int:
        """Return the number of steps for a training set of `images` scans.

        Raises:
            InputError: it is too large.
        """
        steps = self.iterations or max(1, round(self.epochs * images / batch))
        if steps > MAX_STEPS:
            raise InputError(f"train.epochs {self.epochs} means {steps} steps, at most {MAX_STEPS} are possible")
        return steps


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """All settings of a fine-tuning run."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    optim: OptimSettings = OptimSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        check_limits(self)
        if self.optim.micro_batch and self.optim.batch % self.optim.micro_batch:
            raise InputError(
                f"optim.batch {self.optim.batch} is not a multiple of optim.micro_batch {self.optim.micro_batch}"
            )
        if self.model.fixed_statistics and self.model.backbone.norm != "bn":
            raise InputError("model.fixed_statistics=true needs model.backbone.norm=bn; other norms have no statistics")

    def with_data(self, root: str | None) -> FinetuneConfig:
        """Replace all data of the recipe by a PIDray folder; None changes nothing."""
        if not root:
            return self
        return dataclasses.replace(self, data=dataclasses.replace(self.data, root=str(root), train=(), tests=()))

    def with_white(self, level: int | None) -> FinetuneConfig:
        """Replace the white level of 16-bit scans."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, white=level))

    @property
    def trains_bn(self) -> bool:
        """Whether some batch norm uses batch statistics in training."""
        backbone = self.model.backbone
        in_resnet = backbone.norm == "bn" and not self.model.fixed_statistics and self.model.frozen < MOST_FROZEN
        return in_resnet or (backbone.attention and backbone.sda_norm == "bn")

    def images_per_part(self, processes: int = 1) -> int | None:
        """Return the number of images that bn normalises together in training; None if no bn uses batch statistics."""
        return (self.model.backbone.bn_images or self.optim.per_pass(processes)) if self.trains_bn else None

    def passes_per_part(self, processes: int) -> int:
        """Return how many processes compute the statistics of bn together: 1 if a forward pass holds whole parts.

        Raises:
            InputError: forward passes and parts of ``bn_images`` do not fit together.
        """
        images, scans = self.model.backbone.bn_images, self.optim.per_pass(processes)
        if not images or not self.trains_bn or scans % images == 0:
            return 1
        if images % scans or processes % (images // scans):
            raise InputError(
                f"model.backbone.bn_images {images} cannot be made of forward passes of {scans} scans in "
                f"{processes} {'process' if processes == 1 else 'processes'}; set another optim.batch or "
                "optim.micro_batch, or bn_images to 0"
            )
        return images // scans

    def resolved(self, classes: Sequence[str], engine: str, processes: int = 1) -> FinetuneConfig:
        """Set the number of classes and the engine, which depend on the data and the machine.

        Raises:
            InputError: the recipe's number of classes differs from the data's, the processes cannot share the batch
                evenly, or batch norm sees a single scan.
        """
        if self.model.num_classes not in (0, len(classes)):
            raise InputError(
                f"the annotations have {len(classes)} categories, but model.num_classes is {self.model.num_classes}; "
                "set it to 0 to use the number in the annotations"
            )
        backbone, optim = self.model.backbone, self.optim
        self.passes_per_part(processes)
        if optim.per_pass(processes) < 2 and backbone.sda_norm == "bn" and backbone.attention:
            least = "micro_batch of at least 2" if optim.micro_batch == 1 else f"batch of at least {2 * processes}"
            raise InputError(f"model.backbone.sda_norm=bn needs optim.{least}; or use sda_norm=gn or ln")
        return dataclasses.replace(self, model=dataclasses.replace(self.model, num_classes=len(classes), engine=engine))
