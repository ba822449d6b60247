import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from torchvision.models import resnet18, resnet50
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from segloc import export
from segloc.data.stream import PairStream, ShardFolder
from segloc.detection.weights import load_box_heads
from segloc.exporting import formats
from segloc.models.backbone import LEVELS, SegLocBackbone, normalize
from segloc.models.initial_weights import load_start, read_start
from segloc.models.roi_head import BoxHead
from segloc.probing import roi_features
from segloc.training import checkpoint
from tests.segloc.conftest import write_shards

NORMS = {"bn": torch.nn.BatchNorm2d, "gn": lambda channels: torch.nn.GroupNorm(32, channels)}


def trained(arch, norm, attention=False):
    """A backbone whose tensors all differ from the initial values of other libraries."""
    torch.manual_seed(0)
    backbone = SegLocBackbone(arch, norm, "gn", attention).eval()
    with torch.no_grad():
        for name, tensor in backbone.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.3, 0.6) if "var" in name or "weight" in name else tensor.normal_(0, 0.1)
    return backbone


def assert_same_pyramid(backbone, other, names):
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = backbone(images), other.eval()(images)
    for level, name in zip(LEVELS, names, strict=True):
        assert torch.allclose(ours[level], theirs[name], rtol=1e-4, atol=1e-4 * ours[level].abs().max())


@pytest.mark.parametrize("norm", ["bn", "gn"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_torchvision_computes_the_same_pyramid(arch, norm):
    backbone = trained(arch, norm)
    converted = formats.convert(backbone.state_dict(), "torchvision", norm)
    other = resnet_fpn_backbone(backbone_name=arch, weights=None, trainable_layers=5, norm_layer=NORMS[norm])
    other.load_state_dict(converted.state)
    assert (converted.renamed, converted.left_out) == ({}, {})
    assert_same_pyramid(backbone, other, ["0", "1", "2", "3", "pool"])


def detectron2_config(arch, norm):
    """Detectron2's configuration with the settings of the export's notes."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NORM, resnets.STRIDE_IN_1X1 = int(arch.removeprefix("resnet")), norm.upper(), False
    resnets.RES2_OUT_CHANNELS = 64 if arch == "resnet18" else 256
    resnets.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.BACKBONE.NAME = 0, "build_resnet_fpn_backbone"
    cfg.MODEL.RPN.IN_FEATURES = list(LEVELS)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[side] for side in (32, 64, 128, 256, 512)]
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "ProposalNetwork", "cpu"
    return cfg


@pytest.mark.parametrize(("arch", "norm"), [("resnet18", "bn"), ("resnet50", "gn"), ("resnet50", "bn")])
def test_detectron2_finds_the_weights_by_its_own_checkpointer(arch, norm, tmp_path):
    """In a whole detector, where every name has a prefix, and with the settings of the notes."""
    pytest.importorskip("detectron2", reason="loads into Detectron2's own ResNet-FPN")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    backbone = trained(arch, norm)
    export_ = formats.convert(backbone.state_dict(), "detectron2", norm)
    torch.save(formats.wrapped(export_, "detectron2", {}), tmp_path / "d2.pth")
    model = build_model(detectron2_config(arch, norm))
    DetectionCheckpointer(model).load(str(tmp_path / "d2.pth"))
    assert set(export_.state) == set(model.backbone.state_dict())
    assert_same_pyramid(backbone, model.backbone, LEVELS)


def test_detectron2_with_our_own_backbone_keeps_the_attention(tmp_path):
    pytest.importorskip("detectron2", reason="loads into the adapter for Detectron2")
    from detectron2.checkpoint import DetectionCheckpointer

    from segloc.detection.engine_detectron2 import PyramidBackbone

    backbone = trained("resnet18", "none", attention=True)
    export_ = formats.convert(backbone.state_dict(), "detectron2-sda", "none")
    torch.save(formats.wrapped(export_, "detectron2-sda", {}), tmp_path / "sda.pth")
    adapter = PyramidBackbone(SegLocBackbone("resnet18", "none", "gn"))
    model = torch.nn.ModuleDict({"backbone": adapter, "rpn": torch.nn.Conv2d(256, 3, 1)})
    DetectionCheckpointer(model).load(str(tmp_path / "sda.pth"))
    assert_same_pyramid(backbone, adapter, LEVELS)


@pytest.mark.parametrize(("arch", "norm"), [("resnet18", "bn"), ("resnet50", "bn"), ("resnet50", "gn")])
def test_timm_computes_the_same_maps(arch, norm, tmp_path):
    timm = pytest.importorskip("timm", reason="loads into timm's own ResNet")
    backbone = trained(arch, norm)
    torch.save(formats.convert(backbone.state_dict(), "timm", norm).state, tmp_path / "timm.pth")
    options = {"norm_layer": "groupnorm"} if norm == "gn" else {}
    model = timm.create_model(arch, num_classes=0, checkpoint_path=str(tmp_path / "timm.pth"), **options).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = list(backbone.body(images).values()), model.forward_intermediates(images)[1][1:]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * one.abs().max())


@pytest.mark.parametrize("arch", ["resnet50", "resnet101"])
def test_timm_gets_a_plain_resnet(arch):
    converted = formats.convert(SegLocBackbone(arch).state_dict(), "timm", "bn")
    expected = set(resnet50().state_dict()) - {"fc.weight", "fc.bias"}  # timm keeps torchvision's names
    assert set(converted.state) >= expected
    assert (set(converted.state) == expected) == (arch == "resnet50")
    assert set(converted.left_out.values()) == {formats.NO_FPN, formats.NO_ATTENTION}


@pytest.mark.parametrize("norm", ["bn", "gn"])
@pytest.mark.parametrize(("arch", "reference"), [("resnet18", resnet18), ("resnet50", resnet50)])
def test_mmdet_names_and_shapes(arch, reference, norm):
    """mmdet's ResNet has torchvision's names except for group norm outside the shortcuts; its FPN has others."""
    expected = {}
    for name, tensor in reference(norm_layer=NORMS[norm]).state_dict().items():
        if not name.startswith("fc."):
            expected["backbone." + name.replace("bn", norm)] = tensor.shape
    widths = [64, 128, 256, 512] if arch == "resnet18" else [256, 512, 1024, 2048]
    for i, width in enumerate(widths):
        expected[f"neck.lateral_convs.{i}.conv.weight"] = (256, width, 1, 1)
        expected[f"neck.fpn_convs.{i}.conv.weight"] = (256, 256, 3, 3)
        expected |= {f"neck.{part}_convs.{i}.conv.bias": (256,) for part in ("lateral", "fpn")}
    state = formats.convert(SegLocBackbone(arch, norm, "gn").state_dict(), "mmdet", norm).state
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {k: tuple(v) for k, v in expected.items()}


@pytest.mark.parametrize("format_", formats.FORMATS)
@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
def test_every_tensor_is_accounted_for_once(format_, norm):
    state = SegLocBackbone("resnet18", norm, "gn").state_dict()
    done = formats.convert(state, format_, norm)
    assert sorted([*done.matched, *done.renamed, *done.left_out]) == sorted(state)
    assert set(done.state) == {*done.matched, *done.renamed.values()}
    scales = [name for name, reason in done.left_out.items() if reason == formats.NO_SCALE]
    own = format_ in formats.OWN_NAMES
    assert len(scales) == (16 if norm == "none" and not own else 0)  # 8 blocks, weight and bias
    narrow, usual = formats.usage_notes(format_, norm, 64), formats.usage_notes(format_, norm, 256)
    assert any("64" in note for note in {*narrow} - {*usual}) == (format_ != "timm")  # timm has no FPN
    if own:
        assert len(done.state) == len(state)


def test_a_tensor_that_no_rule_matches_stops_the_export():
    with pytest.raises(ValueError, match=r"0 rules match the tensor 'head\.weight'"):
        formats.convert({"head.weight": torch.zeros(1)}, "timm", "bn")


def test_command_writes_weights_and_report(tmp_path, capsys):
    settings = {"arch": "resnet18", "norm": "bn", "sda_norm": "gn", "attention": True, "fpn_channels": 256}
    state = SegLocBackbone(**settings).state_dict()
    checkpoint.save(tmp_path / "backbone.pth", {"kind": "backbone", **settings, "iteration": 3, "backbone": state})
    out = tmp_path / "d2.pth"
    command = ["--weights", str(tmp_path / "backbone.pth"), "--format", "detectron2", "--out", str(out)]
    assert export.main(command) == 0
    written = torch.load(out, weights_only=True)["model"]
    report = json.loads((tmp_path / "d2.report.json").read_text())
    assert torch.equal(written["bottom_up.res4.1.conv2.weight"], state["body.layer3.1.conv2.weight"])
    assert report["renamed"]["body.layer3.1.bn2.running_mean"] == "bottom_up.res4.1.conv2.norm.running_mean"
    assert f"{len(report['left_out'])} left out" in capsys.readouterr().out
    assert export.main(command) == 0  # a rerun replaces its own files
    assert export.main(["--weights", str(tmp_path / "no.pth"), "--format", "timm", "--out", str(out)]) == 2


@pytest.fixture
def norm_free(tmp_path):
    """A norm-free pretraining run with trained-like weights."""
    backbone = trained("resnet18", "none", attention=True)
    settings = {"arch": "resnet18", "norm": "none", "sda_norm": "gn", "attention": True, "fpn_channels": 256}
    content = {"kind": "backbone", **settings, "iteration": 3, "backbone": backbone.state_dict()}
    checkpoint.save(tmp_path / "run" / "backbone.pth", content | {"head": BoxHead(4, 2, True).state_dict()})
    return tmp_path / "run", backbone


def with_bn(run, shards, out, format_="segloc", *more):
    command = ["--weights", str(run), "--insert-bn", "--shards", str(shards), "--format", format_, "--out", str(out)]
    return export.main([*command, *more])


def test_inserted_batch_norm_loads_for_fine_tuning_with_the_same_outputs(norm_free, shards, tmp_path, capsys):
    run, backbone = norm_free
    assert with_bn(run, shards, tmp_path / "bn.pth", "segloc", "--views", "20") == 0
    settings = {"arch": "resnet18", "norm": "bn", "sda_norm": "gn", "attention": True, "fpn_channels": 256}
    loaded = SegLocBackbone(**settings)
    load_start(loaded, str(tmp_path / "bn.pth"), settings)
    assert_same_pyramid(backbone, loaded, LEVELS)
    inserted = json.loads((tmp_path / "bn.report.json").read_text())["inserted"]
    expected = {name: m.num_features for name, m in loaded.body.named_modules() if "Norm" in type(m).__name__}
    assert inserted["layers"] == {f"body.{name}": width for name, width in expected.items()}
    assert len(expected) == 20
    assert (inserted["measured_views"], inserted["compared_views"]) == (20, 16)
    assert 0 < inserted["largest_relative_difference"] < 1e-4
    assert "inserted 20 batch norm layers" in capsys.readouterr().out


def test_damaged_pairs_are_counted_while_measuring(norm_free, tmp_path, capsys):
    folder = write_shards(
        tmp_path / "shards", spoil=lambda files, number: files | {"query.jpg": b""} if number % 2 else files
    )
    out = tmp_path / "bn.pth"
    assert with_bn(norm_free[0], folder, out, "segloc", "--views", "8") == 1
    said = capsys.readouterr().err
    assert "more than --max-skipped 0.05: " in said
    assert "damaged (replaced by others" in said
    assert f"{out} is written; run pipeline.audit on the shards, or raise --max-skipped" in said
    assert with_bn(norm_free[0], folder, out, "segloc", "--views", "8", "--max-skipped", "1") == 0
    assert json.loads((tmp_path / "bn.report.json").read_text())["inserted"]["skipped"]["skipped"] > 0


def test_own_format_keeps_the_head_for_the_box_heads(norm_free, shards, tmp_path):
    run, _ = norm_free
    head = checkpoint.load(run / "backbone.pth")["head"]
    assert with_bn(run, shards, tmp_path / "bn.pth", "segloc", "--views", "2") == 0
    assert set(json.loads((tmp_path / "bn.report.json").read_text())["matched"]) >= {f"head.{name}" for name in head}
    box_head = torch.nn.ModuleDict({"fc1": torch.nn.Linear(12544, 4), "fc2": torch.nn.Linear(4, 4)})
    load_box_heads(SimpleNamespace(box_layers=[box_head.values()]), read_start(str(tmp_path / "bn.pth")))
    assert all(torch.equal(tensor, head[f"box.{name}"]) for name, tensor in box_head.state_dict().items())
    embeddings = [roi_features.trained(str(weights)).head for weights in (run, tmp_path / "bn.pth")]
    pooled = torch.rand(1, 2, 256, 7, 7)
    assert torch.equal(*(embed(pooled) for embed in embeddings))


def test_other_formats_report_that_the_head_is_left_out(norm_free, tmp_path):
    run, _ = norm_free
    assert export.main(["--weights", str(run), "--format", "detectron2", "--out", str(tmp_path / "d2.pth")]) == 0
    left_out = json.loads((tmp_path / "d2.report.json").read_text())["left_out"]
    assert "RoI head of pretraining; the format contains only the backbone" in left_out["head.box.fc1.weight"]
    assert not any("fc1" in name for name in torch.load(tmp_path / "d2.pth", weights_only=True)["model"])


def test_a_head_that_diverged_is_refused(norm_free, tmp_path, capsys):
    run, _ = norm_free
    content = checkpoint.load(run / "backbone.pth")
    content["head"]["box.fc1.bias"][0] = torch.nan
    checkpoint.save(run / "backbone.pth", content)
    assert export.main(["--weights", str(run), "--format", "segloc", "--out", str(tmp_path / "x.pth")]) == 2
    assert "box.fc1.bias has values that are not finite" in capsys.readouterr().err


def test_statistics_are_those_of_the_first_pairs_of_a_stream(norm_free, shards, tmp_path):
    run, backbone = norm_free
    assert with_bn(run, shards, tmp_path / "bn.pth", "segloc", "--views", "6", "--seed", "5") == 0
    stream = PairStream(ShardFolder.open(str(shards)), 1, 500, 5, mix_shards=8, threads=1)
    batches = list(itertools.islice(stream.batches(), 3))
    with torch.no_grad():
        images = normalize(torch.cat([x for one in batches for x in (one.query.images, one.key.images)])).double()
        values = backbone.double().body["conv1"](images).transpose(0, 1).flatten(1)
    state = checkpoint.load(tmp_path / "bn.pth")["backbone"]
    torch.testing.assert_close(state["body.bn1.running_mean"].double(), values.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["body.bn1.running_var"].double(), values.var(1), rtol=1e-3, atol=1e-6)


def test_other_formats_get_a_whole_network_with_batch_norm(norm_free, shards, tmp_path):
    """Without --insert-bn the norm-free network loses its residual scales; with it the outputs stay the same."""
    run, backbone = norm_free
    assert with_bn(run, shards, tmp_path / "tv.pth", "torchvision") == 0
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=NORMS["bn"])
    body.load_state_dict(torch.load(tmp_path / "tv.pth", weights_only=True))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = backbone.fpn(backbone.body(images)), body.eval()(images)
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * one.abs().max())


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_weights_with_a_norm_are_refused(norm, shards, tmp_path, capsys):
    settings = {"arch": "resnet18", "norm": norm, "sda_norm": "gn", "attention": True, "fpn_channels": 256}
    state = SegLocBackbone(**settings).state_dict()
    checkpoint.save(tmp_path / "backbone.pth", {"kind": "backbone", **settings, "backbone": state})
    assert with_bn(tmp_path, shards, tmp_path / "bn.pth") == 2
    error = capsys.readouterr().err
    assert f"has norm={norm}; batch norm can only be inserted into weights with norm=none" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "bn.pth").exists()


def test_bad_arguments_of_the_insertion_are_one_line(norm_free, shards, tmp_path, capsys):
    run, _ = norm_free
    command = ["--weights", str(run), "--format", "segloc", "--out", str(tmp_path / "bn.pth")]
    assert export.main([*command, "--insert-bn"]) == 2
    assert "give both or neither" in capsys.readouterr().err
    assert export.main([*command, "--shards", str(shards)]) == 2
    assert "give both or neither" in capsys.readouterr().err
    assert with_bn(run, tmp_path, tmp_path / "bn.pth") == 2
    assert "no index.json" in capsys.readouterr().err.replace("Index", "index")
    assert with_bn(run, shards, tmp_path / "bn.pth", "segloc", "--views", "0") == 2
    assert "must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (float("nan"), "body.layer1.0.conv1.weight has values that are not finite"),
        (3e38, "the input of body.layer1.0.bn1 is not finite"),  # only the activations are not
    ],
)
def test_a_diverged_network_is_refused(norm_free, shards, tmp_path, capsys, weight, message):
    run, _ = norm_free
    content = checkpoint.load(run / "backbone.pth")
    content["backbone"]["body.layer1.0.conv1.weight"][0] = weight
    checkpoint.save(run / "backbone.pth", content)
    assert with_bn(run, shards, tmp_path / "bn.pth") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content.update(backbone={}), "does not match the model: body.conv1.weight is missing"),
        (lambda content: content["backbone"].pop("fpn.inner_blocks.1.0.bias"), "fpn.inner_blocks.1.0.bias is missing"),
        (lambda content: content["backbone"].update(extra=torch.zeros(1)), "extra is not in the model"),
        (lambda content: content.update(arch=None), "backbone.pth: arch: expected str, got None"),
        (lambda content: content.update(arch=["resnet18"]), "backbone.pth: arch: expected str"),
        (lambda content: content.update(norm="gn"), "body.bn1.running_mean is not in the model"),
        (lambda content: content.update(attention=1), "backbone.pth: attention: expected bool, got 1"),
        (lambda content: content.update(fpn_channels=128), "is (64, 64, 1, 1), not (128, 64, 1, 1)"),
        (lambda content: content.update(fpn_channels=10**9), "is 1000000000, not a multiple of 16 from 64 to 2048"),
        (lambda content: content.update(fpn_channels=64.0), "backbone.pth: fpn_channels: expected int, got 64.0"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_their_settings_are_refused_in_one_sentence(spoil, message, tmp_path, capsys):
    settings = {"arch": "resnet18", "norm": "bn", "sda_norm": "gn", "attention": True, "fpn_channels": 64}
    content = {"kind": "backbone", **settings, "iteration": 3, "backbone": SegLocBackbone(**settings).state_dict()}
    spoil(content)
    checkpoint.save(tmp_path / "backbone.pth", content)
    out = tmp_path / "out.pth"
    for format_ in ("segloc", "timm"):
        assert export.main(["--weights", str(tmp_path / "backbone.pth"), "--format", format_, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not out.exists()
