"""The simulated data set: layout, annotations, classes, determinism, and the command line."""

import hashlib
import json
import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.simulate.__main__ import main
from pipeline.simulate.annotations import annotate, polygons
from pipeline.simulate.dataset import SUBSETS, Parameters, Task, build_scene
from pipeline.simulate.generate import MARKER
from pipeline.simulate.items import BRANDS, CLASSES, ITEMS, make_item
from pipeline.simulate.outlines import ellipse
from pipeline.simulate.parts import Part, Placement
from pipeline.simulate.raster import draw, empty_maps, silhouette
from pipeline.simulate.scanner import attenuation, colours
from tests.imports import ROOT

# PIDray's categories, ids 1 to 12 (security-dataset issue 3).
PIDRAY_NAMES = ["Baton", "Pliers", "Hammer", "Powerbank", "Scissors", "Wrench"]
PIDRAY_NAMES += ["Gun", "Bullet", "Sprayer", "HandCuffs", "Knife", "Lighter"]
SCANS, WIDTH = 144, 128
REBUILD = ["--if-changed", "rebuild"]
ARGUMENTS = ["--scans", str(SCANS), "--width", str(WIDTH), "--seed", "7", "--workers", "1"]
ANNOTATED = [name for name, subset in SUBSETS.items() if subset.annotations]


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulated") / "raw"
    assert main(["--out", str(out), *ARGUMENTS]) == 0
    return out


def test_layout_is_that_of_the_two_data_sets(bundle):
    names = set(digests(bundle))
    expected = {"simulation.json"}
    expected |= {f"sixray/JPEGImage/N{number:07d}.jpg" for number in range(1, 57)}
    expected |= {f"pidray/train/xray_{number:05d}.png" for number in range(52)}
    for subset in ("easy", "hard", "hidden"):
        expected |= {f"pidray/{subset}/xray_{subset}{number:05d}.png" for number in range(12)}
        expected.add(f"pidray/annotations/xray_test_{subset}.json")
    expected.add("pidray/annotations/xray_train.json")
    assert names == expected
    assert not list(bundle.parent.glob(".*"))


@pytest.mark.parametrize("name", ANNOTATED)
def test_annotations_are_exact_coco(bundle, name, capsys):
    subset = SUBSETS[name]
    coco = COCO(str(bundle / subset.annotations))
    assert [coco.cats[number]["name"] for number in range(1, 13)] == PIDRAY_NAMES
    assert sorted(coco.imgs) == list(range(len(coco.imgs)))
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        mask = coco.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"])
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == box
        assert annotation["area"] == mask.sum() > 0
        assert annotation["iscrowd"] == 0
        assert all(len(part) >= 6 for part in annotation["segmentation"])
    for image in coco.imgs.values():
        picture = cv2.imread(str(bundle / subset.images / image["file_name"]), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (image["height"], image["width"], 3)
        assert picture.shape[1] == WIDTH


@pytest.mark.parametrize("name", ANNOTATED)
def test_every_class_occurs_and_items_per_scan_fit_the_subset(bundle, name, capsys):
    coco = COCO(str(bundle / SUBSETS[name].annotations))
    scans = [{image["id"] for image in coco.loadImgs(coco.getImgIds(catIds=[number]))} for number in range(1, 13)]
    assert min(map(len, scans)) >= (2 if name == "train" else 1)
    items = [len(coco.getAnnIds(imgIds=[number])) for number in coco.imgs]
    low, high = {"train": (1, 3), "easy": (1, 1), "hard": (2, 3), "hidden": (1, 1)}[name]
    assert low <= min(items) <= max(items) <= high
    assert max(items) > 1 or high == 1


def test_bytes_depend_on_the_seed_but_not_on_workers_or_the_run(bundle, tmp_path):
    again = tmp_path / "again"
    assert main(["--out", str(again), *ARGUMENTS[:-1], "2"]) == 0
    assert digests(again) == digests(bundle)
    first, second = (build_scene(Task("easy", 0), Parameters(SCANS, seed, WIDTH, 0.15))[0] for seed in (7, 8))
    assert first.maps().shape != second.maps().shape or (first.maps() != second.maps()).any()


def test_a_scan_does_not_depend_on_how_many_there_are():
    scenes = [build_scene(Task("train", 3), Parameters(scans, 7, WIDTH, 0.15))[0] for scans in (SCANS, 1000)]
    np.testing.assert_array_equal(scenes[0].maps(), scenes[1].maps())


def fake_writer(root, parameters):
    """Write the parameters of a scan instead of the scan, which is enough to see which files appear and disappear."""

    def write(task):
        path = root / SUBSETS[task.subset].path(task.index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{task} {parameters}")
        return {"file_name": path.name, "width": 1, "height": 1, "items": []}

    for subset in ANNOTATED:
        (root / SUBSETS[subset].annotations).parent.mkdir(parents=True, exist_ok=True)
    return write


def test_same_arguments_do_nothing_and_others_replace_only_our_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.simulate.generate.scan_writer", fake_writer)
    out, fresh = tmp_path / "raw", tmp_path / "fresh"
    for folder in (out, fresh):
        assert main(["--out", str(folder), *ARGUMENTS]) == 0
    (out / "pidray" / "train" / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert main(["--out", str(out), *ARGUMENTS]) == 0
    assert "already there" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    # More scans first, so that going back removes files.
    assert main(["--out", str(out), *ARGUMENTS, "--scans", "147"]) == 2
    assert "was made with other parameters (scans: 144 -> 147); choose another --out" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(["--out", str(out), *ARGUMENTS, "--scans", "147", *REBUILD]) == 0
    assert len(digests(out)) == len(digests(fresh)) + 3 + 1
    assert json.loads((out / "simulation.json").read_text())["parameters"]["scans"] == 147
    assert main(["--out", str(out), *ARGUMENTS, *REBUILD]) == 0
    assert digests(out) == {**digests(fresh), "pidray/train/notes.txt": hashlib.sha256(b"mine").hexdigest()}


@pytest.mark.parametrize("replacing", [False, True])
def test_the_next_run_repairs_a_run_that_ended_while_moving_files(tmp_path, monkeypatch, replacing):
    monkeypatch.setattr("pipeline.simulate.generate.scan_writer", fake_writer)
    out, fresh = tmp_path / "raw", tmp_path / "fresh"
    assert main(["--out", str(fresh), *ARGUMENTS]) == 0
    if replacing:
        assert main(["--out", str(out), *ARGUMENTS, "--scans", "300"]) == 0
    moved = []

    def fail_half_way(source, target):
        moved.append(target)
        if len(moved) == 50:
            raise OSError(5, "Input/output error")
        os.rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", fail_half_way)
        assert main(["--out", str(out), *ARGUMENTS, "--seed", "8", *REBUILD]) == 2
    assert main(["--out", str(out), *ARGUMENTS]) == 0  # what is half replaced is no simulation that could be lost
    assert digests(out) == digests(fresh)


def test_two_runs_at_once_do_not_mix(tmp_path):
    """Both want one folder, with other seeds: one makes it, the other is refused."""
    out = tmp_path / "raw"
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.simulate", "--out", out, *ARGUMENTS, "--seed", str(seed)],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for seed in (1, 2)
    ]  # fmt: skip
    errors = [run.communicate(timeout=100)[1] for run in runs]
    codes = [run.returncode for run in runs]
    assert sorted(codes) == [0, 2], errors
    refused = codes.index(2)
    assert re.search(r"another process makes a simulation here|other parameters", errors[refused])
    seed = (1, 2)[1 - refused]
    assert json.loads((out / "simulation.json").read_text())["parameters"]["seed"] == seed
    assert main(["--out", str(tmp_path / "alone"), *ARGUMENTS, "--seed", str(seed)]) == 0
    assert digests(out) == digests(tmp_path / "alone")


def test_a_failed_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.simulate.dataset.scan", fail)
    assert main(["--out", str(tmp_path / "raw"), *ARGUMENTS]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--scans", "143"], "--scans must be 144 or more"),
        (["--scans", "-1"], "--scans"),
        (["--seed", "-1"], "--seed"),
        (["--width", "20"], "--width"),
        (["--grey-belts", "1.5"], "--grey-belts"),
        (["--workers", "-2"], "--workers"),
    ],
)
def test_bad_arguments_end_in_one_line_and_code_2(tmp_path, capsys, arguments, complaint):
    assert main(["--out", str(tmp_path / "raw"), *ARGUMENTS, *arguments]) == 2
    message = capsys.readouterr().err
    assert complaint in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_folders_of_others_are_refused_and_kept(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "simulation.json").write_text('{"counts": 3}')
    for name in ("file", "full"):
        assert main(["--out", str(tmp_path / name), *ARGUMENTS]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "full" / "simulation.json").read_text() == '{"counts": 3}'


def test_polygons_decode_to_the_mask_and_fill_its_holes():
    ring = Part("steel", ellipse(3, 3, 2.5), 0.1, holes=(ellipse(3, 3, 1.5),))
    disc = Part("steel", ellipse(3, 3, 2.5), 0.1)
    dot = Part("steel", ellipse(7, 4, 0.4), 0.1)
    mask, filled = (silhouette([shape, dot], 13, 110, 80) for shape in (ring, disc))
    encoded = coco_mask.merge(coco_mask.frPyObjects(polygons(mask), 80, 110))
    difference = coco_mask.decode(encoded) ^ filled
    assert difference.sum() <= 0.02 * filled.sum()
    assert len(annotate(mask)["segmentation"]) == 2


def normalised_mask(parts, size=64):
    """The silhouette, centred and scaled to a common length, so that size and position do not matter."""
    mask = silhouette(Placement(12, 12).parts(parts), 20, 480, 480)
    x, y, width, height = cv2.boundingRect(mask)
    scale = size / max(width, height)
    small = cv2.resize(mask[y : y + height, x : x + width], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    square = np.zeros((size, size), bool)
    top, left = (size - small.shape[0]) // 2, (size - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square


@pytest.mark.parametrize("name", CLASSES)
def test_items_of_a_class_differ_in_shape_but_not_in_size_range(name):
    items = [make_item(name, brand, np.random.default_rng(0), 50.0) for brand in range(12)]
    masks = [normalised_mask(parts) for parts in items]
    overlaps = [(one & other).sum() / (one | other).sum() for n, one in enumerate(masks) for other in masks[:n]]
    assert min(overlaps) < 0.75
    # Two rectangles may be equal at this size by chance, more may not.
    assert len({mask.tobytes() for mask in masks}) >= 10
    for parts in items:
        points = np.concatenate([part.outline for part in parts])
        assert 0.08 * 50 <= np.ptp(points, axis=0).max() <= 0.35 * 50


def test_every_class_has_several_models():
    assert all(len(models) >= 2 for models in ITEMS.values())


def test_a_brand_looks_the_same_in_every_scan_and_like_no_other():
    # A hammer has no state: only mirroring may differ.
    outlines = {
        brand: [
            np.concatenate([part.outline for part in make_item("Hammer", brand, np.random.default_rng(seed), 50.0)])
            for seed in range(3)
        ]
        for brand in BRANDS["train"]
    }
    for first, *others in outlines.values():
        assert all(np.allclose(np.abs(first), np.abs(other)) for other in others)
    assert len({first.tobytes() for first, *_ in outlines.values()}) == len(BRANDS["train"])
    # A folding knife is not always open at the same angle.
    folded, opened = (make_item("Knife", 1, np.random.default_rng(seed), 50.0) for seed in (1, 2))
    assert normalised_mask(folded).tobytes() != normalised_mask(opened).tobytes()


def test_no_brand_is_both_in_training_and_in_test_scans(bundle):
    brands = {"train": set(), "test": set()}
    for name in ANNOTATED:
        for item in json.loads((bundle / SUBSETS[name].annotations).read_text())["annotations"]:
            brands["train" if name == "train" else "test"].add((item["category_id"], item["brand"]))
    assert brands["train"]
    assert brands["test"]
    assert not brands["train"] & brands["test"]
    # Brands do not depend on the seed: training scans of other data sets do not have it either.
    assert not set(BRANDS["train"]) & set(BRANDS["test"])
    assert {number for _, number in brands["test"]} <= set(BRANDS["test"])


def test_brands_of_training_and_test_scans_can_be_swapped(tmp_path):
    assert main(["--out", str(tmp_path), *ARGUMENTS, "--swap-brands"]) == 0
    for name in ANNOTATED:
        items = json.loads((tmp_path / SUBSETS[name].annotations).read_text())["annotations"]
        assert {item["brand"] for item in items} <= set(BRANDS["test" if name == "train" else "train"])


def test_the_two_energies_are_written_on_request_and_change_nothing_else(bundle, tmp_path):
    out = tmp_path / "raw"
    assert main(["--out", str(out), *ARGUMENTS, "--raw"]) == 0
    files, plain = digests(out), digests(bundle)
    raw = {name for name in files if name.startswith("energies/")}
    assert {name: files[name] for name in files.keys() - raw - {"simulation.json"}} == {
        name: digest for name, digest in plain.items() if name != "simulation.json"
    }
    pictures = [name.rpartition(".")[0] for name in plain if name.endswith((".png", ".jpg"))]
    assert raw == {f"energies/{name}_{energy}.png" for name in pictures for energy in ("low", "high", "z")}
    low, high, atomic_number = (
        cv2.imread(str(out / f"energies/pidray/easy/xray_easy00000_{energy}.png"), cv2.IMREAD_UNCHANGED)
        for energy in ("low", "high", "z")
    )
    picture = cv2.imread(str(out / "pidray/easy/xray_easy00000.png"))
    assert low.dtype == high.dtype == atomic_number.dtype == np.uint16
    assert low.shape == high.shape == atomic_number.shape == picture.shape[:2]
    # The same pixels: opaque ones are dark in all three images, empty ones are white.
    assert np.median(low[picture.min(axis=2) == 255]) == pytest.approx(50000, rel=0.01)
    # The picture is sharpened and the raw images are not, so means of 3 x 3 pixels are compared.
    grey, passed = (
        cv2.blur(image.astype(np.float32), (3, 3)) for image in (cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), low)
    )
    assert np.corrcoef(passed.ravel(), grey.ravel())[0, 1] > 0.93
    assert max(np.corrcoef(np.roll(passed, 2, axis).ravel(), grey.ravel())[0, 1] for axis in (0, 1)) < 0.9
    # Every material transmits more of the high energy.
    covered = cv2.blur(low.astype(float), (5, 5)) < 42000
    assert covered.sum() > 500
    assert (high.astype(float) > low)[covered].mean() > 0.9
    # An orange pixel has a low atomic number, a blue one a high one.
    blue, red = (picture[..., channel].astype(int) for channel in (0, 2))
    thick = (low > 5000) & (low < 30000)
    organic, metal = (np.median(atomic_number[thick & there]) for there in (red - blue > 60, blue - red > 60))
    assert 5000 < organic < 8500 < 15000 < metal < 31000
    # Raw images of an earlier version, which had less, are made again.
    marker = json.loads((out / MARKER).read_text())
    del marker["raw_format_version"]
    (out / MARKER).write_text(json.dumps(marker))
    (out / "energies/pidray/easy/xray_easy00000_z.png").unlink()
    assert main(["--out", str(out), *ARGUMENTS, "--raw", "--if-changed", "rebuild"]) == 0
    assert digests(out) == files
    # Without the option, rebuilding removes them.
    assert main(["--out", str(out), *ARGUMENTS]) == 2
    assert digests(out) == files
    assert main(["--out", str(out), *ARGUMENTS, "--if-changed", "rebuild"]) == 0
    assert digests(out) == plain


def test_steep_and_covered_items_keep_whole_silhouettes():
    """Neither its cover nor its tilt changes the position of an item."""
    seen = set()
    for index in range(60):
        scene, _ = build_scene(Task("hidden", index), Parameters(SCANS, 5, WIDTH, 0.15))
        (item,) = scene.items
        alone = empty_maps(*scene.size)
        draw(alone, item.parts, scene.px_per_cm)
        mask = silhouette(item.parts, scene.px_per_cm, *scene.size) > 0
        added = (scene.maps() - scene.maps(with_items=False)).sum(axis=0)
        np.testing.assert_allclose(added, alone.sum(axis=0), atol=1e-4)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert added[~near].sum() < 0.02 * added.sum()
        assert mask.sum() > 0
        seen.add(item.name)
    assert seen == set(CLASSES)


@pytest.mark.parametrize("name", ANNOTATED)
def test_items_lie_wholly_inside_the_scan(name):
    for index in range(12):
        scene, _ = build_scene(Task(name, index), Parameters(SCANS, 11, WIDTH, 0.15))
        for item in scene.items:
            mask = silhouette(item.parts, scene.px_per_cm, *scene.size)
            assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()


def contrast(subset, index):
    """Mean change in grey level that the item causes in its pixels, without noise."""
    scene, _ = build_scene(Task(subset, index), Parameters(SCANS, 3, WIDTH, 0.15))
    pictures = [
        cv2.cvtColor(colours(attenuation(scene.maps(with_items=shown))), cv2.COLOR_RGB2GRAY).astype(float)
        for shown in (True, False)
    ]
    mask = silhouette(scene.items[0].parts, scene.px_per_cm, *scene.size) > 0
    return np.abs(pictures[0] - pictures[1])[mask].mean()


def test_hidden_items_have_less_contrast_than_easy_ones():
    easy, hidden = ([contrast(subset, index) for index in range(24)] for subset in ("easy", "hidden"))
    assert np.median(hidden) < 0.75 * np.median(easy)
    # Hidden items are not invisible: nearly all still change the picture.
    assert np.quantile(hidden, 0.1) > 4
