import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import audit, synthesize
from pipeline.pairing.pairs import make_pair
from pipeline.storage.shards import TarWriter
from segloc.common.contract import Pair, Sources, read_index
from segloc.common.errors import InputError
from segloc.common.images import decode
from tests.conftest import FORMAT_1
from tests.pipeline.conftest import ROOT, Synthesis, digests, listen_to_ctrl_c, run_module


def test_shards_and_index_agree(shards: Path) -> None:
    index = read_index(shards)
    assert sorted(path.name for path in shards.iterdir()) == [
        "index.json",
        *(shard.name for shard in index.shards),
        "sources.parquet",
    ]
    assert index.num_pairs == index.counts["pairs"] == 24
    assert index.counts == {"pairs": 24, "shards": 6, "backgrounds": 10, "segments": 10}
    assert index.classes == ("Baton", "Pliers", "Gun", "Knife")
    assert index.parameters["excluded_classes"] == ["Baton", "Pliers"]
    for shard in index.shards:
        data = (shards / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
        assert sum(shard.classes) == shard.pairs == 4


def test_tars_are_byte_stable(shards: Path) -> None:
    names = []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                names.append(member.name)
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
                assert (member.uname, member.gname, member.isreg()) == ("", "", True)
                assert member.pax_headers == {}
    keys = [f"{number:09d}" for number in range(24)]
    assert names == [f"{key}.{suffix}" for key in keys for suffix in ("query.jpg", "key.jpg", "json")]


@pytest.mark.parametrize("sizes", [[0], [1, 511, 512, 513], [9000, 20000, 5], [512] * 17])
def test_our_tars_equal_those_of_the_standard_library(sizes: list[int]) -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    writer = TarWriter(ours)
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, size in enumerate(sizes):
            data = bytes([number]) * size
            writer.add(f"{number:09d}.query.jpg", data)
            member = tarfile.TarInfo(f"{number:09d}.query.jpg")
            member.size, member.mode, member.mtime = size, 0o444, 0
            tar.addfile(member, io.BytesIO(data))
    writer.close()
    assert ours.getvalue() == theirs.getvalue()


def test_stored_images_have_the_size_in_their_description(shards: Path) -> None:
    with tarfile.open(shards / "pairs-000000.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}
    pair = Pair.from_json(content["000000002.json"])
    for side, view in (("query", pair.query), ("key", pair.key)):
        image = decode(content[f"000000002.{side}.jpg"])
        assert (image.shape[1], image.shape[0]) == view.size
        assert view.size[0] == 160


def test_the_index_names_no_path_and_no_time(shards: Path) -> None:
    text = (shards / "index.json").read_text()
    assert str(ROOT) not in text
    assert "/" not in text


@pytest.mark.parametrize("workers", [2, 3])
def test_bytes_do_not_depend_on_workers(workers: int, synthesis: Synthesis, shards: Path, tmp_path: Path) -> None:
    assert synthesis(tmp_path / "s", workers=workers) == 0
    assert digests(tmp_path / "s") == digests(shards)


RAY_CLUSTER = """
import sys
import ray
from ray.cluster_utils import Cluster
from pipeline import synthesize

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
for _ in range(2):
    cluster.add_node(num_cpus=1)
cluster.connect()
cluster.wait_for_nodes()
assert len([node for node in ray.nodes() if node["Alive"]]) == 3
done = synthesize.main(sys.argv[1:])
ray.shutdown()
cluster.shutdown()
sys.exit(done)
"""


@pytest.mark.slow
def test_a_ray_cluster_of_several_nodes_gives_the_same_bytes(
    synthesis: Synthesis, shards: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    arguments = synthesis.arguments(tmp_path / "s", executor="ray", workers=3)
    done = subprocess.run(
        [sys.executable, "-c", RAY_CLUSTER, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "s") == digests(shards)


def test_pairs_do_not_depend_on_how_many_there_are(synthesis: Synthesis, shards: Path, tmp_path: Path) -> None:
    assert synthesis(tmp_path / "s", pairs=6, per_shard=4) == 0
    assert (tmp_path / "s" / "pairs-000000.tar").read_bytes() == (shards / "pairs-000000.tar").read_bytes()
    assert read_index(tmp_path / "s").shards[1].pairs == 2


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    """A finished folder that a test may damage."""
    out = tmp_path / "copy"
    out.mkdir()
    for path in shards.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def test_a_finished_folder_is_verified_and_left_alone(
    copy: Path, synthesis: Synthesis, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert synthesis(copy) == 0
    assert "all were there and verified" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_the_index_says_how_the_regions_were_found(shards: Path) -> None:
    assert read_index(shards).parameters["region_mode"] == "adaptive"


def test_a_folder_of_an_earlier_version_is_left_alone(
    copy: Path, synthesis: Synthesis, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its index lacks the mode of the regions, which follows from their digest."""
    index = read_index(copy)
    old = {name: value for name, value in index.parameters.items() if name != "region_mode"}
    (copy / "index.json").write_bytes(dataclasses.replace(index, parameters=old).to_json())
    before = digests(copy)
    assert synthesis(copy) == 0
    assert "all were there and verified" in capsys.readouterr().out
    assert digests(copy) == before


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: flip_a_byte(out / "pairs-000002.tar"),
        lambda out: (out / "pairs-000002.tar").write_bytes((out / "pairs-000002.tar").read_bytes()[:-512]),
        lambda out: (out / "pairs-000002.tar").unlink(),
        lambda out: (
            [(out / f".{name}.abc.tmp").write_bytes(b"half") for name in ("pairs-000002.tar", "index.json")]
            and (out / "pairs-000002.tar").unlink()
        ),
        lambda out: flip_a_byte(out / "sources.parquet"),
        lambda out: (out / "sources.parquet").unlink(),
        lambda out: [(out / name).unlink() for name in ("sources.parquet", "pairs-000002.tar")],
    ],
    ids=["flipped bit", "truncated", "missing", "stray temporaries", "flipped source", "no sources", "both missing"],
)
def test_a_damaged_file_is_made_again(damage, copy: Path, shards: Path, synthesis: Synthesis) -> None:
    damage(copy)
    made = {path.name: path.stat().st_mtime_ns for path in copy.glob("*.tar")}
    assert synthesis(copy) == 0
    assert digests(copy) == digests(shards)
    untouched = [name for name in made if "000002" not in name]
    assert all((copy / name).stat().st_mtime_ns == made[name] for name in untouched)


def test_a_folder_is_incomplete_while_a_shard_is_made_again(
    copy: Path, shards: Path, synthesis: Synthesis, tmp_path: Path
) -> None:
    flip_a_byte(copy / "pairs-000002.tar")
    (tmp_path / "no scans").mkdir()
    assert synthesis(copy, backgrounds=tmp_path / "no scans") == 2
    with pytest.raises(InputError, match="has not finished"):
        read_index(copy)
    assert synthesis(copy) == 0
    assert digests(copy) == digests(shards)


def stored_pairs(folder: Path) -> Iterator[Pair]:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            yield from (
                Pair.from_json(tar.extractfile(name).read()) for name in tar.getnames() if name.endswith("json")
            )


def test_the_counts_of_sources_match_the_pairs(synthesis: Synthesis, tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert synthesis(out, occluded=0.5) == 0
    uses = Counter[tuple[str, str]]()
    for pair in stored_pairs(out):
        for view in (pair.query, pair.key):
            uses["background", view.background] += 1
            uses["segment", view.segment] += 1
            if view.occluder:
                uses["occluder", view.occluder.background] += 1
    assert {kind for kind, _ in uses} == {"background", "segment", "occluder"}
    rows = pq.read_table(out / "sources.parquet").to_pylist()
    assert [tuple(row.values()) for row in rows] == sorted((*source, count) for source, count in uses.items())
    sources = read_index(out).sources
    digest = hashlib.sha256((out / "sources.parquet").read_bytes()).hexdigest()
    assert sources == Sources("sources.parquet", digest, len(uses))


def test_sources_are_counted_without_making_pairs_again(
    copy: Path, shards: Path, synthesis: Synthesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the records, the counts come from the stored pairs."""
    made = []
    monkeypatch.setattr("pipeline.storage.shards.make_pair", lambda *arguments: made.append(1) or make_pair(*arguments))
    flip_a_byte(copy / "pairs-000002.tar")
    (copy / "sources.parquet").unlink()
    assert synthesis(copy) == 0
    assert len(made) == 4
    assert digests(copy) == digests(shards)


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_format_1_is_not_continued(
    finished: bool, shards: Path, synthesis: Synthesis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    if finished:
        shutil.copytree(FORMAT_1, out)
    else:
        index = read_index(shards)
        (out / ".progress").mkdir(parents=True)
        (out / ".progress" / "plan.json").write_text(json.dumps({"seed": 0, **index.parameters}))
    before = digests(out)
    assert synthesis(out) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "format_version is 1, not 2" in errors[0]
    assert "--if-changed rebuild" in errors[0]
    assert digests(out) == before
    assert synthesis(out, if_changed="rebuild") == 0
    assert digests(out) == digests(shards)


def test_other_parameters_are_refused_by_name(
    copy: Path, synthesis: Synthesis, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(copy)
    assert synthesis(copy, seed=1) == 2
    assert synthesis(copy, blend="ratio", width=128) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "(seed is 0, not 1)" in first
    assert 'blend is "alpha", not "ratio"' in second
    assert "width is 160, not 128" in second
    assert digests(copy) == before


def test_coefficients_are_drawn_from_the_given_range(
    synthesis: Synthesis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    assert synthesis(out, coefficients="0.1:0.2") == 0
    assert read_index(out).parameters["coefficient_range"] == [0.1, 0.2]
    drawn = [view.coefficient for pair in stored_pairs(out) for view in (pair.query, pair.key)]
    assert 0.1 <= min(drawn) < 0.11
    assert 0.19 < max(drawn) <= 0.2
    assert audit.main(["--shards", str(out), "--workers", "1"]) == 0
    assert synthesis(out) == 2
    assert synthesis(tmp_path / "t", coefficients="0.5:1.5") == 2
    assert "--coefficients: --blend alpha takes numbers from 0.01 to 1" in capsys.readouterr().err
    assert synthesis(tmp_path / "t", blend="paste", coefficients="0.5:1") == 2
    assert not (tmp_path / "t").exists()


def test_the_default_blend_is_the_recommended_one(synthesis: Synthesis, tmp_path: Path) -> None:
    arguments = synthesis.arguments(tmp_path / "s")
    del arguments[arguments.index("--blend") : arguments.index("--blend") + 2]
    assert synthesize.main(arguments) == 0
    recommended = yaml.safe_load((ROOT / "params.yaml").read_text())["synthesize"]["blend"]
    assert {view.blend for pair in stored_pairs(tmp_path / "s") for view in (pair.query, pair.key)} == {recommended}


def test_other_inputs_are_refused(
    copy: Path, synthesis: Synthesis, region_file: Path, sixray: Path, tmp_path: Path
) -> None:
    from pipeline import regions

    other = tmp_path / "paper.parquet"
    assert regions.main(["--backgrounds", str(sixray), "--out", str(other), "--mode", "paper", "--workers", "1"]) == 0
    changed = Synthesis(sixray, other, Path(synthesis.inputs[5]))
    done = run_module("pipeline.synthesize", *changed.arguments(copy))
    assert done.returncode == 2
    assert "regions_sha256" in done.stderr


def test_rebuild_starts_again_and_removes_only_our_files(copy: Path, synthesis: Synthesis, tmp_path: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    assert synthesis(copy, seed=1, pairs=10, if_changed="rebuild") == 0
    assert (copy / "notes.txt").read_text() == "mine"
    assert synthesis(tmp_path / "fresh", seed=1, pairs=10) == 0
    (copy / "notes.txt").unlink()
    assert digests(copy) == digests(tmp_path / "fresh")


def test_shards_of_unknown_origin_are_not_trusted(
    copy: Path, synthesis: Synthesis, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "index.json").unlink()
    assert synthesis(copy) == 2
    assert "without a readable plan" in capsys.readouterr().err
    (copy / "index.json").write_text("{")
    assert synthesis(copy) == 2


def test_ranges_together_make_all_shards(synthesis: Synthesis, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    for part in ("4:6", "0:2"):
        assert synthesis(out, shards_range=part) == 0
        with pytest.raises(InputError, match="has not finished"):
            read_index(out)
    assert synthesis(out, shards_range="2:4") == 0
    assert digests(out) == digests(shards)
    assert not (out / ".progress").exists()


def start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.synthesize", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listen_to_ctrl_c
    )


def test_killed_at_any_moment_and_started_again_gives_the_same_bytes(synthesis: Synthesis, tmp_path: Path) -> None:
    size = {"pairs": 120, "per_shard": 6}
    assert synthesis(tmp_path / "undisturbed", **size) == 0
    out, rng, seen = tmp_path / "disturbed", np.random.default_rng(), 0
    for _ in range(3):
        process = start(synthesis.arguments(out, workers=2, **size))
        deadline = time.monotonic() + 30
        while len(list(out.glob("pairs-*.tar"))) <= seen and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        seen = len(list(out.glob("pairs-*.tar")))
        for path in out.glob("pairs-*.tar"):  # files with their final name are complete
            assert path.read_bytes() == (tmp_path / "undisturbed" / path.name).read_bytes()
    assert seen > 0
    assert synthesis(out, **size) == 0
    assert digests(out) == digests(tmp_path / "undisturbed")


def test_ctrl_c_ends_in_one_line(synthesis: Synthesis, tmp_path: Path) -> None:
    out = tmp_path / "s"
    process = start(synthesis.arguments(out, workers=2, pairs=4000, per_shard=8))
    while not list(out.glob("pairs-*.tar")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert not list(out.glob(".pairs-*"))
    assert process.returncode == 130
    assert (
        errors.splitlines()[-1]
        == "python -m pipeline.synthesize: stopped by Ctrl-C; run the same command again to continue"
    )
    assert "Traceback" not in errors


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    synthesis: Synthesis,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, real, calls = tmp_path / "s", os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert synthesis(out) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("the disk is full; free some space and run the same command again")
    )
    monkeypatch.undo()
    names = [path.name for path in out.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith(".tmp")]
    for path in out.glob("*.tar"):
        assert path.read_bytes() == (shards / path.name).read_bytes()
    assert synthesis(out) == 0
    assert digests(out) == digests(shards)


def test_an_unreadable_background_is_named(synthesis: Synthesis, sixray: Path, tmp_path: Path) -> None:
    other = tmp_path / "sixray"
    (other / "JPEGImage").mkdir(parents=True)
    for path in (sixray / "JPEGImage").iterdir():
        (other / "JPEGImage" / path.name).write_bytes(path.read_bytes()[:-200])
    arguments = Synthesis(other, Path(synthesis.inputs[3]), Path(synthesis.inputs[5])).arguments(
        tmp_path / "s", workers=2
    )
    done = run_module("pipeline.synthesize", *arguments)
    assert done.returncode == 2
    assert "truncated file; run pipeline.regions again" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "s").glob("*.tar"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": 0}, "--pairs"),
        ({"seed": -1}, "--seed"),
        ({"per_shard": 0}, "--per-shard"),
        ({"quality": 101}, "--quality"),
        ({"width": 8}, "--width"),
        ({"blend": "add"}, "--blend"),
        ({"coefficients": "0.5"}, "--coefficients"),
        ({"coefficients": "0.5:0.4"}, "--coefficients"),
        ({"coefficients": "0.5:nan"}, "--coefficients"),
        ({"coefficients": "0.5:1_0"}, "--coefficients"),
        ({"scale": "٠.5:1"}, "--scale"),
        ({"shards_range": "٠:1"}, "--shards-range"),
        ({"shards_range": "-1:1"}, "--shards-range"),
        ({"workers": -2}, "--workers"),
        ({"shards_range": "3:3"}, "--shards-range"),
        ({"shards_range": "2:9"}, "there are 6 shards"),
        ({"regions": "none.parquet"}, "none.parquet: no such file"),
        ({"segments": ROOT / "setup.cfg"}, "not a Parquet file"),
        ({"backgrounds": "none"}, "none: no such folder"),
    ],
)
def test_bad_arguments_end_with_code_2(
    change: dict, message: str, synthesis: Synthesis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = synthesis(tmp_path / "s", **change)
    except SystemExit as stop:  # argparse's own
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("s/*.tar"))


def test_segments_that_cannot_make_a_pair_are_refused(
    synthesis: Synthesis, pidray: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import segments

    content = json.loads((pidray / "annotations" / "xray_train.json").read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == 0]
    (tmp_path / "one.json").write_text(json.dumps(content))
    out = tmp_path / "one.parquet"
    arguments = ["--annotations", tmp_path / "one.json", "--images", pidray / "train", "--out", out, "--workers", "1"]
    assert segments.main(list(map(str, arguments))) == 0
    assert synthesis(tmp_path / "s", segments=out) == 2
    assert "no class has segments from two bags" in capsys.readouterr().err


def test_two_seeds_at_once_never_mix(synthesis: Synthesis, tmp_path: Path) -> None:
    """Started at the same moment in one folder: one seed makes all its shards, the other is refused."""
    size = {"pairs": 8, "per_shard": 2}
    alone = {}
    for seed in (1, 2):
        assert synthesis(tmp_path / f"alone {seed}", seed=seed, **size) == 0
        alone[seed] = digests(tmp_path / f"alone {seed}")
    for number in range(3):
        out = tmp_path / f"both {number}"
        runs = {seed: start(synthesis.arguments(out, seed=seed, **size)) for seed in (1, 2)}
        errors = {seed: run.communicate(timeout=60)[1] for seed, run in runs.items()}
        won = [seed for seed, run in runs.items() if run.returncode == 0]
        assert len(won) == 1, errors
        assert digests(out) == alone[won[0]]
        assert f"was made with other parameters (seed is {won[0]}, not {3 - won[0]})" in errors[3 - won[0]]


def test_processes_of_one_plan_share_a_folder(synthesis: Synthesis, tmp_path: Path) -> None:
    out, size = tmp_path / "shared", {"pairs": 8, "per_shard": 2}
    assert synthesis(tmp_path / "alone", **size) == 0
    runs = [start(synthesis.arguments(out, shards_range=part, **size)) for part in ("0:2", "2:4", "1:3")]
    errors = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], errors
    assert digests(out) == digests(tmp_path / "alone")


def test_a_folder_is_not_rebuilt_under_a_run_that_works_in_it(synthesis: Synthesis, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    first = start(synthesis.arguments(out, pairs=4000, per_shard=8))
    while not list(out.glob("pairs-*.tar")):
        time.sleep(0.01)
    again = start(synthesis.arguments(out, pairs=4000, per_shard=8, seed=1, if_changed="rebuild"))
    _, errors = again.communicate(timeout=30)
    assert again.returncode == 2
    assert re.search(r"another process makes shards in this folder \(process \d+ on \S+\); wait until it ends", errors)
    first.kill()
    first.communicate()
    assert synthesis(out, pairs=8, per_shard=8, seed=1, if_changed="rebuild") == 0


def test_shards_of_a_run_that_lost_its_folder_are_not_taken_over(synthesis: Synthesis, tmp_path: Path) -> None:
    """On a bucket nothing keeps a run from rebuilding under another: what the other writes then is made again."""
    out, size = tmp_path / "shards", {"pairs": 8, "per_shard": 2}
    assert synthesis(tmp_path / "alone", seed=1, **size) == 0
    assert synthesis(out, seed=0, shards_range="0:2", **size) == 0
    late = {path.name: path.read_bytes() for path in (out / ".progress").iterdir() if path.name != "plan.json"}
    shards = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert synthesis(out, seed=1, shards_range="3:4", if_changed="rebuild", **size) == 0
    for folder, files in ((out / ".progress", late), (out, shards)):
        for name, content in files.items():
            (folder / name).write_bytes(content)
    assert synthesis(out, seed=1, **size) == 0
    assert digests(out) == digests(tmp_path / "alone")
