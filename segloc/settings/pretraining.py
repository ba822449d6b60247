"""The settings of pretraining, as frozen dataclasses. The defaults are our recommended recipe.

A recipe (``detectron_configs/pretrain/*.yaml``) and ``key=value`` overrides change them; a key that does not exist is
an error that names the nearest one that does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from segloc.common.errors import InputError
from segloc.settings.backbone import GROUPS, BackboneSettings
from segloc.settings.fields import MAX_SEED, check_limits, setting
from segloc.settings.loader import load

STRIDE = 32  # an image of this side is a single position in the ResNet's last stage


@dataclasses.dataclass(frozen=True)
class ModelConfig(BackboneSettings):
    """The backbone (`segloc.models.backbone.SegLocBackbone`) and what it starts from."""

    bn_splits: int = setting(
        8, "Parts into which bn splits a batch; keys are permuted over them (shuffle-BN on one device).", least=1
    )
    init: str = setting(
        "random",
        "Start weights: ``random`` as in the paper; ``imagenet``, torchvision's for the ResNet (needs norm bn); the "
        "path of the state dict of a torchvision ResNet (likewise); or the path of a run or checkpoint of this "
        "project, whose backbone, and head if it fits, are taken over.",
    )
    frozen: int = setting(
        0,
        "Parts of the ResNet that keep their start weights and statistics: 0 none, as the paper found best (section "
        "5.4), 1 the stem and layer1, ... 4 all of it.",
        least=0,
        most=4,
    )


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The RoI head (`segloc.models.roi_head`)."""

    kind: str = setting(
        "insloc",
        "``insloc``: convolutions and fully connected layers (the paper has InsLoc's); ``box2fc``: the detector's own "
        "two fully connected layers, which fine-tuning can then start from.",
        choices=("insloc", "box2fc"),
    )
    convs: int = setting(4, "Number of convolutions; box2fc has none.", least=0)
    conv_dim: int = setting(256, "Their channels.", least=1)
    fc_dim: int = setting(1024, "Width of the fully connected layers.", least=1)
    dim: int = setting(128, "Size of the embedding.", least=1)
    embedding_bn: bool = setting(
        False,
        "Standardise the embeddings over the micro-batch (over each of its bn_splits parts), so that they cannot all "
        "drift away from older keys. Accumulating micro-batches is then not the same as one large batch.",
    )
    sampling_ratio: int = setting(2, "RoIAlign's samples per bin and axis; 0 adapts to the box.", least=0)


@dataclasses.dataclass(frozen=True)
class QueueConfig:
    """The queues of negatives."""

    kind: str = setting(
        "class",
        "``class``: one a class, of keys of the other classes (the paper's contribution, section 4.1); ``single``: one "
        "for all queries, the last K keys whatever their class (MoCo and InsLoc, the paper's baseline).",
        choices=("class", "single"),
    )
    size: int = setting(
        16384, "K, keys per queue and level. The paper says both 16385 and 2^14; 2^14 is 16384.", least=1
    )
    init: str = setting(
        "keys",
        "``keys`` fills them from the untrained key network before training (the paper calls this crucial); ``random`` "
        "fills them with random unit vectors of random classes, the paper's ablation.",
        choices=("keys", "random"),
    )
    positives: str = setting(
        "key",
        "``key``: a query's own key is its only positive, as in MoCo and the paper; ``class``: so are "
        "the stored keys of its class, all with the same weight "
        "(`segloc.contrast.losses.info_nce`). With C classes these are about K / (C - 1); with "
        "``random`` keys they mean nothing until those are gone.",
        choices=("key", "class"),
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What happens to a pair between shard and network."""

    image_size: int = setting(500, "Images are shrunk to fit a square of this side, pixels.", least=1)
    augment: str = setting(
        "xray",
        "Photometric set, ``xray``, ``paper`` or ``none`` (`segloc.data.augment`).",
        choices=("xray", "paper", "none"),
    )
    flip: float = setting(0.5, "Probability of a horizontal flip, each view by itself.", least=0, most=1)
    box_augment: str = setting(
        "none",
        "``none``: the item's own box; ``insloc``: the query is pooled on P5 from a random anchor that overlaps the "
        "item instead (`segloc.data.box_augment`).",
        choices=("none", "insloc"),
    )
    mix_shards: int = setting(
        4, "Shards whose pairs are mixed with each other; their bytes are held in memory.", least=1
    )
    threads: int = setting(4, "Decoding threads.", least=1)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser, under a cosine schedule, the learning rate scaled by the batch."""

    method: str = setting(
        "sgd",
        "``sgd`` with Nesterov momentum (InsLoc), or ``adamw``, which gets further in very short runs.",
        choices=("sgd", "adamw"),
    )
    batch: int = setting(64, "Pairs per optimiser step.", least=1)
    micro_batch: int = setting(64, "Pairs per forward pass; less than `batch` accumulates gradients.", least=1)
    lr_per_256: float = setting(0.03, "Learning rate at 256 pairs per step (InsLoc: 0.03).", above=0)
    momentum: float = setting(0.9, "Of SGD; AdamW keeps its own.", least=0, most=1)
    weight_decay: float = setting(0.0001, "L2 penalty.", least=0)
    warmup: int = setting(0, "Steps of linear warm-up.", least=0)
    epochs: int = setting(30, "Passes over the shards.", least=1)
    steps: int = setting(0, "Optimiser steps; 0 leaves it to `epochs`.", least=0)
    ema: float = setting(0.999, "Momentum m of the key network.", least=0, most=1)
    temperature: float = setting(0.2, "T of InfoNCE.", above=0)
    amp: bool = setting(False, "Bfloat16 autocast.")
    compile: bool = setting(
        False, "Torch.compile of both networks; pays on a GPU and in long runs, as the first steps take minutes."
    )


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """All settings of a pretraining run."""

    seed: int = setting(0, "Seeds the weights, the order of the pairs and the augmentation.", least=0, most=MAX_SEED)
    checkpoint_every: int = setting(500, "Steps between checkpoints.", least=1)
    log_every: int = setting(10, "Steps between lines of metrics.json.", least=1)
    model: ModelConfig = ModelConfig()
    head: HeadConfig = HeadConfig()
    queue: QueueConfig = QueueConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()

    def __post_init__(self) -> None:
        check_limits(self)
        if self.queue.positives != "key" and self.queue.kind != "class":
            raise InputError(
                f"queue.positives={self.queue.positives} needs queue.kind=class; a single queue has them as negatives"
            )
        if self.optim.batch % self.optim.micro_batch:
            raise InputError(f"optim.batch {self.optim.batch} is no multiple of micro_batch {self.optim.micro_batch}")
        if self.model.frozen and self.model.init == "random":
            raise InputError(
                f"model.frozen={self.model.frozen} would keep random weights for good; set model.init to imagenet or a "
                "checkpoint, or model.frozen=0"
            )
        if self.model.init == "imagenet" and self.model.norm != "bn":
            raise InputError(f"model.init=imagenet needs model.norm=bn, not {self.model.norm}")
        self._check_norms()

    def _check_norms(self) -> None:
        model, part = self.model, self.optim.micro_batch
        if model.norm == "gn" and self.head.kind == "insloc" and self.head.conv_dim % GROUPS:
            raise InputError(f"model.norm=gn needs a head.conv_dim that is a multiple of {GROUPS}")
        # Batch norm over single vectors sees as many values as a part has pairs.
        over_vectors = {
            "model.sda_norm=bn": model.sda_norm == "bn" and model.attention,
            "head.embedding_bn=true": self.head.embedding_bn,
            f"data.image_size={self.data.image_size}": model.norm == "bn" and self.data.image_size <= STRIDE,
        }
        for name, used in over_vectors.items():
            if used and part < 2 * model.bn_splits:
                raise InputError(
                    f"{name} needs an optim.micro_batch of at least 2 * bn_splits, {2 * model.bn_splits}; or set "
                    "another norm"
                )
        if (model.norm == "bn" or any(over_vectors.values())) and part % model.bn_splits:
            raise InputError(f"optim.micro_batch {part} is no multiple of model.bn_splits {model.bn_splits}")


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read a recipe of pretraining and apply overrides; see `segloc.settings.loader.load`."""
    return load(PretrainConfig, path, overrides)
