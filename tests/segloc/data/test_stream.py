import functools
import http.server
import itertools
import json
import tarfile
import threading
import weakref

import cv2
import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segloc.common.contract import Index, Shard, shard_name
from segloc.common.errors import InputError
from segloc.data.batches import Buffers
from segloc.data.stream import PairStream, ShardFolder, epoch_order
from tests.segloc.conftest import CLASSES, write_shards


def index_of(sizes):
    return Index(CLASSES, 0, {}, {}, tuple(Shard(shard_name(i), n, 0, "", (n,)) for i, n in enumerate(sizes)))


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=9),
    lanes=st.integers(1, 4),
    seed=st.integers(0, 99),
    epoch=st.integers(-1, 3),
    group=st.integers(1, 3),
)
def test_an_epoch_is_a_permutation_of_all_pairs(sizes, lanes, seed, epoch, group):
    order = epoch_order(index_of(sizes), seed, epoch, lanes, group)
    for column in (2, 3):
        found = sorted(map(tuple, order[:, [1, column]].tolist()))
        assert found == [(s, i) for s, n in enumerate(sizes) for i in range(n)]
    for lane in range(lanes):
        shards = order[order[:, 0] == lane, 1].tolist()
        assert len(set(shards)) == len(list(itertools.groupby(shards)))  # a lane reads one shard after the other


@given(st.integers(1, 4), st.integers(0, 99))
def test_lanes_of_equal_length_take_turns(lanes, seed):
    order = epoch_order(index_of([3] * 2 * lanes), seed, 0, lanes)
    assert order[:, 0].tolist() == list(range(lanes)) * 6


def test_lanes_take_the_same_group_at_the_same_time():
    """Of 7 pairs in groups of 2, the last pair is no whole group."""
    order = epoch_order(index_of([7] * 6), 0, 0, 3, 2)
    groups = order[:, 2].reshape(2, 7, 3) // 2  # shard of the lane, turn, lane
    assert (groups == groups[:, :, :1]).all()
    assert (groups[:, 0:6:2] == groups[:, 1:6:2]).all()
    assert (groups[:, 6] == 3).all()
    assert not np.array_equal(groups[0], groups[1]), "another order for other shards"


def test_pairs_of_one_shape_are_read_in_the_order_without_groups(shards):
    stream = stepping(shards, batch=12, batches=1)
    order = epoch_order(stream.folder.index, 3, 0, 3)
    assert stream.group == 4
    numbers = (8 * order[:, 1] + order[:, 2]).reshape(2, 4, 3)  # step, turn, lane
    for expected, batch in zip(numbers, stream.batches(), strict=False):
        assert batch.pairs.tolist() == expected.T.ravel().tolist()


def test_epochs_and_seeds_differ_and_repeat():
    index = index_of([20, 20])

    def order(seed, epoch):
        return epoch_order(index, seed, epoch, 2).tolist()

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
    # 24 batches of 5 are five epochs of 24 pairs; batches span their ends.
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


def test_url_gives_the_same_pairs(shards):
    local, remote = take(stream_of(shards), 2), take(stream_of(f"file://{shards}"), 2)
    assert [batch.pairs.tolist() for batch in local] == [batch.pairs.tolist() for batch in remote]


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


def test_a_pattern_far_beyond_the_index_is_refused_at_once(shards):
    with pytest.raises(InputError, match=r"000000\.\.999999999 are more than the 3 shards"):
        ShardFolder.open(f"{shards}/pairs-{{000000..999999999}}.tar")


@pytest.mark.parametrize("change", [{"pairs": -5}, {"classes": [1, 2]}, {"bytes": -1}])
def test_an_invalid_index_gives_a_one_line_error(change, shards, tmp_path):
    raw = json.loads((shards / "index.json").read_text())
    raw["shards"][1].update(change)
    (tmp_path / "index.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"index\.json: a shard "):
        ShardFolder.open(str(tmp_path))
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        ShardFolder.open(str(tmp_path))


@pytest.mark.parametrize("url", ["s3://no-such-bucket-here/shards", "s3://bucket/no such folder"])
def test_missing_shards_on_s3_give_a_one_line_error(url, bucket):
    with pytest.raises(InputError, match=r"no index\.json: no shards there") as error:
        ShardFolder.open(url)
    assert "\n" not in str(error.value)


HEIGHTS = (64, 40, 97, 37, 128, 50, 61)


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("varied") / "shards", heights=HEIGHTS)


def read_alone(shards):
    """Read every pair with the standard library and NumPy: its description and two RGB images."""
    pairs = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for name in [name for name in files if name.endswith(".json")]:
            key = name.removesuffix(".json")
            images = [
                cv2.imdecode(np.frombuffer(files[f"{key}.{side}.jpg"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
                for side in ("query", "key")
            ]
            pairs[int(key)] = (json.loads(files[name]), *images)
    return pairs


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("image_size", [70, 500])
def test_equal_to_decoding_each_pair_alone(varied, threads, image_size):
    stream = PairStream(ShardFolder.open(str(varied)), 5, image_size, seed=3, mix_shards=2, threads=threads)
    alone = read_alone(varied)
    shapes = set()
    for batch in take(stream, 12):
        for side, views in (("query", batch.query), ("key", batch.key)):
            shapes.add(tuple(views.images.shape))
            assert views.images.is_contiguous(memory_format=torch.channels_last)
            tallest = 0
            for row, number in enumerate(batch.pairs.tolist()):
                description, *images = alone[number]
                assert int(batch.labels[row]) == description["class_id"]
                image = images[side == "key"]
                (height, width), box = image.shape[:2], np.array(description[side]["box"], np.float32)
                if max(height, width) > image_size:
                    factor = image_size / max(height, width)
                    size = (round(width * factor), round(height * factor))
                    image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
                    box *= np.array([size[0] / width, size[1] / height] * 2, np.float32)
                tallest = max(tallest, image.shape[0])
                expected = np.full((*views.images.shape[2:], 3), 255, np.uint8)
                expected[: image.shape[0], : image.shape[1]] = image
                assert np.array_equal(views.images[row].permute(1, 2, 0).numpy(), expected)
                assert np.array_equal(views.boxes[row].numpy(), box)
            assert views.images.shape[2] == -(-tallest // 32) * 32  # no more than this batch needs
    assert len(shapes) > 1


def test_memory_is_used_again_but_never_while_a_batch_is_held(varied):
    batches = stream_of(varied, threads=2).batches()
    held = [next(batches) for _ in range(30)]
    copies = [batch.query.images.clone() for batch in held]
    held = held[:3] + [next(batches).query.images[1:2] for _ in range(3)]  # a slice keeps the whole batch alive
    parts = [part.clone() for part in held[3:]]
    seen = {next(batches).key.images.data_ptr() for _ in range(60)}
    assert len(seen) < 40
    assert all(torch.equal(batch.query.images, copy) for batch, copy in zip(held[:3], copies, strict=False))
    assert all(torch.equal(part, copy) for part, copy in zip(held[3:], parts, strict=True))


def test_few_buffers_are_enough_when_batches_are_dropped(shards):
    buffers = Buffers()
    seen = set()
    for _ in range(20):
        array = buffers.take((4, 32, 32, 3))
        seen.add(array.ctypes.data)
        tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
        del array, tensor
    assert len(seen) == 1
    held = [buffers.take((2, 64, 64, 3)) for _ in range(3)]
    assert len({array.ctypes.data for array in held}) == 3


def stepping(shards, batch=2, batches=6, **options):
    return PairStream(ShardFolder.open(str(shards)), batch, 96, 3, mix_shards=3, threads=1, batches_per_step=batches)


@pytest.mark.parametrize(("start", "world"), [(0, 1), (0, 2), (0, 3), (5, 2), (6, 3), (11, 6)])
def test_processes_share_every_step_whatever_their_number(shards, start, world):
    alone = stepping(shards).batches()
    for _ in range(6 * start):
        next(alone)
    parts = [stepping(shards).batches(start, rank=rank, world=world) for rank in range(world)]
    for _ in range(4):
        for part in parts:
            for batch in itertools.islice(part, 6 // world):
                expected = next(alone)
                assert batch.pairs.tolist() == expected.pairs.tolist()
                assert torch.equal(batch.query.boxes, expected.query.boxes)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("pairs", [16, 15])
def test_a_process_reads_its_share_of_the_bytes(pairs, world, tmp_path, monkeypatch):
    """16 shards a process; epochs of 15 pairs a shard end within a step."""
    shards = write_shards(tmp_path / "many", shards=16 * world, per_shard=pairs)
    read, epochs = [], 6
    load = ShardFolder.load
    monkeypatch.setattr(ShardFolder, "load", lambda folder, shard: read.append(shard.bytes) or load(folder, shard))
    folder = ShardFolder.open(str(shards))
    whole = sum(shard.bytes for shard in folder.index.shards)
    for rank in range(world):
        read.clear()
        stream = PairStream(folder, 4, 64, 3, mix_shards=8, threads=1, batches_per_step=4)
        steps = epochs * folder.index.num_pairs // stream.step
        for _ in itertools.islice(stream.batches(rank=rank, world=world), steps * 4 // world):
            pass
        assert sum(read) <= 1.15 * epochs * whole / world


@pytest.mark.parametrize(
    ("step", "mix", "lanes"), [(20, 8, 5), (64, 8, 8), (7, 8, 7), (11, 8, 8), (1, 8, 8), (3, 8, 6), (4, 1, 1)]
)
def test_the_number_of_lanes_fits_a_step(step, mix, lanes, shards):
    assert PairStream(ShardFolder.open(str(shards)), step, 96, 3, mix, 1).lanes == lanes


def test_shards_are_freed_after_their_last_pair(tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "many", shards=12, per_shard=8)
    alive = []
    load = ShardFolder.load

    class Held(list):
        pass

    def loaded(folder, shard):
        samples = Held(load(folder, shard))
        alive.append(weakref.ref(samples))
        return samples

    monkeypatch.setattr(ShardFolder, "load", loaded)
    stream, most = PairStream(ShardFolder.open(str(shards)), 4, 64, 3, mix_shards=2, threads=1), 0
    for _ in itertools.islice(stream.batches(), 60):
        most = max(most, sum(reference() is not None for reference in alive))
    assert len(alive) > 24
    assert most <= 6  # two in use, two read ahead, and what decoded batches still hold


def changed(**fields):
    def change(files):
        return files | {"json": json.dumps(json.loads(files["json"]) | fields).encode()}

    return change


def changed_view(**fields):
    def change(files):
        raw = json.loads(files["json"])
        raw["key"] |= fields
        return files | {"json": json.dumps(raw).encode()}

    return change


DAMAGE = {
    "image truncated before its pixels": lambda files: files | {"query.jpg": files["query.jpg"][:100]},
    "image empty": lambda files: files | {"key.jpg": b""},
    "image missing": lambda files: {name: data for name, data in files.items() if name != "key.jpg"},
    "not an image": lambda files: files | {"key.jpg": b"plain text " * 50},
    "description not JSON": lambda files: files | {"json": b"{"},
    "class unknown": changed(class_id=3),
    "class negative": changed(class_id=-1),
    "class of another name": changed(class_name="Baton"),
    "box outside": changed_view(box=[0, 0, 97, 10]),
    "box empty": changed_view(box=[5, 5, 5, 10]),
    "box negative": changed_view(box=[-1, 5, 5, 10]),
    "image of another size": changed_view(size=[200, 200]),
}
BAD = (2, 3, 11, 17)


def spoiled(folder, damage, bad=BAD):
    return write_shards(folder, spoil=lambda files, number: damage(files) if number in bad else files)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_pair_is_replaced_and_counted_and_nothing_else_moves(kind, shards, tmp_path, caplog):
    folder = spoiled(tmp_path / "spoiled", DAMAGE[kind])
    good, stream = torch.cat([batch.pairs for batch in take(stream_of(shards), 24)]).tolist(), stream_of(folder)
    found = torch.cat([batch.pairs for batch in take(stream, 24)]).tolist()
    assert stream.skipped == sum(number in BAD for number in good)
    assert caplog.text.count("skipping damaged pairs") == 1
    expected = []
    for number in good:
        others = [number // 8 * 8 + (number + step) % 8 for step in range(8)]
        expected.append(next(other for other in others if other not in BAD))
    assert found == expected


def test_replacements_depend_on_neither_threads_nor_start(tmp_path):
    folder = spoiled(tmp_path / "spoiled", DAMAGE["not an image"], bad=range(1, 24, 2))
    alone = take(stream_of(folder, threads=1), 15)
    resumed = take(stream_of(folder, threads=3), 8, start=7)
    for a, b in zip(alone[7:], resumed, strict=True):
        assert torch.equal(a.pairs, b.pairs)
        assert torch.equal(a.key.images, b.key.images)


def test_a_shard_of_damaged_pairs_only_is_refused(tmp_path):
    folder = spoiled(tmp_path / "spoiled", DAMAGE["image empty"], bad=range(24))
    with pytest.raises(InputError, match=r"all 8 pairs of a shard .*pair 0000000\d\d: image: empty file"):
        take(stream_of(folder), 1)


def pairs_of(source):
    folder = ShardFolder.open(str(source))
    stream = PairStream(folder, folder.index.num_pairs, 96, seed=0, mix_shards=2, threads=1)
    return sorted(take(stream, 1)[0].pairs.tolist())


@pytest.mark.parametrize(
    ("pattern", "shard_numbers"),
    [
        ("pairs-{000000..000002}.tar", (0, 1, 2)),
        ("pairs-{000001..000002}.tar", (1, 2)),
        ("pairs-{000002,000000,000002}.tar", (0, 2)),
        ("pairs-000001.tar", (1,)),
    ],
)
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_brace_pattern_takes_a_part_of_the_shards(shards, pattern, shard_numbers, prefix):
    assert pairs_of(f"{prefix}{shards}/{pattern}") == [8 * n + i for n in shard_numbers for i in range(8)]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("pairs-{000001..000003}.tar", r"lists 3 shards, but not 'pairs-000003\.tar'"),
        ("other.tar", "lists 3 shards, but not 'other.tar'"),
        ("pairs-{000001.tar", "not a brace pattern"),
    ],
)
def test_a_pattern_that_names_no_shard_is_refused(shards, pattern, message):
    with pytest.raises(InputError, match=message):
        ShardFolder.open(f"{shards}/{pattern}")


@pytest.mark.parametrize("command", ["pipe:touch {0}", " pipe:touch {0}", "simplecache::pipe://touch {0}", "PIPE:{0}"])
def test_commands_are_never_run(command, tmp_path):
    with pytest.raises(InputError, match="commands are never run") as error:
        ShardFolder.open(command.format(tmp_path / "ran"))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_shards_are_read_over_http(shards):
    pytest.importorskip("aiohttp", reason="needs aiohttp")
    handler = functools.partial(QuietHandler, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert pairs_of(url) == list(range(24))
        assert pairs_of(f"{url}/pairs-{{000000..000001}}.tar") == list(range(16))
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_plain_webdataset_reads_our_shards(varied):
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset")
    urls = [str(path) for path in sorted(varied.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    alone = read_alone(varied)
    assert [int(sample["__key__"]) for sample in samples] == sorted(alone)
    for sample in samples:
        description, query, key = alone[int(sample["__key__"])]
        assert sample["json"] == description
        # Another decoder may round differently.
        for name, image in (("query.jpg", query), ("key.jpg", key)):
            assert sample[name].shape == image.shape
            assert np.abs(sample[name].astype(int) - image).mean() < 2
