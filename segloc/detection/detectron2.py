"""The bridge to Detectron2: importing this module enters SegLoc's parts and PIDray in Detectron2's registries.

* Backbone ``build_segloc_fpn_backbone``: Detectron2's ResNet and FPN with selective dense attention on top, under
  Detectron2's own tensor names, so that weights of ``segloc.export --format detectron2`` load into it.
* Meta architecture ``WhitePaddedRCNN``: Detectron2's ``GeneralizedRCNN``, but it pads batches with white.
* Data sets ``pidray_train``, ``pidray_easy``, ``pidray_hard`` and ``pidray_hidden``, of either release, in the folder
  ``$DETECTRON2_DATASETS/pidray`` (default ``datasets/pidray``). Scans of 16 bits get a name that Detectron2's readers
  open through `ScanHandler`, which divides them by the white level of the training part, or by ``$SEGLOC_WHITE``.

For yacs configs call `add_segloc_config`; ``detectron_configs/detectron2/`` has a LazyConfig. docs/detectron2.md shows
both.
"""

from __future__ import annotations

import argparse
import functools
import io
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathHandler, PathManager

from segloc.common import cli, datasets, masks
from segloc.common.datasets import Split, pidray
from segloc.common.datasets.coco_fields import Id
from segloc.common.errors import InputError
from segloc.common.images import ImageError, encode_png, read_image
from segloc.common.white_level import WhiteLevel
from segloc.detection.engine_detectron2 import WhitePaddedRCNN
from segloc.detection.splits import Scan, read_split
from segloc.models.attention import PyramidAttention
from segloc.models.backbone import LEVELS, PIXEL_MEAN, PIXEL_STD, in_float32

__all__ = ["SegLocFPN", "add_segloc_config", "build_segloc_fpn_backbone"]

# What the weights need, and a configuration of Detectron2 has otherwise.
_NEEDED = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [PIXEL_MEAN] * 3,
    "MODEL.PIXEL_STD": [PIXEL_STD] * 3,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    # Freezing is made for ImageNet weights; other weights would keep a stem or statistics that do not fit X-ray scans.
    "MODEL.BACKBONE.FREEZE_AT": 0,
}
# Values that do not fit the weights, and what replaces them. Any other value is the user's choice.
_REPLACED = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", WhitePaddedRCNN.__name__),  # pads with grey
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN"),
    "MODEL.FPN.NORM": ("FrozenBN", "BN"),
}


class SegLocFPN(FPN):
    """Detectron2's FPN with selective dense attention (paper section 4.2) on its levels.

    Args:
        fpn: the arguments of Detectron2's ``FPN``.
        attention: refines the levels; None for a plain FPN.
    """

    def __init__(self, *, attention: PyramidAttention | None = None, **fpn: Any) -> None:
        super().__init__(**fpn)
        self.attention = attention

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the feature pyramid of normalised images [N, 3, H, W]; H and W are multiples of 32."""
        levels: dict[str, torch.Tensor] = super().forward(x)
        maps = list(levels.values()) if self.attention is None else self.attention(list(levels.values()))
        return dict(zip(levels, map(in_float32, maps), strict=True))


def add_segloc_config(cfg: CfgNode) -> None:
    """Add the backbone's settings to a config and set what SegLoc's weights need.

    Adds ``MODEL.SEGLOC.SDA`` (whether there is attention) and ``MODEL.SEGLOC.SDA_NORM`` (``bn``, ``gn`` or ``ln``).
    Depth and norms stay those of `cfg`, but ``FrozenBN`` becomes ``BN``. ``GeneralizedRCNN`` becomes
    ``WhitePaddedRCNN``. Call it after a base file of Detectron2's is merged, which would undo it, and before a file
    that has ``MODEL.SEGLOC``.

    Args:
        cfg: changed in place.
    """
    cfg.MODEL.SEGLOC = CfgNode({"SDA": True, "SDA_NORM": "bn"})
    cfg.MODEL.BACKBONE.NAME = build_segloc_fpn_backbone.__name__
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.INPUT.MASK_FORMAT = "bitmask"  # the data sets give run lengths
    cfg.merge_from_list([part for item in _unfit(cfg).items() for part in item])


def build_segloc_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SegLocFPN:
    """Build the backbone of a config (see `add_segloc_config`).

    A setting that does not fit SegLoc's weights is named in a warning, as it spoils them without an error.

    Raises:
        InputError: `add_segloc_config` was not called, or the attention does not get its four levels.
    """
    if "SEGLOC" not in cfg.MODEL:
        raise InputError(f"the configuration has no MODEL.SEGLOC: call {__name__}.{add_segloc_config.__name__} on it")
    if cfg.MODEL.SEGLOC.SDA and len(cfg.MODEL.FPN.IN_FEATURES) != len(LEVELS) - 1:
        raise InputError(
            f"MODEL.FPN.IN_FEATURES {list(cfg.MODEL.FPN.IN_FEATURES)}: the attention needs {len(LEVELS) - 1} levels, "
            "res2 to res5 (MODEL.SEGLOC.SDA False leaves it out)"
        )
    if unfit := _unfit(cfg):
        advice = ", ".join(f"{name} {value}" for name, value in unfit.items())
        logging.getLogger("detectron2.segloc").warning("SegLoc's weights need %s", advice)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    attention = PyramidAttention(channels, len(LEVELS), cfg.MODEL.SEGLOC.SDA_NORM) if cfg.MODEL.SEGLOC.SDA else None
    return SegLocFPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        attention=attention,
    )


def _unfit(cfg: CfgNode) -> dict[str, Any]:
    """Return the settings that do not fit SegLoc's weights, each with the value that does."""
    unfit = {name: value for name, value in _NEEDED.items() if _setting(cfg, name) != value}
    return unfit | {name: value for name, (old, value) in _REPLACED.items() if _setting(cfg, name) == old}


def _setting(cfg: CfgNode, name: str) -> Any:
    for part in name.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple) else cfg


class ScanHandler(PathHandler):
    """Opens ``segloc-scan://LEVEL/PATH``: a scan read with a white level, as an 8-bit PNG."""

    PREFIX = "segloc-scan://"

    @classmethod
    def name(cls, path: Path, level: int | None) -> str:
        """Return the name of a scan in a set with a white level; the path itself in a set without one."""
        return str(path) if level is None else f"{cls.PREFIX}{level}/{path}"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **options: Any) -> io.BytesIO:
        level, _, file = path.removeprefix(self.PREFIX).partition("/")
        try:
            return io.BytesIO(encode_png(read_image(file, white=int(level))))
        except ImageError as error:
            raise InputError(f"{file}: {error}") from error


def _white(root: Path, part: str) -> int | None:
    """White level of a copy of PIDray: ``$SEGLOC_WHITE``, or that of its training part, or of `part` without one."""
    try:
        given = cli.white(os.environ.get("SEGLOC_WHITE", ""))
    except argparse.ArgumentTypeError as error:
        raise InputError(f"SEGLOC_WHITE: {error}") from error
    parts = datasets.splits(root)
    split = parts[datasets.TRAIN] if parts[datasets.TRAIN].annotations.is_file() else parts[part]
    level, text = _measured(split, given, split.annotations.stat().st_mtime_ns)
    if text:
        logging.getLogger("detectron2.segloc").info(text)
    return level


@functools.lru_cache(maxsize=8)
def _measured(split: Split, given: int | None, _changed_ns: int) -> WhiteLevel:
    """Measure once for all parts, until the annotation file changes."""
    return read_split(split).choose_white(given, "SEGLOC_WHITE")


def _load(part: str) -> list[dict[str, Any]]:
    """Read a part of PIDray as Detectron2's dictionaries, with the checks of `segloc.finetune`."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "pidray"
    split = read_split(datasets.splits(root)[part])
    class_ids = {category: position for position, category in enumerate(split.category_ids)}
    image_numbers, category_numbers = _numbers(scan.image_id for scan in split.scans), _numbers(split.category_ids)
    described = {
        "root": str(root.absolute()),
        "thing_classes": list(split.classes),
        "thing_dataset_id_to_contiguous_id": {category_numbers[key]: class_id for key, class_id in class_ids.items()},
    }
    metadata = MetadataCatalog.get(f"pidray_{part}")
    if any(metadata.get(key, value) != value for key, value in described.items()):
        # Other data than before. Detectron2 changes no value; json_file is its evaluator's copy of the annotations.
        for key in (*described, "json_file"):
            vars(metadata).pop(key, None)
    metadata.set(**described)
    scans = split.with_white(_white(root, part)).scans
    return [_dictionary(scan, image_numbers[scan.image_id], class_ids) for scan in scans]


def _numbers(ids: Iterable[Id]) -> dict[Id, int]:
    """Map ids to themselves, or to 1, 2, ... if any is text or too large: Detectron2's evaluator uses numpy."""
    known = list(ids)
    if all(isinstance(key, int) and abs(key) < 2**53 for key in known):
        return {key: int(key) for key in known}
    return {key: number for number, key in enumerate(known, start=1)}


def _dictionary(scan: Scan, image_number: int, class_ids: dict[Id, int]) -> dict[str, Any]:
    annotations = [
        {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": class_ids[annotation["category_id"]],
            "iscrowd": annotation["iscrowd"],
            "segmentation": masks.to_rle(annotation["segmentation"], scan.height, scan.width),
        }
        for annotation in scan.annotations
    ]
    size = {"height": scan.height, "width": scan.width}
    return {
        "file_name": ScanHandler.name(scan.path, scan.white),
        "image_id": image_number,
        **size,
        "annotations": annotations,
    }


# A registry takes a name once, but a module may be imported again.
PathManager.register_handler(ScanHandler(), allow_override=True)
if build_segloc_fpn_backbone.__name__ not in BACKBONE_REGISTRY:
    BACKBONE_REGISTRY.register(build_segloc_fpn_backbone)
if WhitePaddedRCNN.__name__ not in META_ARCH_REGISTRY:
    META_ARCH_REGISTRY.register(WhitePaddedRCNN)
for _part in (datasets.TRAIN, *pidray.SUBSETS):
    if f"pidray_{_part}" not in DatasetCatalog:
        DatasetCatalog.register(f"pidray_{_part}", lambda part=_part: _load(part))
        MetadataCatalog.get(f"pidray_{_part}").set(evaluator_type="coco")
