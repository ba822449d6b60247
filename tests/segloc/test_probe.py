import dataclasses
import json

import pytest
import torch

from segloc import probe
from segloc.common.contract import INDEX_NAME, read_index
from segloc.contrast.pretrainer import Pretrainer
from segloc.contrast.run import save_backbone
from segloc.data.batches import Batcher
from segloc.data.stream import ShardFolder
from segloc.models.backbone import LEVELS, normalize
from segloc.models.roi_head import pool_boxes
from segloc.models.segloc import SegLoc
from segloc.probing import roi_features
from segloc.probing.held_out import split
from segloc.settings.pretraining import load_config
from segloc.training import checkpoint
from tests.segloc.conftest import CLASSES, write_shards
from tests.segloc.test_pretrain import TINY

OVERRIDES = [item for item in TINY if item.startswith(("model.", "head."))]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Enough views that guessing is unlikely to pass."""
    return write_shards(tmp_path_factory.mktemp("probe") / "shards", shards=3, per_shard=16)


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """A pretraining run before its first step, with the files of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    trainer = Pretrainer(load_config(None, TINY), ShardFolder.open(str(shards)), out, torch.device("cpu"))
    save_backbone(trainer)
    return out


def probed(out, weights, shards, *more):
    assert probe.main(["--weights", str(weights), "--shards", str(shards), "--out", str(out), *more]) == 0
    return json.loads(out.read_text())


def test_every_kind_of_features_separates_easy_classes(run, shards, tmp_path, capsys):
    report = probed(tmp_path / "probe.json", run, shards)
    assert list(report["accuracy"]) == [*LEVELS, "all levels", "embedding"]
    assert [row["size"] for row in report["accuracy"].values()] == [256] * 5 + [1280, 80]
    assert report["accuracy"]["p2"]["knn"] > 0.9  # three colours
    assert report["accuracy"]["all levels"]["linear"] > 0.9
    train, test = report["train"], report["test"]
    assert train["views"] + train["left_out"] == 64
    assert test["views"] + test["left_out"] == 32
    assert report["chance"] == max(test["classes"].values()) / test["views"]
    printed = capsys.readouterr().out
    assert f"{report['chance']:.1%}" in printed
    assert f"{report['accuracy']['embedding']['linear']:.1%}" in printed


def test_equal_arguments_give_equal_reports(run, shards, tmp_path):
    few = ["--train", "12", "--test", "6"]
    first, again = (probed(tmp_path / "a.json", run, shards, *few) for _ in range(2))
    assert first == again
    assert (first["train"]["views"], first["test"]["views"]) == (12, 6)


def test_random_is_the_initial_network_of_a_run(run, shards, tmp_path):
    """With the run's recipe and seed the two networks are equal, including the head."""
    few = ["--train", "12", "--test", "6"]
    started = probed(tmp_path / "a.json", "random", shards, *few, *OVERRIDES)
    saved = probed(tmp_path / "b.json", run, shards, *few)
    assert started["accuracy"] == saved["accuracy"]


def test_features_are_the_means_of_the_pooled_cells_and_the_head_s_embedding(shards):
    config = load_config(None, OVERRIDES)
    torch.manual_seed(3)
    encoder = SegLoc(config.model, config.head).query.eval()
    network = roi_features.Network(encoder.backbone, encoder.head, {})
    views = split(ShardFolder.open(str(shards)), 1000, 1000, 0).test
    found, labels = roi_features.features(network, views, 500, "test")
    expected, truth = [], []
    # One view at a time, in chunk order: the queries of a chunk come first.
    by_pair = sorted({c.pair.pair for c in views})
    rank = {pair: i // roi_features.PAIRS for i, pair in enumerate(by_pair)}
    for chosen in sorted(views, key=lambda c: (rank[c.pair.pair], c.side == "key", c.pair.pair)):
        side = getattr(roi_features.make_batch([chosen.sample], CLASSES, Batcher(500)), chosen.side)
        with torch.no_grad():
            pooled = pool_boxes(encoder.backbone(normalize(side.images)), side.boxes, 2)
            expected.append((pooled.mean((3, 4)), encoder.head(pooled)))
        truth.append(chosen.label)
    assert labels.tolist() == truth
    for name, values in zip(("levels", "embedding"), zip(*expected, strict=True), strict=True):
        assert torch.allclose(found[name].float(), torch.cat(values, 1), rtol=1e-3, atol=1e-4), name


def test_a_box_head_is_rebuilt_from_its_tensors():
    for standardised, channels in (("true", 256), ("false", 64)):
        settings = ["head.kind=box2fc", f"head.embedding_bn={standardised}", f"model.fpn_channels={channels}"]
        config = load_config(None, [*OVERRIDES, *settings])
        head = SegLoc(config.model, config.head).query.head.eval()
        other = roi_features.head_like(head.state_dict(), "here").eval()
        other.load_state_dict(head.state_dict(), strict=True)
        pooled = torch.randn(5, 3, channels, 7, 7)
        with torch.no_grad():
            assert torch.equal(head(pooled), other(pooled))


@pytest.mark.parametrize("norm", ["bn", "none"])
@pytest.mark.parametrize(("convs", "embedding_bn", "channels"), [(2, True, 64), (0, False, 256), (0, True, 80)])
def test_a_head_is_rebuilt_from_its_tensors(norm, convs, embedding_bn, channels):
    config = load_config(None, [*OVERRIDES, f"head.convs={convs}", f"head.embedding_bn={str(embedding_bn).lower()}"])
    model = dataclasses.replace(config.model, norm=norm, fpn_channels=channels)
    head = SegLoc(model, config.head).query.head.eval()
    other = roi_features.head_like(head.state_dict(), "here").eval()
    other.load_state_dict(head.state_dict(), strict=True)
    pooled = torch.randn(5, 3, channels, 7, 7)
    with torch.no_grad():
        assert torch.equal(head(pooled), other(pooled))


def test_a_detector_s_backbone_is_probed_without_an_embedding(run, shards, tmp_path):
    content = checkpoint.load(run / "backbone.pth")
    del content["head"]
    checkpoint.save(tmp_path / "model.pth", {**content, "kind": "detector"})
    report = probed(tmp_path / "probe.json", tmp_path / "model.pth", shards, "--train", "12", "--test", "6")
    assert "embedding" not in report["accuracy"]


def test_a_single_shard_is_split_by_pair_number(run, tmp_path):
    one = write_shards(tmp_path / "one", shards=1, per_shard=15)
    report = probed(tmp_path / "probe.json", run, one)
    assert report["train"]["views"] + report["train"]["left_out"] == 20
    assert report["test"]["views"] + report["test"]["left_out"] == 10


def renamed_classes(folder):
    """Shards whose index and pairs have different classes."""
    write_shards(folder, shards=2, per_shard=4)
    index = read_index(folder)
    (folder / INDEX_NAME).write_bytes(dataclasses.replace(index, classes=("Baton", "Knife", "Wrench")).to_json())
    return folder


def test_bad_input_gives_a_one_line_error_and_exit_code_2(run, shards, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("no checkpoint")
    content = checkpoint.load(run / "backbone.pth")
    content["backbone"]["body.conv1.weight"].fill_(float("nan"))
    checkpoint.save(tmp_path / "nan.pth", content)
    cases = [
        (["--weights", run, "--shards", tmp_path / "empty"], "no index.json"),
        (["--weights", run, "--shards", tmp_path / "nowhere"], "no such folder"),
        (["--weights", tmp_path / "text.pth", "--shards", shards], "not a checkpoint"),
        (["--weights", tmp_path / "empty", "--shards", shards], "contains no checkpoint"),
        (["--weights", tmp_path / "nan.pth", "--shards", shards, "--train", "8", "--test", "4"], "are not finite"),
        (
            ["--weights", run, "--shards", renamed_classes(tmp_path / "renamed")],
            "class 0 is 'Gun', the index says 'Baton'",
        ),
        (["--weights", run, "--shards", shards, "model.arch=resnet50"], "has its own settings"),
        (["--weights", "imagenet", "--shards", shards, "model.norm=none"], "has batch norm and needs"),
        (["--weights", "random", "--shards", shards, "model.arhc=resnet50"], "did you mean 'model.arch'"),
        (["--weights", run, "--shards", shards, "--train", "0"], "must be at least 1"),
        (["--weights", run, "--shards", shards, "--out", tmp_path], "is a folder"),
    ]
    for arguments, message in cases:
        assert probe.main([str(argument) for argument in arguments]) == 2, message
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m")]
        assert len(error) == 1
        assert message in error[0]
