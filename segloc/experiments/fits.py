"""Checks that the recipes of a cell fit together, before its pretraining runs for days.

Fine-tuning checks the same on the weights themselves (`segloc.detection.weights`), which exist only then.
"""

from __future__ import annotations

from segloc.common.errors import InputError
from segloc.contrast.choices import micro_batches
from segloc.models.initial_weights import BACKBONE_SETTINGS, IMAGENET, RANDOM, Misfit, StoredBackbone, check_start
from segloc.settings.experiments import Experiment, Start
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.pretraining import PretrainConfig, load_config


def check_pretraining(experiment: Experiment, start: Start) -> None:
    """Check that the pretraining of a start can run on its processes, and that batch norm can be inserted if it has to.

    Raises:
        InputError: it cannot.
    """
    config, key = _pretraining(experiment, start)
    processes = experiment.pretrainings[start.pretraining].processes
    try:
        micro_batches(config, processes)
    except InputError as error:
        raise type(error)(f"{key}.processes is {processes}, but {error}") from error
    if start.insert_bn and config.model.norm != "none":
        raise InputError(
            f"insert_bn needs a pretraining with model.norm=none, but {key} has model.norm={config.model.norm}; remove "
            "insert_bn"
        )


def check_cell(experiment: Experiment, start: Start, config: FinetuneConfig, processes: int) -> None:
    """Check that fine-tuning can load what a start gives, and run on its processes.

    Args:
        experiment: has the pretraining of the start.
        start: the initial weights.
        config: the fine-tuning recipe of the cell.
        processes: number of its processes.

    Raises:
        InputError: it cannot.
    """
    try:
        config.resolved([""] * (config.model.num_classes or 1), config.model.engine, processes)
    except InputError as error:
        raise type(error)(f"processes is {processes}, but {error}") from error
    if start.weights:
        _check_weights(start.weights, config)
        return
    pretraining, key = _pretraining(experiment, start)
    made = {name: getattr(pretraining.model, name) for name in BACKBONE_SETTINGS}
    if start.insert_bn:
        made["norm"] = "bn"
    try:
        check_start(StoredBackbone(key, made), vars(config.model.backbone), "model.backbone", config.train.unmatched)
    except Misfit as error:
        raise Misfit(f"{error}, or train.unmatched=start_anew") from error
    if config.train.box_heads == "pretrained":
        _check_box_heads(pretraining, config, key)


def _pretraining(experiment: Experiment, start: Start) -> tuple[PretrainConfig, str]:
    """Return the recipe of the pretraining of a start, and the pretraining's dotted key."""
    about = experiment.pretrainings[start.pretraining]
    return load_config(about.config or None, about.overrides), f"pretrainings.{start.pretraining}"


def _check_weights(weights: str, config: FinetuneConfig) -> None:
    model, train = config.model, config.train
    if weights in (RANDOM, IMAGENET) and train.box_heads == "pretrained":
        raise InputError(f"train.box_heads=pretrained needs a pretraining, but weights is {weights}")
    if weights == RANDOM and (model.frozen or model.fixed_statistics):
        name = f"frozen={model.frozen}" if model.frozen else "fixed_statistics=true"
        raise InputError(f"model.{name} would keep random weights, but weights is {RANDOM}; use a fair protocol")


def _check_box_heads(pretraining: PretrainConfig, config: FinetuneConfig, key: str) -> None:
    head, needs = pretraining.head, "train.box_heads=pretrained needs"
    made, wanted = pretraining.model.fpn_channels, config.model.backbone.fpn_channels
    width = config.model.heads.fc_dim
    if head.kind != "box2fc":
        raise InputError(f"{needs} head.kind=box2fc, but {key} has head.kind={head.kind}")
    if head.fc_dim != width:
        raise InputError(
            f"{needs} layers of one width, but model.heads.fc_dim is {width} and {key} has head.fc_dim={head.fc_dim}"
        )
    if made != wanted:
        raise InputError(
            f"{needs} as many channels, but model.backbone.fpn_channels is {wanted} and {key} has "
            f"model.fpn_channels={made}"
        )
