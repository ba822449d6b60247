import pytest
import torch
from torchvision.models import resnet18

from segloc import checkpoint
from segloc.contract import InputError
from segloc.detection.weights import read_detector
from segloc.models import start
from segloc.models.backbone import SegLocBackbone
from segloc.models.start import load_start, load_strict, read_backbone

SETTINGS = {"arch": "resnet18", "norm": "gn", "sda_norm": "gn", "attention": True}


@pytest.fixture
def pretrained(tmp_path):
    """A pretraining run folder and the backbone in it."""
    backbone = SegLocBackbone(**SETTINGS)
    content = {"kind": "backbone", **SETTINGS, "iteration": 7, "backbone": backbone.state_dict()}
    checkpoint.save(tmp_path / "run" / checkpoint.BACKBONE, content)
    return tmp_path / "run", backbone, content


def test_every_tensor_is_loaded(pretrained):
    folder, backbone, _ = pretrained
    fresh = SegLocBackbone(**SETTINGS)
    load_start(fresh, str(folder), SETTINGS)
    state = fresh.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in backbone.state_dict().items())


def test_random_leaves_the_weights_alone():
    fresh = SegLocBackbone(**SETTINGS)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    load_start(fresh, "random", SETTINGS)
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("body.layer3.0.conv1.weight"), r"body\.layer3\.0\.conv1\.weight is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra has no place"),
        (
            lambda s: s.update({"body.conv1.weight": torch.zeros(64, 1, 7, 7)}),
            r"is \(64, 1, 7, 7\), not \(64, 3, 7, 7\)",
        ),
        (lambda s: s.clear(), "and 198 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(pretrained, change, message):
    folder, _, content = pretrained
    change(content["backbone"])
    checkpoint.save(folder / checkpoint.BACKBONE, content)
    fresh = SegLocBackbone(**SETTINGS)
    before = fresh.body["conv1"].weight.clone()
    with pytest.raises(InputError, match=message):
        load_start(fresh, str(folder), SETTINGS)
    assert torch.equal(fresh.body["conv1"].weight, before)


@pytest.mark.parametrize("other", [{"arch": "resnet50"}, {"norm": "bn"}, {"attention": False}])
def test_another_architecture_gives_one_clear_sentence(pretrained, other):
    folder, _, _ = pretrained
    name = next(iter(other))
    with pytest.raises(InputError, match=f"pretrained with {name}={SETTINGS[name]}, the recipe has {other[name]}"):
        load_start(SegLocBackbone(**SETTINGS), str(folder), {**SETTINGS, **other})


def test_checkpoints_of_another_kind_are_refused(tmp_path, pretrained):
    folder, _, _ = pretrained
    checkpoint.save(tmp_path / "other.pth", {"kind": "pretrain", "iteration": 1})
    with pytest.raises(InputError, match="a pretrain checkpoint without 'backbone'"):
        read_backbone(tmp_path / "other.pth")
    with pytest.raises(InputError, match="not a fine-tuned detector"):
        read_detector(folder)
    with pytest.raises(InputError, match="no such checkpoint"):
        load_start(SegLocBackbone(**SETTINGS), str(tmp_path / "nothing"), SETTINGS)


def test_imagenet_fills_the_resnet_and_nothing_else(monkeypatch):
    published = resnet18().state_dict()

    class Downloaded:
        def get_state_dict(self, **_):
            return dict(published)

    monkeypatch.setattr(start, "get_model_weights", lambda arch: type("W", (), {"IMAGENET1K_V1": Downloaded()}))
    settings = {**SETTINGS, "norm": "bn"}
    backbone = SegLocBackbone(**settings)
    fpn = backbone.fpn.inner_blocks[0][0].weight.clone()
    load_start(backbone, "imagenet", settings)
    body = backbone.body.state_dict()
    assert all(torch.equal(body[name], tensor) for name, tensor in published.items() if not name.startswith("fc."))
    assert torch.equal(backbone.fpn.inner_blocks[0][0].weight, fpn)
    with pytest.raises(InputError, match="norm=bn"):
        load_start(SegLocBackbone(**SETTINGS), "imagenet", SETTINGS)


def test_strict_loading_lists_a_few_faults_and_counts_the_rest():
    module = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(10)))
    with pytest.raises(InputError, match="and 12 more"):
        load_strict(module, {}, "x.pth")
