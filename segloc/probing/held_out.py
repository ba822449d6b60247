"""Which views of a shard folder are learned from and which are tested on, so that no item is in both.

One rule for every folder: the last third of the shards (of the pairs, where there is one shard only) is held out, and
so is, of every class, a third of its segments. Training views are views of the other segments in the other shards; test
views are views of held-out segments in held-out shards. What is neither is left out. So neither a picture nor an item
occurs on both sides, however few segments the shards were made of.

What the shards do not tell, this cannot part: two segments cut from two scans of one bag count as two items. And the
split is the classifier's: a network pretrained on the same shards has seen both sides of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from segloc.common.contract import Pair, Shard, View
from segloc.common.errors import InputError
from segloc.data.shard_folder import Sample, ShardFolder

SHARE = 3
SIDES = ("query", "key")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """One view of a stored pair.

    Attributes:
        sample: the pair as stored.
        pair: its description.
        side: ``query`` or ``key``.
    """

    sample: Sample
    pair: Pair
    side: str

    @property
    def view(self) -> View:
        """Its description."""
        return self.pair.query if self.side == "query" else self.pair.key

    @property
    def label(self) -> int:
        """Its class id."""
        return self.pair.class_id


@dataclasses.dataclass(frozen=True)
class Split:
    """Views to learn from and views to test on.

    Attributes:
        train: in stored order.
        test: in stored order.
        left_out: views that were read and belong to neither side, by the side whose shards they are in.
    """

    train: list[Chosen]
    test: list[Chosen]
    left_out: dict[str, int]


def split(folder: ShardFolder, train: int, test: int, seed: int) -> Split:
    """Read as many shards as it takes and choose the views.

    Args:
        folder: the shards.
        train: most views to learn from.
        test: most views to test on.
        seed: decides which segments are held out, and which views are taken when there are more than asked for.

    Raises:
        InputError: a shard cannot be read, a pair's class is not the index's, or there is nothing to test or to tell
            apart.
    """
    learning, testing = (_views(samples, folder) for samples in _read(folder, train, test))
    held_out = held_out_segments([*learning, *testing], seed)
    learned = [chosen for chosen in learning if chosen.view.segment not in held_out]
    tested = [chosen for chosen in testing if chosen.view.segment in held_out]
    left_out = {"train": len(learning) - len(learned), "test": len(testing) - len(tested)}
    rng = np.random.default_rng([seed, 0x5E1])
    result = Split(_some(learned, train, rng), _some(tested, test, rng), left_out)
    if len({chosen.label for chosen in result.train}) < 2:
        raise InputError(f"{folder.store}: fewer than two classes to learn from")
    if not result.test:
        raise InputError(f"{folder.store}: no views of held-out segments; classes need two segments, and more pairs")
    return result


def held_out_segments(views: Iterable[Chosen], seed: int) -> set[str]:
    """Choose a third of the segments of every class, at least one where there are two; none of a class that has one."""
    classes = defaultdict(set)
    for chosen in views:
        classes[chosen.label].add(chosen.view.segment)

    def rank(segment: str) -> bytes:
        return hashlib.sha256(f"{seed} {segment}".encode()).digest()

    held_out: set[str] = set()
    for segments in classes.values():
        count = max(len(segments) // SHARE, int(len(segments) > 1))
        held_out |= set(sorted(segments, key=rank)[:count])
    return held_out


def _read(folder: ShardFolder, train: int, test: int) -> tuple[list[Sample], list[Sample]]:
    """Read pairs to learn from, and others to test on."""
    shards = [shard for shard in folder.index.shards if shard.pairs]
    if len(shards) == 1:
        samples = folder.load(shards[0])
        cut = len(samples) - len(samples) // SHARE
        return samples[:cut], samples[cut:]
    cut = len(shards) - max(1, len(shards) // SHARE)
    # Of the views read, two thirds and one third come into question; a little more is read than that.
    ahead = _enough(shards[:cut], 2 * train)
    behind = _enough(shards[: cut - 1 : -1], (SHARE + 1) * test)
    bar = tqdm([*ahead, *behind], desc="reading", unit="shard")
    loaded = {shard.name: folder.load(shard) for shard in bar}
    learning = [sample for shard in ahead for sample in loaded[shard.name]]
    return learning, [sample for shard in reversed(behind) for sample in loaded[shard.name]]


def _enough(shards: Sequence[Shard], views: int) -> list[Shard]:
    """Take the first shards that hold `views` views together, or all."""
    taken: list[Shard] = []
    for shard in shards:
        if sum(len(SIDES) * other.pairs for other in taken) >= views:
            break
        taken.append(shard)
    return taken


def _views(samples: Iterable[Sample], folder: ShardFolder) -> list[Chosen]:
    chosen = []
    for sample in samples:
        try:
            pair = sample.describe(folder.index.classes)
        except InputError as error:
            raise InputError(f"{folder.store}: pair {sample.name}: {error}") from error
        chosen += [Chosen(sample, pair, side) for side in SIDES]
    return chosen


def _some(views: list[Chosen], most: int, rng: np.random.Generator) -> list[Chosen]:
    return [views[i] for i in sorted(rng.permutation(len(views))[:most])]
