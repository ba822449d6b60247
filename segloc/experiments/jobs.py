"""Jobs of an experiment: commands, folders and states.

A start is an entry of ``starts`` in the recipe: initial weights. A cell of the grid is a job that fine-tunes or
probes a start.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from segloc.common.errors import InputError
from segloc.common.files import write_json
from segloc.common.locks import locked
from segloc.common.parse import parse_json
from segloc.common.run_files import MODEL
from segloc.common.skips import MAX_SKIPPED, OPTION
from segloc.data.shard_folder import ShardFolder
from segloc.detection.data import evaluation_splits, train_split
from segloc.experiments.fits import check_cell, check_pretraining
from segloc.experiments.needs import check_shards
from segloc.models.initial_weights import IMAGENET, RANDOM, check_start, read_backbone, read_start
from segloc.reporting.run_results import EVALUATION
from segloc.settings.experiments import PROBE, Experiment, Pretraining, Probe, Protocol
from segloc.settings.finetuning import REFUSE, FinetuneConfig
from segloc.settings.loader import flat, load, to_yaml
from segloc.settings.pretraining import PretrainConfig, load_config
from segloc.training import checkpoint

PRETRAIN = "pretrain"  # folder of the pretrainings
WITH_BN = "with_bn.pth"
PROBED = "probe.json"
# Settings of a pretraining recipe that determine an untrained network.
NETWORK_SETTINGS = ("seed", "model", "head")


@dataclasses.dataclass(frozen=True)
class Step:
    """A segloc command.

    Attributes:
        name: of its log.
        arguments: the arguments of ``python -m``.
        makes: the file that exists once the command is done.
    """

    name: str
    arguments: tuple[str, ...]
    makes: Path

    def __str__(self) -> str:
        return shlex.join(["python", "-m", *self.arguments])


@dataclasses.dataclass(frozen=True)
class Job:
    """Steps that one process at a time runs in order.

    Attributes:
        name: path of the folder, relative to the experiment's folder; two jobs may share a folder.
        folder: output folder of the steps.
        steps: the job is finished when the file of the last step exists.
        settings: everything the result depends on, by dotted key, except the content of the data.
        check: raises InputError when an input of the job is missing.
        kind: jobs of one kind take about the same time.
        needs: jobs that must be finished first.
        processes: number of GPUs it uses at the same time.
    """

    name: str
    folder: Path
    steps: tuple[Step, ...]
    settings: dict[str, Any]
    check: Callable[[], object]
    kind: str
    needs: tuple[Job, ...] = ()
    processes: int = 1

    @property
    def probes(self) -> bool:
        """Whether the job is a cell that probes a start."""
        return self.steps[0].name == PROBE

    @property
    def finished(self) -> bool:
        """Whether the file of the last step exists."""
        return self.steps[-1].makes.is_file()

    @property
    def settled(self) -> bool:
        """Whether nothing is left to run: it is finished, and was not flawed when its commands were others."""
        if not self.finished:
            return False
        record = self.read()
        return not record.get("failure") or record.get("commands") == self.commands

    @property
    def commands(self) -> list[str]:
        """Command lines of the steps."""
        return [str(step) for step in self.steps]

    @property
    def record(self) -> Path:
        """File with the settings of the job."""
        return self.folder / f"{self.steps[0].name}.job.json"

    @property
    def seconds(self) -> float:
        """Time of its steps over all attempts; 0 if no record has it."""
        return float(sum(self.read().get("seconds", {}).values()))

    @property
    def stamp(self) -> int | None:
        """Modification time of the record in nanoseconds; None if there is no record."""
        return self.record.stat().st_mtime_ns if self.record.is_file() else None

    @property
    def lock(self) -> Path:
        """File that a process locks while it works on the job."""
        return self.folder / f"{self.steps[0].name}.lock"

    @property
    def chain(self) -> list[Job]:
        """All jobs it needs, directly or indirectly, in execution order, then the job itself."""
        return [*(other for need in self.needs for other in need.chain), self]

    def write(self, seconds: Mapping[str, float], failure: str = "") -> None:
        """Write the record: seconds of each step over all attempts, and the failure of the last one if there is one."""
        record = {"settings": self.settings, "commands": self.commands, "failure": failure, "seconds": dict(seconds)}
        write_json(self.record, record)

    def read(self) -> dict[str, Any]:
        """Read the record; empty if the file does not exist.

        Raises:
            InputError: the file is damaged.
        """
        if not self.record.is_file():
            return {}
        try:
            found = parse_json(self.record.read_bytes(), self.record)
            if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
                raise ValueError("it has no settings")
            seconds = found.get("seconds", {})
            if not isinstance(seconds, dict) or not all(type(value) in (int, float) for value in seconds.values()):
                raise ValueError("its seconds are not numbers by step")
        except ValueError as error:
            raise InputError(f"{self.record}: not the record of a job ({error}); remove {self.folder}") from error
        return found


def plan(experiment: Experiment, out: Path, max_skipped: float = MAX_SKIPPED) -> list[Job]:
    """List the cells in execution order: seed by seed, first the probes, which are cheap, then the protocols.

    `max_skipped` is passed to the commands that may skip inputs.

    Raises:
        InputError: a recipe or setting cannot be used, or two cells have the same name.
    """
    cells: dict[str, Job] = {}
    share = _option(OPTION, "" if max_skipped == MAX_SKIPPED else str(max_skipped))
    for seed in experiment.seeds:
        for start, protocol in _grid(experiment, seed):
            try:
                if protocol == PROBE:
                    cell = _probe_cell(experiment, out, start, seed, share)
                else:
                    cell = _cell(experiment, out, start, protocol, seed, share)
            except InputError as error:
                where = PROBE if protocol == PROBE else f"protocol {protocol}"
                raise type(error)(f"start {start}, {where}: {error}") from error
            if cell.name in cells:
                raise InputError(f"two cells have the name {cell.name}; rename a start or a protocol")
            cells[cell.name] = cell
    return list(cells.values())


def with_needs(cells: Sequence[Job]) -> list[Job]:
    """List cells and the jobs they need, each once, in execution order."""
    return list({job.name: job for cell in cells for job in cell.chain}.values())


def needed_jobs(cells: Sequence[Job]) -> list[Job]:
    """List cells and the jobs they need, as `with_needs`; without removed jobs that only finished cells needed."""
    wanted = {job.name for cell in cells for job in cell.chain if job.finished or not cell.finished}
    return [job for job in with_needs(cells) if job.name in wanted]


def cell_name(start: str, protocol: str, seed: int) -> str:
    """Name a cell; the protocol of a probing cell is `PROBE`."""
    return f"{start}-{protocol}-seed{seed}"


def changed(job: Job) -> str:
    """Describe how a job's settings differ from those its folder was made with; empty if equal or the folder is new.

    Raises:
        InputError: the record is damaged.
    """
    record = job.read()
    if not record:
        made = next((step.makes for step in job.steps if step.makes.exists()), None)
        return f"{made} has no record of an experiment" if made else ""
    before, now = record["settings"], json.loads(json.dumps(job.settings))
    missing = object()
    different = [key for key in {**before, **now} if before.get(key, missing) != now.get(key, missing)]
    if not different:
        return ""
    key = different[0]
    more = f" (and {len(different) - 1} more differences)" if len(different) > 1 else ""
    was, is_ = (repr(side[key]) if key in side else "not set" for side in (before, now))
    return f"{job.folder} was made with {key} {was}, the recipe now has {is_}{more}"


def state(job: Job) -> str:
    """Return the state of a job: finished, changed, running, failed, stopped (half-way) or waiting."""
    if changed(job):
        return "changed"
    if job.finished:
        return "finished"
    if job.lock.exists():
        with locked(job.lock, job.name, wait=False) as descriptor:
            if descriptor is None:
                return "running"
    record = job.read()
    return "failed" if record.get("failure") else "stopped" if record else "waiting"


def _grid(experiment: Experiment, seed: int) -> list[tuple[str, str]]:
    """List start and protocol of each cell of a seed."""
    probes: list[tuple[str, str]] = []
    if experiment.probe:
        starts = experiment.probe.starts or experiment.starts
        # Weights that are the same for all seeds are probed once; repeats would look like independent seeds.
        probes = [(start, PROBE) for start in starts if seed == experiment.seeds[0] or _has_seeds(experiment, start)]
    tuned = [(s, name) for name, about in experiment.protocols.items() for s in about.starts or experiment.starts]
    return [*probes, *tuned]


def _has_seeds(experiment: Experiment, start_name: str) -> bool:
    """Return whether the start has different weights for each seed."""
    start = experiment.starts[start_name]
    if start.pretraining:
        return experiment.pretrainings[start.pretraining].seed is None
    return start.weights in (RANDOM, IMAGENET)


def _weights(
    experiment: Experiment, out: Path, start_name: str, seed: int, share: list[str]
) -> tuple[str, tuple[Job, ...], dict[str, Any]]:
    """Return ``--weights`` of a start, the jobs that make them, and the settings of these jobs."""
    start = experiment.starts[start_name]
    if not start.pretraining:
        return start.weights, (), {}
    check_pretraining(experiment, start)
    need = _pretraining(experiment.pretrainings[start.pretraining], out, start.pretraining, seed, share)
    if start.insert_bn:
        need = _with_bn(need, share)
    settings = {f"pretraining.{key}": value for job in need.chain for key, value in job.settings.items()}
    return str(need.steps[-1].makes), (need,), settings


def _cell(experiment: Experiment, out: Path, start_name: str, protocol_name: str, seed: int, share: list[str]) -> Job:
    start, protocol = experiment.starts[start_name], experiment.protocols[protocol_name]
    name = cell_name(start_name, protocol_name, seed)
    folder = out / name
    weights, needs, settings = _weights(experiment, out, start_name, seed, share)
    overrides = [*protocol.overrides, *start.overrides, f"train.seed={seed}"]
    data = _option("--data", experiment.data)
    config = load(FinetuneConfig, protocol.config, overrides).with_data(experiment.data)
    check_cell(experiment, start, config, protocol.processes)
    share = [*_processes(protocol), *share]
    where = ["--weights", weights, "--config", protocol.config, *data, "--out", str(folder), *share]
    tune = Step("finetune", ("segloc.finetune", *where, *overrides), folder / MODEL)
    measured = folder / EVALUATION
    measure = ("segloc.evaluate", "--weights", str(folder), *data, "--out", str(measured), *share)
    content = {"weights": weights, **flat(yaml.safe_load(to_yaml(config))), **settings}
    check = partial(_check_cell, config, start.weights)
    steps = tune, Step("evaluate", measure, measured)
    return Job(name, folder, steps, content, check, f"protocol {protocol_name}", needs, protocol.processes)


def _probe_cell(experiment: Experiment, out: Path, start_name: str, seed: int, share: list[str]) -> Job:
    probe = experiment.probe
    assert probe is not None
    name = cell_name(start_name, PROBE, seed)
    folder = out / name
    weights, needs, settings = _weights(experiment, out, start_name, seed, share)
    views = {"train": probe.train, "test": probe.test, "image_size": probe.image_size}
    options = [part for key, value in views.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    config, network = None, {}
    if weights in (RANDOM, IMAGENET):
        overrides = [*probe.overrides, f"seed={seed}"]
        config = load_config(probe.config or None, overrides)
        options += [*_option("--config", probe.config), *overrides]
        network = flat({key: value for key, value in dataclasses.asdict(config).items() if key in NETWORK_SETTINGS})
    what = ["--weights", weights, "--shards", probe.shards, "--out", str(folder / PROBED)]
    step = Step(PROBE, ("segloc.probe", *what, *options), folder / PROBED)
    content = {"weights": weights, "shards": probe.shards, **views, **network, **settings}
    check = partial(_check_probe, probe, experiment.starts[start_name].weights, config)
    return Job(name, folder, (step,), content, check, PROBE, needs)


def _processes(settings: Pretraining | Protocol) -> list[str]:
    return _option("--processes", str(settings.processes) if settings.processes != 1 else "")


def _option(name: str, value: str) -> list[str]:
    return [name, value] if value else []


def _pretraining(settings: Pretraining, out: Path, name: str, seed: int, share: list[str]) -> Job:
    seed = seed if settings.seed is None else settings.seed
    folder = out / PRETRAIN / f"{name}-seed{seed}"
    overrides = [*settings.overrides, f"seed={seed}"]
    config = load_config(settings.config or None, overrides)
    where = ["--shards", settings.shards, *_option("--config", settings.config), "--out", str(folder), *share]
    step = Step(
        "pretrain", ("segloc.pretrain", *where, *_processes(settings), *overrides), folder / checkpoint.BACKBONE
    )
    content = {"shards": settings.shards, **flat(dataclasses.asdict(config))}
    check = partial(check_shards, settings.shards, settings.needs, f"pretrainings.{name}.needs")
    kind = f"pretraining {name}"
    return Job(f"{PRETRAIN}/{folder.name}", folder, (step,), content, check, kind, processes=settings.processes)


def _with_bn(pretraining: Job, share: list[str]) -> Job:
    folder, settings = pretraining.folder, pretraining.settings
    made = folder / WITH_BN
    what = ["--weights", str(folder), "--insert-bn", "--shards", settings["shards"], "--format", "segloc"]
    size = ["--image-size", str(settings["data.image_size"])]
    step = Step("insert-bn", ("segloc.export", *what, *size, "--out", str(made), *share), made)
    content = {"insert_bn": True, "shards": settings["shards"]}
    kind = f"insert_bn of {pretraining.kind}"
    return Job(f"{pretraining.name}/{WITH_BN}", folder, (step,), content, pretraining.check, kind, (pretraining,))


def _check_cell(config: FinetuneConfig, weights: str) -> None:
    if weights:
        check_start(read_start(weights), vars(config.model.backbone), "model.backbone", config.train.unmatched)
    for split in (train_split(config.data), *evaluation_splits(config.data)):
        if not split.annotations.is_file():
            raise InputError(f"{split.annotations}: no such annotation file")


def _check_probe(probe: Probe, weights: str, config: PretrainConfig | None) -> None:
    ShardFolder.open(probe.shards)
    if config:
        check_start(read_start(weights), dataclasses.asdict(config.model), "model", REFUSE)
    elif weights:
        read_backbone(weights)
