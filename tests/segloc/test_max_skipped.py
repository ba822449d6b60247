"""Fine-tuning and evaluation count what they skip; above --max-skipped they write their output and exit with 1."""

import json
import shutil

import pytest

from segloc import evaluate, report
from segloc.detection import finetuning
from segloc.detection.trainer import FinetuneTrainer
from segloc.training import checkpoint
from segloc.training.run_folder import read_metrics, read_skips
from tests.segloc.detection.test_coco_eval import figures, plain_pycocotools
from tests.segloc.detection.test_engines import ENGINES, need
from tests.segloc.test_finetune import run
from tests.segloc.toy_coco import write_pidray

TRAIN, TEST = 20, 13


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_pidray(tmp_path_factory.mktemp("clean"), TRAIN, TEST)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture
def dirty(clean, tmp_path):
    """The clean set, with 4 of 20 training scans and 4 of 22 annotations bad, each in another way."""
    root = shutil.copytree(clean, tmp_path / "pidray")
    scans = sorted((root / "train").iterdir())
    scans[1].unlink()
    scans[4].write_bytes(scans[4].read_bytes()[:-20])
    scans[7].write_bytes(b"")

    def change(content):
        content["images"][9]["width"] += 1
        annotations = content["annotations"]
        annotations[2]["image_id"] = 999
        annotations[5]["segmentation"] = [[1, 1, 2, 2]]
        annotations[8]["area"] = 0
        annotations += [dict(annotations[0]), {**annotations[11], "id": 500, "iscrowd": 1}]

    edit(root / "annotations" / "xray_train.json", change)
    return root


SCANS = (
    "skipped 4 of 20 scans: 1 empty file (scan 007.png), 1 image size disagrees with the file (scan 009.png), "
    "1 no such file (scan 001.png), 1 truncated file (scan 004.png)"
)
ANNOTATIONS = (
    "skipped 5 of 22 annotations: 1 RLE made for another image size (annotation 9 of image 9), 1 annotation id "
    "repeats (annotation 0 of image 0), 1 degenerate (scan 008.png), 1 image not in the file (annotation 2 of image "
    "999), 1 polygon of fewer than three points (annotation 5 of image 5); not used: 1 crowd"
)


def test_fine_tuning_goes_on_without_the_bad_inputs_and_counts_them(dirty, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(dirty, out, "data.train_empty=true") == 1
    said, complained = capsys.readouterr()
    print(said)
    assert [line for line in said.splitlines() if line.startswith("skipped")] == [SCANS, ANNOTATIONS]
    assert said.count("these are more than --max-skipped 0.05: the run goes on, but its exit code will be 1") == 2
    assert f"{out / 'model.pth'} is written; check the training set, or raise --max-skipped" in complained
    assert "4 of 20 scans skipped" in complained
    assert checkpoint.load(out / finetuning.MODEL)["left_out"]
    assert [(part.what, part.skipped, part.total) for part in read_skips(out)] == [
        ("scans", 4, 20), ("annotations", 5, 22),
    ]  # fmt: skip
    assert read_metrics(out)[-1]["unreadable"] == 4
    assert run(dirty, out, "data.train_empty=true") == 1  # finished, and still not good
    assert run(dirty, out, "data.train_empty=true", "--max-skipped=1") == 0
    page = tmp_path / "report.html"
    assert report.main([str(out), "--out", str(page)]) == 0
    assert ">4 of 20 scans</span>" in page.read_text()


@pytest.mark.parametrize(("share", "code"), [("0.05", 0), ("0.049", 1), ("0", 1)])
def test_one_bad_file_of_twenty_is_within_the_default_share(clean, tmp_path, share, code):
    root = shutil.copytree(clean, tmp_path / "pidray")
    (root / "train" / "scan 003.png").unlink()
    assert run(root, tmp_path / "run", f"--max-skipped={share}", "train.iterations=1") == code
    assert checkpoint.load(tmp_path / "run" / finetuning.MODEL)["left_out"] == [3]


def test_fine_tuning_without_any_usable_scan_ends_before_the_first_step(clean, tmp_path, capsys):
    root = shutil.copytree(clean, tmp_path / "pidray")
    for path in (root / "train").iterdir():
        path.write_bytes(b"")
    assert run(root, tmp_path / "run") == 2
    assert f"none of the {TRAIN} training images can be read: {TRAIN} empty file (" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_that_vanishes_and_one_that_is_mended_do_not_change_a_resumed_run(clean, tmp_path, monkeypatch, capsys):
    root = shutil.copytree(clean, tmp_path / "pidray")
    bad = root / "train" / "scan 003.png"
    bad.write_bytes(b"")
    assert run(root, tmp_path / "whole", "--max-skipped=1") == 0
    step = FinetuneTrainer.run_step

    def killed(self):
        if self.iter == 3:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "run_step", killed)
        assert run(root, tmp_path / "killed", "--max-skipped=1") == 130
    shutil.copy(clean / "train" / "scan 003.png", bad)
    assert run(root, tmp_path / "killed", "--max-skipped=1") == 0
    losses = [[row["loss"] for row in read_metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1]
    assert read_skips(tmp_path / "killed")[0].names == {"unreadable when the run began": ["scan 003.png"]}


def test_a_file_that_vanishes_during_training_is_replaced_and_counted(clean, tmp_path, monkeypatch, capsys):
    root = shutil.copytree(clean, tmp_path / "pidray")
    fit = FinetuneTrainer.fit

    def vanish(self, start):
        (root / "train" / "scan 003.png").unlink()
        fit(self, start)

    monkeypatch.setattr(FinetuneTrainer, "fit", vanish)
    out = tmp_path / "run"
    assert run(root, out, "train.iterations=10") == 0  # 1 of 20
    shown = "".join(capsys.readouterr())
    assert "replaced by another scan: " in shown
    assert "skipped 1 of 20 scans: 1 unreadable during training (scan 003.png)" in shown
    assert read_skips(out)[0].names == {"unreadable during training": ["scan 003.png"]}
    assert read_metrics(out)[-1]["unreadable"] == 1


def test_scans_of_one_bare_name_that_vanish_are_counted_apart_and_not_forgotten(clean, tmp_path, monkeypatch):
    root = shutil.copytree(clean, tmp_path / "pidray")
    train = root / "train"

    def into_folders(content):
        for position in (3, 4):
            image = content["images"][position]
            (train / f"cam{position}").mkdir()
            (train / image["file_name"]).rename(train / f"cam{position}" / "scan.png")
            image["file_name"] = f"cam{position}/scan.png"

    edit(root / "annotations" / "xray_train.json", into_folders)
    step, save = FinetuneTrainer.run_step, []

    def vanish_then_stop(self):
        if self.iter == 0:
            for position in (3, 4):
                shutil.rmtree(train / f"cam{position}")
        if self.iter == 10:
            save.append(dict(self.data.unreadable))
            raise KeyboardInterrupt
        step(self)

    out = tmp_path / "run"
    settings = ("train.iterations=12", "train.checkpoint_every=10", "--max-skipped=0.05")
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "run_step", vanish_then_stop)
        assert run(root, out, *settings) == 130
    assert sorted(save[0]) == [3, 4]
    for position in (3, 4):  # mended, but they were not trained on
        (train / f"cam{position}").mkdir()
        shutil.copy(clean / "train" / f"scan 00{position}.png", train / f"cam{position}" / "scan.png")
    assert run(root, out, *settings) == 1
    assert read_skips(out)[0].counts == {finetuning.UNREADABLE: 2}


@pytest.mark.parametrize("engine", ENGINES)
def test_unreadable_scans_stay_in_the_metric_without_detections(clean, tmp_path, engine, capsys):
    need(engine)
    settings = ("model.heads.score_threshold=0.0", "train.iterations=2")
    assert run(clean, tmp_path / "run", *settings, engine=engine) == 0
    root = shutil.copytree(clean, tmp_path / "pidray")
    command = ["--weights", str(tmp_path / "run"), "--data", str(root), "--subset", "hard"]
    assert evaluate.main([*command, "--out", str(tmp_path / "whole.json")]) == 0
    scans = sorted((root / "hard").iterdir())
    scans[2].unlink()
    scans[5].write_bytes(scans[5].read_bytes()[:-20])
    scans[6].write_bytes(b"")
    capsys.readouterr()
    assert evaluate.main([*command, "--out", str(tmp_path / "few.json")]) == 1
    said, complained = capsys.readouterr()
    line = "1 empty file (scan 006.png), 1 no such file (scan 002.png), 1 truncated file (scan 005.png)"
    assert f"skipped 3 of {TEST} scans of hard: {line}" in said
    assert f"more than --max-skipped 0.05: 3 of {TEST} scans of hard skipped: {line}" in complained
    found = json.loads((tmp_path / "whole.hard.results.json").read_text())
    kept = [one for one in found if one["image_id"] not in (2, 5, 6)]
    assert len(kept) < len(found)
    assert json.loads((tmp_path / "few.hard.results.json").read_text()) == kept
    truth = json.loads((root / "annotations" / "xray_test_hard.json").read_text())
    for annotation in truth["annotations"]:
        annotation["id"] += 1  # pycocotools never matches id 0
    measured = json.loads((tmp_path / "few.json").read_text())
    assert measured["subsets"]["hard"]["images"] == TEST
    for kind in ("bbox", "segm"):
        assert figures(measured["subsets"]["hard"][kind]) == plain_pycocotools(tmp_path, truth, kept, kind)
    assert f"Skipped: 3 of {TEST} scans of hard: {line}." in (tmp_path / "few.md").read_text()
    rows = (tmp_path / "few.csv").read_text().splitlines()
    assert rows[0].endswith(",skipped_inputs")
    assert all(row.endswith(",3") for row in rows[1:])
    assert "skipped_inputs" not in (tmp_path / "whole.csv").read_text()
    assert evaluate.main([*command, "--out", str(tmp_path / "few.json"), "--max-skipped", str(3 / TEST)]) == 0


@pytest.mark.parametrize(("share", "code"), [("0.154", 0), ("0.153", 1)])  # 2 of 13
def test_annotations_skipped_by_an_evaluation_of_results_are_counted(clean, tmp_path, share, code, capsys):
    truth, found, out = tmp_path / "xray_test_easy.json", tmp_path / "found.json", tmp_path / "e.json"
    content = json.loads((clean / "annotations" / truth.name).read_text())
    found.write_text(json.dumps([{**a, "score": 0.5} for a in content["annotations"]]))
    content["annotations"][3]["category_id"] = 2
    content["annotations"][6]["iscrowd"] = "perhaps"
    truth.write_text(json.dumps(content))
    command = ["--results", str(found), "--annotations", str(truth), "--out", str(out), "--max-skipped", share]
    assert evaluate.main(command) == code
    reasons = "1 category not in the file (annotation 3 of image 3), 1 malformed iscrowd (annotation 6 of image 6)"
    said, complained = capsys.readouterr()
    assert f"skipped 2 of 13 annotations of easy: {reasons}\n" in said
    assert (f"2 of 13 annotations of easy skipped: {reasons}" in complained) == bool(code)
    kept = [{**a, "id": a["id"] + 1} for n, a in enumerate(content["annotations"]) if n not in (3, 6)]  # none is 0
    expected = plain_pycocotools(tmp_path, {**content, "annotations": kept}, json.loads(found.read_text()), "bbox")
    assert figures(json.loads(out.read_text())["subsets"]["easy"]["bbox"]) == expected
    page, table = tmp_path / "report.html", tmp_path / "table.md"
    assert report.main([str(out), "--out", str(page), "--table", str(table)]) == 0
    assert ">2 of 13 annotations of easy</span>" in page.read_text()
    assert f"e skipped 2 of 13 annotations of easy: {reasons}." in table.read_text()


@pytest.mark.parametrize(("mask", "code"), [({"size": [1, 1], "counts": "1"}, 1), ([], 0), (None, 0)])
def test_damaged_masks_of_the_truth_count_as_skipped_and_absent_ones_do_not(clean, tmp_path, mask, code, capsys):
    truth, found, out = tmp_path / "truth.json", tmp_path / "found.json", tmp_path / "e.json"
    content = json.loads((clean / "annotations" / "xray_test_easy.json").read_text())
    found.write_text(json.dumps([{**a, "score": 0.5} for a in content["annotations"]]))
    for annotation in content["annotations"][1:]:
        annotation["segmentation"] = mask
    truth.write_text(json.dumps(content))
    command = ["--results", str(found), "--annotations", str(truth), "--out", str(out)]
    assert evaluate.main(command) == code
    assert ("12 of 13 annotations of truth skipped: 12 RLE made for another" in capsys.readouterr().err) == bool(code)
