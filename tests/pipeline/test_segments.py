import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import segments
from pipeline.pairing import segments as segments_body
from segloc.common.datasets.near_duplicates import fingerprint
from segloc.common.images import decode_rgba, encode_jpeg, encode_png, read_image
from segloc.common.masks import rasterise
from tests.pipeline.conftest import CLASSES, draw_bag, run_module, triangle


def run(*arguments: object) -> int:
    return segments.main([*map(str, arguments), "--workers", "1"])


def table_and_parameters(path: Path) -> tuple[list[dict], dict]:
    table = pq.read_table(path)
    return table.to_pylist(), json.loads(table.schema.metadata[b"segloc.parameters"])


def test_every_annotation_is_a_row(pidray: Path, segment_file: Path) -> None:
    rows, parameters = table_and_parameters(segment_file)
    assert parameters["classes"] == list(CLASSES)
    assert parameters["counts"] == {"Baton": 0, "Pliers": 1, "Gun": 6, "Knife": 3}
    assert parameters["skipped"] == {}
    order = [(row["class_id"], row["segment_id"]) for row in rows]
    assert order == sorted(order)
    assert len(set(order)) == 10


def test_crops_have_all_pixels_of_the_donor_and_the_mask(pidray: Path, segment_file: Path) -> None:
    content = json.loads((pidray / "annotations" / "xray_train.json").read_text())
    drawn = {str(entry["id"]): entry["segmentation"] for entry in content["annotations"]}
    for row in table_and_parameters(segment_file)[0]:
        scan = read_image(pidray / "train" / row["image"])
        x0, y0, x1, y1 = (row[name] for name in ("x0", "y0", "x1", "y1"))
        rgba = decode_rgba(row["png"])
        mask = rasterise(drawn[row["annotation_id"]], 300, 220)
        assert (rgba[..., :3] == scan[y0:y1, x0:x1]).all()
        assert (rgba[..., 3] == np.where(mask[y0:y1, x0:x1], 255, 0)).all()
        assert row["area"] == mask.sum() == mask[y0:y1, x0:x1].sum()
        assert (row["scan_width"], row["scan_height"]) == (300, 220)
        assert not row["cut_by_frame"]
        assert row["whole"]
        assert row["scan_fingerprint"] == fingerprint(scan)


def test_surroundings_ignore_the_item_and_a_neighbour() -> None:
    scan = np.full((60, 60, 3), (200, 150, 100), np.uint8)
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:40] = True
    scan[18:42, 18:42] = 0  # the item and its blurred rim
    scan[:, 48:] = (0, 0, 255)  # a neighbour within the ring
    assert segments_body.surroundings(scan, mask, (20, 20, 40, 40)).tolist() == [200, 150, 100]


def test_surroundings_of_an_item_that_fills_the_scan_are_white() -> None:
    mask = np.ones((20, 20), bool)
    assert segments_body.surroundings(np.zeros((20, 20, 3), np.uint8), mask, (0, 0, 20, 20)).tolist() == [255] * 3


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    """A folder whose first two scans are good; every other has a different fault."""
    folder = tmp_path / "train"
    folder.mkdir()
    scan = np.full((50, 60, 3), 180, np.uint8)
    (folder / "Koffer ß 1.png").write_bytes(encode_png(scan))
    (folder / "Koffer ß 2.png").write_bytes(encode_png(scan))
    (folder / "cut.png").write_bytes(encode_png(scan)[:-20])
    (folder / "small.png").write_bytes(encode_png(scan[:40]))
    names = ["Koffer ß 1.png", "sub/Koffer ß 2.png", "cut.png", "small.png", "missing.png"]
    images = [{"id": i, "file_name": name, "width": 60, "height": 50} for i, name in enumerate(names)]
    shapes = {
        0: triangle(0, 5, 20),
        1: triangle(10, 5, 20),
        2: triangle(5, 5, 20),
        3: triangle(5, 5, 20),
        4: triangle(5, 5, 20),
    }
    annotations = [{"id": i, "image_id": i, "category_id": 1, "segmentation": [shape]} for i, shape in shapes.items()]
    annotations.append({"id": 9, "image_id": 0, "category_id": 1, "segmentation": [[1, 2, 3, 4]]})
    content = {"images": images, "categories": [{"id": 1, "name": "Knife"}], "annotations": annotations}
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


def test_bad_scans_are_skipped_and_counted(dirty: Path) -> None:
    out = dirty / "segments.parquet"
    share = ("--max-skipped", 4 / 6)
    assert run("--annotations", dirty / "train.json", "--images", dirty / "train", "--out", out, *share) == 0
    rows, parameters = table_and_parameters(out)
    assert [(row["segment_id"], row["cut_by_frame"]) for row in rows] == [
        ("Koffer ß 1.png#0", True),
        ("Koffer ß 2.png#1", False),  # found by its bare name
    ]
    assert parameters["skipped"] == {
        "image file missing": 1,
        "image size disagrees with the file": 1,
        "image unreadable: truncated file": 1,
        "polygon of fewer than three points": 1,
    }


def test_bytes_do_not_depend_on_workers(pidray: Path, segment_file: Path, tmp_path: Path) -> None:
    arguments = ["--annotations", pidray, "--out", tmp_path / "s.parquet", "--workers", "2"]
    for _ in range(2):  # a rerun replaces its own table
        assert segments.main(list(map(str, arguments))) == 0
    assert (tmp_path / "s.parquet").read_bytes() == segment_file.read_bytes()


def test_without_a_usable_segment_no_file_is_written(dirty: Path) -> None:
    content = json.loads((dirty / "train.json").read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["id"] == 4]
    (dirty / "train.json").write_text(json.dumps(content))
    done = run_module(
        "pipeline.segments",
        "--annotations",
        dirty / "train.json",
        "--images",
        dirty / "train",
        "--out",
        dirty / "s.parquet",
    )
    assert done.returncode == 2
    assert "no usable segment (image file missing (1))" in done.stderr
    assert not list(dirty.glob("*s.parquet*"))


def test_a_test_part_is_refused(dirty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dirty / "train.json").rename(dirty / "xray_test_hard.json")
    assert (
        run("--annotations", dirty / "xray_test_hard.json", "--images", dirty / "train", "--out", dirty / "s.parquet")
        == 2
    )
    assert "training data only" in capsys.readouterr().err


def test_real_items(real_scans: Path, tmp_path: Path) -> None:
    assert run("--annotations", real_scans / "pidray", "--out", tmp_path / "s.parquet") == 0
    rows, parameters = table_and_parameters(tmp_path / "s.parquet")
    assert len(rows) == 39
    assert {row["class_name"] for row in rows} == {"Gun", "Knife"}
    assert parameters["skipped"] == {}
    # Metal is darker than its surroundings.
    for row in rows:
        rgba = decode_rgba(row["png"])
        around = np.mean([row[f"background_{channel}"] for channel in "rgb"])
        assert rgba[rgba[..., 3] > 0][:, :3].mean() < around


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 20, 9, 30), True),
        ((1, 20, 9, 30), True),
        ((2, 20, 9, 30), False),
        ((20, 0, 30, 9), True),
        ((51, 20, 60, 30), True),
        ((50, 20, 59, 30), True),  # drawn to index 59, that of the last pixel
        ((50, 20, 58, 30), False),
        ((20, 41, 30, 49), True),
        ((20, 41, 30, 48), False),
    ],
)
def test_items_at_the_frame_are_cut(box: tuple[int, int, int, int], expected: bool) -> None:
    assert segments_body.is_cut_by_frame(box, 60, 50) is expected


def coco_of(folder: Path, scans: dict[str, np.ndarray], shapes: dict[str, list]) -> Path:
    """A COCO file of one class, with one item per scan."""
    (folder / "train").mkdir()
    images, annotations = [], []
    for number, (name, scan) in enumerate(scans.items()):
        (folder / "train" / name).write_bytes(encode_jpeg(scan, 70) if name.endswith("jpg") else encode_png(scan))
        images.append({"id": number, "file_name": name, "width": scan.shape[1], "height": scan.shape[0]})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": shapes[name]})
    content = {"images": images, "categories": [{"id": 1, "name": "Knife"}], "annotations": annotations}
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json"


def test_whole_items_are_connected_and_inside_the_frame(tmp_path: Path) -> None:
    shapes = {
        "1.png": [triangle(20, 20, 30)],
        "2.png": [triangle(20, 20, 30), triangle(100, 20, 30)],
        "3.png": [triangle(0, 20, 30)],
    }
    scans = {name: draw_bag(np.random.default_rng(number), 300, 220) for number, name in enumerate(shapes)}
    file = coco_of(tmp_path, scans, shapes)
    assert run("--annotations", file, "--images", tmp_path / "train", "--out", tmp_path / "s.parquet") == 0
    rows, _ = table_and_parameters(tmp_path / "s.parquet")
    assert [(row["image"], row["whole"], row["cut_by_frame"]) for row in rows] == [
        ("1.png", True, False),
        ("2.png", False, False),
        ("3.png", False, True),
    ]


def test_a_bag_scanned_twice_is_one_group(tmp_path: Path) -> None:
    first, other = (patchy_bag(seed) for seed in (1, 2))
    scans = {"a.png": other, "b.png": first, "c.jpg": first, "d.png": np.roll(first, 8, axis=1)}
    file = coco_of(tmp_path, scans, {name: [triangle(60, 60, 40)] for name in scans})
    for workers in (1, 2):
        out = tmp_path / f"{workers}.parquet"
        arguments = ["--annotations", file, "--images", tmp_path / "train", "--out", out, "--workers", workers]
        assert segments.main(list(map(str, arguments))) == 0
    rows, parameters = table_and_parameters(tmp_path / "1.parquet")
    assert [row["scan_group"] for row in rows] == [0, 1, 1, 1]
    assert parameters["scan_group_threshold_bits"] == 48
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.parquet", "2.parquet", "train", "train.json"]


def patchy_bag(seed: int) -> np.ndarray:
    """A bag of large boxes, which fingerprints can distinguish."""
    rng = np.random.default_rng(seed)
    scan = np.full((220, 300, 3), 255, np.uint8)
    for _ in range(12):
        x, y = rng.integers(40, 220), rng.integers(40, 150)
        scan[y : y + 40, x : x + rng.integers(15, 60)] = rng.integers(40, 220)
    return scan


def flat(folder: Path, levels: dict[str, int], listed: dict[str, str] | None = None) -> Path:
    """A COCO file of scans of one grey level each, with one item each, listed under other names if given."""
    images, annotations = [], []
    for number, (name, level) in enumerate(levels.items()):
        (folder / "im" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "im" / name).write_bytes(encode_png(np.full((60, 80, 3), level, np.uint8)))
        images.append({"id": number, "file_name": (listed or {}).get(name, name), "width": 80, "height": 60})
        shape = triangle(20, 20, 20)
        annotations.append({"id": f"item#{number}", "image_id": number, "category_id": 1, "segmentation": [shape]})
    content = {"images": images, "categories": [{"id": 1, "name": "Knife"}], "annotations": annotations}
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json"


def levels_of(file: Path) -> dict[str, float]:
    """Grey level of each segment by its id."""
    out = file.with_name("s.parquet")
    assert run("--annotations", file, "--images", file.parent / "im", "--out", out, "--max-skipped", "1") == 0
    rows = table_and_parameters(out)[0]
    assert all(row["segment_id"].startswith(f"{row['image']}#") for row in rows)
    return {row["segment_id"]: decode_rgba(row["png"])[..., :3].mean() for row in rows}


def test_each_item_is_cut_from_the_scan_of_its_own_path(tmp_path: Path) -> None:
    levels = {"scan.png": 10, "cam2/scan.png": 245, "part1\\1.png": 90, "part1/1.png": 120, "#1 %20.png": 60}
    found = levels_of(flat(tmp_path, levels))
    assert found == {f"{name}#item%23{number}": level for number, (name, level) in enumerate(levels.items())}


def test_names_of_other_computers_find_their_scans(tmp_path: Path) -> None:
    listed = {"cam2/a.png": "cam2\\a.png", "deep/b.png": "C:\\data\\b.png", "c.png": "../x/c.png"}
    found = levels_of(flat(tmp_path, {"cam2/a.png": 10, "deep/b.png": 90, "c.png": 200}, listed))
    assert found == {"cam2/a.png#item%230": 10, "deep/b.png#item%231": 90, "c.png#item%232": 200}


def test_names_that_are_not_utf8_are_cut_and_shown_escaped(tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in (b"gep\xe4ck.png", b"\xff/2.png")]
    assert levels_of(flat(tmp_path, dict(zip(names, (30, 60), strict=True)))) == {
        "gep\\xe4ck.png#item%230": 30,
        "\\xff/2.png#item%231": 60,
    }


def test_one_file_is_never_two_scans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = flat(tmp_path, {"scan.png": 10, "b.png": 20}, {"scan.png": "cam1/scan.png", "b.png": "cam2/scan.png"})
    assert run("--annotations", file, "--images", tmp_path / "im", "--out", tmp_path / "s.parquet") == 2
    assert "'cam1/scan.png' and 'cam2/scan.png' are the same file" in capsys.readouterr().err


def test_a_scan_found_in_a_test_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = flat(tmp_path, {"hidden/a.png": 10}, {"hidden/a.png": "a.png"})
    assert run("--annotations", file, "--images", tmp_path / "im", "--out", tmp_path / "s.parquet") == 2
    assert "'hidden/a.png' belongs to a test part" in capsys.readouterr().err


def test_links_without_a_target_are_skipped_with_a_reason(tmp_path: Path) -> None:
    file = flat(tmp_path, {"a.png": 10, "cam1/scan.png": 20, "cam2/scan.png": 30, "self.png": 40})
    for name, target in (("cam1/scan.png", "/nowhere"), ("self.png", "self.png")):
        (tmp_path / "im" / name).unlink()
        (tmp_path / "im" / name).symlink_to(target)
    assert levels_of(file) == {"a.png#item%230": 10, "cam2/scan.png#item%232": 30}
    assert table_and_parameters(tmp_path / "s.parquet")[1]["skipped"] == {"image unreadable: link without a target": 2}


def test_deep_nesting_is_a_reason_or_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Processes cannot send each other a value that is nested some hundred times."""
    file = flat(tmp_path, {f"{number}.png": 10 for number in range(30)})
    whole = file.read_text()
    for depth, code in ((5, 0), (800, 0), (100_000, 2)):
        file.write_text(whole.replace("[[20", "[" * depth + "[[20", 1).replace("]]", "]]" + "]" * depth, 1))
        json_out = ["--out", str(tmp_path / "s.parquet"), "--workers", "2"]
        assert segments.main(["--annotations", str(file), "--images", str(tmp_path / "im"), *json_out]) == code
    assert "nested too deep" in capsys.readouterr().err
    assert table_and_parameters(tmp_path / "s.parquet")[1]["skipped"] == {"malformed segmentation": 1}
