"""Settings of pretraining. The defaults are the recommended recipe.

Recipes (``detectron_configs/pretrain/*.yaml``) and ``key=value`` overrides change them; see `segloc.settings.loader`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from segloc.common.errors import InputError
from segloc.settings.backbone import GROUPS, PRECISIONS, BackboneSettings
from segloc.settings.fields import (
    MAX_BATCH,
    MAX_CHANNELS,
    MAX_EPOCHS,
    MAX_IMAGE_SIZE_PX,
    MAX_LAYERS,
    MAX_SEED,
    MAX_STEPS,
    MAX_THREADS,
    MAX_WIDTH,
    check_limits,
    setting,
)
from segloc.settings.loader import load

STRIDE = 32  # images up to this side give a single position in the ResNet's last stage


@dataclasses.dataclass(frozen=True)
class ModelConfig(BackboneSettings):
    """The backbone (`segloc.models.backbone.SegLocBackbone`) and its initialisation."""

    bn_images: int = setting(
        8,
        "Images that bn normalises together: a forward pass is normalised in consecutive parts of this many; 0 uses "
        "all its images. Keys are shuffled over the parts (shuffle-BN).",
        least=0,
        most=MAX_BATCH,
    )
    init: str = setting(
        "random",
        "Initial weights: ``random``, as in the paper; ``imagenet``, torchvision's for the ResNet (needs norm=bn); the "
        "path of a torchvision ResNet's state dict (needs norm=bn); or the path of a segloc run or checkpoint, whose "
        "backbone is loaded, and its head if it matches.",
    )
    frozen: int = setting(
        0,
        "ResNet stages that keep their initial weights and statistics: 0 none (best in the paper, section 5.4), 1 the "
        "stem and layer1, up to 4, the whole ResNet.",
        least=0,
        most=4,
    )


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The RoI head (`segloc.models.roi_head`)."""

    kind: str = setting(
        "insloc",
        "``insloc``: InsLoc's convolutions and fully connected layers, as in the paper; ``box2fc``: the two fully "
        "connected layers of the detector's box head, which fine-tuning can load.",
        choices=("insloc", "box2fc"),
    )
    convs: int = setting(4, "Number of convolutions; not used by box2fc.", least=0, most=MAX_LAYERS)
    conv_dim: int = setting(256, "Channels of these convolutions.", least=1, most=MAX_CHANNELS)
    fc_dim: int = setting(1024, "Width of the fully connected layers.", least=1, most=MAX_WIDTH)
    dim: int = setting(128, "Dimension of the embedding.", least=1, most=MAX_WIDTH)
    embedding_bn: bool = setting(
        False,
        "Standardise the embeddings over model.bn_images images, so that they cannot all drift away from older keys.",
    )
    sampling_ratio: int = setting(2, "RoIAlign samples per bin and axis; 0 adapts to the box size.", least=0, most=16)


@dataclasses.dataclass(frozen=True)
class QueueConfig:
    """The queues of negatives."""

    kind: str = setting(
        "class",
        "``class``: one queue per class, with keys of the other classes (the paper's contribution, section 4.1); "
        "``single``: one queue with the last K keys of all classes (MoCo and InsLoc, the paper's baseline).",
        choices=("class", "single"),
    )
    size: int = setting(
        16384, "K, keys per queue and level. The paper states both 16385 and 2^14 = 16384.", least=1, most=2**26
    )
    init: str = setting(
        "keys",
        "``keys`` fills the queues with keys of the untrained key network (the paper calls this crucial); ``random`` "
        "fills them with random unit vectors of random classes (the paper's ablation).",
        choices=("keys", "random"),
    )
    positives: str = setting(
        "key",
        "``key``: a query's own key is its only positive, as in MoCo and the paper; ``class``: the stored keys of its "
        "class, about K / (C - 1) for C classes, are positives too, with equal weights "
        "(`segloc.contrast.losses.info_nce`). With init=random they carry no information until real keys replace them.",
        choices=("key", "class"),
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Loading and augmentation of pairs."""

    image_size: int = setting(
        500, "Side of the square that larger images are shrunk to fit, pixels.", least=1, most=MAX_IMAGE_SIZE_PX
    )
    augment: str = setting(
        "xray",
        "Photometric augmentation (`segloc.data.augment`).",
        choices=("xray", "paper", "none"),
    )
    flip: float = setting(0.5, "Probability of a horizontal flip, independent for each view.", least=0, most=1)
    box_augment: str = setting(
        "none",
        "``none``: pool the query from the item's box; ``insloc``: on P5, pool it from a random anchor that overlaps "
        "the item (`segloc.data.box_augment`).",
        choices=("none", "insloc"),
    )
    mix_shards: int = setting(
        8,
        "Shards that are read side by side; a step has equally many pairs of each. Should be a multiple of the number "
        "of processes, so that each reads shards of its own.",
        least=1,
        most=MAX_BATCH,
    )
    threads: int = setting(4, "Decoding threads.", least=1, most=MAX_THREADS)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser under a cosine schedule."""

    method: str = setting(
        "sgd",
        "``sgd`` with Nesterov momentum (InsLoc), or ``adamw``, which learns faster in very short runs.",
        choices=("sgd", "adamw"),
    )
    batch: int = setting(64, "Pairs per optimiser step.", least=1, most=MAX_BATCH)
    micro_batch: int = setting(
        0,
        "Pairs per forward pass; less than `batch` accumulates gradients. 0 tries at the start which are the most that "
        "fit into the GPU's memory; on a CPU it is the fewest. A resumed run keeps them. Without effect on the result, "
        "unless batch norm has model.bn_images=0.",
        least=0,
        most=MAX_BATCH,
    )
    lr_per_256: float = setting(0.03, "Learning rate per 256 pairs of `batch` (InsLoc: 0.03).", above=0)
    momentum: float = setting(0.9, "Momentum of SGD; AdamW uses its default betas.", least=0, most=1)
    weight_decay: float = setting(0.0001, "Weight decay of all parameters.", least=0)
    warmup: int = setting(0, "Steps of linear warm-up.", least=0, most=MAX_STEPS)
    epochs: int = setting(30, "Passes over the shards.", least=1, most=MAX_EPOCHS)
    steps: int = setting(0, "Optimiser steps; 0 uses `epochs`.", least=0, most=MAX_STEPS)
    ema: float = setting(0.999, "Momentum m of the key network.", least=0, most=1)
    temperature: float = setting(0.2, "T of InfoNCE.", above=0)
    precision: str = setting(
        "auto",
        "Of the forward passes: ``bfloat16`` (autocast), ``float32``, or ``auto``, which is bfloat16 on GPUs that "
        "compute in it, else float32. A resumed run keeps its precision.",
        choices=PRECISIONS,
    )
    recompute: str = setting(
        "none",
        "``stages`` recomputes the ResNet's blocks in the backward pass instead of keeping their activations: more "
        "pairs per forward pass for more time per step (docs/speed.md). The result does not change.",
        choices=("none", "stages"),
    )
    compile: bool = setting(
        False, "Compile both networks with torch.compile. Use it for long runs on a GPU; the first steps take minutes."
    )


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """All settings of a pretraining run."""

    seed: int = setting(0, "Seed of the weights, the order of the pairs and the augmentation.", least=0, most=MAX_SEED)
    checkpoint_every: int = setting(500, "Steps between checkpoints.", least=1, most=MAX_STEPS)
    log_every: int = setting(10, "Steps between lines of metrics.json.", least=1, most=MAX_STEPS)
    keep_epochs: tuple[int, ...] = setting(
        (), "Epochs after which the backbone is also kept as ``backbone-epoch-NNN.pth``.", least=1, most=MAX_EPOCHS
    )
    model: ModelConfig = ModelConfig()
    head: HeadConfig = HeadConfig()
    queue: QueueConfig = QueueConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()

    def __post_init__(self) -> None:
        check_limits(self)
        if self.queue.positives != "key" and self.queue.kind != "class":
            raise InputError(
                f"queue.positives={self.queue.positives} needs queue.kind=class; a single queue uses keys of the "
                "query's class as negatives"
            )
        if self.optim.micro_batch and self.optim.batch % self.optim.micro_batch:
            raise InputError(
                f"optim.batch {self.optim.batch} is not a multiple of micro_batch {self.optim.micro_batch}"
            )
        if self.model.frozen and self.model.init == "random":
            raise InputError(
                f"model.frozen={self.model.frozen} would freeze random weights; set model.init to imagenet or a "
                "checkpoint, or model.frozen=0"
            )
        if self.optim.recompute == "stages" and self.optim.compile:
            raise InputError("optim.recompute=stages cannot be compiled; set it to none, or optim.compile=false")
        if self.model.init == "imagenet" and self.model.norm != "bn":
            raise InputError(f"model.init=imagenet needs model.norm=bn, not {self.model.norm}")
        self._check_norms()

    @property
    def length(self) -> str:
        """Which setting gives the number of steps."""
        return "optim.steps; optim.epochs is not used" if self.optim.steps else f"optim.epochs {self.optim.epochs}"

    def num_steps(self, pairs: int) -> int:
        """Return the number of optimiser steps with shards of `pairs` pairs; 0 if they do not fill one batch.

        Raises:
            InputError: it is too large.
        """
        steps = self.optim.steps or self.optim.epochs * pairs // self.optim.batch
        if steps > MAX_STEPS:
            raise InputError(f"optim.epochs {self.optim.epochs} means {steps} steps, at most {MAX_STEPS} are possible")
        return steps

    @property
    def has_batch_norm(self) -> bool:
        """Whether any part of the networks has it."""
        model = self.model
        return model.norm == "bn" or (model.sda_norm == "bn" and model.attention) or self.head.embedding_bn

    @property
    def bn_unit(self) -> int:
        """Images of a forward pass are a multiple of this number, so that batch norm has whole parts."""
        return (self.model.bn_images or 1) if self.has_batch_norm else 1

    def _check_norms(self) -> None:
        model, pairs = self.model, self.optim.micro_batch or self.optim.batch
        if model.norm == "gn" and self.head.kind == "insloc" and self.head.conv_dim % GROUPS:
            raise InputError(f"model.norm=gn needs a head.conv_dim that is a multiple of {GROUPS}")
        # Batch norm over single vectors sees one value per channel and pair.
        over_vectors = {
            "model.sda_norm=bn": model.sda_norm == "bn" and model.attention,
            "head.embedding_bn=true": self.head.embedding_bn,
            f"data.image_size={self.data.image_size}": model.norm == "bn" and self.data.image_size <= STRIDE,
        }
        for name, used in over_vectors.items():
            if used and (model.bn_images or pairs) < 2:
                raise InputError(
                    f"{name} needs at least two images per part: set model.bn_images and optim.micro_batch to at least "
                    "2, or a norm other than bn"
                )
        if self.has_batch_norm and not (model.bn_images or self.optim.micro_batch):
            raise InputError(
                "optim.micro_batch=0 would let the result depend on the GPU's memory, because model.bn_images is 0; "
                "set one of them"
            )
        if pairs % self.bn_unit:
            name = "micro_batch" if self.optim.micro_batch else "batch"
            raise InputError(
                f"optim.{name} {pairs} is not a multiple of model.bn_images {model.bn_images}; set a multiple, or a "
                "smaller model.bn_images"
            )


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read a pretraining recipe and apply overrides; see `segloc.settings.loader.load`."""
    return load(PretrainConfig, path, overrides)
