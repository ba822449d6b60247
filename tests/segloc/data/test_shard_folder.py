"""Shards that are missing, truncated, changed, or on a store that fails for a moment."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest

from segloc import pretrain
from segloc.common import remote_store
from segloc.common.contract import INDEX_NAME, shard_name
from segloc.common.errors import InputError
from segloc.common.remote_store import RemoteStore
from segloc.data.shard_folder import ShardFolder
from segloc.data.stream import PairStream
from tests.conftest import FORMAT_1
from tests.segloc.common.test_contract import stored_pairs
from tests.segloc.test_pretrain import TINY


@pytest.fixture
def copy(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "copy")


def take(folder, count):
    batches = PairStream(ShardFolder.open(str(folder)), 4, 500, 3, 2, 2).batches()
    return [next(batches) for _ in range(count)]


def test_bad_shards_are_refused(copy, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        ShardFolder.open(str(tmp_path / "nowhere"))
    tar = copy / shard_name(1)
    tar.write_bytes(tar.read_bytes()[:-600])
    with pytest.raises(InputError, match=r"pairs-000001\.tar.*is it truncated"):
        take(copy, 6)
    tar.unlink()
    with pytest.raises(InputError, match=r"pairs-000001\.tar.*cannot be read"):
        take(copy, 6)
    text = (copy / "index.json").read_text()
    (copy / "index.json").write_text(text.replace("pairs-000002.tar", "pipe:rm"))
    with pytest.raises(InputError, match="pipe:rm"):
        ShardFolder.open(str(copy))
    (copy / "index.json").unlink()
    with pytest.raises(InputError, match="has not finished"):
        ShardFolder.open(str(copy))


def test_shard_with_another_digest_is_refused(copy):
    data = bytearray((copy / shard_name(2)).read_bytes())
    data[3000] ^= 1
    (copy / shard_name(2)).write_bytes(data)
    with pytest.raises(InputError, match=r"pairs-000002\.tar.*sha256 differs from the index"):
        take(copy, 6)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_sizes_are_checked_before_training_starts(scheme, copy, tmp_path, capsys):
    tar = copy / shard_name(2)
    arguments = ["--shards", f"{scheme}{copy}", "--out", str(tmp_path / "run"), *TINY]
    ShardFolder.open(f"{scheme}{copy}").check_sizes()
    tar.write_bytes(tar.read_bytes()[:-512])
    assert pretrain.main(arguments) == 2
    assert "pairs-000002.tar" in (error := capsys.readouterr().err)
    assert "is it truncated?" in error
    tar.unlink()
    assert pretrain.main(arguments) == 2
    assert "the shards cannot be accessed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_histogram_that_does_not_add_up_is_refused(copy):
    index = json.loads((copy / INDEX_NAME).read_text())
    index["shards"][1]["classes"] = [0, 0, 0]
    (copy / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(InputError, match="shard 1 has 8 pairs, but its classes add up to 0"):
        ShardFolder.open(str(copy))


@pytest.mark.parametrize("size", [b"-0000001000", b"07777777777"])
def test_a_tar_of_impossible_sizes_is_refused(size, copy):
    data = bytearray((copy / shard_name(0)).read_bytes())
    data[124 : 124 + len(size)] = size
    (copy / shard_name(0)).write_bytes(data)
    folder = ShardFolder.open(str(copy))
    shard = dataclasses.replace(folder.index.shards[0], sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(InputError, match=r"pairs-000000\.tar: not a tar file"):
        folder.load(shard)


def test_reading_is_repeated_when_a_store_fails_for_a_moment(shards, monkeypatch):
    content = np.fromfile(shards / shard_name(0), np.uint8)
    answers, pauses = [ConnectionError("reset"), TimeoutError(), content], []
    folder = dataclasses.replace(ShardFolder.open(str(shards)), store=RemoteStore("s3://bucket/shards"))

    def fetch(store, name):
        assert f"{store}/{name}" == "s3://bucket/shards/pairs-000000.tar"
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(RemoteStore, "_fetch", fetch)
    monkeypatch.setattr(remote_store.time, "sleep", pauses.append)
    assert len(folder.load(folder.index.shards[0])) == 8
    assert pauses == [1, 5]
    answers += [FileNotFoundError("gone")]
    with pytest.raises(InputError, match=r"pairs-000000\.tar: cannot be read \(gone\)"):
        folder.load(folder.index.shards[0])
    answers += [ConnectionError("reset")] * 4
    with pytest.raises(InputError, match=r"cannot be read \(reset\)"):
        folder.load(folder.index.shards[0])
    assert pauses == [1, 5, 1, 5, 20]


def test_pairs_of_format_1_are_read():
    folder = ShardFolder.open(str(FORMAT_1))
    batch = next(PairStream(folder, 4, 128, 3, 2, 1).batches())
    stored = {raw["pair"]: raw for raw in stored_pairs(FORMAT_1)}
    for side in ("query", "key"):
        boxes = [stored[pair][side]["box"] for pair in batch.pairs.tolist()]
        assert getattr(batch, side).boxes.tolist() == boxes
    assert sorted(batch.pairs.tolist()) == [0, 1, 2, 3]


def test_descriptions_of_format_1_in_a_folder_of_format_2_are_damaged():
    folder = ShardFolder.open(str(FORMAT_1))
    newer = dataclasses.replace(folder, index=dataclasses.replace(folder.index, format_version=2))
    with pytest.raises(InputError, match=r"all 4 pairs of a shard are damaged; .*coefficient"):
        next(PairStream(newer, 4, 64, 3, 2, 1).batches())


def test_pretraining_on_format_1_says_once_what_is_missing(tmp_path, capsys):
    arguments = ["--shards", str(FORMAT_1), "--out", str(tmp_path / "run"), *TINY, "optim.steps=2", "queue.size=2"]
    assert pretrain.main(arguments) == 0
    line = f"{FORMAT_1}: shards of format 1, without mask, on_matter, sources.parquet"
    assert capsys.readouterr().out.splitlines().count(line) == 1
