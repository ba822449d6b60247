"""Bridge to Detectron2: importing this module registers SegLoc's backbone and PIDray in Detectron2.

* Backbone ``build_segloc_fpn_backbone``: Detectron2's ResNet and FPN, followed by selective dense attention. It has
  Detectron2's tensor names, so it loads weights of ``segloc.export --format detectron2``.
* Data sets ``pidray_train``, ``pidray_easy``, ``pidray_hard`` and ``pidray_hidden``, of either release, in the folder
  ``$DETECTRON2_DATASETS/pidray`` (default ``datasets/pidray``).

For yacs configs call `add_segloc_config`; ``detectron_configs/detectron2/`` has a LazyConfig. docs/detectron2.md shows
both.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import BoxMode

from segloc.common import datasets, masks
from segloc.common.datasets import pidray
from segloc.detection.splits import Scan, read_split
from segloc.models.attention import PyramidAttention
from segloc.models.backbone import LEVELS, PIXEL_MEAN, PIXEL_STD

__all__ = ["SegLocFPN", "add_segloc_config", "build_segloc_fpn_backbone"]

# Settings that SegLoc's weights were trained with and that differ from Detectron2's defaults.
_NEEDED = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [PIXEL_MEAN] * 3,
    "MODEL.PIXEL_STD": [PIXEL_STD] * 3,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    # Freezing is made for ImageNet weights; other weights would keep a stem or statistics that do not fit X-ray scans.
    "MODEL.BACKBONE.FREEZE_AT": 0,
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
        maps: dict[str, torch.Tensor] = super().forward(x)
        if self.attention is None:
            return maps
        return dict(zip(maps, self.attention(list(maps.values())), strict=True))


def add_segloc_config(cfg: CfgNode) -> None:
    """Add the backbone's settings to a config and set what SegLoc's weights need.

    Adds ``MODEL.SEGLOC.SDA`` (use attention) and ``MODEL.SEGLOC.SDA_NORM`` (``bn``, ``gn`` or ``ln``). Depth and norms
    are Detectron2's ``MODEL.RESNETS.DEPTH``, ``MODEL.RESNETS.NORM`` (set to ``BN``) and ``MODEL.FPN.NORM``. Call it
    after merging a base file of Detectron2, which would overwrite these settings, and before merging a file with
    ``MODEL.SEGLOC``.

    Args:
        cfg: changed in place.
    """
    cfg.MODEL.SEGLOC = CfgNode({"SDA": True, "SDA_NORM": "bn"})
    cfg.MODEL.BACKBONE.NAME = build_segloc_fpn_backbone.__name__
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.INPUT.MASK_FORMAT = "bitmask"  # the data sets store masks as RLE
    cfg.merge_from_list([part for item in _NEEDED.items() for part in item])


@BACKBONE_REGISTRY.register()
def build_segloc_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SegLocFPN:
    """Build the backbone of a config (see `add_segloc_config`).

    Logs a warning for settings that do not fit SegLoc's weights, because they spoil the result without an error.
    """
    if unfit := [name for name, value in _NEEDED.items() if _setting(cfg, name) != value]:
        advice = ", ".join(f"{name} {_NEEDED[name]}" for name in unfit)
        logging.getLogger("detectron2.segloc").warning("SegLoc's weights are trained with %s", advice)
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


def _setting(cfg: CfgNode, name: str) -> Any:
    for part in name.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple) else cfg


def _load(part: str) -> list[dict[str, Any]]:
    """Read a part of PIDray as Detectron2's dictionaries, with the checks of `segloc.finetune`."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "pidray"
    split = read_split(datasets.splits(root)[part])
    class_ids = {category: position for position, category in enumerate(split.category_ids)}
    MetadataCatalog.get(f"pidray_{part}").set(
        thing_classes=list(split.classes), thing_dataset_id_to_contiguous_id=class_ids
    )
    return [_dictionary(scan, class_ids) for scan in split.scans]


def _dictionary(scan: Scan, class_ids: dict[int, int]) -> dict[str, Any]:
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
    return {"file_name": str(scan.path), "image_id": scan.image_id, **size, "annotations": annotations}


for _part in (datasets.TRAIN, *pidray.SUBSETS):
    DatasetCatalog.register(f"pidray_{_part}", lambda part=_part: _load(part))
    MetadataCatalog.get(f"pidray_{_part}").set(evaluator_type="coco")
