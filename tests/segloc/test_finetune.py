import json
import os
import shutil
import signal

import pytest
import torch
from torchvision.models import resnet18

from segloc import finetune, pretrain
from segloc.common.run_files import START
from segloc.detection import finetuning
from segloc.detection.trainer import FinetuneTrainer
from segloc.models.backbone import SegLocBackbone
from segloc.models.initial_weights import read_backbone
from segloc.reporting import run_results
from segloc.training import checkpoint
from segloc.training.run_folder import read_metrics, read_run
from tests.segloc.conftest import write_shards
from tests.segloc.detection.test_engines import need
from tests.segloc.settings.recipes import DEMO
from tests.segloc.toy_coco import CLASSES, write_pidray

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


PUBLISHED = ["model.backbone.norm=bn", "model.frozen=1", "model.fixed_statistics=true"]


def torchvision_file(folder):
    """A ResNet state dict like torchvision's files, with statistics that differ from a new network's."""
    torch.manual_seed(4)
    net = resnet18()
    net(torch.randn(4, 3, 64, 64))
    torch.save(net.state_dict(), folder / "resnet18.pth")
    return folder / "resnet18.pth"


def run(data, out, *overrides, weights="random", engine="torchvision"):
    where = ["--weights", str(weights), "--config", str(DEMO), "--data", str(data), "--out", str(out)]
    return finetune.main([*where, f"model.engine={engine}", *SMALL, *overrides])


@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_steps_use_the_fast_layout_and_fused_optimisers(pidray, tmp_path, monkeypatch, method):
    seen = []
    fit = FinetuneTrainer.fit
    monkeypatch.setattr(FinetuneTrainer, "fit", lambda trainer, start: (seen.append(trainer), fit(trainer, start)))
    assert run(pidray, tmp_path / "out", f"optim.method={method}", "train.iterations=1") == 0
    (trainer,) = seen
    assert trainer.optimizer.defaults["fused"]
    weight = trainer.detector.backbone.body["layer2"][0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


@pytest.mark.parametrize(("engine", "method"), [("torchvision", "sgd"), ("detectron2", "adamw")])
def test_a_killed_run_ends_like_an_uninterrupted_one(pidray, tmp_path, monkeypatch, capsys, engine, method):
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
    assert not (tmp_path / "killed" / finetuning.MODEL).exists()
    monkeypatch.setattr(FinetuneTrainer, "run_step", step)
    assert run(pidray, tmp_path / "killed", settings, engine=engine) == 0
    whole, resumed = (checkpoint.load(tmp_path / name / finetuning.MODEL) for name in ("whole", "killed"))
    assert resumed["model"].keys() == whole["model"].keys()
    assert all(torch.equal(tensor, resumed["model"][name]) for name, tensor in whole["model"].items())
    logs = [read_metrics(tmp_path / name) for name in ("whole", "killed")]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    assert whole["classes"] == list(CLASSES)
    assert read_run(tmp_path / "whole")["engine"].startswith(engine)
    capsys.readouterr()
    assert run(pidray, tmp_path / "whole", settings, engine=engine) == 0
    assert "finished" in capsys.readouterr().out


def test_sigterm_saves_and_the_resumed_run_ends_like_an_uninterrupted_one(pidray, tmp_path, monkeypatch, capsys):
    need("detectron2")
    start = torchvision_file(tmp_path)
    settings = [*PUBLISHED, "optim.micro_batch=1"]
    assert run(pidray, tmp_path / "whole", *settings, weights=start, engine="detectron2") == 0
    step = FinetuneTrainer.run_step

    def interrupted(self):
        step(self)
        if self.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "stopped"
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "run_step", interrupted)
        assert run(pidray, out, *settings, weights=start, engine="detectron2") == 143
    assert capsys.readouterr().err.endswith("stopped by SIGTERM; run the same command again to continue\n")
    assert signal.getsignal(signal.SIGTERM) == handler
    assert checkpoint.load(out / checkpoint.LAST)["iteration"] == 3
    checkpoint.save(start, {"other": 1})
    assert run(pidray, out, *settings, weights=start, engine="detectron2") == 2
    assert "have changed since this run began; choose another --out" in capsys.readouterr().err
    start.unlink()  # the checkpoint has everything needed
    assert run(pidray, out, *settings, weights=start, engine="detectron2") == 0
    whole, resumed = (checkpoint.load(path / finetuning.MODEL)["model"] for path in (tmp_path / "whole", out))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_after_sigterm_in_the_last_step_the_run_ends_without_training(pidray, tmp_path, monkeypatch):
    step = FinetuneTrainer.run_step

    def interrupted(self):
        step(self)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "run_step", interrupted)
        assert run(pidray, tmp_path, "train.iterations=1") == 143
    assert not (tmp_path / finetuning.MODEL).exists()
    assert run(pidray, tmp_path, "train.iterations=1") == 0
    assert checkpoint.load(tmp_path / finetuning.MODEL)["iteration"] == 1
    assert not (tmp_path / checkpoint.LAST).exists()
    (tmp_path / checkpoint.LAST).touch()  # killed before it was removed
    assert run(pidray, tmp_path, "train.iterations=1") == 0
    assert not (tmp_path / checkpoint.LAST).exists()


def test_the_published_protocol_starts_from_a_torchvision_file(pidray, tmp_path, capsys):
    start = torchvision_file(tmp_path)
    assert run(pidray, tmp_path / "out", *PUBLISHED, weights=start) == 0
    said = capsys.readouterr().out
    assert "no cascade: training a one-stage Mask R-CNN instead of 3 stages" in said
    assert "steps (train.iterations; train.epochs is not used), run " in said
    before, _ = checkpoint.read_any(start)
    after = checkpoint.load(tmp_path / "out" / finetuning.MODEL)["backbone"]
    stem = [name for name in before if name.startswith(("conv1.", "bn1.", "layer1."))]
    statistics = [name for name in before if "running_" in name]
    assert all(torch.equal(after[f"body.{name}"], before[name]) for name in [*stem, *statistics])
    assert not torch.equal(after["body.layer2.0.conv1.weight"], before["layer2.0.conv1.weight"])
    listed = json.loads((tmp_path / "out" / START).read_text())
    assert set(listed["loaded"]) == {f"body.{name}" for name in before if not name.startswith("fc.")}
    assert {name.split(".")[0] for name in listed["anew"]} == {"fpn", "attention"}
    assert sorted(listed["loaded"] + listed["anew"]) == sorted(after)


def test_weights_pass_from_imagenet_through_pretraining_to_the_detector(pidray, tmp_path):
    start, shards = torchvision_file(tmp_path), write_shards(tmp_path / "shards")
    settings = ["model.arch=resnet18", "model.norm=bn", "model.sda_norm=gn", "model.bn_images=0", f"model.init={start}"]
    # This learning rate is too small to change any weight.
    settings += ["optim.steps=1", "optim.batch=4", "optim.micro_batch=4", "optim.lr_per_256=1e-30"]
    settings += ["data.image_size=64", "queue.size=16", "head.convs=1", "head.conv_dim=32", "head.fc_dim=32"]
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path / "pre"), *settings]) == 0
    backbone = checkpoint.load(tmp_path / "pre" / checkpoint.BACKBONE)["backbone"]
    still = ["train.iterations=1", "optim.lr_per_16=0.0", "model.backbone.norm=bn"]
    assert run(pidray, tmp_path / "out", *still, weights=tmp_path / "pre") == 0
    found = checkpoint.load(tmp_path / "out" / finetuning.MODEL)["backbone"]
    weights = [name for name in backbone if "running_" not in name and "num_batches" not in name]
    assert all(torch.equal(found[name], backbone[name]) for name in weights)
    imagenet, _ = checkpoint.read_any(start)
    body = [name for name in imagenet if f"body.{name}" in weights]
    assert len(body) > 50
    assert all(torch.allclose(found[f"body.{name}"], imagenet[name], rtol=0, atol=1e-20) for name in body)
    # The origin of the weights is known without the pretraining's folder.
    described = run_results.origin(str(tmp_path / "pre"))
    assert "('optim.lr_per_256', 1e-30)" in described[0]
    shutil.rmtree(tmp_path / "pre")
    left = run_results.load_run(tmp_path / "out")
    assert (left.start, left.seeds[1]) == described == (left.start, 0)


def norm_free(tmp_path):
    """A backbone pretrained without batch norm; every tensor differs from a new one's."""
    settings = {"arch": "resnet18", "norm": "none", "sda_norm": "gn", "attention": True, "fpn_channels": 256}
    state = {name: torch.randn_like(x) / 50 for name, x in SegLocBackbone(**settings).state_dict().items()}
    checkpoint.save(tmp_path / "free.pth", {"kind": "backbone", **settings, "backbone": state})
    return tmp_path / "free.pth", state


def test_norm_free_weights_load_into_a_detector_with_batch_norm_on_request(pidray, tmp_path, capsys):
    path, state = norm_free(tmp_path)
    settings = ["train.iterations=1", "optim.lr_per_16=0.0", "model.backbone.norm=bn"]
    assert run(pidray, tmp_path / "out", *settings, weights=path) == 2
    message = capsys.readouterr().err
    assert "was pretrained with norm=none, the recipe has bn" in message
    assert "train.unmatched=start_anew loads the tensors that fit" in message
    assert run(pidray, tmp_path / "out", *settings, "train.unmatched=start_anew", weights=path) == 0
    text = capsys.readouterr().out
    found = checkpoint.load(tmp_path / "out" / finetuning.MODEL)["backbone"]
    scales = {name for name in state if ".bn2." in name}  # of the residual branches, two a block
    assert len(scales) == 16
    kept = set(state) - scales
    assert all(torch.equal(found[name], state[name]) for name in kept)
    assert all(found[name].eq(1 if name.endswith("weight") else 0).all() for name in scales)
    listed = json.loads((tmp_path / "out" / START).read_text())
    assert set(listed["loaded"]) == kept
    assert set(listed["anew"]) == set(found) - kept
    assert {fault.partition(" is a residual scale")[0] for fault in listed["unused"]} == scales
    assert f"{len(kept)} of {len(found)} tensors loaded; {len(found) - len(kept)} newly initialised (body.bn1." in text
    assert "; 16 of the file not used (body.layer1.0.bn2." in text


def test_new_batch_norm_with_fixed_statistics_does_not_change_a_norm_free_network(pidray, tmp_path):
    path, state = norm_free(tmp_path)
    settings = ["train.iterations=1", "optim.lr_per_16=0.0", *PUBLISHED, "train.unmatched=start_anew"]
    assert run(pidray, tmp_path / "out", *settings, weights=path) == 0
    plain, normed = (SegLocBackbone("resnet18", norm, "gn").eval() for norm in ("none", "bn"))
    plain.load_state_dict(state)
    normed.load_state_dict(checkpoint.load(tmp_path / "out" / finetuning.MODEL)["backbone"])
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for level, expected in plain(image).items():
            assert torch.allclose(normed(image)[level], expected, rtol=1e-3, atol=1e-6)


def test_nothing_is_registered_with_detectron2(pidray, tmp_path):
    need("detectron2")
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = DatasetCatalog.list(), MetadataCatalog.list()
    assert run(pidray, tmp_path, "train.iterations=1", engine="detectron2") == 0
    assert (DatasetCatalog.list(), MetadataCatalog.list()) == before


def test_scans_without_items_are_used_on_request(pidray, tmp_path):
    content = json.loads((pidray / "annotations" / "xray_train.json").read_text())
    content["annotations"] = content["annotations"][:1]
    (tmp_path / "a.json").write_text(json.dumps(content))
    files = [f"data.train=[{tmp_path}/a.json, {pidray}/train]", "train.iterations=2", "data.train_empty=true"]
    assert run(pidray, tmp_path / "out", *files) == 0
    assert read_run(tmp_path / "out")["scans"] == 5


def test_initial_weights_are_loaded_and_trained(pidray, tmp_path, monkeypatch):
    settings = {"arch": "resnet18", "norm": "gn", "sda_norm": "gn", "attention": True, "fpn_channels": 256}
    torch.manual_seed(9)
    start = SegLocBackbone(**settings).state_dict()
    checkpoint.save(
        tmp_path / "pre" / checkpoint.BACKBONE, {"kind": "backbone", **settings, "iteration": 1, "backbone": start}
    )
    out = tmp_path / "run"
    assert run(pidray, out, "train.iterations=1", "optim.lr_per_16=0.0", weights=tmp_path / "pre") == 0
    still = checkpoint.load(out / finetuning.MODEL)["backbone"]
    assert all(torch.equal(still[name], tensor) for name, tensor in start.items())
    assert run(pidray, tmp_path / "moved", "train.iterations=2", weights=tmp_path / "pre") == 0
    moved = checkpoint.load(tmp_path / "moved" / finetuning.MODEL)["backbone"]
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
    assert not (tmp_path / finetuning.MODEL).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["optim.batch=3", "optim.micro_batch=2"], "batch 3 is not a multiple of optim.micro_batch 2"),
        (["model.backbone.sda_norm=bn", "optim.micro_batch=1"], "sda_norm=bn needs optim.micro_batch of at least 2"),
        (["model.frozen=1"], "model.frozen=1 would freeze random weights (body.conv1.weight and 4 more)"),
        (["model.frozen=5"], "frozen is 5, it must be from 0 to 4"),
        (["model.fixed_statistics=true"], "fixed_statistics=true needs model.backbone.norm=bn"),
        (["model.fixed_statistics=true", "model.backbone.norm=bn"], "needs measured batch-norm statistics"),
        (["model.heads.stages=4"], "heads.stages is 4, it must be from 1 to 3"),
        (["train.unmatched=skip"], "unmatched is 'skip', not one of refuse, start_anew"),
        (["optim.btach=1"], "did you mean 'optim.batch'"),
        (["model.num_classes=5"], "have 3 categories, but model.num_classes is 5"),
        (["model.backbone.arch=vgg"], "arch is 'vgg', not one of"),
        (["model.backbone.sda_norm=bn", "optim.batch=1"], "sda_norm=bn needs optim.batch of at least 2"),
        (["optim.batch=0"], "batch is 0"),
        (["train.box_heads=pretrained"], "random: has no box head"),
        (["train.box_heads=zero"], "box_heads is 'zero', not one of random, pretrained"),
        (["optim.method=adam"], "method is 'adam', not one of sgd, adamw"),
        (["optim.clip=["], "the value of 'optim.clip': not YAML"),
        (["optim.clip=${nope}"], "optim.clip: expected float"),
        (["optim.milestones=3"], "optim.milestones: expected a list, got 3"),
        (["optim.milestones=[a]"], "optim.milestones: expected float, got 'a'"),
        (["optim.clip=-1"], "clip is -1.0, it must be at least 0"),
        (["optim.lr_per_16=.inf"], "lr_per_16 is inf"),
        (["data.flip=3"], "flip is 3.0, it must be from 0 to 1"),
        (["train.iterations=-1"], "iterations is -1, it must be from 0 to"),
        (["train.seed=-1"], "seed is -1, it must be from 0 to"),
        (["train.seed=99999999999999999999"], "train.seed is 99999999999999999999, it must be from"),
    ],
)
def test_bad_settings_end_in_one_line(pidray, tmp_path, capsys, change, message):
    assert run(pidray, tmp_path / "out", *change) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_another_kind_of_run_is_not_overwritten(pidray, tmp_path, capsys):
    assert run(pidray, tmp_path / "out", "train.iterations=1") == 0
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir())
    shards = write_shards(tmp_path / "shards")
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path / "out"), "optim.steps=1"]) == 2
    assert "contains a run of kind 'finetune'" in capsys.readouterr().err
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "out").iterdir()) == before


def test_another_training_set_does_not_resume(pidray, tmp_path, capsys):
    assert run(pidray, tmp_path / "out", "train.iterations=1") == 0
    content = checkpoint.load(tmp_path / "out" / finetuning.MODEL)
    checkpoint.save(tmp_path / "out" / finetuning.MODEL, {**content, "data_digest": "another"})
    assert run(pidray, tmp_path / "out", "train.iterations=1") == 2
    assert "holds a run with another training set" in capsys.readouterr().err


def test_bad_paths_end_in_one_line(pidray, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for data, weights, message in [
        (tmp_path / "empty", "random", "not a PIDray folder"),
        (tmp_path / "nowhere", "random", "no such folder"),
        (pidray, tmp_path / "empty", "contains no checkpoint"),
        (pidray, tmp_path / "nothing.pth", "no such checkpoint"),
    ]:
        assert run(data, tmp_path / "out", weights=weights) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error


def test_a_run_older_than_a_setting_is_the_same_run(pidray, tmp_path):
    assert run(pidray, tmp_path, "train.iterations=1") == 0
    path = tmp_path / finetuning.MODEL
    content = checkpoint.load(path)
    older = content["config"].replace("    fpn_channels: 256\n", "")
    assert older != content["config"]
    checkpoint.save(path, {**content, "config": older})
    before = path.read_bytes()
    assert run(pidray, tmp_path, "train.iterations=1") == 0  # finished already
    assert path.read_bytes() == before


def test_a_folder_with_another_run_is_not_changed(pidray, tmp_path, capsys):
    assert run(pidray, tmp_path, "train.iterations=1") == 0
    before = (tmp_path / finetuning.MODEL).read_bytes()
    assert run(pidray, tmp_path, "train.iterations=1", "train.seed=1") == 2
    assert "holds a run with other settings" in capsys.readouterr().err
    assert (tmp_path / finetuning.MODEL).read_bytes() == before


def test_explicit_files_replace_pidray(pidray, tmp_path):
    files = f"data.train=[{pidray}/annotations/xray_train.json, {pidray}/train]"
    arguments = ["--weights", "random", "--config", str(DEMO), "--out", str(tmp_path), files, *SMALL]
    assert finetune.main([*arguments, "model.engine=torchvision", "train.iterations=1"]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["scans"] == 5


def test_test_sets_are_checked_before_the_training(pidray, tmp_path, capsys):
    good, other, missing = (pidray / "annotations" / "xray_test_easy.json", tmp_path / "o.json", tmp_path / "m.json")
    truth = json.loads(good.read_text())
    truth["categories"][0]["name"] = "Kite"
    other.write_text(json.dumps(truth))
    files = f"data.train=[{pidray}/annotations/xray_train.json, {pidray}/train]"

    def trained(file):
        tests = f"data.tests=[[a, {good}, x], [b, {file}, x]]"
        options = ["--weights", "random", "--config", str(DEMO), "--out", str(tmp_path / "run"), files, tests, *SMALL]
        return finetune.main([*options, "model.engine=torchvision", "train.iterations=1"])

    assert trained(other) == 2
    said = capsys.readouterr().err
    assert f"{other}: the categories differ from those of {pidray}/annotations/xray_train.json" in said
    assert not (tmp_path / "run").exists()
    assert trained(missing) == 0
    said = capsys.readouterr().out
    assert f"no annotation file for the test sets b ({missing}); training does not need them\n" in said


def test_a_run_of_an_earlier_version_is_not_resumed_but_its_weights_load(pidray, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(pidray, out) == 0
    content = torch.load(out / finetuning.MODEL, weights_only=True)
    torch.save({**content, "format_version": 1}, out / finetuning.MODEL)
    capsys.readouterr()
    assert run(pidray, out) == 2
    assert "a run of an earlier version cannot be resumed" in capsys.readouterr().err
    assert read_backbone(out).tensors.keys() == content["backbone"].keys()


@pytest.mark.parametrize("moment", [1, 3])
def test_a_run_folder_that_is_removed_is_not_made_anew_by_a_checkpoint(pidray, tmp_path, monkeypatch, capsys, moment):
    step = FinetuneTrainer.run_step

    def removed(self):
        step(self)
        if self.iter == moment:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(FinetuneTrainer, "run_step", removed)
    assert run(pidray, tmp_path / "run", "train.checkpoint_every=1", "train.log_every=3") == 1
    assert "metrics.json: was removed during the training; run the same command again\n" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*.pth"))
    monkeypatch.setattr(FinetuneTrainer, "run_step", step)
    assert run(pidray, tmp_path / "run") == 0
    assert {"run.json", "config.yaml", "metrics.json"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_a_run_folder_that_is_removed_at_the_very_end_is_no_success(pidray, tmp_path, monkeypatch, capsys):
    save = checkpoint.save

    def removed(path, content):
        save(path, content)
        if path.name == finetuning.MODEL:
            shutil.rmtree(path.parent)

    monkeypatch.setattr(checkpoint, "save", removed)
    assert run(pidray, tmp_path / "run", "train.iterations=1") == 1
    assert "was removed during the training; run the same command again\n" in capsys.readouterr().err
