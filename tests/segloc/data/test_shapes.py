import itertools

import numpy as np
import pytest

from segloc.data.shapes import by_shape, shrunk_to_fit
from segloc.data.stream import ShardFolder
from tests.segloc.conftest import CLASSES, write_shards


@pytest.mark.parametrize(
    ("size", "expected"), [((1000, 400), (500, 200)), ((400, 1000), (200, 500)), ((300, 200), (300, 200))]
)
def test_larger_images_are_shrunk(size, expected):
    assert shrunk_to_fit(size, 500) == expected


def test_neighbours_have_similar_queries_and_keys(tmp_path):
    """64 pairs of all combinations of 2 heights, in groups of 16: two strata, whose ends meet."""

    def spoil(files, number):
        return files | ({"json": b"{"} if number == 5 else {})

    heights = (64, 96, 96, 96, 64, 64, 96, 64)
    shards = write_shards(tmp_path / "s", shards=1, per_shard=64, heights=heights, spoil=spoil)
    folder = ShardFolder.open(str(shards))
    samples = folder.load(folder.index.shards[0])
    found = by_shape(samples, CLASSES, 96, 16, np.arange(64))
    assert sorted(sample.name for sample in found) == sorted(sample.name for sample in samples)
    whole = [sample for sample in found if sample.files["json"].tobytes() != b"{"]
    sizes = [sample.describe(CLASSES) for sample in whole]
    kinds = [(pair.query.size[1], pair.key.size[1]) for pair in sizes]
    changes = [(a, b) for a, b in itertools.pairwise(kinds) if a != b]
    assert len(changes) == 3, "each combination is in one place"
    assert all((a[0] == b[0]) != (a[1] == b[1]) for a, b in changes), "and one side changes at a time"
    again = by_shape(samples, CLASSES, 96, 16, np.arange(64)[::-1])
    assert [sample.name for sample in again] != [sample.name for sample in found], "equal shapes are in this order"


def test_pairs_of_one_shape_are_in_the_given_order(shards):
    folder = ShardFolder.open(str(shards))
    samples = folder.load(folder.index.shards[0])
    ranks = np.random.default_rng(0).permutation(8)
    assert by_shape(samples, CLASSES, 96, 2, ranks) == [samples[place] for place in np.argsort(ranks)]
