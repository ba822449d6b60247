"""Interface of the detection engines: losses in training, detections with masks in testing.

``detectron2`` is the Cascade Mask R-CNN of SDANet. ``torchvision`` is the stand-in for machines without Detectron2: a
Mask R-CNN on the same backbone, data and evaluation. Its metrics are not comparable with those of ``detectron2``.

To add an engine, write a module ``engine_NAME.py`` beside this one and add NAME to
`segloc.settings.finetuning.ENGINES`. The module defines ``build(backbone, heads, num_classes)``, which returns a
`Detector` including its losses. Importing the module may raise ImportError if its library is missing.
The detector draws only from torch's global generator, which it seeds for each image: see `segloc.detection.sampling`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from segloc.common.errors import InputError
from segloc.detection.data import Example
from segloc.models.backbone import LEVELS, STRIDES, SegLocBackbone
from segloc.settings.finetuning import ENGINES, STAND_IN, ModelSettings

POOL_LEVELS, POOL_SCALES = LEVELS[:4], [1 / stride for stride in STRIDES[:4]]  # only anchors use p6
SAMPLING_RATIO = 2


@dataclasses.dataclass(frozen=True)
class Detections:
    """The n detections of one image, by descending score.

    Attributes:
        boxes: [n, 4] float32, x0 y0 x1 y1 in pixels of the original image.
        scores: [n] float32 in 0..1.
        classes: [n] int64, 0-based.
        masks: n compressed COCO RLEs of the original image's size.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: list[dict[str, Any]]


class Detector(nn.Module):
    """Base class of the engines: a detector on a `SegLocBackbone`.

    Args:
        net: the engine's own model.

    Attributes:
        engine: name of the engine.
    """

    engine: str

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    @property
    def backbone(self) -> SegLocBackbone:
        """The detector's backbone."""
        raise NotImplementedError

    @property
    def box_layers(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """The two fully connected layers of each box head; the cascade has three heads, the stand-in one."""
        raise NotImplementedError

    def forward(self, batch: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return the weighted losses by name; the total loss is their sum. Training mode only."""
        raise NotImplementedError

    def predict(self, image: torch.Tensor, size: tuple[int, int]) -> Detections:
        """Detect in one image.

        Args:
            image: [3, h, w] uint8 RGB, scaled as in training.
            size: (height, width) in pixels of the original image.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.net.parameters()).device


def new_detector(model: ModelSettings) -> Detector:
    """Build a detector on a new backbone and freeze only the parts that the settings name.

    Raises:
        InputError: the engine is unknown or not installed.
    """
    backbone = SegLocBackbone(**dataclasses.asdict(model.backbone))
    name = engine_name(model.engine)
    backbone.freeze(model.frozen, model.fixed_statistics)
    built: Detector = _module(name).build(backbone, model.heads, model.num_classes)
    assert built.engine == name
    refuse_frozen(built)
    return built


def refuse_frozen(built: Detector) -> None:
    """Assert that nothing is frozen against the recipe, which would cripple networks without ImageNet weights."""
    intended = {id(parameter) for name, parameter in built.backbone.named_parameters() if name in built.backbone.frozen}
    stray = [name for name, x in built.named_parameters() if not x.requires_grad and id(x) not in intended]
    stray += [name for name, part in built.named_modules() if "Frozen" in type(part).__name__]
    assert not stray, f"frozen parts: {', '.join(stray)}"


def engine_name(choice: str) -> str:
    """Return the engine's name for ``model.engine``; ``auto`` is the first of `ENGINES` that is installed.

    Raises:
        InputError: the engine is unknown or not installed.
    """
    if choice not in ("auto", *ENGINES):
        raise InputError(f"model.engine is {choice!r}, not one of auto, {', '.join(ENGINES)}")
    for engine in ENGINES if choice == "auto" else (choice,):
        try:
            _module(engine)
        except ImportError as error:
            if (error.name or "").startswith("segloc"):  # a bug in segloc, not a missing library
                raise
        else:
            return engine
    raise InputError(f"engine {choice} is not installed; README.md explains the installation")


def engine_label(engine: str) -> str:
    """Return the display name of an engine; the stand-in is marked."""
    return f"{engine} (stand-in)" if engine == STAND_IN else engine


def _module(engine: str) -> ModuleType:
    return importlib.import_module(f"segloc.detection.engine_{engine}")
