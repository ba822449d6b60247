import json

import pytest
import torch

from segloc import checkpoint, finetune, pretrain
from segloc.detection.trainer import FinetuneTrainer
from segloc.models.backbone import SegLocBackbone
from segloc.runs import read_metrics, read_run

from .conftest import write_shards
from .test_detection_engines import need
from .test_lazy import DEMO
from .toy_coco import CLASSES, write_pidray

SMALL = [
    "data.image_size=64",
    "model.backbone.norm=gn",
    "model.backbone.sda_norm=gn",
    "data.threads=1",
    "optim.batch=2",
    "train.iterations=4",
    "train.checkpoint_every=2",
]


@pytest.fixture(scope="module")
def pidray(tmp_path_factory):
    return write_pidray(tmp_path_factory.mktemp("pidray"))


def run(data, out, *overrides, weights="random", engine="torchvision"):
    where = ["--weights", str(weights), "--config", str(DEMO), "--data", str(data), "--out", str(out)]
    return finetune.main([*where, f"model.engine={engine}", *SMALL, *overrides])


@pytest.mark.parametrize(("engine", "method"), [("torchvision", "sgd"), ("detectron2", "adamw")])
def test_a_killed_run_ends_like_an_undisturbed_one(pidray, tmp_path, monkeypatch, capsys, engine, method):
    need(engine)
    settings = f"optim.method={method}"
    assert run(pidray, tmp_path / "whole", settings, engine=engine) == 0
    step = FinetuneTrainer.run_step

    def killed(self):
        if self.iter == 3:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(FinetuneTrainer, "run_step", killed)
    assert run(pidray, tmp_path / "killed", settings, engine=engine) == 130
    assert checkpoint.load(tmp_path / "killed" / checkpoint.LAST)["iteration"] == 2
    assert not (tmp_path / "killed" / finetune.MODEL).exists()
    monkeypatch.setattr(FinetuneTrainer, "run_step", step)
    assert run(pidray, tmp_path / "killed", settings, engine=engine) == 0
    whole, resumed = (checkpoint.load(tmp_path / name / finetune.MODEL) for name in ("whole", "killed"))
    assert resumed["model"].keys() == whole["model"].keys()
    assert all(torch.equal(tensor, resumed["model"][name]) for name, tensor in whole["model"].items())
    logs = [read_metrics(tmp_path / name) for name in ("whole", "killed")]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    assert whole["classes"] == list(CLASSES)
    assert read_run(tmp_path / "whole")["engine"].startswith(engine)
    capsys.readouterr()
    assert run(pidray, tmp_path / "whole", settings, engine=engine) == 0
    assert "finished" in capsys.readouterr().out


def test_start_weights_arrive_and_are_trained(pidray, tmp_path, monkeypatch):
    settings = {"arch": "resnet18", "norm": "gn", "sda_norm": "gn", "attention": True}
    torch.manual_seed(9)
    start = SegLocBackbone(**settings).state_dict()
    checkpoint.save(
        tmp_path / "pre" / checkpoint.BACKBONE, {"kind": "backbone", **settings, "iteration": 1, "backbone": start}
    )
    out = tmp_path / "run"
    assert run(pidray, out, "train.iterations=1", "optim.lr_per_16=0.0", weights=tmp_path / "pre") == 0
    still = checkpoint.load(out / finetune.MODEL)["backbone"]
    assert all(torch.equal(still[name], tensor) for name, tensor in start.items())
    assert run(pidray, tmp_path / "moved", "train.iterations=2", weights=tmp_path / "pre") == 0
    moved = checkpoint.load(tmp_path / "moved" / finetune.MODEL)["backbone"]
    changed = [name for name, tensor in start.items() if not torch.equal(moved[name], tensor)]
    assert {"body.conv1.weight", "fpn.layer_blocks.0.0.weight", "attention.levels.0.spatial.convs.1.weight"} <= set(
        changed
    )


def test_a_nan_stops_the_run_and_names_the_images(pidray, tmp_path, monkeypatch, capsys):
    losses = FinetuneTrainer._losses

    def poisoned(self, batch):
        return {name: value * (float("nan") if self.iter == 1 else 1) for name, value in losses(self, batch).items()}

    monkeypatch.setattr(FinetuneTrainer, "_losses", poisoned)
    assert run(pidray, tmp_path) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "loss of iteration 1 is not finite (images " in message
    assert not (tmp_path / finetune.MODEL).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["optim.btach=1"], "did you mean 'optim.batch'"),
        (["model.num_classes=5"], "have 3 categories, but model.num_classes is 5"),
        (["model.backbone.arch=vgg"], "arch 'vgg' is none of"),
        (["model.backbone.sda_norm=bn", "optim.batch=1"], "sda_norm=bn needs optim.batch of at least 2"),
        (["optim.batch=0"], "batch is 0"),
        (["train.box_heads=pretrained"], "random: no box head in it"),
        (["train.box_heads=zero"], "box_heads is 'zero', not one of random, pretrained"),
        (["optim.method=adam"], "method is 'adam', not one of sgd, adamw"),
        (["optim.clip=["], "'optim.clip=[': the value cannot be read"),
        (["optim.clip=${nope}"], "the value cannot be read"),
        (["optim.milestones=3"], "optim.milestones: expected a list, got 3"),
        (["optim.milestones=[a]"], "optim.milestones: expected float, got 'a'"),
        (["optim.clip=-1"], "clip is -1.0, it must be at least 0"),
        (["optim.lr_per_16=.inf"], "lr_per_16 is inf"),
        (["data.flip=3"], "flip is 3.0, it must be within 0 and 1"),
        (["train.iterations=-1"], "iterations is -1, it must be at least 0"),
        (["train.seed=-1"], "seed is -1, it must be within 0 and"),
        (["train.seed=99999999999999999999"], "seed is 99999999999999999999, it must be within"),
    ],
)
def test_bad_settings_end_in_one_line(pidray, tmp_path, capsys, change, message):
    assert run(pidray, tmp_path / "out", *change) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_no_other_kind_of_run_is_written_over(pidray, tmp_path, capsys):
    assert run(pidray, tmp_path / "out", "train.iterations=1") == 0
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir())
    shards = write_shards(tmp_path / "shards")
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path / "out"), "optim.steps=1"]) == 2
    assert "holds a run of kind 'finetune'" in capsys.readouterr().err
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir()) == before


def test_another_training_set_does_not_resume(pidray, tmp_path, capsys):
    assert run(pidray, tmp_path / "out", "train.iterations=1") == 0
    content = checkpoint.load(tmp_path / "out" / finetune.MODEL)
    checkpoint.save(tmp_path / "out" / finetune.MODEL, {**content, "data_digest": "another"})
    assert run(pidray, tmp_path / "out", "train.iterations=1") == 2
    assert "was on another training set" in capsys.readouterr().err


def test_bad_paths_end_in_one_line(pidray, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for data, weights, message in [
        (tmp_path / "empty", "random", "not a PIDray folder"),
        (tmp_path / "nowhere", "random", "no such folder"),
        (pidray, tmp_path / "empty", "holds no checkpoint"),
        (pidray, tmp_path / "nothing.pth", "no such checkpoint"),
    ]:
        assert run(data, tmp_path / "out", weights=weights) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error


def test_a_folder_with_another_run_is_left_alone(pidray, tmp_path, capsys):
    assert run(pidray, tmp_path, "train.iterations=1") == 0
    before = (tmp_path / finetune.MODEL).read_bytes()
    assert run(pidray, tmp_path, "train.iterations=1", "train.seed=1") == 2
    assert "holds another run" in capsys.readouterr().err
    assert (tmp_path / finetune.MODEL).read_bytes() == before


def test_explicit_files_take_the_place_of_pidray(pidray, tmp_path):
    files = f"data.train=[{pidray}/annotations/xray_train.json, {pidray}/train]"
    arguments = ["--weights", "random", "--config", str(DEMO), "--out", str(tmp_path), files, *SMALL]
    assert finetune.main([*arguments, "model.engine=torchvision", "train.iterations=1"]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["scans"] == 5
