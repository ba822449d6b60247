import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import regions
from pipeline.bags import regions as regions_body
from pipeline.tables import region_table
from segloc.common.datasets import backgrounds
from segloc.common.errors import InputError
from segloc.common.images import encode_jpeg, encode_png
from tests.pipeline.conftest import draw_bag, run_module

SCAN = draw_bag(np.random.default_rng(0), 200, 150)
BELT = np.full((150, 200, 3), 255, np.uint8)

MANY_BAD = ("--max-skipped", "0.5")  # 5 of the 11 scans below are unreadable

DIRT: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "good.jpg": (lambda: encode_jpeg(SCAN, 90), "ok", ""),
    "Größe 1/mit Leerzeichen.png": (lambda: encode_png(SCAN), "ok", ""),
    "grey.png": (lambda: encode_png(SCAN[..., :1].repeat(3, 2)), "ok", ""),
    "belt.png": (lambda: encode_png(BELT), "empty", "nothing but belt"),
    "cut.jpg": (lambda: encode_jpeg(SCAN, 90)[:-500], "unreadable", "truncated file"),
    "cut.png": (lambda: encode_png(SCAN)[:-500], "unreadable", "truncated file"),
    "empty.png": (lambda: b"", "unreadable", "empty file"),
    "text.png": (lambda: b"hello", "unreadable", "not a JPEG"),
    "bomb.png": (
        lambda: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2\0\0\0" + bytes(8) + b"IEND" + bytes(4),
        "unreadable",
        "too large",
    ),
    "tiny.png": (lambda: encode_png(SCAN[:20, :20]), "too_small", "scan of 20x20"),
    "speck.png": (
        lambda: encode_png(np.pad(SCAN[60:72, 60:72], ((60, 60), (60, 60), (0, 0)), constant_values=255)),
        "too_small",
        "region of",
    ),
}


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dirty")
    for name, (make, _, _) in DIRT.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(make())
    (root / "._good.jpg").write_bytes(b"litter")
    return root


@pytest.mark.parametrize("name", DIRT)
def test_a_bad_file_is_a_row_with_a_reason(name: str, dirty: Path) -> None:
    row = regions_body.measure(name, root=dirty, mode="adaptive")
    _, status, message = DIRT[name]
    assert row["status"] == status
    assert message in row["message"]
    assert (row.get("x0") is not None) == (status == "ok" or "region of" in message)


@pytest.mark.parametrize("mode", regions_body.MODES)
def test_rows_are_sorted_and_independent_of_workers(mode: str, dirty: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        arguments = [
            "--backgrounds",
            dirty,
            "--out",
            tmp_path / f"{workers}.parquet",
            "--mode",
            mode,
            "--workers",
            workers,
            *MANY_BAD,
        ]
        assert regions.main(list(map(str, arguments))) == 0
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    table = pq.read_table(tmp_path / "1.parquet")
    assert table["image"].to_pylist() == sorted(DIRT)
    assert table.schema.metadata[b"segloc.regions.format_version"] == str(region_table.FORMAT_VERSION).encode()
    assert f'"mode": "{mode}"'.encode() in table.schema.metadata[b"segloc.parameters"]


def test_only_good_rows_reach_synthesis(dirty: Path, tmp_path: Path) -> None:
    out = tmp_path / "regions.parquet"
    assert regions.main(["--backgrounds", str(dirty), "--out", str(out), "--workers", "1", *MANY_BAD]) == 0
    loaded = region_table.load(out)
    assert loaded.images.to_pylist() == sorted(name for name, (_, status, _) in DIRT.items() if status == "ok")
    assert (loaded.sizes == (200, 150)).all()
    bags = np.array(loaded.bags.to_pylist())
    assert (np.abs(bags - (40, 30, 160, 120)) <= 2).all()


def test_belt_level_is_recorded(region_file: Path) -> None:
    rows = pq.read_table(region_file, columns=["image", "background_level"]).to_pylist()
    assert {row["background_level"] for row in rows[:-1]} == {255}
    assert abs(rows[-1]["background_level"] - 196) <= 2
    assert not any("P00001" in row["image"] for row in rows)


def test_a_name_that_is_not_utf8_is_a_row(tmp_path: Path) -> None:
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    row = regions_body.measure(name, root=tmp_path, mode="paper")
    assert (row["image"], row["status"]) == ("\\xff.png", "unreadable")
    assert row["message"] == "file name is not UTF-8"


def test_an_edited_scan_changes_the_table_even_if_its_region_stays(dirty: Path, tmp_path: Path) -> None:
    scans, tables = tmp_path / "scans", [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    shutil.copytree(dirty, scans)
    name = next(name for name, (_, status, _) in DIRT.items() if status == "ok" and name.endswith(".jpg"))
    for table in tables:
        assert regions.main(["--backgrounds", str(scans), "--out", str(table), "--workers", "1", *MANY_BAD]) == 0
        (scans / name).write_bytes((scans / name).read_bytes() + b"comment")
    rows = [pq.read_table(table).drop_columns("crc32").to_pylist() for table in tables]
    assert rows[0] == rows[1]
    assert tables[0].read_bytes() != tables[1].read_bytes()


def test_an_output_that_is_a_folder_is_refused(dirty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert regions.main(["--backgrounds", str(dirty), "--out", str(tmp_path), "--workers", "1"]) == 2
    assert "is a folder, not a file to write" in capsys.readouterr().err


def test_a_gallery_is_drawn(dirty: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "regions.parquet", tmp_path / "regions.png"
    arguments = ["--backgrounds", dirty, "--out", out, "--gallery", picture, "--workers", "1", *MANY_BAD]
    for _ in range(2):  # a rerun replaces its own files
        assert regions.main(list(map(str, arguments))) == 0
    from pipeline.common.gallery import BLUE
    from segloc.common.images import read_image

    assert (read_image(picture) == BLUE).all(2).any()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a Parquet file"), (b"PAR1" + bytes(50), "not a Parquet file")],
)
def test_a_broken_table_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_bytes(content)
    with pytest.raises(InputError, match=message):
        region_table.load(tmp_path / "r.parquet")


def test_another_kind_of_table_is_refused(segment_file: Path, region_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a table of regions"):
        region_table.load(segment_file)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(region_file.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated"):
        region_table.load(cut)


def test_a_failing_run_leaves_the_old_table(region_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "regions.parquet"
    out.write_bytes(region_file.read_bytes())
    done = run_module("pipeline.regions", "--backgrounds", tmp_path / "none", "--out", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert out.read_bytes() == region_file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["regions.parquet"]


def test_the_bags_of_a_scan_are_recorded(tmp_path: Path) -> None:
    scan = np.full((200, 400, 3), 255, np.uint8)
    scan[20:120, 30:130] = scan[60:180, 250:370] = 90
    (tmp_path / "scan.png").write_bytes(encode_png(scan))
    row = regions_body.measure("scan.png", root=tmp_path, mode="adaptive")
    assert np.abs(np.subtract(row["bags"], [(30, 20, 130, 120), (250, 60, 370, 180)])).max() <= 1
    assert (row["x0"], row["y0"]) == row["bags"][0][:2]
    assert (row["x1"], row["y1"]) == row["bags"][1][2:]
    row = regions_body.measure("scan.png", root=tmp_path, mode="paper")
    assert row["bags"] == [(34, 24, 366, 176)]


def test_the_steps_to_a_region_are_drawn(dirty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.common.gallery import BLUE, RED
    from segloc.common.images import read_image

    out = tmp_path / "steps.png"
    assert regions.main(["--steps", str(dirty / "good.jpg"), "--out", str(out)]) == 0
    picture = read_image(out)
    grey, inverted, last = (picture[:200, x : x + 300] for x in (0, 366, 4 * 366))
    assert np.abs(grey[..., 0].astype(int) + inverted[..., 0] - 255).max() <= 1  # from scaling
    assert (last == RED).all(2).any()
    assert (last == BLUE).all(2).any()
    assert regions.main(["--steps", str(dirty / "cut.jpg"), "--out", str(tmp_path / "none.png")]) == 2
    assert "truncated file" in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()


def test_links_are_followed_and_broken_ones_are_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "0123").write_bytes(encode_png(SCAN))
    root = tmp_path / "scans"
    root.mkdir()
    (root / "a.png").symlink_to(store / "0123")
    for name in ("gone.jpg", "part2"):
        (root / name).symlink_to("/nowhere/at/all")
    (root / "self.png").symlink_to("self.png")
    (root / "up").symlink_to("..")
    out = tmp_path / "regions.parquet"
    arguments = ["--backgrounds", str(root), "--out", str(out), "--workers", "1"]
    assert regions.main(arguments) == 0
    assert "4 backgrounds (1 ok, 3 unreadable)" in capsys.readouterr().out
    rows = pq.read_table(out).to_pylist()
    found = [(row["image"], row["status"], row["message"]) for row in rows]
    assert found == [
        ("a.png", "ok", ""),
        ("gone.jpg", "unreadable", "link without a target"),
        ("part2", "unreadable", "link without a target"),
        ("self.png", "unreadable", "link without a target"),
    ]
    (root / "a.png").unlink()
    assert regions.main(arguments) == 1
    assert "3 of 3 backgrounds skipped: 3 link without a target: nothing was fetched" in capsys.readouterr().err
    assert len(pq.read_table(out)) == 3


def test_a_sixray_folder_that_is_not_mounted_is_a_row(tmp_path: Path) -> None:
    for name in ("0/N0000001.png", "0/N0000002.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode_png(SCAN))
    (tmp_path / "1").symlink_to("/nowhere")
    assert backgrounds(tmp_path) == ["0/N0000001.png", "0/N0000002.png", "1"]
