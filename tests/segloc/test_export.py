import json

import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from segloc import checkpoint, export
from segloc.models.backbone import LEVELS, SegLocBackbone

NORMS = {"bn": torch.nn.BatchNorm2d, "gn": lambda channels: torch.nn.GroupNorm(32, channels)}


def trained(arch, norm, attention=False):
    """A backbone none of whose tensors has a value that another library would start from."""
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
    converted = export.convert(backbone.state_dict(), "torchvision", norm)
    other = resnet_fpn_backbone(backbone_name=arch, weights=None, trainable_layers=5, norm_layer=NORMS[norm])
    other.load_state_dict(converted.state)
    assert (converted.renamed, converted.left_out) == ({}, {})
    assert_same_pyramid(backbone, other, ["0", "1", "2", "3", "pool"])


@pytest.mark.parametrize("norm", ["bn", "gn"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_detectron2_computes_the_same_pyramid(arch, norm):
    pytest.importorskip("detectron2", reason="loads into Detectron2's own ResNet-FPN")
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone

    cfg = get_cfg()
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NORM, resnets.STRIDE_IN_1X1 = int(arch.removeprefix("resnet")), norm.upper(), False
    resnets.RES2_OUT_CHANNELS = 64 if arch == "resnet18" else 256
    resnets.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    other = build_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))
    backbone = trained(arch, norm)
    other.load_state_dict(export.convert(backbone.state_dict(), "detectron2", norm).state)
    assert_same_pyramid(backbone, other, LEVELS)


@pytest.mark.parametrize("arch", ["resnet50", "resnet101"])
def test_timm_gets_a_plain_resnet(arch):
    converted = export.convert(SegLocBackbone(arch).state_dict(), "timm", "bn")
    expected = set(resnet50().state_dict()) - {"fc.weight", "fc.bias"}  # timm keeps torchvision's names
    assert set(converted.state) >= expected
    assert (set(converted.state) == expected) == (arch == "resnet50")
    assert set(converted.left_out.values()) == {export.NO_FPN, export.NO_ATTENTION}


@pytest.mark.parametrize(("norm", "name"), [("bn", "bn"), ("gn", "gn")])
def test_mmdet_names(norm, name):
    state = export.convert(SegLocBackbone("resnet18", norm, "gn").state_dict(), "mmdet", norm).state
    expected = {
        "backbone.conv1.weight",
        f"backbone.{name}1.weight",
        f"backbone.layer4.1.{name}2.bias",
        "backbone.layer2.0.downsample.0.weight",
        "backbone.layer2.0.downsample.1.weight",
        *(
            f"neck.{part}_convs.{i}.conv.{kind}"
            for part in ("lateral", "fpn")
            for i in range(4)
            for kind in ("weight", "bias")
        ),
    }
    assert expected <= set(state)
    assert all(key.startswith(("backbone.", "neck.")) for key in state)


@pytest.mark.parametrize("format_", export.FORMATS)
@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
def test_every_tensor_is_accounted_for_once(format_, norm):
    state = SegLocBackbone("resnet18", norm, "gn").state_dict()
    done = export.convert(state, format_, norm)
    assert sorted([*done.matched, *done.renamed, *done.left_out]) == sorted(state)
    assert set(done.state) == {*done.matched, *done.renamed.values()}
    scales = [name for name, reason in done.left_out.items() if reason == export.NO_SCALE]
    assert len(scales) == (16 if norm == "none" else 0)  # 8 blocks, weight and bias


def test_a_tensor_no_rule_knows_stops_the_export():
    with pytest.raises(ValueError, match=r"0 rules know the tensor 'head\.weight'"):
        export.convert({"head.weight": torch.zeros(1)}, "timm", "bn")


def test_command_writes_weights_and_report(tmp_path, capsys):
    settings = {"arch": "resnet18", "norm": "bn", "sda_norm": "gn", "attention": True}
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
    assert export.main(["--weights", str(tmp_path / "no.pth"), "--format", "timm", "--out", str(out)]) == 2
