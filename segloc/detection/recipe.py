"""What a fine-tuning recipe is made of: a model, its data, the optimiser and the length of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segloc.common.errors import InputError
from segloc.detection.detector import HeadSettings, detector, engine_name
from segloc.models.backbone import SegLocBackbone
from segloc.settings import lazy
from segloc.settings.finetuning import DataSettings, OptimSettings, TrainSettings

SECTIONS: dict[str, Callable[..., Any]] = {
    "model": detector,
    "data": DataSettings,
    "optim": OptimSettings,
    "train": TrainSettings,
}


def read(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a recipe file and change it.

    Raises:
        InputError: it cannot be read, or it or an override has a key that does not exist.
    """
    return _finish(lazy.load(path), overrides, str(path))


def data_overrides(root: str | None) -> list[str]:
    """The overrides ``--data`` stands for: that PIDray folder and no other data the recipe may name."""
    return [f"data.root={root}", "data.train=[]", "data.tests=[]"] if root else []


def parse(text: str, overrides: Sequence[str], where: str) -> DictConfig:
    """Read the recipe inside a checkpoint and change it.

    Raises:
        InputError: as in `read`, or it would call something that is no part of a recipe.
    """
    targets = [*SECTIONS.values(), SegLocBackbone, HeadSettings]
    return _finish(lazy.from_yaml(text, targets, where), overrides, where)


def completed(text: str, where: str) -> str:
    """Return the recipe inside a checkpoint with the defaults of settings that have been added since.

    Raises:
        InputError: as in `parse`.
    """
    return lazy.to_yaml(parse(text, [], where))


def settle(config: DictConfig, classes: Sequence[str]) -> None:
    """Fix, in place, what depends on the data and the machine: the number of classes and the engine.

    Raises:
        InputError: the recipe's number of classes is not the data's, or its engine is not to be had.
    """
    if config.model.num_classes not in (0, len(classes)):
        raise InputError(
            f"the annotations have {len(classes)} categories, but model.num_classes is {config.model.num_classes}; "
            "leave it at 0 to take the annotations' number"
        )
    config.model.num_classes = len(classes)
    config.model.engine = engine_name(config.model.engine)
    optim = settings(config)[1]
    if config.model.backbone.sda_norm == "bn" and config.model.backbone.attention and optim.per_pass < 2:
        name = "micro_batch" if optim.micro_batch else "batch"
        raise InputError(f"model.backbone.sda_norm=bn needs optim.{name} of at least 2; use sda_norm=gn or ln")


def settings(config: DictConfig) -> tuple[DataSettings, OptimSettings, TrainSettings]:
    """Build the settings of everything but the model.

    Raises:
        InputError: a value of the wrong type.
    """
    data, optim, train = (lazy.instantiate(config[name], name) for name in ("data", "optim", "train"))
    return data, optim, train


def _finish(config: DictConfig, overrides: Sequence[str], where: str) -> DictConfig:
    lazy.complete(config, SECTIONS, where)
    lazy.apply_overrides(config, overrides)
    return config
