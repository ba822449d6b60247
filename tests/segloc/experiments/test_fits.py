"""Recipes that do not fit together are refused with the plan, not at the end of the pretraining."""

import pytest
import yaml

from segloc import experiment
from tests.imports import ROOT
from tests.segloc.settings.recipes import DEMO

PRETRAIN = ROOT / "detectron_configs" / "pretrain" / "demo_r18.yaml"  # norm none, sda_norm ln, head 256 wide


def refused(tmp_path, capsys, pretraining=(), start=(), processes=1, pretraining_processes=1, **about):
    source = {} if "weights" in about else {"pretraining": "ours"}
    grid = {
        "pretrainings": {
            "ours": {
                "shards": "s",
                "config": str(PRETRAIN),
                "overrides": [*pretraining],
                "processes": pretraining_processes,
            }
        },
        "starts": {"given": {"overrides": [*start], **source, **about}},
        "protocols": {"fair": {"config": str(DEMO), "processes": processes}},
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid))
    code = experiment.main([str(path), "--out", str(tmp_path / "out"), "--list"])
    error = capsys.readouterr().err.strip()
    assert code == (2 if error else 0)
    assert len(error.splitlines()) <= 1
    return error


def test_the_recipes_of_the_demo_fit(tmp_path, capsys):
    assert refused(tmp_path, capsys) == ""


@pytest.mark.parametrize(
    ("pretraining", "start", "messages"),
    [
        (["head.kind=insloc"], ["train.box_heads=pretrained"], ["train.box_heads=pretrained", "head.kind=insloc"]),
        (
            ["head.kind=box2fc", "head.fc_dim=96"],
            ["train.box_heads=pretrained"],
            ["model.heads.fc_dim is ", "head.fc_dim=96"],
        ),
        (["model.arch=resnet50"], [], ["pretrained with arch=resnet50", "the recipe has resnet18"]),
        (["model.fpn_channels=128"], [], ["fpn_channels=128", "the recipe has 256"]),
        (["model.attention=false"], [], ["attention=False", "the recipe has True"]),
        (["model.sda_norm=gn"], [], ["sda_norm=gn", "the recipe has ln"]),
        (["model.norm=gn"], [], ["norm=gn", "the recipe has none"]),
        (
            ["model.fpn_channels=128", "head.kind=box2fc"],
            ["train.unmatched=start_anew", "train.box_heads=pretrained"],
            ["model.backbone.fpn_channels is 256", "model.fpn_channels=128"],
        ),
    ],
)
def test_weights_that_fine_tuning_could_not_load_are_refused(tmp_path, capsys, pretraining, start, messages):
    error = refused(tmp_path, capsys, pretraining, start)
    assert "start given, protocol fair: " in error
    assert "pretrainings.ours" in error
    assert [message for message in messages if message not in error] == [], error


def test_start_anew_loads_what_fits(tmp_path, capsys):
    assert refused(tmp_path, capsys, ["model.sda_norm=gn"], ["train.unmatched=start_anew"]) == ""


def test_batch_norm_is_inserted_only_into_weights_without_norm(tmp_path, capsys):
    fitting = ["model.backbone.norm=bn"]
    assert refused(tmp_path, capsys, start=fitting, insert_bn=True) == ""
    error = refused(tmp_path, capsys, ["model.norm=gn"], fitting, insert_bn=True)
    assert "insert_bn needs a pretraining with model.norm=none, but pretrainings.ours has model.norm=gn" in error
    assert "was pretrained with norm=bn, the recipe has none" in refused(tmp_path, capsys, insert_bn=True)


@pytest.mark.parametrize(
    ("weights", "start", "message"),
    [
        ("random", ["train.box_heads=pretrained"], "train.box_heads=pretrained needs a pretraining"),
        ("imagenet", ["train.box_heads=pretrained"], "but weights is imagenet"),
        ("random", ["model.frozen=1"], "model.frozen=1 would keep random weights, but weights is random"),
        (
            "random",
            ["model.fixed_statistics=true", "model.backbone.norm=bn"],
            "model.fixed_statistics=true would keep random weights",
        ),
    ],
)
def test_weights_without_what_the_recipe_needs_are_refused(tmp_path, capsys, weights, start, message):
    assert message in refused(tmp_path, capsys, start=start, weights=weights)


def test_processes_that_cannot_share_a_batch_are_refused(tmp_path, capsys):
    error = refused(tmp_path, capsys, processes=3)
    assert "start given, protocol fair: processes is 3, but optim.batch 4 " in error
    assert refused(tmp_path, capsys, processes=2) == ""
    error = refused(tmp_path, capsys, pretraining_processes=5)
    assert "start given, protocol fair: pretrainings.ours.processes is 5, but optim.batch 16 " in error
