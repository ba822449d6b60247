"""The pretraining loop (paper section 4).

Per step: embed all keys without gradients, then the queries, one micro-batch at a time. On every level, compare each
query with its positives (its key and, with queue.positives=class, the stored keys of its class) and with its class's
queue. Sum the losses of the levels, take an optimiser step, update the key network, then enqueue the keys.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from segloc.common.errors import DivergedError, InputError, one_line
from segloc.common.files import write_atomic
from segloc.common.parse import parse_yaml
from segloc.common.run_files import NOT_FINITE
from segloc.common.stops import Stopped
from segloc.contrast.build import make_model, make_optimizer
from segloc.contrast.choices import Choices, choose
from segloc.contrast.losses import InfoNCE, info_nce
from segloc.contrast.metrics import Compared, training_metrics
from segloc.contrast.queues import QUEUES
from segloc.data.augment import horizontal_flip, photometric
from segloc.data.box_augment import query_boxes
from segloc.data.stream import Batch, PairStream, ShardFolder
from segloc.models.backbone import LEVELS
from segloc.settings.loader import flat, to_yaml
from segloc.settings.pretraining import PretrainConfig
from segloc.training import checkpoint
from segloc.training.loop import Trainer
from segloc.training.precision import autocast
from segloc.training.processes import ALONE, Group
from segloc.training.schedules import cosine_schedule

HARMLESS = ("checkpoint_every", "log_every", "data.threads", "optim.recompute")
SHUFFLE, KEYS = 1, 2  # what a generator is for
_STATE = ("config", "shards", "query", "key", "optimizer", "queues", "iteration", "pairs_skipped")


class MicroBatch(NamedTuple):
    """Results of one forward and backward pass: comparison, loss, pair numbers [N]."""

    compared: Compared
    loss: torch.Tensor
    pairs: torch.Tensor


class Step(NamedTuple):
    """The micro-batches of a process in a step, and the size of all its images in all processes (height, width).

    The network sees the padding, because attention and pooling cover the whole image. With a size per micro-batch,
    results would depend on the number of micro-batches.
    """

    batches: list[Batch]
    query_size: tuple[int, int]
    key_size: tuple[int, int]


class Pretrainer(Trainer):
    """The pretraining loop; `run_step` does one optimiser step.

    Args:
        config: all settings.
        folder: the shards.
        out: run folder.
        device: where to train.
        group: the processes that train together. The pairs of a step, their batch statistics (unless bn_images is 0)
            and the order in which their keys enter the queues depend on the batch, not on the micro-batch or the
            number of processes.
        resuming: whether `load_state` will be called; the initial weights are then not loaded.
        choices: micro-batch and precision, if the recipe leaves them open; without them the smallest micro-batch.

    Attributes:
        metrics: metrics of the last logged step, averaged over the processes.
        skipped_before: damaged pairs replaced before this run was resumed.
        pairs_filled: pairs drawn in all processes to fill the queues.
    """

    def __init__(
        self,
        config: PretrainConfig,
        folder: ShardFolder,
        out: Path,
        device: torch.device,
        group: Group = ALONE,
        resuming: bool = False,
        choices: Choices | None = None,
    ) -> None:
        super().__init__()
        self.config, self.folder, self.out, self.device, self.group = config, folder, out, device, group
        optim, data = config.optim, config.data
        self.micro_batch, self.precision = choices or choose(config, device, group)
        self.steps = config.num_steps(folder.index.num_pairs)
        if not self.steps:
            raise InputError(f"{folder.store}: {folder.index.num_pairs} pairs do not fill one batch of {optim.batch}")
        self.model = make_model(config, device, optim.batch // group.world, resuming)
        self.queues = QUEUES[config.queue.kind](
            len(folder.index.classes), config.queue.size, config.head.dim, len(LEVELS), device=device
        )
        self.stream = PairStream(
            folder, self.micro_batch, data.image_size, config.seed, data.mix_shards, data.threads,
            batches_per_step=optim.batch // self.micro_batch,
        )  # fmt: skip
        self.learning_rates = cosine_schedule(optim.lr_per_256 * optim.batch / 256, self.steps, optim.warmup)
        self.optimizer = make_optimizer(self.model.query, optim, self.learning_rates[0])
        self.query: nn.Module = self.model.query
        if group.world > 1:
            # Average the gradients over the processes. Each process keeps its own running statistics, as in MoCo.
            with warnings.catch_warnings():  # torch 2.14 renames the option, which older versions do not know
                warnings.simplefilter("ignore", FutureWarning)
                self.query = DistributedDataParallel(self.model.query, broadcast_buffers=False)
        self.skipped_before = self.pairs_filled = 0
        self._batches: Generator[Batch, None, None] | None = None

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimiser step and process."""
        return self.config.optim.batch // self.micro_batch // self.group.world

    @property
    def chance_loss(self) -> float:
        """Loss of uninformative embeddings: log(1 + K) on every level."""
        return len(LEVELS) * float(np.log1p(self.config.queue.size))

    def fill_queues(self, stop: Callable[[], int] = lambda: 0) -> None:
        """Fill every queue before the first step (paper section 5.4: crucial for convergence).

        Args:
            stop: returns the signal that asks to stop, or 0; called after every batch; the same in all processes.

        Raises:
            Stopped: `stop` returned a signal.
        """
        if self.config.queue.init == "random":
            self._fill_randomly()
            return
        silent = None if self.group.is_main else True
        with (
            contextlib.closing(self.stream.batches(epoch=-1, rank=self.group.rank, world=self.group.world)) as batches,
            tqdm(total=self.config.queue.size, desc="filling queues", unit="key", disable=silent) as bar,
        ):
            a_pass, least = -(-self.folder.index.num_pairs // self.config.optim.batch), -1
            for step in itertools.count():
                if step % a_pass == 0 and least == (least := int(self.queues.fill().min())):
                    name = self.folder.index.classes[int(self.queues.fill().argmin())]
                    raise InputError(
                        f"{self.folder.store}: all usable pairs are of class {name!r}; class queues need two classes"
                    )
                loaded = self._load_step(batches)
                self._enqueue(self.embed_keys(loaded, -1, step), loaded)
                del loaded
                self.pairs_filled += self.config.optim.batch
                bar.update(int(self.queues.fill().min()) - bar.n)
                if self.queues.full:
                    return
                if number := stop():
                    raise Stopped(number)

    def run_step(self) -> None:
        """Do one optimiser step over `accumulate` micro-batches."""
        if self._batches is None:
            self._batches = self.stream.batches(self.iter, rank=self.group.rank, world=self.group.world)
        started = time.perf_counter()
        step = self._load_step(self._batches)
        waited = time.perf_counter() - started
        self.metrics = {}
        self.optimizer.param_groups[0]["lr"] = float(self.learning_rates[self.iter])
        self.optimizer.zero_grad(set_to_none=True)
        done: list[MicroBatch] = []
        keys = self.embed_keys(step, self.iter)
        for micro, own in enumerate(keys.split(self.micro_batch, 1)):
            with self._without_sync(micro):
                levels, queries = self.compare(step, micro, own)
                loss = torch.stack([level.loss for level in levels]).sum() / self.accumulate
                loss.backward()
            batch = step.batches[micro]
            done.append(MicroBatch(Compared(levels, queries.detach(), batch.labels), loss.detach(), batch.pairs))
        gradients = [p.grad for p in self.model.query.parameters() if p.grad is not None]
        gradient_norm = torch.nn.utils.get_total_norm(gradients)
        self._check_finite(done, gradient_norm)
        self.optimizer.step()
        self.model.update_keys(self.config.optim.ema)
        if self.iter % self.config.log_every == 0 or self.iter == self.steps - 1:
            # Before the step's keys are enqueued, or a query would find its own positive.
            own = training_metrics([part.compared for part in done], self.queues)
            self.metrics = self.group.mean(own, self.device)
            skipped = self.pairs_skipped()
            step_time = time.perf_counter() - started
            self.metrics |= {
                "pairs_skipped": float(skipped),
                "learning_rate": float(self.learning_rates[self.iter]),
                "gradient_norm": float(gradient_norm),
                "data_time_s": waited,
                "step_time_s": step_time,
                "images_per_s": 2 * self.config.optim.batch / step_time,
            }
        self._enqueue(keys, step)

    def pairs_skipped(self) -> int:
        """Count the damaged pairs replaced in all processes since the run began; a collective call."""
        here = torch.tensor(self.stream.skipped, device=self.device)
        return self.skipped_before + int(self.group.gather(here).sum())

    def state(self) -> dict[str, Any]:
        """Return the state for resuming, without counters, as tensors, numbers and strings."""
        return {
            "kind": "pretrain",
            "config": to_yaml(self.config),
            "shards": self.folder.index.digest,
            "query": self.model.query.state_dict(),
            "key": self.model.key.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "queues": self.queues.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Load a `state` with its counters, `iteration` and `pairs_skipped`.

        Raises:
            InputError: the state is of other settings or shards, or of another version.
        """
        if state.get("kind") != "pretrain" or not {*_STATE} <= {*state}:
            raise InputError(
                f"{self.out}: its checkpoint is not from a pretraining run of this version; use another --out"
            )
        if state["format_version"] != checkpoint.FORMAT_VERSION:
            raise InputError(f"{self.out}: its run is of an earlier version and cannot be resumed; use another --out")
        source = self.out / checkpoint.LAST
        for counter in ("iteration", "pairs_skipped"):
            checkpoint.count_in(state, counter, source)
        settings = parse_yaml(checkpoint.text_in(state, "config", source), source)
        if not isinstance(settings, dict):
            raise InputError(f"{self.out}: its checkpoint has no settings")
        may_change = harmless(self.config)
        # A setting missing in the checkpoint was added later; its default is the earlier behaviour.
        old = _stored(PretrainConfig()) | flat(settings)
        for name, value in _stored(self.config).items():
            if name not in may_change and old[name] != value:
                raise InputError(
                    f"{self.out}: its run has another {name} ({old[name]!r}, not {value!r}); use another --out or the "
                    "same settings"
                )
        if state["shards"] != self.folder.index.digest:
            raise InputError(f"{self.out}: its run used other shards than {self.folder.store}; use another --out")
        checkpoint.require_finite([state[part] for part in ("query", "key", "optimizer", "queues")], source)
        try:
            self.model.query.load_state_dict(state["query"])
            self.model.key.load_state_dict(state["key"])
            self.queues.load_state_dict(state["queues"])
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise InputError(
                f"{self.out}: its checkpoint is damaged or of another version ({one_line(error)})"
            ) from error
        checkpoint.load_optimizer(self.optimizer, state["optimizer"], source)
        self.skipped_before = state["pairs_skipped"]
        self.pairs_filled = int(state.get("pairs_filled", 0))  # earlier runs have none

    def close(self) -> None:
        """Stop the decoding threads."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _without_sync(self, micro: int) -> contextlib.AbstractContextManager[None]:
        """Accumulate gradients locally until the step's last micro-batch."""
        if isinstance(self.query, DistributedDataParallel) and micro < self.accumulate - 1:
            return self.query.no_sync()
        return contextlib.nullcontext()

    def _enqueue(self, keys: torch.Tensor, step: Step) -> None:
        """Enqueue the keys [levels, N, dim] of a step of all processes, in single-process order."""
        labels = torch.cat([batch.labels for batch in step.batches]).to(self.device)
        every_key = self.group.gather(keys).permute(1, 0, 2, 3).flatten(1, 2)
        self.queues.enqueue(every_key, self.group.gather(labels).flatten())

    def _load_step(self, batches: Iterator[Batch]) -> Step:
        """Load the next step; a collective call."""
        own = list(itertools.islice(batches, self.accumulate))
        sizes = torch.tensor([[views.images.shape[-2:] for views in (batch.query, batch.key)] for batch in own])
        query, key = self.group.gather(sizes.amax(0).to(self.device)).amax(0).tolist()
        return Step(own, tuple(query), tuple(key))

    def compare(self, step: Step, micro: int, keys: torch.Tensor) -> tuple[list[InfoNCE], torch.Tensor]:
        """Compare the queries of a micro-batch with their keys [levels, N, dim] and queues.

        Returns:
            One result per level, and the query embeddings [levels, N, dim].
        """
        batch, first = step.batches[micro], (self.group.rank * self.accumulate + micro) * self.micro_batch
        generators = [self._generator(self.iter, place) for place in range(first, first + self.micro_batch)]
        images, boxes = self._augmented(*batch.query.on(self.device, step.query_size), generators)
        boxes = query_boxes(boxes, images.shape[-2:], self.config.data.box_augment, generators)
        with autocast(self.device, self.precision):
            queries = self.query(images, boxes)
        labels, temperature = batch.labels.to(self.device), self.config.optim.temperature
        valid, stores = self.queues.valid(labels), zip(queries, keys, self.queues.keys, strict=True)
        match self.config.queue.positives:
            case "key":
                same_class = None
            case "class":
                same_class = self.queues.slot_labels() == labels[:, None]
            case other:
                raise NotImplementedError(f"no loss for queue.positives={other}")
        return [info_nce(*store, valid, temperature, same_class) for store in stores], queries

    def embed_keys(self, step: Step, iteration: int, number: int = 0) -> torch.Tensor:
        """Embed the keys of this process in a step: [levels, N, dim]; a collective call.

        Args:
            step: the pairs.
            iteration: the optimiser step; -1 for the filling of the queues.
            number: of the step, counted from the beginning of `iteration`.
        """
        views = [batch.key.on(self.device, step.key_size) for batch in step.batches]

        def embed(images: torch.Tensor, boxes: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
            numbers = (number * self.config.optim.batch + places).tolist()
            generators = [self._generator(iteration, place, KEYS) for place in numbers]
            augmented = self._augmented(images, boxes, generators)
            with autocast(self.device, self.precision):
                return self.model.key(*augmented)

        shuffle = self._generator(iteration, number, SHUFFLE)
        images, boxes = (torch.cat(parts) for parts in zip(*views, strict=True))
        return self.model.embed_keys(images, boxes, embed, self.micro_batch, shuffle, self.group)

    def _augmented(
        self, images: torch.Tensor, boxes: torch.Tensor, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        data = self.config.data
        images, boxes = horizontal_flip(images.float(), boxes, data.flip, generators)
        return photometric(images, data.augment, generators), boxes

    def _generator(self, iteration: int, *names: int) -> torch.Generator:
        """Return the generator of a query, of a key (``KEYS``) or of the order of the keys (``SHUFFLE``).

        Those of a pair depend only on its place in the step of all processes.
        """
        seed = np.random.SeedSequence([self.config.seed, iteration + 1, *names]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))

    def _fill_randomly(self) -> None:
        generator = self._generator(-1, 0)
        levels, _, dim = self.queues.keys.shape
        while not self.queues.full:
            keys = normalize(torch.randn(levels, self.queues.size, dim, generator=generator), dim=2)
            labels = torch.randint(len(self.folder.index.classes), (self.queues.size,), generator=generator)
            self.queues.enqueue(keys.to(self.device), labels)

    def _check_finite(self, done: list[MicroBatch], gradient_norm: torch.Tensor) -> None:
        """Raise in all processes if a loss in any of them, or the gradient, is not finite."""
        every_loss = self.group.gather(torch.stack([part.loss for part in done]))  # [world, micro-batches]
        bad = ~torch.isfinite(every_loss)
        if not bad.any():
            if torch.isfinite(gradient_norm):
                return
            bad[:] = True  # the gradient is the sum over all
        pairs = torch.stack([part.pairs for part in done]).to(self.device)
        every_pair = self.group.gather(pairs)  # [world, micro-batches, N]
        found = {"iteration": self.iter, "pairs": every_pair[bad].flatten().tolist()}
        path = self.out / NOT_FINITE
        if self.group.is_main:
            write_atomic(path, json.dumps(found).encode())
        raise DivergedError(
            f"step {self.iter}: the loss is {every_loss[bad][0].item()}, the norm of its gradient "
            f"{gradient_norm.item()}; see {path} for the pairs, and try a smaller optim.lr_per_256"
        )


def harmless(config: PretrainConfig) -> tuple[str, ...]:
    """Return settings that may change when a run is resumed, because they do not affect the result."""
    depends = config.has_batch_norm and not config.model.bn_images
    return (*HARMLESS, *(() if depends else ("optim.micro_batch",)))


def _stored(config: PretrainConfig) -> dict[str, Any]:
    """Return settings by dotted name, as a checkpoint stores them."""
    return flat(parse_yaml(to_yaml(config), "settings"))
