import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from segloc import evaluate
from segloc.common.datasets import Split
from segloc.detection import evaluation, finetuning, predict
from segloc.detection.coco_eval import METRICS
from segloc.detection.detector import Detections
from segloc.detection.splits import mask_of, read_split
from segloc.settings.finetuning import DataSettings
from segloc.training import checkpoint
from tests.segloc.detection.test_coco_eval import figures, plain_pycocotools, random_truth, shifted
from tests.segloc.detection.test_engines import ENGINES, need
from tests.segloc.settings.recipes import DEMO
from tests.segloc.test_finetune import SMALL, run
from tests.segloc.toy_coco import CATEGORY_IDS, CLASSES, write_pidray

SUBSETS = ("easy", "hard", "hidden")


@pytest.fixture(scope="module")
def pidray(tmp_path_factory):
    return write_pidray(tmp_path_factory.mktemp("pidray"))


class Oracle:
    """Replaces the detector and returns the ground truth."""

    engine = "torchvision"

    def __init__(self, splits):
        self.scans = iter([scan for split in splits for scan in split.scans])

    def eval(self):
        return self

    def to(self, device):
        return self

    def predict(self, image, size):
        scan = next(self.scans)
        assert size == (scan.height, scan.width)
        assert max(image.shape[1:]) == 64
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in scan.annotations)], np.float32)
        classes = np.array([CATEGORY_IDS.index(a["category_id"]) for a in scan.annotations])
        masks = [a["segmentation"] for a in scan.annotations]
        return Detections(boxes, np.full(len(boxes), 0.9, np.float32), classes, masks)


@pytest.fixture
def tuned(pidray, tmp_path):
    assert run(pidray, tmp_path / "run", "train.iterations=1") == 0
    return tmp_path / "run"


def test_the_truth_and_its_results_file_score_100(pidray, tuned, tmp_path, monkeypatch, capsys):
    names = [pidray / "annotations" / f"xray_test_{s}.json" for s in SUBSETS]
    splits = [read_split(Split(s, n, pidray / s)) for s, n in zip(SUBSETS, names, strict=True)]
    monkeypatch.setattr(evaluation, "build_detector", lambda *_: Oracle(splits))
    out = tmp_path / "eval.json"
    assert evaluate.main(["--weights", str(tuned), "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert (report["units"], report["engine"], report["iteration"]) == ("percent", "torchvision (stand-in)", 1)
    assert report["classes"] == list(CLASSES)
    assert list(report["subsets"]) == list(SUBSETS)
    for part in (*report["subsets"].values(), report["mean"]):
        for kind in ("bbox", "segm"):
            assert [part[kind][name] for name in METRICS] == pytest.approx([100.0] * 6)
            assert list(part[kind]["per_class"]) == list(CLASSES)
    assert "100.0" in capsys.readouterr().out
    results = [str(tmp_path / f"eval.{s}.results.json") for s in SUBSETS]
    again = tmp_path / "again.json"
    arguments = ["--results", *results, "--annotations", *map(str, names), "--out", str(again)]
    assert evaluate.main(arguments) == 0
    second = json.loads(again.read_text())
    assert all(second[part] == report[part] for part in ("subsets", "mean", "pooled"))
    out.unlink()  # as if killed before it was written
    for _ in range(2):  # a rerun replaces its own files
        assert evaluate.main(["--weights", str(tuned), "--out", str(out)]) == 0
        assert json.loads(out.read_text()) == report
    mine = tmp_path / "eval.hard.results.json"
    shutil.copy(names[1], mine)
    capsys.readouterr()
    assert evaluate.main(["--weights", str(tuned), "--out", str(out)]) == 2
    assert f"{mine}: exists and is not a results file of segloc.evaluate" in capsys.readouterr().err
    assert mine.read_bytes() == names[1].read_bytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_detector_and_its_results_files_score_the_same(pidray, tmp_path, engine):
    need(engine)
    assert run(pidray, tmp_path / "run", "model.heads.score_threshold=0.0", "train.iterations=2", engine=engine) == 0
    out = tmp_path / "eval.json"
    assert evaluate.main(["--weights", str(tmp_path / "run"), "--out", str(out), "--subset", "hard"]) == 0
    report = json.loads(out.read_text())
    assert list(report["subsets"]) == ["hard"]
    assert report["engine"].startswith(engine)
    results = tmp_path / "eval.hard.results.json"
    assert len(json.loads(results.read_text())) > 0
    truth = pidray / "annotations" / "xray_test_hard.json"
    again = tmp_path / "again.json"
    assert evaluate.main(["--results", str(results), "--annotations", str(truth), "--out", str(again)]) == 0
    second = json.loads(again.read_text())
    assert all(second[part] == report[part] for part in ("subsets", "mean", "pooled"))
    for kind in ("bbox", "segm"):  # and as pycocotools itself measures the same two files
        expected = plain_pycocotools(tmp_path, json.loads(truth.read_text()), json.loads(results.read_text()), kind)
        assert figures(report["subsets"]["hard"][kind]) == expected


def test_an_image_that_cannot_be_read_counts_as_without_detections(pidray, tuned, tmp_path, capsys):
    root = shutil.copytree(pidray, tmp_path / "pidray")
    spoilt = sorted((root / "hard").iterdir())
    spoilt[0].write_bytes(spoilt[0].read_bytes()[:60])
    out = tmp_path / "eval.json"
    arguments = ["--weights", str(tuned), "--data", str(root), "--subset", "hard", "--out", str(out)]
    assert evaluate.main(arguments) == 1  # 1 of 3
    assert "images cannot be read and count as without detections; " in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["subsets"]["hard"]["images"] == len(spoilt)
    assert [spoilt[0].name in message for message in report["unreadable"]["hard"]] == [True]
    found = json.loads((tmp_path / "eval.hard.results.json").read_text())
    assert found
    for path in spoilt:
        path.write_bytes(b"")
    assert evaluate.main(arguments) == 2
    assert f"none of its {len(spoilt)} images can be read" in capsys.readouterr().err


def test_settings_that_differ_from_training_are_recorded(pidray, tuned, tmp_path):
    out = tmp_path / "eval.json"
    arguments = ["--weights", str(tuned), "--data", str(pidray), "--subset", "easy", "--out", str(out)]
    assert evaluate.main(arguments) == 0
    report = json.loads(out.read_text())
    assert (report["changed"], report["iteration"], report["steps"]) == ({}, 1, 1)
    content = checkpoint.load(tuned / "model.pth")
    older = content["config"].replace("    fpn_channels: 256\n", "")
    assert older != content["config"]
    checkpoint.save(tmp_path / "older" / "model.pth", {**content, "config": older})
    assert evaluate.main(["--weights", str(tmp_path / "older"), *arguments[2:]]) == 0
    assert json.loads(out.read_text())["changed"] == {}  # settings added later have their defaults
    assert evaluate.main([*arguments, "data.image_size=32", "data.threads=2"]) == 0
    assert json.loads(out.read_text())["changed"] == {"data.image_size": "32"}


def test_the_mean_is_over_the_test_sets(pidray, tuned, tmp_path):
    files, truths = [], []
    for number, subset in enumerate(SUBSETS):
        truth = pidray / "annotations" / f"xray_test_{subset}.json"
        items = json.loads(truth.read_text())["annotations"][: number + 1]  # one of three, two of three, all
        found = [{k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.5} for a in items]
        files.append(tmp_path / f"{subset}.json")
        files[-1].write_text(json.dumps(found))
        truths.append(truth)
    out = tmp_path / "eval.json"
    arguments = ["--results", *map(str, files), "--annotations", *map(str, truths), "--out", str(out)]
    assert evaluate.main(arguments) == 0
    report = json.loads(out.read_text())
    assert [report["subsets"][s]["segm"]["AP"] for s in SUBSETS] == pytest.approx([100 / 3, 200 / 3, 100])
    assert report["mean"]["segm"]["AP"] == pytest.approx(200 / 3)
    assert report["mean"]["bbox"]["per_class"]["Wrench"]["AR1"] == pytest.approx(100 / 3)


def test_results_without_masks_are_measured_by_box_alone(pidray, tmp_path, capsys):
    truth = pidray / "annotations" / "xray_test_easy.json"
    items = json.loads(truth.read_text())["annotations"]
    found = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in items]
    (tmp_path / "found.json").write_text(json.dumps(found))
    out = tmp_path / "eval.json"
    command = ["--results", str(tmp_path / "found.json"), "--annotations", str(truth), "--out", str(out)]
    assert evaluate.main(command) == 0
    assert set(json.loads(out.read_text())["mean"]) == {"bbox"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "nowhere"], "no such checkpoint"),
        (["--weights", "RUN", "--subset", "hrad"], "unknown key 'hrad'; did you mean 'hard'"),
        (["--weights", "RUN", "--data", "EMPTY"], "not a PIDray folder"),
        (["--results", "gone.json", "--annotations", "TRUTH"], "no such file (results)"),
        (["--results", "TRUTH", "--annotations", "TRUTH"], "not COCO results"),
        (["--results", "a.json", "b.json", "--annotations", "TRUTH"], "2 --results but 1 --annotations"),
        (["--results", "a.json", "b.json", "--annotations", "TRUTH", "TRUTH"], "several test sets are named 'easy'"),
        (["--results", "a.json", "--annotations", "mean.json"], "a test set cannot be named 'mean'"),
        (
            ["--results", "a.json", "--annotations", "TRUTH", "--data", "EMPTY"],
            "--data, --subset and key=value are for --weights",
        ),
        (["--weights", "RUN", "--annotations", "TRUTH"], "--annotations is for --results"),
        (["--weights", "RUN", "data.tests=[[a/b, x.json, y]]"], "a test set cannot be named 'a/b'"),
        (["--weights", "RUN", "data.tests=[[a, x.json, y], [a, z.json, y]]"], "several test sets are named 'a'"),
        (["--weights", "RUN", "--bootstrap", "5"], "--bootstrap 5: give a number of draws from 40 to 1000000"),
        (["--weights", "RUN", "--bootstrap", "1000000000000"], "--bootstrap 1000000000000: give a number of draws"),
        (["--weights", "RUN", "data.image_sizes=3"], "did you mean 'data.image_size'"),
        (["--weights", "RUN", "model.engine=detectron2"], "was trained with engine torchvision"),
    ],
)
def test_bad_input_ends_in_one_line(pidray, tuned, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    truth = pidray / "annotations" / "xray_test_easy.json"
    names = {"RUN": str(tuned), "EMPTY": str(tmp_path / "empty"), "TRUTH": str(truth)}
    capsys.readouterr()
    command = [*(names.get(a, a) for a in arguments), "--out", str(tmp_path / "eval.json")]
    assert evaluate.main(command) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "eval.json").exists()


def test_bounds_hold_for_the_recipe_in_a_checkpoint(tuned, tmp_path, capsys):
    content = checkpoint.load(tuned / "model.pth")
    content["config"] = content["config"].replace("image_size: 64", "image_size: 1000000")
    checkpoint.save(tuned / "model.pth", content)
    assert evaluate.main(["--weights", str(tuned), "--out", str(tmp_path / "e.json")]) == 2
    assert "its recipe: data.image_size is 1000000, it must be from 1 to 8192\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "result 1 has bbox [1, 2, 3]"),
        ({"bbox": None}, "result 1 has no 'bbox'"),
        ({"bbox": [1, 2, -3, 4]}, "result 1 has bbox [1, 2, -3, 4], whose width or height is negative"),
        ({"bbox": [1, 2, 3, float("nan")]}, "result 1 has bbox [1, 2, 3, nan], which is not x, y, width, height"),
        ({"image_id": 99}, "result 1 has image_id 99, which the annotations lack"),
        ({"category_id": 2}, "result 1 has category_id 2, which is not listed"),
        ({"score": None}, "result 1 has no 'score'"),
        ({"image_id": [1]}, "result 1: image_id [1] is not a whole number"),
        ({"category_id": {}}, "result 1: category_id {} is not a whole number"),
        ({"bbox": [1, 2, 3, 10**400]}, "result 1 has bbox"),
        ({"score": float("nan")}, "result 1 has score nan"),
        ({"score": True}, "result 1 has score True"),
        ({"score": 10**400}, "result 1 has score 1000"),
        ({"segmentation": 5}, "result 1 has a segmentation that is not an RLE of the image's size"),
        ({"segmentation": {"size": [56, 80], "counts": "e5QncV"}}, "result 1 has a segmentation that is not an RLE"),
        ({"segmentation": {"size": [5, 5], "counts": [25]}}, "result 1 has a segmentation that is not an RLE"),
    ],
)
def test_malformed_results_end_in_one_line(pidray, tmp_path, capsys, change, message):
    truth = pidray / "annotations" / "xray_test_easy.json"
    items = json.loads(truth.read_text())["annotations"]
    found = [{k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.5} for a in items]
    found[1] |= change
    (tmp_path / "found.json").write_text(json.dumps(found))
    command = ["--results", str(tmp_path / "found.json"), "--annotations", str(truth), "--out", str(tmp_path / "e")]
    assert evaluate.main(command) == 2
    error = capsys.readouterr().err.strip()
    assert f"{tmp_path / 'found.json'}: {message}" in error
    assert "\n" not in error


def results_file(truth, out, change):
    content = json.loads(truth.read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    fields = ("image_id", "category_id", "bbox")
    found = [{key: item[key] for key in fields} | {"score": 0.5} for item in content["annotations"]]
    for result in found:
        change(result, *sizes[result["image_id"]])
    out.write_text(json.dumps(found))
    return ["--results", str(out), "--annotations", str(truth)]


def as_shares(result, width, height):
    x, y, w, h = result["bbox"]
    result["bbox"] = [x / width, y / height, w / width, h / height]


def in_percent(result, width, height):
    result["score"] *= 100


def test_results_whose_boxes_are_shares_of_the_image_are_refused(pidray, tmp_path, capsys):
    truth = pidray / "annotations" / "xray_test_easy.json"
    command = results_file(truth, tmp_path / "found.json", as_shares)
    assert evaluate.main([*command, "--out", str(tmp_path / "e.json")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'found.json'}: all " in error
    assert "write bbox in pixels" in error
    assert error.count("\n") == 1


def test_scores_above_one_are_told_and_change_no_metric(pidray, tmp_path, capsys):
    truth = pidray / "annotations" / "xray_test_easy.json"
    reports = []
    for name, change in (("plain", lambda *_: None), ("percent", in_percent)):
        command = results_file(truth, tmp_path / f"{name}.json", change)
        assert evaluate.main([*command, "--out", str(tmp_path / f"{name}.eval.json")]) == 0
        reports.append(json.loads((tmp_path / f"{name}.eval.json").read_text()))
        told = "scores are above 1, up to 50; AP and AR use only their order" in capsys.readouterr().out
        assert told == (name == "percent")
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ('[{"image_id": 0, "sco', "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\udcff", "not JSON"),
        ('{"annotations": []}', "not COCO results (a list of detections)"),
        ("[1, 2]", "not COCO results (a list of detections)"),
        ('[{"image_id": 0, "category_id": 1, "score": 1}]', "no result has 'bbox' or 'segmentation'"),
    ],
)
def test_files_that_are_not_results_end_in_one_line(pidray, tmp_path, capsys, results, message):
    (tmp_path / "found.json").write_text(results, errors="surrogateescape")
    truth = pidray / "annotations" / "xray_test_easy.json"
    command = ["--results", str(tmp_path / "found.json"), "--annotations", str(truth)]
    assert evaluate.main([*command, "--out", str(tmp_path / "out" / "e.json")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_results_may_begin_with_a_byte_order_mark(pidray, tmp_path):
    truth = pidray / "annotations" / "xray_test_easy.json"
    (tmp_path / "found.json").write_text("[]", encoding="utf-8-sig")
    command = ["--results", str(tmp_path / "found.json"), "--annotations", str(truth)]
    assert evaluate.main([*command, "--out", str(tmp_path / "e.json")]) == 0


def rename(content):
    content["categories"][0]["name"] = "Spanner"


def swap(content):
    first, second = content["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]


def repeat_name(content):
    content["categories"][0]["name"] = content["categories"][1]["name"]


def lose_names(content):
    del content["categories"][0]["name"]


def test_names_that_differ_in_blanks_are_one_class(pidray, tmp_path):
    truths = [pidray / "annotations" / "xray_test_easy.json", tmp_path / "xray_test_hard.json"]
    content = json.loads((pidray / "annotations" / "xray_test_hard.json").read_text())
    for category in content["categories"]:
        category["name"] = f" {category['name'].upper()}\u200b"
    truths[1].write_text(json.dumps(content))
    (tmp_path / "found.json").write_text("[]")
    command = ["--results", *[str(tmp_path / "found.json")] * 2, "--annotations", *map(str, truths)]
    assert evaluate.main([*command, "--out", str(tmp_path / "e.json")]) == 0
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["classes"] == list(report["subsets"]["hard"]["bbox"]["per_class"]) == list(CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "the categories differ from those of"),
        (swap, "the categories differ from those of"),
        (repeat_name, "category name 'Knife' occurs more than once"),
        (lose_names, "not COCO: a category without name"),
    ],
)
def test_incompatible_annotations_end_in_one_line(pidray, tmp_path, capsys, change, message):
    truths = [pidray / "annotations" / "xray_test_easy.json", tmp_path / "xray_test_hard.json"]
    content = json.loads((pidray / "annotations" / "xray_test_hard.json").read_text())
    change(content)
    truths[1].write_text(json.dumps(content))
    (tmp_path / "found.json").write_text("[]")
    found = [str(tmp_path / "found.json")] * 2
    command = ["--results", *found, "--annotations", *map(str, truths), "--out", str(tmp_path / "out" / "e.json")]
    assert evaluate.main(command) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert str(truths[1]) in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_outputs_do_not_overwrite_inputs(pidray, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth = pidray / "annotations" / "xray_test_easy.json"
    (tmp_path / "found.json").write_text("[]")
    command = ["--results", "found.json", "--annotations", str(truth), "--out"]
    for out, message in (
        ("found.json", "--results names the same file, which would be lost"),
        ("x.csv", "--out names the JSON file"),
        ("found.json.csv", "--out names the JSON file"),
    ):
        assert evaluate.main([*command, out]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "y.md").mkdir()
    assert evaluate.main([*command, "y.json"]) == 2
    assert "is a folder, not a file to write" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "y.md"]


def test_tables_beside_the_output_do_not_overwrite_inputs_or_runs(pidray, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("found.md", "run.json"):
        (tmp_path / name).write_text("[]")
    command = ["--results", "found.md", "--annotations", str(pidray / "annotations" / "xray_test_easy.json"), "--out"]
    assert evaluate.main([*command, "found.json"]) == 2
    assert "found.md: --results names the same file" in capsys.readouterr().err
    assert evaluate.main([*command, "run.json"]) == 2
    assert "run.json: belongs to the run in its folder" in capsys.readouterr().err
    assert (tmp_path / "found.md").read_text() == (tmp_path / "run.json").read_text() == "[]"


@pytest.mark.parametrize(
    ("empties", "message"),
    [
        (["images", "annotations"], "easy: the annotations list no images, so there is nothing to evaluate"),
        (["annotations"], "easy: no image has an item, so AP and AR are undefined; add a test set with items"),
        (["crowds"], "easy: no image has an item, so AP and AR are undefined; add a test set with items"),
    ],
)
def test_a_test_set_without_images_or_items_is_refused(pidray, tuned, tmp_path, capsys, empties, message):
    content = json.loads((pidray / "annotations" / "xray_test_easy.json").read_text())
    content |= {key: [] for key in {*empties} & {*content}}
    for item in content["annotations"]:
        item["iscrowd"] = int("crowds" in empties)
    truth, found = tmp_path / "easy.json", tmp_path / "found.json"
    truth.write_text(json.dumps(content))
    found.write_text("[]")
    for command in (
        ["--results", str(found), "--annotations", str(truth)],
        ["--weights", str(tuned), f"data.tests=[[easy, {truth}, {pidray / 'easy'}]]"],
    ):
        capsys.readouterr()
        assert evaluate.main([*command, "--out", str(tmp_path / "e.json")]) == 2
        assert capsys.readouterr().err == f"python -m segloc.evaluate: {message}\n"
    assert not list(tmp_path.glob("e.*"))


def test_clean_scans_beside_other_test_sets_count_in_the_pooled_metrics(pidray, tmp_path):
    names = [pidray / "annotations" / f"xray_test_{subset}.json" for subset in ("easy", "hard")]
    easy, clean = (json.loads(name.read_text()) for name in names)
    clean["annotations"] = []
    fields = ("image_id", "category_id", "bbox", "segmentation")
    found = [{name: item[name] for name in fields} | {"score": 0.5} for item in easy["annotations"]]
    false = [{**found[0], "image_id": image["id"], "score": 0.9} for image in clean["images"]]
    paths = {"easy.json": easy, "clean.json": clean, "found.json": found, "false.json": false}
    for name, content in paths.items():
        (tmp_path / name).write_text(json.dumps(content))
    results, truths = (
        [tmp_path / "found.json", tmp_path / "false.json"],
        [tmp_path / "easy.json", tmp_path / "clean.json"],
    )
    out = tmp_path / "e.json"
    command = ["--results", *map(str, results), "--annotations", *map(str, truths), "--out", str(out)]
    assert evaluate.main(command) == 0
    report = json.loads(out.read_text())
    assert report["subsets"]["easy"]["bbox"]["AP"] == pytest.approx(100)
    assert report["subsets"]["clean"]["bbox"]["AP"] is None
    assert report["mean"]["bbox"]["AP"] is None  # of a set without AP
    assert report["pooled"]["bbox"]["AP"] < 99


def test_a_second_evaluation_to_the_same_file_is_refused(pidray, tmp_path, capsys, monkeypatch):
    found, out = tmp_path / "found.json", tmp_path / "new" / "e.json"
    found.write_text("[]")
    command = ["--results", str(found), "--annotations", str(pidray / "annotations" / "xray_test_easy.json")]
    second = []
    write = evaluate.write_evaluation

    def meanwhile(*arguments):
        second.append(subprocess.run(
            [sys.executable, "-m", "segloc.evaluate", *command, "--out", str(out)], capture_output=True, text=True
        ))  # fmt: skip
        return write(*arguments)

    monkeypatch.setattr(evaluate, "write_evaluation", meanwhile)
    assert evaluate.main([*command, "--out", str(out)]) == 0
    assert second[0].returncode == 2
    assert f"{out}: another evaluation writes this file (process " in second[0].stderr
    assert second[0].stderr.count("\n") == 1
    assert sorted(path.name for path in out.parent.iterdir()) == ["e.csv", "e.json", "e.md"]


@pytest.fixture
def random_files(tmp_path):
    """Annotations and results of three test sets, the second without masks in its results."""
    rng = np.random.default_rng(4)
    truths, files = [], []
    for number in range(3):
        truth = random_truth(rng, images=6 + number)
        results = shifted(truth["annotations"], rng)
        if number == 1:
            results = [{k: v for k, v in r.items() if k != "segmentation"} for r in results]
        truths.append(tmp_path / f"set{number}.json")
        files.append(tmp_path / f"set{number}.results.json")
        truths[-1].write_text(json.dumps(truth))
        files[-1].write_text(json.dumps(results))
    return truths, files


def test_csv_and_markdown_equal_the_json(random_files, tmp_path, capsys):
    (truths, files), out = random_files, tmp_path / "out" / "evaluation.json"
    command = ["--results", *map(str, files), "--annotations", *map(str, truths), "--out", str(out)]
    assert evaluate.main([*command, "--bootstrap", "40"]) == 0
    report = json.loads(out.read_text())
    assert report["bootstrap"] == {"resamples": 40, "seed": 0, "level_percent": 95}
    parts = {**report["subsets"], "mean": report["mean"], "pooled": report["pooled"]}
    assert [sorted({"bbox", "segm"} & set(part)) for part in parts.values()] == [
        ["bbox", "segm"], ["bbox"], ["bbox", "segm"], ["bbox"], ["bbox"]]  # fmt: skip
    with out.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * (1 + len(CLASSES)) * 6
    for row in rows:
        figures = parts[row["test_set"]][row["kind"]]
        figures = figures if row["class"] == "all" else figures["per_class"][row["class"]]
        assert (float(row["value_percent"]) if row["value_percent"] else None) == figures[row["metric"]]
        bounds = figures["interval"][row["metric"]] if row["class"] == "all" else None
        assert (bounds or ["", ""]) == [float(v) if v else "" for v in (row["low_percent"], row["high_percent"])]
        assert row["engine"] == "results file"
        if row["class"] == "all":
            assert bounds[0] <= bounds[1]
            assert bounds[0] >= 0
            assert bounds[1] <= 100
    text = out.with_suffix(".md").read_text()
    low, high = report["pooled"]["bbox"]["interval"]["AP"]
    assert f"| pooled | 21 | {report['pooled']['bbox']['AP']:.1f} ({low:.1f} to {high:.1f}) |" in text
    tables = [[line.count(" | ") for line in block.splitlines()] for block in text.split("\n\n") if block[0] == "|"]
    assert [(len(table), set(table)) for table in tables] == [(7, {13})] + [(2 + len(CLASSES), {12})] * 5
    assert f"{report['mean']['bbox']['per_class']['Wrench']['AP']:.1f}" in capsys.readouterr().out


def test_without_bootstrap_there_are_no_bounds_and_the_same_figures(random_files, tmp_path):
    truths, files = random_files
    reports = []
    for name, more in (("a", []), ("b", ["--bootstrap", "40"]), ("c", ["--bootstrap", "40"])):
        command = ["--results", *map(str, files), "--annotations", *map(str, truths), *more]
        assert evaluate.main([*command, "--out", str(tmp_path / f"{name}.json")]) == 0
        reports.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "c.csv").read_bytes()
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "engine,test_set,kind,class,metric,value_percent"
    for part in (*reports[1]["subsets"].values(), reports[1]["mean"], reports[1]["pooled"]):
        for kind in {"bbox", "segm"} & set(part):
            del part[kind]["interval"]
    del reports[1]["bootstrap"]
    assert reports[0] == reports[1]


def test_results_without_boxes_are_measured_by_mask_alone(pidray, tmp_path):
    truth = pidray / "annotations" / "xray_test_easy.json"
    items = json.loads(truth.read_text())["annotations"]
    found = [{k: a[k] for k in ("image_id", "category_id", "segmentation")} | {"score": 0.5} for a in items]
    (tmp_path / "found.json").write_text(json.dumps(found))
    command = ["--results", str(tmp_path / "found.json"), "--annotations", str(truth)]
    assert evaluate.main([*command, "--out", str(tmp_path / "e.json")]) == 0
    report = json.loads((tmp_path / "e.json").read_text())
    assert set(report["mean"]) == {"segm"}
    assert report["pooled"]["segm"]["AP"] == pytest.approx(100)


def test_ids_written_as_whole_floats_are_the_same_ids(pidray, tmp_path):
    truth = pidray / "annotations" / "xray_test_easy.json"
    items = json.loads(truth.read_text())["annotations"]
    found = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in items]
    reports = []
    for convert in (int, float):
        rows = [
            row | {"image_id": convert(row["image_id"]), "category_id": convert(row["category_id"])} for row in found
        ]
        (tmp_path / "found.json").write_text(json.dumps(rows))
        command = ["--results", str(tmp_path / "found.json"), "--annotations", str(truth)]
        assert evaluate.main([*command, "--out", str(tmp_path / "e.json")]) == 0
        reports.append((tmp_path / "e.json").read_text())
    assert reports[0] == reports[1]


def test_results_may_have_uncompressed_rle_masks(pidray, tmp_path):
    truth = pidray / "annotations" / "xray_test_easy.json"
    found = []
    for scan in read_split(Split("easy", truth, None)).scans:
        for item in scan.annotations:
            counts = run_lengths(mask_of(item, scan.height, scan.width))
            mask = {"size": [scan.height, scan.width], "counts": counts}
            found.append({key: item[key] for key in ("image_id", "category_id", "bbox")})
            found[-1] |= {"score": 0.5, "segmentation": mask}
    (tmp_path / "found.json").write_text(json.dumps(found))
    command = ["--results", str(tmp_path / "found.json"), "--annotations", str(truth)]
    assert evaluate.main([*command, "--out", str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["mean"]["segm"]["AP"] == pytest.approx(100)


def run_lengths(mask):
    """Return the alternating run lengths of 0 and 1, column by column, zeros first."""
    column_wise = mask.T.ravel()
    edges = np.flatnonzero(np.diff(column_wise)) + 1
    lengths = np.diff(np.concatenate([[0], edges, [len(column_wise)]])).tolist()
    return [0, *lengths] if column_wise[0] else lengths


def test_a_folder_as_output_is_refused_before_the_detector_runs(pidray, tuned, tmp_path, capsys):
    assert evaluate.main(["--weights", str(tuned), "--data", str(pidray), "--out", str(tmp_path)]) == 2
    assert "is a folder, not a file to write" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def test_data_overrides_the_data_of_the_checkpoint(pidray, tuned, tmp_path):
    content = checkpoint.load(tuned / finetuning.MODEL)
    content["config"] = content["config"].replace("tests: []", "tests: [[old, gone.json, gone]]")
    assert "gone.json" in content["config"]
    del content["format_version"]
    checkpoint.save(tmp_path / "m.pth", content)
    command = ["--weights", str(tmp_path / "m.pth"), "--data", str(pidray), "--out", str(tmp_path / "e.json")]
    assert evaluate.main(command) == 0
    assert set(json.loads((tmp_path / "e.json").read_text())["subsets"]) == {"easy", "hard", "hidden"}


def test_other_categories_than_the_detectors_are_refused(tuned, tmp_path, capsys):
    other = write_pidray(tmp_path / "other", 1, 1)
    path = other / "annotations" / "xray_test_hard.json"
    path.write_text(path.read_text().replace("Wrench", "Spanner"))
    assert evaluate.main(["--weights", str(tuned), "--data", str(other), "--out", str(tmp_path / "e.json")]) == 2
    error = capsys.readouterr().err
    assert f"{path}: the categories" in error
    assert f"those of {tuned} (Gun, Knife, Wrench); use a file with these" in error


def test_a_hostile_recipe_in_a_checkpoint_is_refused(tuned, tmp_path, capsys):
    content = checkpoint.load(tuned / finetuning.MODEL)
    content["config"] = content["config"].replace("  backbone:\n", "  backbone:\n    _target_: os.system\n", 1)
    checkpoint.save(tmp_path / "hostile.pth", without_version(content))
    assert evaluate.main(["--weights", str(tmp_path / "hostile.pth"), "--out", str(tmp_path / "e.json")]) == 2
    assert "unknown key 'model.backbone._target_'" in capsys.readouterr().err


@pytest.mark.parametrize("version", [1, 2])
def test_a_detector_of_an_earlier_version_gives_the_same_figures(version, tuned, tmp_path):
    content = checkpoint.load(tuned / finetuning.MODEL)
    content["config"] = content["config"].replace("bn_images: 0", "bn_splits: 1")
    lines = [
        [line, f"{line[: len(line) - len(line.lstrip())]}  _target_: os.system"]
        for line in content["config"].split("\n")
    ]
    if version == 1:  # named the class of every section
        content["config"] = "\n".join(part for pair in lines for part in (pair if pair[0].endswith(":") else pair[:1]))
    old = {**without_version(content), "format_version": version}
    torch.save(old, tmp_path / "old.pth")
    figures_of = {}
    for name, weights in (("new", tuned), ("old", tmp_path / "old.pth")):
        assert evaluate.main(["--weights", str(weights), "--out", str(tmp_path / f"{name}.json")]) == 0
        report = json.loads((tmp_path / f"{name}.json").read_text())
        figures_of[name] = report["subsets"], report["mean"], report["pooled"], report["changed"]
    assert figures_of["old"] == figures_of["new"]


def without_version(content):
    return {key: value for key, value in content.items() if key != "format_version"}


def test_boxes_are_written_in_coco_format():
    found = Detections(
        np.array([[1, 2, 11, 7]], np.float32), np.array([0.5], np.float32), np.array([1]), [{"counts": ""}]
    )
    (result,) = predict.to_results(found, 42, CATEGORY_IDS)
    assert (result["image_id"], result["category_id"], result["bbox"]) == (42, 4, [1.0, 2.0, 10.0, 5.0])


def test_config_replaces_the_recipe_of_the_checkpoint(pidray, tuned, tmp_path):
    command = ["--weights", str(tuned), "--config", str(DEMO), "--data", str(pidray), "--out", str(tmp_path / "e.json")]
    assert evaluate.main([*command, "--subset", "easy", *SMALL]) == 0


def test_text_ids_go_through_fine_tuning_evaluation_and_results(tmp_path, monkeypatch):
    root = write_pidray(tmp_path / "data")
    for file in (root / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        for image in content["images"]:
            image["id"] = f"scan #{image['id']}"
        for category in content["categories"]:
            category["id"] = f" {category['id']}.0"
        for item in content["annotations"]:
            item.update(image_id=f"scan #{item['image_id']}", category_id=str(item["category_id"]))
        file.write_text(json.dumps(content))
    assert run(root, tmp_path / "run", "train.iterations=1") == 0
    splits = [read_split(split) for split in evaluation.evaluation_splits(DataSettings(root=str(root)))]
    monkeypatch.setattr(evaluation, "build_detector", lambda *_: Oracle(splits))
    out = tmp_path / "evaluation.json"
    assert evaluate.main(["--weights", str(tmp_path / "run"), "--data", str(root), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["pooled"]["segm"]["AP"] == pytest.approx(100)
    results = tmp_path / "evaluation.easy.results.json"
    first = json.loads(results.read_text())[0]
    assert (first["image_id"], first["category_id"]) == ("scan #0", CATEGORY_IDS[0])
    truth = root / "annotations" / "xray_test_easy.json"
    again = tmp_path / "again.json"
    assert evaluate.main(["--results", str(results), "--annotations", str(truth), "--out", str(again)]) == 0
    assert json.loads(again.read_text())["pooled"]["bbox"]["AP"] == pytest.approx(100)


def test_names_in_annotations_are_text_in_markdown(pidray, tmp_path):
    content = json.loads((pidray / "annotations" / "xray_test_easy.json").read_text())
    content["categories"][0]["name"] = "<script>|x"
    truth, found, out = tmp_path / "<b>.json", tmp_path / "found.json", tmp_path / "e.json"
    truth.write_text(json.dumps(content))
    found.write_text("[]")
    assert evaluate.main(["--results", str(found), "--annotations", str(truth), "--out", str(out)]) == 0
    text = out.with_suffix(".md").read_text()
    assert r"| \<script\>\|x |" in text
    assert r"## \<b\>" in text
    assert "<script>" not in text
    assert "<b>" not in text
