"""Shards on object stores: the same bytes, never incomplete, verified on resume."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import audit
from pipeline.storage.progress import Record, read_record, write_record
from segloc.common.errors import InputError
from segloc.common.remote_store import RemoteStore
from segloc.common.store_protocol import Store
from segloc.common.stores import open_store
from tests.pipeline.conftest import ROOT, Synthesis, digests


@pytest.fixture(params=["path", "file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        place = f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    else:
        place = {"path": f"{tmp_path}/t", "file": f"file://{tmp_path}/t", "memory": f"memory://{tmp_path}"}[
            request.param
        ]
    return pickle.loads(pickle.dumps(open_store(place)))


def write(store: Store, name: str, data: bytes) -> None:
    with store.create(name) as file:
        file.write(data)


def test_a_file_is_never_visible_incomplete(store: Store) -> None:
    assert store.names() == []
    assert store.stat("a.tar") is None
    with contextlib.suppress(KeyError), store.create("a.tar") as file:
        file.write(b"half")
        raise KeyError
    assert store.names() == []
    with store.create("a.tar") as file:
        file.write(b"whole")
        assert "a.tar" not in store.names()
    with contextlib.suppress(KeyError), store.create("a.tar") as file:
        file.write(b"half of another")
        raise KeyError
    assert store.names() == ["a.tar"]
    assert store.stat("a.tar").bytes == 5
    assert store.read("a.tar") == b"whole"
    with store.fetch("a.tar") as path:
        assert path.read_bytes() == b"whole"


def test_deleting_removes_only_the_named_files(store: Store) -> None:
    for name in ("a", "b", ".progress/c"):
        write(store, name, b"1")
    for _ in range(2):  # a missing file is not an error
        store.delete("a")
        store.delete_folder(".progress")
    assert store.names() == ["b"]
    assert store.names(".progress") == []
    with pytest.raises(FileNotFoundError):
        store.read("a")
    with pytest.raises(FileNotFoundError), store.fetch("a"):
        pass


def test_a_folder_without_index_is_refused(store: Store) -> None:
    write(store, "a", b"1")
    with pytest.raises(InputError, match=r"no index\.json"):
        store.index()


def test_a_failed_upload_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def fail(*_: object) -> None:
        raise TimeoutError("the store went away")

    store = open_store(f"memory://{tmp_path}")
    monkeypatch.setattr(MemoryFileSystem, "mv", fail)
    with pytest.raises(InputError, match="the store went away"):
        write(store, "a", b"1")
    monkeypatch.undo()
    assert store.names() == []


@pytest.fixture
def url(bucket: str, tmp_path: Path) -> str:
    return f"{bucket}/{tmp_path.name}"


def content(url: str) -> dict[str, bytes]:
    """All files of a folder. Records of an unfinished synthesis must be gone."""
    folder = open_store(url)
    assert folder.names(".progress") == []
    return {name: folder.read(name) for name in folder.names()}


@pytest.mark.parametrize("workers", [1, 2])
def test_s3_gets_the_same_bytes(workers: int, synthesis: Synthesis, shards: Path, url: str) -> None:
    assert synthesis(url, workers=workers) == 0
    assert content(url) == digests(shards)


def test_ranges_on_s3_together_make_all_shards(synthesis: Synthesis, shards: Path, url: str) -> None:
    for part in ("4:6", "0:4"):
        with pytest.raises(InputError, match="has not finished"):
            open_store(url).index()
        assert synthesis(url, shards_range=part) == 0
    assert content(url) == digests(shards)


def test_the_index_is_not_written_while_a_shard_is_missing(
    synthesis: Synthesis, shards: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesis(url, shards_range="0:5") == 0
    open_store(url).delete("pairs-000003.tar")
    assert synthesis(url, shards_range="5:6") == 2
    assert "pairs-000003.tar, made by another run, is missing or damaged; run again with --shards-range 3:4" in (
        capsys.readouterr().err
    )
    assert synthesis(url, shards_range="3:4") == 0
    assert content(url) == digests(shards)


def test_a_damaged_object_is_made_again(
    synthesis: Synthesis, shards: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesis(url) == 0
    assert synthesis(url) == 0
    assert "all were there and verified" in capsys.readouterr().out
    folder = open_store(url)
    data = bytearray(folder.read("pairs-000002.tar"))
    data[len(data) // 2] ^= 1
    write(folder, "pairs-000002.tar", bytes(data))
    folder.delete("pairs-000004.tar")
    assert synthesis(url) == 0
    assert "(2 made now)" in capsys.readouterr().out
    assert content(url) == digests(shards)


def test_recorded_objects_are_recognised_by_their_tag(
    synthesis: Synthesis, shards: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert synthesis(url, shards_range="0:5") == 0
    folder = open_store(url)
    record = read_record(folder, 3)
    write_record(folder, 3, Record(record.shard, "another tag"))
    read, fetch = [], RemoteStore.fetch
    monkeypatch.setattr(RemoteStore, "fetch", lambda self, name: read.append(name) or fetch(self, name))
    assert synthesis(url) == 0
    assert read == ["pairs-000003.tar"]
    assert content(url) == digests(shards)


def test_other_parameters_are_refused_or_rebuilt(
    synthesis: Synthesis, shards: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesis(url, seed=1) == 0
    write(open_store(url), "notes.txt", b"mine")
    assert synthesis(url) == 2
    assert "(seed is 1, not 0)" in capsys.readouterr().err
    assert synthesis(url, if_changed="rebuild") == 0
    assert content(url) == {**digests(shards), "notes.txt": b"mine"}


def test_killed_and_started_again_gives_the_same_bytes(
    synthesis: Synthesis, shards: Path, url: str, tmp_path: Path
) -> None:
    folder = open_store(url)
    command = [sys.executable, "-m", "pipeline.synthesize", *synthesis.arguments(url, workers=2)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not folder.names() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(folder.names()) < 7
    for name in folder.names():
        assert folder.read(name) == (shards / name).read_bytes()
    assert synthesis(url) == 0
    assert content(url) == digests(shards)


def test_audit_reads_s3(
    synthesis: Synthesis, segment_file: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesis(url) == 0
    arguments = ["--shards", url, "--segments", str(segment_file), "--gallery", str(tmp_path / "g.png")]
    assert audit.main([*arguments, "--workers", "2"]) == 0
    assert (tmp_path / "g.png").stat().st_size > 0
    folder = open_store(url)
    write(folder, "pairs-000077.tar", b"")
    folder.delete("pairs-000001.tar")
    capsys.readouterr()
    assert audit.main(["--shards", url, "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "pairs-000077.tar: not in the index" in printed
    assert "pairs-000001.tar: missing" in printed


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "'' names no folder"),
        ("s3://", "'s3://' names no folder"),
        ("file://", "'file://' names no folder"),
        ("s3://bucket/run*", "choose a name without them"),
        ("simplecache::memory://shards", "other processes cannot see files"),
        ("memory://shards", "other processes cannot see files written there; use --workers 1"),
        ("nowhere://bucket/shards", "nowhere"),
        ("s3://no-such-bucket-here/shards", "s3://no-such-bucket-here/shards: "),
    ],
)
def test_an_unusable_output_is_one_sentence(
    place: str, message: str, synthesis: Synthesis, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesis(place, workers=2) == 2
    errors = capsys.readouterr().err.splitlines()
    assert message in errors[-1]
    assert not [line for line in errors if "Traceback" in line]


def test_no_answer_is_one_sentence(
    synthesis: Synthesis, bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = synthesis.arguments(f"{bucket}/x")
    command = [sys.executable, "-m", "pipeline.synthesize", *arguments]
    silent = os.environ | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=silent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"{bucket}/x: " in done.stderr.splitlines()[-1]


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pairs-000000.tar")
    with (
        pytest.raises(InputError, match="is a device, pipe or folder, not a file"),
        open_store(str(tmp_path)).fetch("pairs-000000.tar"),
    ):
        pass
