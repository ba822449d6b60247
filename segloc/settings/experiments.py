"""Settings of an experiment: a grid of initialisations x protocols x seeds, and an optional probe."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from segloc.common.cli import split_override
from segloc.common.contract import MOST_PAIRS
from segloc.common.errors import InputError, unknown_key
from segloc.settings.fields import MAX_IMAGE_SIZE_PX, MAX_SEED, MAX_THREADS, check_limits, setting

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Used in place of a protocol's name for the cells that probe.
PROBE = "probe"
MAX_VIEWS = 10_000_000  # of a probe


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the index of the shards must say of how they were made; what is empty may be anything."""

    blend: str = setting("", "``--blend`` of pipeline.synthesize.")
    region_mode: str = setting("", "``--mode`` of pipeline.regions.")
    positives: str = setting(
        "",
        "``class``: a pair has two items of one class; ``instance``: two crops of one scan (pipeline.crops).",
        choices=("", "class", "instance"),
    )
    on_matter: float | None = setting(None, "``--on-matter``.", least=0, most=1)
    occluded: float | None = setting(None, "``--occluded``.", least=0, most=1)
    coefficient_range: tuple[float, ...] = setting((), "``--coefficients``, ``[low, high]``.", least=0)
    scale_range: tuple[float, ...] = setting((), "``--scale``, ``[low, high]``.", least=0)
    width: int | None = setting(None, "``--width``, pixels.", least=1, most=MAX_IMAGE_SIZE_PX)
    pairs: int | None = setting(None, "``--pairs``.", least=1, most=MOST_PAIRS)
    make: str = setting("", "Command that makes such shards, for the message.")


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A pretraining run that initialisations can refer to."""

    shards: str = setting("", "``--shards``; required.")
    config: str = setting(
        "", "``--config``, a recipe in detectron_configs/pretrain; empty: the recommended ResNet-101 recipe."
    )
    overrides: tuple[str, ...] = setting((), "``key=value`` overrides of the recipe.")
    seed: int | None = setting(
        None,
        "Empty: each seed of the experiment has its own pretraining, so the spread over seeds includes the "
        "pretraining. A number: all seeds share one pretraining with this seed.",
        least=0,
        most=MAX_SEED,
    )
    processes: int = setting(1, "``--processes``; the job takes as many GPUs at once.", least=1, most=MAX_THREADS)
    needs: Needs = Needs()


@dataclasses.dataclass(frozen=True)
class Start:
    """The initialisation of fine-tuning: either ``weights`` or ``pretraining``."""

    weights: str = setting("", "``random``, ``imagenet`` or a path; see ``segloc.finetune --weights``.")
    pretraining: str = setting("", "Name of an entry of ``pretrainings``.")
    insert_bn: bool = setting(
        False, "Insert batch norm into the pretrained backbone first (``segloc.export --insert-bn``)."
    )
    overrides: tuple[str, ...] = setting((), "``key=value`` overrides of the fine-tuning recipe for these weights.")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A fine-tuning protocol."""

    config: str = setting("", "``--config``, a recipe in detectron_configs/finetune; required.")
    overrides: tuple[str, ...] = setting((), "``key=value`` overrides of the recipe.")
    starts: tuple[str, ...] = setting((), "Names of the initialisations to fine-tune; empty: all.")
    processes: int = setting(
        1,
        "``--processes`` of fine-tuning and evaluation; the job takes as many GPUs at once.",
        least=1,
        most=MAX_THREADS,
    )


@dataclasses.dataclass(frozen=True)
class Probe:
    """Settings of the probe; see ``segloc.probe``."""

    shards: str = setting("", "``--shards``; required. Best of items that no pretraining has seen.")
    config: str = setting(
        "",
        "``--config``, a recipe in detectron_configs/pretrain that defines the network of random and imagenet; empty: "
        "the recommended ResNet-101 recipe.",
    )
    overrides: tuple[str, ...] = setting((), "``key=value`` overrides of the recipe.")
    starts: tuple[str, ...] = setting((), "Names of the initialisations to probe; empty: all.")
    train: int = setting(2000, "``--train``, number of training views.", least=1, most=MAX_VIEWS)
    test: int = setting(1000, "``--test``, number of test views.", least=1, most=MAX_VIEWS)
    image_size: int = setting(500, "``--image-size``, pixels.", least=1, most=MAX_IMAGE_SIZE_PX)


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

    title: str = setting("SegLoc experiment", "Title of the report.")
    data: str = setting("", "``--data``, a PIDray folder; empty: the protocols' recipes set it.")
    seeds: tuple[int, ...] = setting(
        (0, 1, 2), "Seeds; each initialisation and protocol is run once per seed.", least=0, most=MAX_SEED
    )
    pretrainings: dict[str, Pretraining] = setting({}, "Pretrainings by name.")
    starts: dict[str, Start] = setting({}, "Initialisations by name.")
    protocols: dict[str, Protocol] = setting({}, "Protocols by name.")
    probe: Probe | None = setting(None, "Probe of the initialisations; empty: no probe.")
    compare: Compare = setting(Compare(), "What the page of a study compares.")

    def __post_init__(self) -> None:
        check_limits(self)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"seeds: expected one or more different numbers, got {list(self.seeds)}")
        for name, pretraining in self.pretrainings.items():
            _check_entry("pretrainings", name, pretraining, "shards", "seed")
        for name, start in self.starts.items():
            _check_entry("starts", name, start, None, "train.seed")
            self._check_start(f"starts.{name}", start)
        if not self.starts:
            raise InputError("starts is empty; add at least one initialisation")
        if not self.protocols and self.probe is None:
            raise InputError("protocols is empty and there is no probe; add a protocol or a probe")
        for name, protocol in self.protocols.items():
            _check_entry("protocols", name, protocol, "config", "train.seed")
            self._check_names(protocol.starts, f"protocols.{name}.starts")
        if PROBE in self.protocols:
            raise InputError(f"protocols: the name {PROBE!r} is reserved for the probe; choose another name")
        if self.probe is not None:
            _check_entry("", PROBE, self.probe, "shards", "seed")
            self._check_names(self.probe.starts, "probe.starts")
        self._check_names([*self.compare.pairs, *self.compare.pairs.values()], "compare.pairs")
        self._check_names(self.compare.lengths, "compare.lengths")

    def _check_start(self, key: str, start: Start) -> None:
        if bool(start.weights) == bool(start.pretraining):
            raise InputError(f"{key}: set either weights (random, imagenet or a path) or pretraining")
        if start.pretraining and start.pretraining not in self.pretrainings:
            raise unknown_key(start.pretraining, self.pretrainings, f"{key}.pretraining")
        if start.insert_bn and not start.pretraining:
            raise InputError(f"{key}: insert_bn needs a pretraining, because it measures on its shards")

    def _check_names(self, names: Iterable[str], key: str) -> None:
        for name in names:
            if name not in self.starts:
                raise unknown_key(name, self.starts, key)


def _check_entry(
    section: str, name: object, entry: Pretraining | Start | Protocol | Probe, needed: str | None, seed: str
) -> None:
    """Check an entry. `seed` is the key that the experiment's seeds set, so no override may set it."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"{section}: {str(name)!r} is not a valid folder name; use letters, digits, - and _")
    key = f"{section}.{name}" if section else name
    check_limits(entry, f"{key}.")
    for override in entry.overrides:
        if split_override(override)[0] == seed:
            raise InputError(f"{key}.overrides: {override!r} sets the seed; remove it, the experiment's seeds set it")
    if needed and not getattr(entry, needed):
        raise InputError(f"{key}.{needed} is not set")
