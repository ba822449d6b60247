"""An experiment's recipe: initialisations x protocols x seeds, and whether the initialisations are probed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from segloc.common.cli import split_override
from segloc.common.errors import InputError, unknown_key
from segloc.settings.fields import MAX_SEED, check_limits, setting

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Stands where the name of a protocol does in the cells that probe.
PROBE = "probe"


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A pretraining that initialisations may use."""

    shards: str = setting("", "``--shards``; needed.")
    config: str = setting(
        "", "``--config``, a recipe of detectron_configs/pretrain; empty is the recommended ResNet-101 recipe."
    )
    overrides: tuple[str, ...] = setting((), "``key=value`` settings of it.")
    seed: int | None = setting(
        None,
        "Empty: every seed of the experiment has its own pretraining, so that the spread over seeds covers the "
        "pretraining too. Given: all seeds share one pretraining of this seed.",
    )
    processes: int = setting(1, "``--processes``.", least=1)


@dataclasses.dataclass(frozen=True)
class Start:
    """Where fine-tuning starts: ``weights`` or ``pretraining``."""

    weights: str = setting("", "``random``, ``imagenet`` or a path; see ``segloc.finetune --weights``.")
    pretraining: str = setting("", "Name of one of the pretrainings.")
    insert_bn: bool = setting(
        False, "Whether batch norm is put into the pretraining's result first (``segloc.export --insert-bn``)."
    )
    overrides: tuple[str, ...] = setting((), "``key=value`` settings of the fine-tuning recipe that the weights need.")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How it is fine-tuned."""

    config: str = setting("", "``--config``, a recipe of detectron_configs/finetune; needed.")
    overrides: tuple[str, ...] = setting((), "``key=value`` settings of it.")
    starts: tuple[str, ...] = setting((), "Names of the initialisations it is for; empty is all.")


@dataclasses.dataclass(frozen=True)
class Probe:
    """How the initialisations are probed; see ``segloc.probe``."""

    shards: str = setting("", "``--shards``; the same for all, best of items that no pretraining has seen; needed.")
    config: str = setting(
        "",
        "``--config``, a recipe of detectron_configs/pretrain whose network random and imagenet have; empty is the "
        "recommended ResNet-101 recipe.",
    )
    overrides: tuple[str, ...] = setting((), "``key=value`` settings of it.")
    starts: tuple[str, ...] = setting((), "Names of the initialisations to probe; empty is all.")
    train: int = setting(2000, "``--train``, views to learn from.", least=1)
    test: int = setting(1000, "``--test``, views to test on.", least=1)
    image_size: int = setting(500, "``--image-size``, pixels.", least=1)


@dataclasses.dataclass(frozen=True)
class Compare:
    """What the page of a study compares beside random initialisation (``benchmarks.study``)."""

    pairs: dict[str, str] = setting({}, "Initialisation: the one that it differs from in one setting.")
    lengths: tuple[str, ...] = setting((), "Initialisations of the same recipe, by number of pretraining steps.")
    pool: str = setting("", "Studies with the same name here differ in seeds only and are also shown together.")
    superseded: bool = setting(False, "Whether the study goes to the page's appendix.")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A grid of fine-tuning runs and probes."""

    title: str = setting("SegLoc experiment", "Headline of the report.")
    data: str = setting("", "``--data``, a PIDray folder; empty leaves it to the protocols' recipes.")
    seeds: tuple[int, ...] = setting((0, 1, 2), "One run of every initialisation and protocol for each.")
    pretrainings: dict[str, Pretraining] = setting({}, "Pretrainings by name.")
    starts: dict[str, Start] = setting({}, "Initialisations by name.")
    protocols: dict[str, Protocol] = setting({}, "Protocols by name.")
    probe: Probe | None = setting(None, "How the initialisations are probed; empty: they are not.")
    compare: Compare = setting(Compare(), "What the page of a study compares.")

    def __post_init__(self) -> None:
        if any(not 0 <= seed <= MAX_SEED for seed in self.seeds):
            raise InputError(f"seeds: expected whole numbers from 0 to {MAX_SEED}, got {list(self.seeds)}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"seeds: expected one or more different numbers, got {list(self.seeds)}")
        for name, pretraining in self.pretrainings.items():
            _check_entry("pretrainings", name, pretraining, "shards", "seed")
        for name, start in self.starts.items():
            _check_entry("starts", name, start, None, "train.seed")
            self._check_start(f"starts.{name}", start)
        if not self.starts:
            raise InputError("starts names none, so there is nothing to run")
        if not self.protocols and self.probe is None:
            raise InputError("protocols names none and there is no probe, so there is nothing to run")
        for name, protocol in self.protocols.items():
            _check_entry("protocols", name, protocol, "config", "train.seed")
            self._check_names(protocol.starts, f"protocols.{name}.starts")
        if PROBE in self.protocols:
            raise InputError(f"protocols: {PROBE} is what cells that probe are called; choose another name")
        if self.probe is not None:
            _check_entry("", PROBE, self.probe, "shards", "seed")
            self._check_names(self.probe.starts, "probe.starts")
        self._check_names([*self.compare.pairs, *self.compare.pairs.values()], "compare.pairs")
        self._check_names(self.compare.lengths, "compare.lengths")

    def _check_start(self, key: str, start: Start) -> None:
        if bool(start.weights) == bool(start.pretraining):
            raise InputError(f"{key}: give weights (random, imagenet or a path) or pretraining, one of them")
        if start.pretraining and start.pretraining not in self.pretrainings:
            raise unknown_key(start.pretraining, self.pretrainings, f"{key}.pretraining")
        if start.insert_bn and not start.pretraining:
            raise InputError(f"{key}: insert_bn needs a pretraining, whose shards it measures on")

    def _check_names(self, names: Iterable[str], key: str) -> None:
        for name in names:
            if name not in self.starts:
                raise unknown_key(name, self.starts, key)


def _check_entry(
    section: str, name: object, entry: Pretraining | Start | Protocol | Probe, needed: str | None, seed: str
) -> None:
    """Check an entry; `seed` is the setting that the experiment's seeds give, which no override may."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"{section}: {str(name)!r} cannot name a folder; use letters, digits, - and _")
    key = f"{section}.{name}" if section else name
    check_limits(entry, f"{key}.")
    for override in entry.overrides:
        if split_override(override)[0] == seed:
            raise InputError(f"{key}.overrides: {override!r}: the experiment's seeds set the seed")
    if needed and not getattr(entry, needed):
        raise InputError(f"{key}.{needed} is not set")
