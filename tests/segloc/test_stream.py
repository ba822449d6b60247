import itertools
import shutil

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segloc.contract import Index, InputError, Shard, shard_name
from segloc.stream import PairStream, ShardFolder, epoch_order, stack_images
from tests.segloc.conftest import CLASSES, write_shards


def index_of(sizes):
    return Index(CLASSES, 0, {}, {}, tuple(Shard(shard_name(i), n, 0, "", (n,)) for i, n in enumerate(sizes)))


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=9),
    mix=st.integers(1, 4),
    seed=st.integers(0, 99),
    epoch=st.integers(-1, 3),
)
def test_an_epoch_is_a_permutation_of_all_pairs(sizes, mix, seed, epoch):
    groups = epoch_order(index_of(sizes), seed, epoch, mix)
    pairs = [tuple(pair) for _, group in groups for pair in group]
    assert sorted(pairs) == [(s, i) for s, n in enumerate(sizes) for i in range(n)]
    assert all(set(group[:, 0]) <= set(shards) and len(shards) <= mix for shards, group in groups)


def test_epochs_and_seeds_differ_and_repeat():
    index = index_of([20, 20])

    def order(seed, epoch):
        return np.concatenate([group for _, group in epoch_order(index, seed, epoch, 2)]).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def stream_of(shards, threads=2, mix=2):
    return PairStream(ShardFolder.open(str(shards)), 5, 96, seed=3, mix_shards=mix, threads=threads)


def take(stream, count, start=0):
    return list(itertools.islice(stream.batches(start), count))


def test_every_pair_once_an_epoch_whatever_the_threads(shards):
    few, many = take(stream_of(shards, threads=1), 24), take(stream_of(shards, threads=3), 24)
    numbers = torch.cat([batch.pairs for batch in few])
    assert all(torch.equal(a.query.images, b.query.images) for a, b in zip(few, many, strict=True))
    # 24 batches of 5 are five epochs of 24 pairs, running on over their ends.
    for epoch in range(5):
        assert sorted(numbers[epoch * 24 : (epoch + 1) * 24].tolist()) == list(range(24))


@pytest.mark.parametrize("start", [1, 4, 7, 23])
def test_starting_later_gives_the_same_batches(shards, start):
    undisturbed, resumed = take(stream_of(shards), start + 3)[start:], take(stream_of(shards), 3, start)
    for a, b in zip(undisturbed, resumed, strict=True):
        assert a.pairs.tolist() == b.pairs.tolist()
        assert torch.equal(a.key.images, b.key.images)
        assert torch.equal(a.key.boxes, b.key.boxes)


def test_boxes_surround_the_item_and_padding_is_white(shards):
    stream = PairStream(ShardFolder.open(str(shards)), 8, 60, seed=0, mix_shards=1, threads=1)
    batch = take(stream, 1)[0]
    assert batch.query.images.shape == (8, 3, 64, 64)  # 96x64 shrunk to 60x40, padded to multiples of 32
    assert (batch.query.images[:, :, 40:] == 255).all()
    assert (batch.query.images[:, :, :, 60:] == 255).all()
    for image, (x0, y0, x1, y1) in zip(batch.query.images, batch.query.boxes, strict=True):
        dark = (image.min(0).values < 200).nonzero().float()
        found = torch.cat([dark.min(0).values.flip(0), dark.max(0).values.flip(0) + 1])
        assert (found - torch.stack([x0, y0, x1, y1])).abs().max() <= 2


def test_stacking_keeps_pixels():
    images = [np.random.default_rng(i).integers(0, 255, (20 + i, 40 - i, 3), np.uint8) for i in range(3)]
    batch = stack_images(images)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for image, row in zip(images, batch, strict=True):
        assert np.array_equal(row[:, : image.shape[0], : image.shape[1]].permute(1, 2, 0).numpy(), image)


def test_url_gives_the_same_pairs(shards):
    local, remote = take(stream_of(shards), 2), take(stream_of(f"file://{shards}"), 2)
    assert [batch.pairs.tolist() for batch in local] == [batch.pairs.tolist() for batch in remote]


def test_bad_shards_are_refused(shards, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        ShardFolder.open(str(tmp_path / "nowhere"))
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    tar = copy / shard_name(1)
    tar.write_bytes(tar.read_bytes()[:-600])
    with pytest.raises(InputError, match=r"pairs-000001\.tar.*cut short"):
        take(stream_of(copy), 5)
    tar.unlink()
    with pytest.raises(InputError, match=r"pairs-000001\.tar.*cannot be read"):
        take(stream_of(copy), 5)
    text = (copy / "index.json").read_text()
    (copy / "index.json").write_text(text.replace("pairs-000002.tar", "pipe:rm"))
    with pytest.raises(InputError, match="pipe:rm"):
        ShardFolder.open(str(copy))
    (copy / "index.json").unlink()
    with pytest.raises(InputError, match="has not finished"):
        ShardFolder.open(str(copy))


def test_empty_index_is_refused(tmp_path):
    with pytest.raises(InputError, match="no pairs"):
        ShardFolder.open(str(write_shards(tmp_path / "none", shards=0)))


def test_shards_on_s3_are_read_as_local_ones(shards, bucket, tmp_path):
    store = fsspec.filesystem("s3")
    url = f"{bucket}/{tmp_path.name}"
    for path in shards.iterdir():
        store.pipe_file(f"{url}/{path.name}", path.read_bytes())
    local, remote = take(stream_of(shards), 6), take(stream_of(url), 6)
    assert all(torch.equal(a.query.images, b.query.images) for a, b in zip(local, remote, strict=True))


@pytest.mark.parametrize("url", ["s3://no-such-bucket-here/shards", "s3://bucket/no such folder"])
def test_missing_shards_on_s3_are_one_sentence(url, bucket):
    with pytest.raises(InputError, match=r"index\.json: cannot be read") as error:
        ShardFolder.open(url)
    assert "\n" not in str(error.value)
