"""The settings of pretraining, as frozen dataclasses. The defaults are our recommended recipe.

A recipe (``detectron_configs/pretrain/*.yaml``) and ``key=value`` overrides change them; a key that does not exist is
an error that names the nearest one that does.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from segloc.common.cli import split_override
from segloc.common.errors import InputError, one_line, unknown_key


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone (`segloc.models.backbone.SegLocBackbone`).

    Attributes:
        arch: resnet18, resnet50 or resnet101.
        norm: bn, gn or none, in the ResNet and the RoI head.
        sda_norm: bn, gn or ln, inside the channel attention.
        attention: whether the SDA modules are there.
        bn_splits: parts into which bn splits a batch; keys are permuted over them (shuffle-BN on one device).
        init: start weights: ``random`` as in the paper; ``imagenet``, torchvision's for the ResNet (needs norm bn); the
            path of the state dict of a torchvision ResNet (likewise); or the path of a run or checkpoint of this
            project, whose backbone, and head if it fits, are taken over.
        fpn_channels: channels of the FPN and its attention, a multiple of 16 from 64 on; SDANet has 256.
        frozen: parts of the ResNet that keep their start weights and statistics: 0 none, as the paper found best
            (section 5.4), 1 the stem and layer1, ... 4 all of it.
    """

    arch: str = "resnet101"
    norm: str = "bn"
    sda_norm: str = "bn"
    attention: bool = True
    bn_splits: int = 8
    init: str = "random"
    fpn_channels: int = 256
    frozen: int = 0


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The RoI head (`segloc.models.roi_head`).

    Attributes:
        kind: ``insloc``: convolutions and fully connected layers (the paper has InsLoc's); ``box2fc``: the detector's
            own two fully connected layers, which fine-tuning can then start from.
        convs: number of convolutions; box2fc has none.
        conv_dim: their channels.
        fc_dim: width of the fully connected layers.
        dim: size of the embedding.
        embedding_bn: standardise the embeddings over the micro-batch (over each of its bn_splits parts), so that they
            cannot all drift away from older keys. Accumulating micro-batches is then not the same as one large batch.
        sampling_ratio: RoIAlign's samples per bin and axis; 0 adapts to the box.
    """

    kind: str = "insloc"
    convs: int = 4
    conv_dim: int = 256
    fc_dim: int = 1024
    dim: int = 128
    embedding_bn: bool = False
    sampling_ratio: int = 2


@dataclasses.dataclass(frozen=True)
class QueueConfig:
    """The queues of negatives.

    Attributes:
        kind: ``class``: one a class, of keys of the other classes (the paper's contribution, section 4.1); ``single``:
            one for all queries, the last K keys whatever their class (MoCo and InsLoc, the paper's baseline).
        size: K, keys per queue and level. The paper says both 16385 and 2^14; 2^14 is 16384.
        init: ``keys`` fills them from the untrained key network before training (the paper calls this crucial);
            ``random`` fills them with random unit vectors of random classes, the paper's ablation.
        positives: ``key``: a query's own key is its only positive, as in MoCo and the paper; ``class``: so are the
            stored keys of its class, all with the same weight (`segloc.contrast.losses.class_info_nce`). With C classes
            these are about K / (C - 1); with ``random`` keys they mean nothing until those are gone.
    """

    kind: str = "class"
    size: int = 16384
    init: str = "keys"
    positives: str = "key"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What happens to a pair between shard and network.

    Attributes:
        image_size: images are shrunk to fit a square of this side, pixels.
        augment: photometric set, ``xray``, ``paper`` or ``none`` (`segloc.data.augment`).
        flip: probability of a horizontal flip, each view by itself.
        box_augment: ``none``: the item's own box; ``insloc``: the query is pooled on P5 from a random anchor that
            overlaps the item instead (`segloc.data.box_augment`).
        mix_shards: shards whose pairs are mixed with each other; their bytes are held in memory.
        threads: decoding threads.
    """

    image_size: int = 500
    augment: str = "xray"
    flip: float = 0.5
    box_augment: str = "none"
    mix_shards: int = 4
    threads: int = 4


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser, under a cosine schedule, the learning rate scaled by the batch.

    Attributes:
        method: ``sgd`` with Nesterov momentum (InsLoc), or ``adamw``, which gets further in very short runs.
        batch: pairs per optimiser step.
        micro_batch: pairs per forward pass; less than `batch` accumulates gradients.
        lr_per_256: learning rate at 256 pairs per step (InsLoc: 0.03).
        momentum: of SGD; AdamW keeps its own.
        weight_decay: L2 penalty.
        warmup: steps of linear warm-up.
        epochs: passes over the shards.
        steps: optimiser steps; 0 leaves it to `epochs`.
        ema: momentum m of the key network.
        temperature: T of InfoNCE.
        amp: bfloat16 autocast.
        compile: torch.compile of both networks; pays on a GPU and in long runs, as the first steps take minutes.
    """

    method: str = "sgd"
    batch: int = 64
    micro_batch: int = 64
    lr_per_256: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: int = 0
    epochs: int = 30
    steps: int = 0
    ema: float = 0.999
    temperature: float = 0.2
    amp: bool = False
    compile: bool = False


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """All settings of a pretraining run.

    Attributes:
        seed: seeds the weights, the order of the pairs and the augmentation.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.json.
    """

    seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 10
    model: ModelConfig = ModelConfig()
    head: HeadConfig = HeadConfig()
    queue: QueueConfig = QueueConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_start()
        self._check_norms()

    def _check_ranges(self) -> None:
        for name in NOT_NEGATIVE:
            if not 0 <= _get(self, name) < math.inf:
                raise InputError(f"{name} is {_get(self, name)}, it must not be negative")
        if self.seed > MAX_SEED:
            raise InputError(f"seed is {self.seed}, it must be at most {MAX_SEED}")
        for name in SHARES:
            if not 0 <= _get(self, name) <= 1:
                raise InputError(f"{name} is {_get(self, name)}, it must be within 0 and 1")
        for name in POSITIVE:
            if not 0 < _get(self, name) < math.inf:
                raise InputError(f"{name} is {_get(self, name)}, it must be more than 0")
        for name, valid in CHOICES.items():
            value = _get(self, name)
            if value not in valid:
                raise InputError(f"{name} is {value!r}, not one of {', '.join(valid)}")
        for name in AT_LEAST_ONE:
            if _get(self, name) < 1:
                raise InputError(f"{name} is {_get(self, name)}, it must be at least 1")
        if (channels := self.model.fpn_channels) % BOTTLENECK or channels < MIN_CHANNELS:
            raise InputError(f"model.fpn_channels is {channels}, not a multiple of {BOTTLENECK} from {MIN_CHANNELS} on")
        if self.queue.positives == "class" and self.queue.kind != "class":
            raise InputError("queue.positives=class needs queue.kind=class; a single queue has them as negatives")
        if self.optim.batch % self.optim.micro_batch:
            raise InputError(f"optim.batch {self.optim.batch} is no multiple of micro_batch {self.optim.micro_batch}")

    def _check_start(self) -> None:
        if not 0 <= self.model.frozen <= 4:
            raise InputError(f"model.frozen is {self.model.frozen}, it must be within 0 and 4")
        if self.model.frozen and self.model.init == "random":
            raise InputError(
                f"model.frozen={self.model.frozen} would keep random weights for good; set model.init to imagenet or a "
                "checkpoint, or model.frozen=0"
            )
        if self.model.init == "imagenet" and self.model.norm != "bn":
            raise InputError(f"model.init=imagenet needs model.norm=bn, not {self.model.norm}")

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


CHOICES = {
    "model.arch": ("resnet18", "resnet50", "resnet101"),
    "model.norm": ("bn", "gn", "none"),
    "model.sda_norm": ("bn", "gn", "ln"),
    "optim.method": ("sgd", "adamw"),
    "head.kind": ("insloc", "box2fc"),
    "queue.kind": ("class", "single"),
    "queue.init": ("keys", "random"),
    "queue.positives": ("key", "class"),
    "data.box_augment": ("none", "insloc"),
    "data.augment": ("xray", "paper", "none"),
}
NOT_NEGATIVE = ("seed", "optim.steps", "optim.warmup", "optim.weight_decay", "head.convs", "head.sampling_ratio")
SHARES = ("optim.ema", "optim.momentum", "data.flip")
POSITIVE = ("optim.temperature", "optim.lr_per_256")
AT_LEAST_ONE = (
    "log_every",
    "checkpoint_every",
    "model.bn_splits",
    "head.conv_dim",
    "head.fc_dim",
    "head.dim",
    "queue.size",
    "data.image_size",
    "data.mix_shards",
    "data.threads",
    "optim.batch",
    "optim.micro_batch",
    "optim.epochs",
)
# An image of this side is a single position in the ResNet's last stage.
STRIDE = 32
MAX_SEED = 2**63 - 1  # torch takes no larger one
# The attention has a bottleneck that is narrower by this. Its layer norm would leave nothing of one channel, and little
# more than a sign of two.
BOTTLENECK = 16
MIN_CHANNELS = 4 * BOTTLENECK
# Groups of group norm in the ResNet and the head (Wu & He 2018).
GROUPS = 32
Config = TypeVar("Config")


def load_config(path: str | Path | None, overrides: list[str]) -> PretrainConfig:
    """Read a recipe and apply overrides.

    Args:
        path: YAML file; None means the defaults.
        overrides: ``section.key=value`` strings.

    Raises:
        InputError: no such file, not YAML, an unknown key, or a value of the wrong type.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        if not Path(path).is_file():
            raise InputError(f"{path}: no such recipe")
        try:
            raw = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not YAML ({one_line(error)})") from error
        if not isinstance(raw, dict):
            raise InputError(f"{path}: not a mapping of settings")
    from_dict(PretrainConfig, raw, str(path))  # so that an error in the recipe names the recipe
    for override in overrides:
        key, value = split_override(override)
        try:
            _set(raw, key, yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise InputError(f"{override!r}: the value cannot be read") from error
    return from_dict(PretrainConfig, raw, "override" if overrides else str(path))


def from_dict(cls: type[Config], raw: dict[str, Any], where: str) -> Config:
    """Build the dataclass `cls` from nested dicts; keys left out keep their defaults.

    Raises:
        InputError: unknown key or wrong type.
    """
    hints = get_type_hints(cls)
    values = {}
    for key, value in raw.items():
        if key not in hints:
            raise unknown_key(str(key), hints, where)
        values[key] = _value(hints[key], value, f"{where}: {key}")
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected a mapping, got {value!r}")
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    accepted = get_args(hint) or (hint,)
    if float in accepted and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4, without a dot, as text
        except ValueError:
            pass
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise InputError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
    return value


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    """Put `value` under the dotted `key`, which must be one of the settings."""
    keys = _keys(PretrainConfig())
    if key not in keys:
        raise unknown_key(key, keys, "override")
    *sections, name = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
    raw[name] = value


def _keys(config: Any, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = dataclasses.is_dataclass(value)
        keys += _keys(value, f"{prefix}{field.name}.") if inner else [prefix + field.name]
    return keys


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config
