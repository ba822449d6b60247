import pytest

from benchmarks.padding import row
from segloc.data.stream import PairStream, ShardFolder
from tests.segloc.conftest import write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    heights = (64, 96, 96, 96, 64, 64, 96, 64)
    return ShardFolder.open(str(write_shards(tmp_path_factory.mktemp("p") / "s", 4, 16, heights=heights)))


def test_steps_of_similar_shapes_need_less_padding(folder):
    found = row(folder, "of a test", 16, 96, 4)
    assert found["padding_in_random_order"] > 0.12
    assert found["padding"] == 0
    assert found["pixels"] < 0.88


def test_it_counts_the_padding_of_the_stream(folder):
    stream = PairStream(folder, 16, 96, 0, 4, 1)
    batches = stream.batches()
    shapes = [next(batches).query.images.shape[2:] for _ in range(4)]
    batches.close()
    assert sorted(shapes) == [(64, 96), (64, 96), (96, 96), (96, 96)]
