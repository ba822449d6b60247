import pytest
import torch

from segloc.common.errors import InputError
from segloc.detection.weights import load_box_heads, read_detector
from segloc.models.backbone import FPN_CHANNELS
from segloc.models.initial_weights import read_start
from segloc.models.roi_head import BoxHead, InsLocHead
from segloc.training import checkpoint
from tests.segloc.detection.test_engines import ENGINES, SMALL, build

SETTINGS = {"arch": "resnet18", "norm": "gn", "sda_norm": "gn", "attention": True}


def run_with(folder, head):
    content = {"kind": "backbone", **SETTINGS, "iteration": 7, "backbone": {}, "head": head.state_dict()}
    checkpoint.save(folder / checkpoint.BACKBONE, content)
    return str(folder)


def test_a_pretraining_result_is_no_detector(tmp_path):
    with pytest.raises(InputError, match="not a fine-tuned detector"):
        read_detector(run_with(tmp_path, BoxHead(32, 16)))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_box_head_computes_what_the_pretrained_one_did(engine, tmp_path):
    detector = build(engine)
    torch.manual_seed(1)
    pretrained = BoxHead(SMALL.fc_dim, 16)
    features = torch.randn(2, FPN_CHANNELS, 7, 7)
    heads = detector.net.roi_heads.box_head
    heads = list(heads) if engine == "detectron2" else [heads]
    assert len(heads) == len(detector.box_layers)
    assert not any(torch.allclose(head(features), pretrained.box(features), atol=1e-5) for head in heads)
    load_box_heads(detector, read_start(run_with(tmp_path, pretrained)))
    assert all(torch.allclose(head(features), pretrained.box(features), atol=1e-5) for head in heads)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (InsLocHead(1, 32, 64, 16), "has no box head"),
        (BoxHead(32, 16), r"fc1.weight is \(32, 12544\), not \(64, 12544\)"),
    ],
)
def test_another_head_does_not_go_into_the_detector(tmp_path, head, message):
    with pytest.raises(InputError, match=message):
        load_box_heads(build("torchvision"), read_start(run_with(tmp_path, head)))


@pytest.mark.parametrize("start", ["random", "imagenet"])
def test_initial_weights_without_a_head_are_refused(start):
    with pytest.raises(InputError, match=f"^{start}: has no box head"):
        load_box_heads(build("torchvision"), read_start(start))
