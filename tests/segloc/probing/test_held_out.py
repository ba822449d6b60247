import dataclasses

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from segloc.common.contract import Index, Pair, Shard, View, shard_name
from segloc.common.errors import InputError
from segloc.data.shard_folder import Sample
from segloc.probing.held_out import Chosen, held_out_segments, split


def stored(pair):
    files = {"query.jpg": b"", "key.jpg": b"", "json": pair.to_json()}
    return Sample(str(pair.pair), {name: np.frombuffer(data, np.uint8) for name, data in files.items()})


@dataclasses.dataclass(frozen=True)
class Folder:
    """A shard folder without images."""

    index: Index
    pairs: list[list[Pair]]
    read: list[str] = dataclasses.field(default_factory=list)
    store: str = "shards"

    def load(self, shard):
        self.read.append(shard.name)
        return [stored(pair) for pair in self.pairs[self.index.shards.index(shard)]]


def view(segment):
    box = (0, 0, 8, 8)
    return View(box, (8, 8), "b.jpg", segment, box, "alpha", 0.5, 0.0, 1.0, False, False, mask="", on_matter=0.0)


def folder_of(shards):
    """Shards given as lists of (class id, query segment, key segment); a segment belongs to one class."""
    number, pairs = 0, []
    for shard in shards:
        pairs.append([])
        for label, query, key in shard:
            views = [view(f"{label}-{segment}") for segment in (query, key)]
            pairs[-1].append(Pair(number, label, "abc"[label], *views))
            number += 1
    infos = [Shard(shard_name(i), len(p), i, "", ()) for i, p in enumerate(pairs)]
    return Folder(Index(("a", "b", "c"), 0, {}, {}, tuple(infos)), pairs)


PAIR = st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4))
SHARDS = st.lists(st.lists(PAIR, min_size=6, max_size=12), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(SHARDS, st.integers(0, 5), st.integers(1, 30), st.integers(1, 30))
def test_no_item_and_no_image_is_on_both_sides(shards, seed, train, test):
    folder = folder_of(shards)
    try:
        done = split(folder, train, test, seed)
    except InputError:
        reject()
    learned, tested = done.train, done.test
    assert not {c.view.segment for c in learned} & {c.view.segment for c in tested}
    assert max(c.pair.pair for c in learned) < min(c.pair.pair for c in tested)
    assert 0 < len(learned) <= train
    assert 0 < len(tested) <= test
    for side in (learned, tested):
        assert len({(c.pair.pair, c.side) for c in side}) == len(side)
    if len(shards) > 1:
        first = {number for number, pairs in enumerate(folder.pairs) for c in learned if c.pair in pairs}
        second = {number for number, pairs in enumerate(folder.pairs) for c in tested if c.pair in pairs}
        assert max(first) < min(second)
    again = split(folder_of(shards), train, test, seed)
    for side in ("train", "test"):
        one, other = ([(c.pair, c.side) for c in getattr(found, side)] for found in (done, again))
        assert one == other


def test_every_class_with_two_segments_is_tested_and_what_is_left_out_is_counted():
    folder = folder_of([[(0, i % 6, (i + 1) % 6), (1, 0, 1), (2, 0, 0)] for i in range(6)] * 6)
    done = split(folder, 1000, 1000, 0)
    assert {c.label for c in done.train} == {0, 1, 2}
    assert {c.label for c in done.test} <= {0, 1}  # the only item of class 2 is a training item
    assert len(done.train) + done.left_out["train"] == 2 * 18 * 4
    assert len(done.test) + done.left_out["test"] == 2 * 18 * 2


def test_a_third_of_each_classes_segments_is_held_out_another_third_for_another_seed():
    pairs = folder_of([[(0, i, i) for i in range(30)] + [(1, i, i) for i in range(10)] + [(2, 0, 0)]]).pairs[0]
    views = [Chosen(stored(pair), pair, "query") for pair in pairs]
    first, second = held_out_segments(views, 0), held_out_segments(views, 1)
    for held_out in (first, second):
        assert [sum(segment.startswith(label) for segment in held_out) for label in "012"] == [10, 3, 0]
    assert first != second
    assert held_out_segments(views[::-1], 0) == first


def test_no_more_shards_are_read_than_needed():
    shard = [(label, i, i + 7) for i in range(10) for label in (0, 1)]
    folder = folder_of([shard] * 30)
    split(folder, 40, 20, 0)
    assert sorted(folder.read) == [shard_name(0), shard_name(1), shard_name(28), shard_name(29)]


def test_unusable_shards_give_a_one_line_error():
    with pytest.raises(InputError, match="fewer than two classes"):
        split(folder_of([[(0, i, i + 1) for i in range(9)]] * 2), 10, 10, 0)
    with pytest.raises(InputError, match="held-out segments"):
        split(folder_of([[(0, 1, 1), (1, 1, 1)]] * 3), 10, 10, 0)
    folder = folder_of([[(0, 1, 2), (1, 1, 2)]] * 3)
    wrong = dataclasses.replace(folder, index=dataclasses.replace(folder.index, classes=("a", "x")))
    with pytest.raises(InputError, match="class 1 is 'b', the index says 'x'"):
        split(wrong, 10, 10, 0)
