"""What an experiment's recipe may say: starts x protocols x seeds, and whether the starts are probed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from segloc.common.cli import split_override
from segloc.common.errors import InputError, one_line, unknown_key
from segloc.settings.pretraining import MAX_SEED, from_dict

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Stands where the name of a protocol does in the cells that probe.
PROBE = "probe"


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A pretraining that starts may use.

    Attributes:
        shards: ``--shards``.
        config: ``--config``, a recipe of detectron_configs/pretrain; left out, the recommended ResNet-101 recipe.
        overrides: ``key=value`` settings of it.
        seed: left out, every seed of the experiment is pretrained by itself, so that the spread over seeds covers the
            pretraining too; given, all seeds share one pretraining of this seed.
        processes: ``--processes``.
    """

    shards: str = ""
    config: str = ""
    overrides: list = dataclasses.field(default_factory=list)  # type: ignore[type-arg]
    seed: int | None = None
    processes: int = 1


@dataclasses.dataclass(frozen=True)
class Start:
    """Where fine-tuning starts: ``weights`` or ``pretraining``.

    Attributes:
        weights: ``random``, ``imagenet`` or a path; see ``segloc.finetune --weights``.
        pretraining: name of one of the pretrainings.
        insert_bn: put batch norm into the pretraining's result first (``segloc.export --insert-bn``).
        overrides: ``key=value`` settings of the fine-tuning recipe that these weights need.
    """

    weights: str = ""
    pretraining: str = ""
    insert_bn: bool = False
    overrides: list = dataclasses.field(default_factory=list)  # type: ignore[type-arg]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How it is fine-tuned.

    Attributes:
        config: ``--config``, a recipe of detectron_configs/finetune.
        overrides: ``key=value`` settings of it.
        starts: names of the starts it is for; left out, all.
    """

    config: str = ""
    overrides: list = dataclasses.field(default_factory=list)  # type: ignore[type-arg]
    starts: list = dataclasses.field(default_factory=list)  # type: ignore[type-arg]


@dataclasses.dataclass(frozen=True)
class Probe:
    """How the starts are probed; see ``segloc.probe``.

    Attributes:
        shards: ``--shards``; the same for all starts, best of items that no pretraining has seen.
        config: ``--config``, a recipe of detectron_configs/pretrain whose network random and imagenet starts have; left
            out, the recommended ResNet-101 recipe.
        overrides: ``key=value`` settings of it.
        starts: names of the starts to probe; left out, all.
        train: ``--train``, views to learn from.
        test: ``--test``, views to test on.
        image_size: ``--image-size``, pixels.
    """

    shards: str = ""
    config: str = ""
    overrides: list = dataclasses.field(default_factory=list)  # type: ignore[type-arg]
    starts: list = dataclasses.field(default_factory=list)  # type: ignore[type-arg]
    train: int = 2000
    test: int = 1000
    image_size: int = 500


# What an entry of the recipe cannot do without.
NEEDED: dict[type, str] = {Pretraining: "shards", Protocol: "config", Probe: "shards"}


@dataclasses.dataclass(frozen=True)
class _Fields:
    """The recipe's own keys, before their content is checked."""

    title: str = "SegLoc experiment"
    data: str = ""
    seeds: list = dataclasses.field(default_factory=lambda: [0, 1, 2])  # type: ignore[type-arg]
    pretrainings: dict = dataclasses.field(default_factory=dict)  # type: ignore[type-arg]
    starts: dict = dataclasses.field(default_factory=dict)  # type: ignore[type-arg]
    protocols: dict = dataclasses.field(default_factory=dict)  # type: ignore[type-arg]
    probe: dict | None = None  # type: ignore[type-arg]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A grid of fine-tuning runs and probes.

    Attributes:
        title: headline of the report.
        data: ``--data``, a PIDray folder; empty leaves it to the protocols' recipes.
        seeds: one run of every start and protocol each.
        pretrainings: by name.
        starts: by name.
        protocols: by name.
        probe: how starts are probed; None if they are not.
    """

    title: str
    data: str
    seeds: tuple[int, ...]
    pretrainings: dict[str, Pretraining]
    starts: dict[str, Start]
    protocols: dict[str, Protocol]
    probe: Probe | None = None


Entry = TypeVar("Entry", Pretraining, Start, Protocol, Probe)


def read(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read a recipe and change it.

    Args:
        path: YAML file.
        overrides: ``key=value`` with a dotted key, such as ``seeds=[0]`` or ``starts.segloc.insert_bn=true``.

    Raises:
        InputError: it cannot be read, has a key that does not exist, or says what cannot be.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such recipe")
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({one_line(error)})") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: not a mapping of settings")
    for override in overrides:
        _set(raw, override)
    fields = from_dict(_Fields, raw, str(path))
    seeds = _seeds(fields.seeds, f"{path}: seeds")
    pretrainings = _entries(Pretraining, fields.pretrainings, f"{path}: pretrainings", ("seed",))
    starts = _starts(fields, str(path))
    protocols = _entries(Protocol, fields.protocols, f"{path}: protocols", ("train.seed",))
    for name, protocol in protocols.items():
        _check_starts(protocol.starts, starts, f"{path}: protocols: {name}: starts")
    if PROBE in protocols:
        raise InputError(f"{path}: protocols: {PROBE} is what cells that probe are called; choose another name")
    probe = None if fields.probe is None else _probe(fields.probe, starts, f"{path}: probe")
    return Experiment(fields.title, fields.data, seeds, pretrainings, starts, protocols, probe)


def _starts(fields: _Fields, path: str) -> dict[str, Start]:
    starts = _entries(Start, fields.starts, f"{path}: starts", ("train.seed",))
    if not starts:
        raise InputError(f"{path}: starts names none, so there is nothing to run")
    if not fields.protocols and fields.probe is None:
        raise InputError(f"{path}: protocols names none and there is no probe, so there is nothing to run")
    for name, start in starts.items():
        where = f"{path}: starts: {name}"
        if bool(start.weights) == bool(start.pretraining):
            raise InputError(f"{where}: give weights (random, imagenet or a path) or pretraining, one of them")
        if start.pretraining and start.pretraining not in fields.pretrainings:
            raise unknown_key(start.pretraining, fields.pretrainings, f"{where}: pretraining")
        if start.insert_bn and not start.pretraining:
            raise InputError(f"{where}: insert_bn needs a pretraining, whose shards it measures on")
    return starts


def _probe(raw: dict[str, Any], starts: dict[str, Start], where: str) -> Probe:
    probe = _entry(Probe, raw, where, ("seed",))
    _check_starts(probe.starts, starts, f"{where}: starts")
    for name in ("train", "test", "image_size"):
        if getattr(probe, name) < 1:
            raise InputError(f"{where}: {name} is {getattr(probe, name)}, it must be at least 1")
    return probe


def _check_starts(names: list[Any], starts: dict[str, Start], where: str) -> None:
    for name in names:
        if not isinstance(name, str) or name not in starts:
            raise unknown_key(str(name), starts, where)


def _entries(cls: type[Entry], raw: dict[Any, Any], where: str, ours: Sequence[str]) -> dict[str, Entry]:
    """Read named entries; for `ours` see `_entry`."""
    entries = {}
    for name, content in raw.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(f"{where}: {str(name)!r} cannot name a folder; use letters, digits, - and _")
        if not isinstance(content, dict):
            raise InputError(f"{where}: {name}: expected a mapping, got {content!r}")
        entry = _entry(cls, content, f"{where}: {name}", ours)
        if isinstance(entry, Pretraining) and entry.processes < 1:
            raise InputError(f"{where}: {name}: processes is {entry.processes}, it must be at least 1")
        entries[name] = entry
    return entries


def _entry(cls: type[Entry], raw: dict[str, Any], where: str, ours: Sequence[str]) -> Entry:
    """Read an entry; `ours` are the settings that the experiment itself gives, which no override may."""
    entry = from_dict(cls, raw, where)
    for override in entry.overrides:
        if not isinstance(override, str):
            raise InputError(f"{where}: overrides: expected key=value, got {override!r}")
        if split_override(override)[0] in ours:
            raise InputError(f"{where}: overrides: {override!r}: the experiment's seeds set the seed")
    if cls in NEEDED and not getattr(entry, NEEDED[cls]):
        raise InputError(f"{where}: {NEEDED[cls]} is not set")
    return entry


def _seeds(raw: list[Any], where: str) -> tuple[int, ...]:
    for seed in raw:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
            raise InputError(f"{where}: {seed!r} is no seed (a whole number from 0 to {MAX_SEED})")
    if not raw or len(set(raw)) != len(raw):
        raise InputError(f"{where}: expected one or more different numbers, got {raw!r}")
    return tuple(raw)


def _set(raw: dict[str, Any], override: str) -> None:
    """Change a setting in place; the value is read as YAML."""
    key, text = split_override(override)
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise unknown_key(key, _keys(raw), "override")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{override!r}: the value cannot be read") from error


def _keys(raw: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in raw.items():
        keys += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return keys
