"""Split the views of a shard folder into training and test views without a common item or image.

The last third of the shards (of the pairs, if there is only one shard) is held out, and a third of the segments of
every class. Training views show segments that are not held out, in shards that are not held out. Test views show
held-out segments in held-out shards. All other views are left out.

Limits: two segments cut from two scans of the same bag count as two items, because shards do not record bags. The split
applies to the classifier only; a network pretrained on the same shards has seen both sides.
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
        sample: the stored pair.
        pair: description of the pair.
        side: ``query`` or ``key``.
    """

    sample: Sample
    pair: Pair
    side: str

    @property
    def view(self) -> View:
        """Description of the view."""
        return self.pair.query if self.side == "query" else self.pair.key

    @property
    def label(self) -> int:
        """Class id."""
        return self.pair.class_id


@dataclasses.dataclass(frozen=True)
class HeldOutViews:
    """Training and test views.

    Attributes:
        train: training views, in stored order.
        test: test views, in stored order.
        left_out: number of views on neither side, by the side whose shards they are in.
    """

    train: list[Chosen]
    test: list[Chosen]
    left_out: dict[str, int]


def split(folder: ShardFolder, train: int, test: int, seed: int) -> HeldOutViews:
    """Read as many shards as needed and choose the views.

    Args:
        folder: the shards.
        train: maximum number of training views.
        test: maximum number of test views.
        seed: seed of the choice of held-out segments, and of views if there are more than the maximum.

    Raises:
        InputError: a shard cannot be read, a pair's class differs from the index, there are no test views, or the
            training views have fewer than two classes.
    """
    learning, testing = (_views(samples, folder) for samples in _read(folder, train, test))
    held_out = held_out_segments([*learning, *testing], seed)
    learned = [chosen for chosen in learning if chosen.view.segment not in held_out]
    tested = [chosen for chosen in testing if chosen.view.segment in held_out]
    left_out = {"train": len(learning) - len(learned), "test": len(testing) - len(tested)}
    rng = np.random.default_rng([seed, 0x5E1])
    result = HeldOutViews(_some(learned, train, rng), _some(tested, test, rng), left_out)
    if len({chosen.label for chosen in result.train}) < 2:
        raise InputError(f"{folder.store}: the training views have fewer than two classes; use shards of more segments")
    if not result.test:
        raise InputError(
            f"{folder.store}: no views of held-out segments; use shards of more pairs, with two segments per class"
        )
    return result


def held_out_segments(views: Iterable[Chosen], seed: int) -> set[str]:
    """Choose a third of the segments of every class: at least one of two or more, none of a single one."""
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
    """Read the pairs of the training side and of the test side."""
    shards = [shard for shard in folder.index.shards if shard.pairs]
    if len(shards) == 1:
        samples = folder.load(shards[0])
        cut = len(samples) - len(samples) // SHARE
        return samples[:cut], samples[cut:]
    cut = len(shards) - max(1, len(shards) // SHARE)
    # About two thirds of the training side's views, and one third of the test side's, are usable. Read some more.
    ahead = _enough(shards[:cut], 2 * train)
    behind = _enough(shards[: cut - 1 : -1], (SHARE + 1) * test)
    bar = tqdm([*ahead, *behind], desc="reading", unit="shard")
    loaded = {shard.name: folder.load(shard) for shard in bar}
    learning = [sample for shard in ahead for sample in loaded[shard.name]]
    return learning, [sample for shard in reversed(behind) for sample in loaded[shard.name]]


def _enough(shards: Sequence[Shard], views: int) -> list[Shard]:
    """Return the first shards that together have at least `views` views, or all."""
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
            raise type(error)(f"{folder.store}: pair {sample.name}: {error}") from error
        chosen += [Chosen(sample, pair, side) for side in SIDES]
    return chosen


def _some(views: list[Chosen], most: int, rng: np.random.Generator) -> list[Chosen]:
    return [views[i] for i in sorted(rng.permutation(len(views))[:most])]
