"""16-bit scans in stage 2: one level a run, measured on the training scans and kept for resuming and testing."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
import torch

from segloc import evaluate, finetune, pictures
from segloc.detection import finetuning, predict
from segloc.detection.data import read_scan, train_split
from segloc.detection.splits import read_split
from segloc.detection.weights import recipe_inside
from segloc.settings.finetuning import DataSettings
from segloc.training import checkpoint
from segloc.training.run_folder import read_metrics, read_settings
from tests.segloc.detection.test_engines import need
from tests.segloc.settings.recipes import DEMO
from tests.segloc.toy_coco import write_pidray

WHITE = 4095
SMALL = [
    "data.image_size=64",
    "model.engine=torchvision",
    "model.backbone.norm=gn",
    "model.backbone.sda_norm=gn",
    "data.threads=1",
    "optim.batch=2",
    "train.iterations=2",
    "train.checkpoint_every=1",
]


def deepen(source, target, factor=WHITE / 255):
    """Copy a data set with its scans as 16 bits, of which 12 are used."""
    shutil.copytree(source, target)
    for path in target.rglob("*.png"):
        values = np.round(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(float) * factor).astype(np.uint16)
        assert cv2.imwrite(str(path), values)
    return target


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_pidray(tmp_path_factory.mktemp("plain") / "pidray")


@pytest.fixture(scope="module")
def deep(plain, tmp_path_factory):
    return deepen(plain, tmp_path_factory.mktemp("deep") / "pidray")


def run(data, out, *overrides):
    where = ["--weights", "random", "--config", str(DEMO), "--data", str(data), "--out", str(out)]
    return finetune.main([*where, *SMALL, *overrides])


def test_training_and_testing_are_those_of_the_8_bit_scans(plain, deep, tmp_path, capsys):
    results = []
    for data, out in ((plain, tmp_path / "plain"), (deep, tmp_path / "deep")):
        assert run(data, out) == 0
        where = ["--weights", str(out), "--data", str(data), "--out", str(out / "e.json"), "--subset", "easy"]
        assert evaluate.main([*where, "model.heads.score_threshold=0"]) == 0
        results.append(json.loads((out / "e.easy.results.json").read_text()))
    assert "16-bit scans: white level 4095 (99.9 % of " in capsys.readouterr().out
    weights = [checkpoint.load(tmp_path / name / finetuning.MODEL)["model"] for name in ("plain", "deep")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    losses = [[row["loss"] for row in read_metrics(tmp_path / name)] for name in ("plain", "deep")]
    assert losses[0] == losses[1]
    assert results[0] == results[1]
    assert results[0]


def test_the_level_is_kept_in_the_run_and_for_resuming(deep, tmp_path, monkeypatch):
    step = finetuning.FinetuneTrainer.run_step

    def stopped(self):
        if self.iter == 1:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(finetuning.FinetuneTrainer, "run_step", stopped)
    assert run(deep, tmp_path) == 130
    monkeypatch.setattr(finetuning.FinetuneTrainer, "run_step", step)
    monkeypatch.setattr(finetuning.CocoSplit, "choose_white", lambda *_: pytest.fail("measured again"))
    assert run(deep, tmp_path) == 0
    assert read_settings(tmp_path)["data.white"] == WHITE
    assert recipe_inside(checkpoint.load(tmp_path / finetuning.MODEL), "").data.white == WHITE


def test_another_level_does_not_resume(deep, tmp_path, capsys):
    assert run(deep, tmp_path) == 0
    assert run(deep, tmp_path, "data.white=5000") == 2
    assert "holds a run with other settings" in capsys.readouterr().err
    assert run(deep, tmp_path, f"data.white={WHITE}") == 0


def test_a_level_of_the_recipe_is_not_measured(deep, tmp_path, capsys):
    assert run(deep, tmp_path, "data.white=8190") == 0
    assert "16-bit scans: white level 8190 (data.white)" in capsys.readouterr().out
    assert read_settings(tmp_path)["data.white"] == 8190
    split = read_split(train_split(DataSettings(root=str(deep)))).with_white(8190)
    assert read_scan(split.scans[0]).max() == 128  # 255 * 4095 / 8190


def test_test_scans_are_read_with_the_level_of_the_run(deep, tmp_path, monkeypatch):
    """A test set half as bright is not brightened: its scanner is that of the training scans."""
    darker = deepen(deep, tmp_path / "darker", 0.5)
    for path in (deep / "train").glob("*.png"):
        shutil.copy(path, darker / "train" / path.name)
    assert run(deep, tmp_path / "run") == 0
    found = []
    monkeypatch.setattr(predict, "read_scan", lambda scan: found.append(scan.white) or read_scan(scan))
    where = ["--weights", str(tmp_path / "run"), "--out", str(tmp_path / "e.json")]
    assert evaluate.main([*where, "--data", str(darker), "--subset", "easy"]) == 0
    assert evaluate.main([*where, "--data", str(darker), "--subset", "easy", "data.white=2048"]) == 0
    half = len(found) // 2
    assert set(found[:half]) == {WHITE}
    assert set(found[half:]) == {2048}
    assert json.loads((tmp_path / "e.json").read_text())["changed"] == {"data.white": "2048"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0", "data.white is 0, it must be from 1 to 65535"),
        ("-5", "data.white is -5, it must be from 1 to 65535"),
        ("65536", "data.white is 65536, it must be from 1 to 65535"),
        (".nan", "data.white: expected int, got nan"),
        ("4095.5", "data.white: expected int, got 4095.5"),
        ("white", "data.white: expected int, got 'white'"),
        ("true", "data.white: expected int, got True"),
    ],
)
def test_an_impossible_level_is_refused_in_one_line(plain, tmp_path, capsys, value, message):
    assert run(plain, tmp_path / "out", f"data.white={value}") == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_8_bit_runs_have_no_level_whatever_is_given(plain, tmp_path, capsys):
    assert run(plain, tmp_path / "a") == 0
    assert "16-bit" not in capsys.readouterr().out
    assert read_settings(tmp_path / "a")["data.white"] is None
    assert run(plain, tmp_path / "b", "data.white=4095") == 0
    losses = [[row["loss"] for row in read_metrics(tmp_path / name)] for name in "ab"]
    assert losses[0] == losses[1]


def test_a_mixed_training_set_is_told_and_its_black_scans_are_skipped(plain, deep, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(plain, mixed)
    path = sorted((mixed / "train").glob("*.png"))[1]
    shutil.copy(deep / "train" / path.name, path)
    run(mixed, tmp_path / "run")
    shown = capsys.readouterr()
    assert "mixed scans: 1 of " in shown.out
    assert read_settings(tmp_path / "run")["data.white"] is None
    split = read_split(train_split(DataSettings(root=str(mixed))))
    scan = next(scan for scan in split.scans if scan.path == path)
    with pytest.raises(ValueError, match="16 bits without a white level: used up to 4095"):
        read_scan(scan)


def test_pictures_measure_the_level_of_their_set(plain, deep, tmp_path, capsys):
    drawn = []
    for data, options in ((plain, []), (deep, []), (deep, ["--white", str(WHITE)]), (deep, ["--white", "9000"])):
        annotations = data / "annotations" / "xray_test_easy.json"
        (tmp_path / "r.json").write_text("[]")
        where = ["--results", str(tmp_path / "r.json"), "--annotations", str(annotations), "--out"]
        out = tmp_path / f"{len(drawn)}.png"
        assert pictures.main([*where, str(out), "--images", str(data / "easy"), *options]) == 0
        drawn.append(out.read_bytes())
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]
    assert "16-bit scans: white level 4095 (99.9 % of " in capsys.readouterr().out


def test_detectron2_reads_the_8_bit_scans(plain, deep, tmp_path, monkeypatch):
    need("detectron2")
    from detectron2.data import DatasetCatalog, DatasetMapper
    from detectron2.data.detection_utils import read_image

    import segloc.detection.detectron2  # noqa: F401

    monkeypatch.delenv("SEGLOC_WHITE", raising=False)
    images = []
    for data in (plain, deep):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(data.parent))
        for part in ("train", "hard"):
            images.append([read_image(one["file_name"], "RGB") for one in DatasetCatalog.get(f"pidray_{part}")])
    for before, now in ((images[0], images[2]), (images[1], images[3])):
        assert len(before) == len(now) > 0
        assert all((a == b).all() for a, b in zip(before, now, strict=True))
    one = DatasetCatalog.get("pidray_train")[0]
    mapper = DatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    assert (mapper(one)["image"].numpy() == images[0][0].transpose(2, 0, 1)).all()

    monkeypatch.setenv("SEGLOC_WHITE", "8190")
    assert read_image(DatasetCatalog.get("pidray_train")[0]["file_name"], "RGB").max() == 128
    monkeypatch.setenv("SEGLOC_WHITE", "x")
    with pytest.raises(ValueError, match="SEGLOC_WHITE: 'x' is not a whole number from 1 to 65535"):
        DatasetCatalog.get("pidray_train")
    assert os.environ["SEGLOC_WHITE"] == "x"


@pytest.mark.parametrize(("bright", "level"), [(0.0005, 4000), (0.005, 5000)])
def test_the_level_is_that_of_999_not_of_990_thousandths(plain, tmp_path, bright, level):
    """Half a per cent of brighter pixels counts, which 99 % would leave out; half a thousandth does not."""
    data = shutil.copytree(plain, tmp_path / "pidray")
    for path in data.rglob("*.png"):
        height, width = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape[:2]
        values = np.full(height * width, 4000, np.uint16)
        values[: round(bright * len(values))] = 5000
        assert cv2.imwrite(str(path), values.reshape(height, width))
    assert read_split(train_split(DataSettings(root=str(data)))).choose_white().level == level
