"""Rename a backbone's tensors for other libraries.

Every tensor is kept under its name, renamed, or left out with a reason. A tensor that no rule matches is an error, so
that none is dropped silently.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch

from segloc.models.backbone import FPN_CHANNELS
from segloc.training.checkpoint import FORMAT_VERSION

FORMATS = ("segloc", "detectron2", "detectron2-sda", "torchvision", "timm", "mmdet")
OWN_NAMES = ("segloc", "detectron2-sda")
NO_ATTENTION = "the format has no selective dense attention; without it the feature maps are those of a plain FPN"
NO_SCALE = "learned scale of a norm-free residual branch; the format's ResNet has no such parameter"
NO_HEAD = "RoI head of pretraining; the format contains only the backbone"
NO_FPN = "the format is a ResNet without an FPN"
FREEZE_NOTE = "train all layers: freezing the stem or the batch-norm statistics suits ImageNet weights only"
NO_SCALE_NOTE = """without the residual scales (left out) the outputs differ from the trained network's; --insert-bn \
preserves them"""
IMAGE_NOTE = "images are RGB, (x - 127.5) / 127.5, padded with white to multiples of 32"
# The same in the settings of each library, and how to create the model there.
DETECTRON2_IMAGES = """INPUT.FORMAT RGB, MODEL.PIXEL_MEAN and PIXEL_STD [127.5, 127.5, 127.5]; it pads with grey, not \
white"""
IMAGE_NOTES = {
    "detectron2": DETECTRON2_IMAGES,
    "detectron2-sda": DETECTRON2_IMAGES,
    "mmdet": "data_preprocessor: mean and std [127.5]*3, bgr_to_rgb=True, pad_size_divisor=32, pad_value=1 (white)",
}
MODEL_NOTES = {
    "timm": ["create the model with num_classes=0 (or features_only=True), because the file contains no classifier"],
    "mmdet": ["style='pytorch', frozen_stages=-1"],
}

# Setting of the FPN's channels, by format; Detectron2 and mmdet skip tensors of another shape.
FPN_WIDTH = {
    "detectron2": "FPN.OUT_CHANNELS {}",
    "detectron2-sda": "SegLocBackbone(..., fpn_channels={})",
    "torchvision": "FeaturePyramidNetwork(..., out_channels={})",
    "mmdet": "neck=dict(type='FPN', out_channels={})",
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Rule for the tensors whose full name matches a pattern.

    Attributes:
        pattern: regular expression.
        name: the new name, with group references; None leaves the tensor out.
        reason: reason for leaving it out.
    """

    pattern: str
    name: str | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Export:
    """Tensors under their new names, and the mapping of names.

    Attributes:
        state: the state dict.
        matched: unchanged names.
        renamed: new name by old name.
        left_out: reason by old name.
        head: state dict of the pretrained RoI head, if the format keeps it.
    """

    state: dict[str, torch.Tensor]
    matched: list[str]
    renamed: dict[str, str]
    left_out: dict[str, str]
    head: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


def convert(state: Mapping[str, torch.Tensor], format_: str, norm: str) -> Export:
    """Rename a backbone's tensors.

    Args:
        state: state dict of a `SegLocBackbone`.
        format_: one of `FORMATS`.
        norm: the backbone's norm, ``bn``, ``gn`` or ``none``.

    Raises:
        ValueError: no rule, or more than one, matches a tensor.
    """
    rules = rename_rules(format_, norm)
    export = Export({}, [], {}, {})
    for old, tensor in state.items():
        matches = [(rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, old))]
        if len(matches) != 1:
            raise ValueError(f"{format_}: {len(matches)} rules match the tensor {old!r}, expected one")
        rule, match = matches[0]
        if rule.name is None:
            export.left_out[old] = rule.reason
            continue
        new = match.expand(rule.name)
        export.state[new] = tensor
        if new == old:
            export.matched.append(old)
        else:
            export.renamed[old] = new
    return export


def rename_rules(format_: str, norm: str) -> list[Rule]:
    """Return the rules of a format for ResNet, FPN and attention."""
    if format_ in OWN_NAMES:
        # `PyramidBackbone`, segloc's adapter for Detectron2, has the backbone as its attribute `net`.
        return [Rule(r"(.+)", r"\1" if format_ == "segloc" else r"net.\1")]
    resnet = _detectron2_resnet() if format_ == "detectron2" else _torchvision_resnet(format_, norm)
    if norm == "none":
        # Tensors with a norm's name are residual scales; see segloc.models.norm.
        kept = [rule for rule in resnet if "bn" not in rule.pattern and "norm" not in rule.pattern]
        resnet = [*kept, Rule(r"body\.layer\d\.\d+\.bn\d\.(weight|bias)", None, NO_SCALE)]
    attention = (
        Rule(r"(attention\..+)", r"\1") if format_ == "detectron2" else Rule(r"attention\..+", None, NO_ATTENTION)
    )
    return [*resnet, *_fpn(format_), attention]


def usage_notes(format_: str, norm: str, fpn_channels: int = FPN_CHANNELS) -> list[str]:
    """Return the settings that the other library needs to compute the same features."""
    if format_ == "segloc":
        return [f"use recipes with model.backbone.norm={norm} model.backbone.fpn_channels={fpn_channels}"]
    setting = {
        "detectron2": {"bn": "RESNETS.NORM BN", "gn": "RESNETS.NORM GN", "none": 'RESNETS.NORM ""'},
        "detectron2-sda": dict.fromkeys(
            ("bn", "gn", "none"), "segloc.detection.engine_detectron2.PyramidBackbone(SegLocBackbone(...))"
        ),
        "torchvision": {
            "bn": "norm_layer=nn.BatchNorm2d",
            "gn": "norm_layer=lambda channels: nn.GroupNorm(32, channels)",
            "none": "norm_layer=lambda channels: nn.Identity()",
        },
        "timm": {
            "bn": "the default norm",
            "gn": "norm_layer='groupnorm' (32 groups)",
            "none": "norm_layer=nn.Identity",
        },
        "mmdet": {
            "bn": "norm_cfg=dict(type='BN'), norm_eval=False",
            "gn": "norm_cfg=dict(type='GN', num_groups=32)",
            "none": "norm_cfg has no equivalent",
        },
    }[format_][norm]
    found = [f"norm: {setting}", IMAGE_NOTES.get(format_, IMAGE_NOTE), FREEZE_NOTE]
    if format_ == "detectron2":
        found += [
            "segloc.detection.detectron2.add_segloc_config sets all but the norm and adds the attention; otherwise:",
            "RESNETS.STRIDE_IN_1X1 False, BACKBONE.FREEZE_AT 0",
            "resnet18: RESNETS.RES2_OUT_CHANNELS 64",
        ]
    if format_ in FPN_WIDTH and fpn_channels != FPN_CHANNELS:
        found.append(f"FPN: {FPN_WIDTH[format_].format(fpn_channels)}; with another width the FPN is not loaded")
    found += MODEL_NOTES.get(format_, [])
    return found + ([NO_SCALE_NOTE] if norm == "none" and format_ not in OWN_NAMES else [])


def with_head(export: Export, head: Mapping[str, torch.Tensor], format_: str) -> Export:
    """Add the pretrained RoI head; only the format ``segloc`` keeps it. Its names in the report start with ``head.``.

    Args:
        export: export of the backbone.
        head: state dict of the head; empty if there is none.
        format_: one of `FORMATS`.
    """
    names = [f"head.{name}" for name in head]
    if format_ != "segloc":
        return dataclasses.replace(export, left_out=export.left_out | dict.fromkeys(names, NO_HEAD))
    return dataclasses.replace(export, head=dict(head), matched=[*export.matched, *names])


def wrapped(export: Export, format_: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Wrap the state dict in the structure that the library's loader expects.

    Args:
        export: the tensors under their new names.
        format_: one of `FORMATS`.
        about: settings and iteration of the backbone; only the format ``segloc`` stores them.
    """
    state = export.state
    if format_ == "segloc":
        head = {"head": export.head} if export.head else {}
        return {"format_version": FORMAT_VERSION, "kind": "backbone", **about, "backbone": state, **head}
    if format_.startswith("detectron2"):
        # With these heuristics the checkpointer matches names under any prefix, such as a detector's "backbone.".
        return {"model": state, "__author__": "segloc", "matching_heuristics": True}
    if format_ == "mmdet":
        return {"state_dict": state, "meta": {}}
    return state


def _detectron2_resnet() -> list[Rule]:
    rules = [
        Rule(r"body\.conv1\.weight", "bottom_up.stem.conv1.weight"),
        Rule(r"body\.bn1\.(\w+)", r"bottom_up.stem.conv1.norm.\1"),
    ]
    for layer in range(1, 5):
        here, there = rf"body\.layer{layer}\.(\d+)\.", rf"bottom_up.res{layer + 1}.\1."
        rules += [
            Rule(here + r"conv(\d)\.weight", there + r"conv\2.weight"),
            Rule(here + r"bn(\d)\.(\w+)", there + r"conv\2.norm.\3"),
            Rule(here + r"downsample\.0\.weight", there + "shortcut.weight"),
            Rule(here + r"downsample\.1\.(\w+)", there + r"shortcut.norm.\2"),
        ]
    return rules


def _torchvision_resnet(format_: str, norm: str) -> list[Rule]:
    """Return rules for torchvision's names; timm and mmdet have other prefixes, mmdet also calls group norm gn."""
    prefix = {"torchvision": "body.", "timm": "", "mmdet": "backbone."}[format_]
    normed = "gn" if format_ == "mmdet" and norm == "gn" else "bn"
    block = r"(layer\d\.\d+)\."
    return [
        Rule(r"body\.conv1\.weight", prefix + "conv1.weight"),
        Rule(r"body\.bn1\.(\w+)", prefix + normed + r"1.\1"),
        Rule(rf"body\.{block}conv(\d)\.weight", prefix + r"\1.conv\2.weight"),
        Rule(rf"body\.{block}bn(\d)\.(\w+)", prefix + rf"\1.{normed}\2.\3"),
        Rule(rf"body\.{block}downsample\.(\d)\.(\w+)", prefix + r"\1.downsample.\2.\3"),
    ]


def _fpn(format_: str) -> list[Rule]:
    if format_ == "timm":
        return [Rule(r"fpn\..+", None, NO_FPN)]
    if format_ == "torchvision":
        return [Rule(r"(fpn\..+)", r"\1")]
    rules = []
    for level in range(4):
        inner, outer = {
            "detectron2": (f"fpn_lateral{level + 2}", f"fpn_output{level + 2}"),
            "mmdet": (f"neck.lateral_convs.{level}.conv", f"neck.fpn_convs.{level}.conv"),
        }[format_]
        rules.append(Rule(rf"fpn\.inner_blocks\.{level}\.0\.(\w+)", inner + r".\1"))
        rules.append(Rule(rf"fpn\.layer_blocks\.{level}\.0\.(\w+)", outer + r".\1"))
    return rules
