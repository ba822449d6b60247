"""Validation during fine-tuning, and batch-norm statistics that are estimated again."""

import pytest
import torch

from segloc import finetune
from segloc.common.errors import InputError
from segloc.detection import finetuning
from segloc.detection.data import TrainingData, make_example, train_split
from segloc.detection.splits import read_split
from segloc.detection.trainer import FinetuneTrainer
from segloc.detection.weights import build_detector, read_detector, recipe_inside
from segloc.models.backbone import pad_batch
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load
from segloc.training import checkpoint
from segloc.training.run_folder import read_metrics, read_run
from tests.segloc.settings.recipes import DEMO
from tests.segloc.test_shared_finetuning import FOUR
from tests.segloc.toy_coco import write_pidray

BN = ["model.backbone.norm=bn", "model.backbone.sda_norm=bn"]
VALIDATED = ["data.validation=0.34", "train.statistics=8", "train.iterations=5", "train.validate_every=0.99"]


@pytest.fixture(scope="module")
def pidray(tmp_path_factory):
    return write_pidray(tmp_path_factory.mktemp("pidray"), train=12)


def run(data, out, *more, processes=1):
    where = ["--weights", "random", "--config", str(DEMO), "--data", str(data), "--out", str(out)]
    settings = ["model.engine=torchvision", *FOUR, *BN, *more]
    return finetune.main([*where, "--processes", str(processes), *settings])


def rows(out):
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in read_metrics(out)]


def model(out):
    return checkpoint.load(out / finetuning.MODEL)["model"]


def test_ap_on_held_out_scans_is_a_metric_of_some_steps_and_of_the_last(pidray, tmp_path, capsys):
    assert run(pidray, tmp_path, *VALIDATED, "train.log_every=4") == 0
    about = read_run(tmp_path)
    assert (about["scans"], about["validation"], about["batch_norm_images"]) == (8, 4, 2)
    said = capsys.readouterr().out
    assert "validation: 4 of 12 scans are held out, near-duplicates together\n" in said
    assert "batch norm sees 2 images at a time; below 8 its statistics are noisy" in said
    found = {row["iteration"]: [name for name in row if name.startswith("validation_")] for row in rows(tmp_path)}
    both = ["validation_bbox_AP", "validation_segm_AP"]
    assert found == {1: both, 3: both, 4: both}  # 8 scans in steps of 4: an epoch has two steps
    assert all(0 <= row[name] <= 100 for row in rows(tmp_path) for name in both)


def test_held_out_scans_are_not_trained_on(pidray, tmp_path, monkeypatch):
    seen = []
    fit = FinetuneTrainer.fit
    monkeypatch.setattr(FinetuneTrainer, "fit", lambda trainer, start: (seen.append(trainer), fit(trainer, start)))
    assert run(pidray, tmp_path, *VALIDATED) == 0
    (trainer,) = seen
    held_out = {scan.path for scan in trainer._hooks[0].held_out.scans}
    assert len(held_out) == 4
    assert not held_out & {scan.path for scan in trainer.data.listed}


def test_a_stopped_run_ends_like_an_uninterrupted_one(pidray, tmp_path, monkeypatch):
    every = [*VALIDATED, "train.checkpoint_every=1"]
    assert run(pidray, tmp_path / "whole", *every) == 0
    step = FinetuneTrainer.run_step

    def killed(self):
        if self.iter == 3:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(FinetuneTrainer, "run_step", killed)
    assert run(pidray, tmp_path / "killed", *every) == 130
    monkeypatch.setattr(FinetuneTrainer, "run_step", step)
    assert run(pidray, tmp_path / "killed", *every) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    for name, tensor in model(tmp_path / "whole").items():
        assert torch.equal(model(tmp_path / "killed")[name], tensor), name


def test_the_last_checkpoint_has_the_statistics_of_its_own_weights(pidray, tmp_path):
    """The mean after the first convolution, over the scans as the first steps show them, is the first norm's."""
    assert run(pidray, tmp_path / "kept", "train.iterations=3") == 0
    assert run(pidray, tmp_path / "estimated", "train.iterations=3", "train.statistics=1000", "data.flip=0") == 0
    running = "backbone.body.bn1.running_mean"
    assert not torch.equal(model(tmp_path / "kept")[running], model(tmp_path / "estimated")[running])
    content = read_detector(str(tmp_path / "estimated"))
    detector = build_detector(content, recipe_inside(content, "x"), "x")
    settings = recipe_inside(content, "x").data
    data = TrainingData(read_split(train_split(settings)), settings, 4, 0)
    images = [make_example(scan, data.class_of, 64, False).image for scan in data.listed]
    assert len(images) == 12
    with torch.no_grad():
        first = torch.cat(
            [detector.backbone.body.conv1(pad_batch([image], torch.device("cpu"))[0]) for image in images]
        )
    torch.testing.assert_close(first.mean((0, 2, 3)), detector.backbone.body.bn1.running_mean, rtol=1e-4, atol=1e-5)


def test_two_processes_share_the_statistics_of_batch_norm(pidray, tmp_path):
    """Compares the losses of the RPN, whose mean does not depend on the micro-batches."""
    settings = [*VALIDATED, "train.iterations=2", "train.log_every=1", "optim.micro_batch=4"]
    assert run(pidray, tmp_path / "one", *settings, "model.backbone.bn_images=4") == 0
    found = {}
    for images in (4, 2):
        out = tmp_path / str(images)
        assert run(pidray, out, *settings, f"model.backbone.bn_images={images}", processes=2) == 0
        found[images] = [rows(out)[0][name] for name in ("loss_objectness", "loss_rpn_box_reg")]
    one = [rows(tmp_path / "one")[0][name] for name in ("loss_objectness", "loss_rpn_box_reg")]
    assert found[4] == pytest.approx(one, rel=1e-4)
    assert found[2] != pytest.approx(one, rel=1e-4)
    assert {"validation_bbox_AP", "validation_segm_AP"} <= rows(tmp_path / "4")[-1].keys()


@pytest.mark.parametrize(
    ("batch", "micro", "images", "processes", "shared"),
    [
        (16, 8, 8, 1, 1), (16, 8, 8, 2, 1), (16, 8, 8, 4, 2), (16, 8, 8, 8, 4), (16, 0, 8, 1, 1), (16, 2, 0, 1, 1),
        (16, 4, 8, 1, None), (12, 0, 8, 1, None), (8, 0, 8, 8, 8), (24, 0, 8, 12, 4), (6, 0, 4, 3, None),
    ],
)  # fmt: skip
def test_parts_of_batch_norm_are_within_a_pass_or_of_whole_passes(batch, micro, images, processes, shared):
    settings = [f"optim.batch={batch}", f"optim.micro_batch={micro}", f"model.backbone.bn_images={images}"]
    config = load(FinetuneConfig, None, settings)
    if shared:
        assert config.passes_per_part(processes) == shared
    else:
        with pytest.raises(InputError, match=f"bn_images {images} cannot be made of forward passes of "):
            config.passes_per_part(processes)
