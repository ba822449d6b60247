"""Recognise networks of other libraries in a checkpoint, and say how to get a torchvision ResNet out of it.

Nothing is converted here. A ResNet that only has other names is taken out by a command that the message gives. A
network of another shape is named for what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

_FIRST = ("conv1.weight", "layer1.0.conv1.weight")
_LAST_STAGE = "layer4.0.conv1.weight"
# Tensor names that identify a torchvision ResNet.
RESNET_TENSORS = {*_FIRST, _LAST_STAGE}
# The children of a torchvision ResNet by number, as `torch.nn.Sequential(*resnet.children())` names them (lightly).
_CHILDREN = ("conv1", "bn1", "", "", "layer1", "layer2", "layer3", "layer4")
_NUMBERED = ("0.weight", "4.0.conv1.weight", "7.0.conv1.weight")
# Parts of a training that hold a second copy of the network: momentum, target and key encoders, and students.
_SECOND = re.compile(r"momentum|target|encoder_k|key|student", re.IGNORECASE)
_DEEPEST = 5  # levels of nested dicts in a checkpoint
_BLOCKS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
# Other networks by the end of a tensor's name, the most telling first.
_OTHERS = (
    (r"relative_position_bias_table", "a Swin transformer"),
    (r"(cls_token|attn\.qkv\.weight|attention\.query\.weight|self_attention\.in_proj_weight)", "a vision transformer"),
    (r"stem\.conv1\.(weight|norm\.weight)|res2\.0\.conv1\.weight", "a ResNet of Detectron2, whose tensors have other "
     "names; start from the torchvision ResNet that it was converted from"),
    (r"(stages\.\d+\.blocks\.\d+\.|downsample_layers\.\d+\.)\S*", "a ConvNeXt or RegNet"),
    (r"(conv_pw|conv_dw|depthwise_conv|expand_conv)\S*", "an EfficientNet or MobileNet"),
    (r"denseblock1\.denselayer1\.conv1\.weight", "a DenseNet"),
    (r"features\.0\.weight", "a VGG or AlexNet"),
)  # fmt: skip


class _Found(NamedTuple):
    """A dict of tensors inside a checkpoint; `place` is the Python expression of the keys that lead to it."""

    place: str
    tensors: dict[str, torch.Tensor]


def resnet_arch(tensors: Mapping[str, torch.Tensor]) -> str:
    """Name the architecture of a torchvision ResNet's tensors, such as ``resnet50``, or say what it is instead.

    Returns:
        A name of torchvision, or a sentence part that begins with ``a ``; empty if it is neither.
    """
    if any(re.search(r"^layer\d\.0\.(se|attn)\.", name) for name in tensors):
        return "a ResNet with squeeze-and-excitation"
    blocks = [len({n.split(".")[1] for n in tensors if n.startswith(f"layer{stage}.")}) for stage in range(1, 5)]
    is_deep = "layer1.0.conv3.weight" in tensors
    middle = tensors.get("layer1.0.conv2.weight")
    if is_deep and middle is not None and middle.dim() == 4 and middle.shape[:2] != (64, 64):
        grouped = middle.shape[0] != middle.shape[1]
        return "a ResNeXt, whose convolutions are grouped" if grouped else "a wide ResNet"
    return _BLOCKS.get(("bottleneck" if is_deep else "basic", tuple(blocks)), "")


def describe(content: Any, file: Path) -> str:
    """Say what a checkpoint holds that is neither ours nor a torchvision ResNet's state dict, and what to do.

    Args:
        content: what `torch.load` read.
        file: the file, for the command.

    Returns:
        A part of a sentence that begins with a semicolon; empty if it holds no known network.
    """
    parts = list(_parts(content))
    for found in sorted(parts, key=lambda part: bool(_SECOND.search(part.place))):
        if command := _command(found, file):
            return f"; it contains one, extract it with `{command}`"
    for found in parts:
        if kind := _kind(found.tensors):
            return f"; it is {kind}"
    for found in parts:
        if found.tensors:
            names = ", ".join([*found.tensors][:3])
            return f"; its tensors are called {names}, ..."
    return ""


def _parts(content: Any, place: str = "", depth: int = 0) -> Iterator[_Found]:
    """Yield the dicts of tensors in nested dicts, the outer ones first."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if tensors:
        yield _Found(place, tensors)
    for key, part in content.items():
        if isinstance(key, str):
            yield from _parts(part, f"{place}[{key!r}]", depth + 1)


def _command(found: _Found, file: Path) -> str:
    """Return the Python code that writes the torchvision ResNet among the tensors to a file; empty without one."""
    weights = f"torch.load({str(file)!r}){found.place}"
    for prefix in _prefixes(found.tensors, _LAST_STAGE):
        names = {name.removeprefix(prefix) for name in found.tensors if name.startswith(prefix)}
        # Without a prefix and at the top, the command would write the same file again.
        if names >= RESNET_TENSORS and (prefix or found.place):
            kept = f"k.removeprefix({prefix!r}): v for k, v in {weights}.items() if k.startswith({prefix!r})"
            return f"torch.save({{{kept}}}, 'resnet.pth')"
    for prefix in _prefixes(found.tensors, _NUMBERED[-1]):
        if all(prefix + name in found.tensors for name in _NUMBERED):
            named = (
                f"{list(_CHILDREN)!r}[int(i)] + '.' + r: v for k, v in {weights}.items() if k.startswith({prefix!r})"
            )
            numbers = f"for i, _, r in [k.removeprefix({prefix!r}).partition('.')] if i in [*'014567']"
            return f"torch.save({{{named} {numbers}}}, 'resnet.pth')"
    return ""


def _prefixes(tensors: Mapping[str, torch.Tensor], end: str) -> list[str]:
    """Beginnings of the names that end in `end`; second copies of a network come last."""
    found = [name.removesuffix(end) for name in tensors if name.endswith(end)]
    found = [prefix for prefix in found if not prefix or prefix.endswith(".")]
    return sorted(found, key=lambda prefix: bool(_SECOND.search(prefix)))


def _kind(tensors: Mapping[str, torch.Tensor]) -> str:
    """Describe a network that cannot be used; empty if it is unknown."""
    for prefix in ("", *_prefixes(tensors, _LAST_STAGE)):
        stem = tensors.get(f"{prefix}conv1.0.weight", tensors.get(f"{prefix}stem.0.weight"))
        if stem is not None and stem.dim() == 4:
            return (
                "a ResNet-C or ResNet-D (three convolutions in its stem, such as timm's resnet50d), which is not "
                "supported; use a ResNet of torchvision, such as timm's resnet50"
            )
    for pattern, kind in _OTHERS:
        if any(re.search(rf"(^|\.){pattern}$", name) for name in tensors):
            return kind if ";" in kind else f"{kind}, which is not supported; use a ResNet of torchvision"
    return ""
