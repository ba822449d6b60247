"""Checkpoints of other libraries: a true message each, and suggested commands that work."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torchvision.models import resnet18, resnet34, resnext50_32x4d, wide_resnet50_2
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from segloc.common.errors import InputError
from segloc.models.initial_weights import Misfit, check_start, read_start
from segloc.settings.backbone import BackboneSettings

RECIPE = vars(BackboneSettings(arch="resnet18", norm="bn"))


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in resnet18().state_dict().items()}


def refused(content, folder, monkeypatch):
    """Save a checkpoint, read it as initial weights, and return the message."""
    monkeypatch.chdir(folder)
    torch.save(content, "w.pth")
    with pytest.raises(InputError) as error:
        check_start(read_start("w.pth"), RECIPE, "model", "refuse")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("w.pth: ")
    return message


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


# Where libraries keep a ResNet under torchvision's names: the checkpoint around a state dict.
HOLDERS = {
    "MoCo": lambda s: {"state_dict": prefixed(s, "module.encoder_q.") | prefixed(zeros(s), "module.encoder_k.")},
    "MoCo, key first": lambda s: {"state_dict": prefixed(zeros(s), "encoder_k.") | prefixed(s, "encoder_q.")},
    "MoCo v3": lambda s: {"state_dict": prefixed(zeros(s), "module.momentum_encoder.") | prefixed(s, "base_encoder.")},
    "DINO": lambda s: {"student": prefixed(zeros(s), "module.backbone."), "teacher": prefixed(s, "backbone.")},
    "BYOL": lambda s: prefixed(zeros(s), "target_encoder.net.") | prefixed(s, "online_encoder.net."),
    "mmcls": lambda s: {"meta": {"epoch": 1}, "state_dict": prefixed(s, "backbone.") | {"head.x": torch.zeros(2)}},
    "torchvision detection": lambda s: prefixed(s, "backbone.body.") | {"rpn.head.x": torch.zeros(1)},
    "lightning": lambda s: {"state_dict": prefixed(s, "model.backbone."), "hyper_parameters": {"lr": 1.0}},
    "VISSL": lambda s: {"classy_state_dict": {"base_model": {"model": {"trunk": prefixed(s, "_feature_blocks.")}}}},
    "DDP": lambda s: prefixed(s, "module."),
    "lightly": lambda s: {"state_dict": prefixed(numbered(s), "backbone.")},
    "Sequential": lambda s: numbered(s),
}  # fmt: skip


def zeros(state):
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def numbered(state):
    """Names in `torch.nn.Sequential(*resnet18().children())[:-1]`."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    parts = ((name.partition("."), tensor) for name, tensor in state.items())
    return {f"{numbers[first]}.{rest}": tensor for (first, _, rest), tensor in parts if first in numbers}


@pytest.mark.parametrize("library", HOLDERS)
def test_the_suggested_command_takes_out_the_resnet(library, published, tmp_path, monkeypatch):
    message = refused(HOLDERS[library](published), tmp_path, monkeypatch)
    assert message.count("`") == 2
    exec(message.split("`")[1])
    stored = read_start("resnet.pth")
    check_start(stored, RECIPE, "model", "refuse")
    for name, tensor in published.items():
        if not name.startswith("fc."):
            assert torch.equal(stored.tensors[name], tensor), name  # the trained copy, not the momentum one


def deep_stem(state, prefix=""):
    """A ResNet-D: three convolutions in the stem, average pooling before the projections (timm's names)."""
    state = dict(state)
    first = state.pop("conv1.weight")
    for number in (0, 3, 6):
        state[f"conv1.{number}.weight"] = first[:, :, :3, :3].clone()
    for name in [name for name in state if ".downsample.0." in name]:
        state[name.replace(".downsample.0.", ".downsample.1.")] = state.pop(name)
    return prefixed(state, prefix)


def vit():
    return {"cls_token": torch.zeros(1, 1, 8), "blocks.0.attn.qkv.weight": torch.zeros(24, 8)}


def detectron2():
    return {"backbone.bottom_up.stem.conv1.weight": torch.zeros(64, 3, 7, 7),
            "backbone.bottom_up.res2.0.conv1.weight": torch.zeros(64, 64, 1, 1)}  # fmt: skip


# Networks that cannot be used: what the message calls them.
OTHERS = {
    "resnet18d": (deep_stem, "it is a ResNet-C or ResNet-D"),
    "resnet18d, wrapped": (lambda s: {"state_dict": deep_stem(s, "module.")}, "it is a ResNet-C or ResNet-D"),
    "mmcls ResNetV1d": (lambda s: {"state_dict": prefixed({"stem.0.weight": torch.zeros(32, 3, 3, 3), **deep_stem(s)},
                                                         "backbone.")}, "it is a ResNet-C or ResNet-D"),
    "MoCo v3 ViT": (lambda s: {"state_dict": prefixed(vit(), "module.base_encoder.")}, "it is a vision transformer"),
    "DINO ViT": (lambda s: {"teacher": prefixed(vit(), "backbone.")}, "it is a vision transformer"),
    "Swin": (lambda s: {"model": {"layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(9, 3)}}, "a Swin"),
    "Detectron2": (lambda s: {"model": detectron2()}, "it is a ResNet of Detectron2"),
    "ConvNeXt": (lambda s: {"stages.0.blocks.0.conv_dw.weight": torch.zeros(2)}, "it is a ConvNeXt or RegNet"),
    "VGG": (lambda s: {"features.0.weight": torch.zeros(64, 3, 3, 3)}, "it is a VGG or AlexNet"),
    "unknown": (lambda s: {"state_dict": {"encoder.x": torch.zeros(2)}}, "its tensors are called encoder.x, ..."),
    "nothing": (lambda s: {"epoch": 3}, "nor the state dict of a torchvision ResNet"),
}  # fmt: skip


@pytest.mark.parametrize("library", OTHERS)
def test_other_networks_are_named_and_no_command_is_given(library, published, tmp_path, monkeypatch):
    make, said = OTHERS[library]
    message = refused(make(published), tmp_path, monkeypatch)
    assert said in message
    assert "`" not in message


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (resnext50_32x4d, "is a ResNeXt, whose convolutions are grouped, which is not supported"),
        (wide_resnet50_2, "is a wide ResNet, which is not supported"),
        (resnet34, "is a resnet34, which is not supported"),
    ],
)
def test_resnets_of_other_shapes_are_named(make, said, tmp_path, monkeypatch):
    with torch.device("meta"):
        state = make().state_dict()
    message = refused({name: torch.zeros(tensor.shape) for name, tensor in state.items()}, tmp_path, monkeypatch)
    assert said in message


def test_a_resnet_of_another_depth_says_which_setting_to_change(published, tmp_path):
    torch.save(published, tmp_path / "r.pth")
    with pytest.raises(Misfit, match=r"is a resnet18, the recipe has resnet50; set model\.arch=resnet18"):
        check_start(read_start(str(tmp_path / "r.pth")), {**RECIPE, "arch": "resnet50"}, "model", "refuse")


def test_a_real_detector_of_torchvision_gives_its_resnet(tmp_path, monkeypatch):
    state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    exec(refused(state, tmp_path, monkeypatch).split("`")[1])
    check_start(read_start("resnet.pth"), {**RECIPE, "arch": "resnet50"}, "model", "refuse")


class Runs:
    """Would create a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def archive(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return buffer.getvalue()


def safetensors():
    header = b'{"__metadata__":{}}'
    return len(header).to_bytes(8, "little") + header


# Files that are no checkpoint: their bytes, and what the message calls them.
FILES = {
    "empty.pth": (b"", "an empty file"),
    "blank.pth": (b" \n" * 20, "an empty file"),
    "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    "page.pth": (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
    "error.pth": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "a web page"),
    "error2.pth": (b'{"message": "Not Found"}', "a text file (JSON)"),
    "model.safetensors": (safetensors(), "a file of safetensors"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + b"0" * 100, "a file of TensorFlow or Keras"),
    "saved_model.pb": (b"\x08\x01\x12", "a file of TensorFlow or Keras"),
    "model.ckpt.data-00000-of-00001": (b"0" * 100, "a file of TensorFlow or Keras"),
    "model.onnx": (b"\x08\x07\x12", "an ONNX file"),
    "model.pth.gz": (b"\x1f\x8b\x08" + b"0" * 50, "a file compressed with gzip"),
    "arrays.npz": (archive("a.npy"), "an archive of numpy arrays"),
    "files.zip": (archive("model/weights.bin"), "a ZIP archive"),
    "cut.pth": (archive("archive/data.pkl")[:40], "a file that was cut short"),
    "d2.pkl": (pickle.dumps({"model": {"stem.conv1.weight": np.zeros(2)}}), "a pickle"),
    "code.pkl": (pickle.dumps(Runs()), "a pickle"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_checkpoints_are_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, said = FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        read_start(name)
    assert str(error.value).startswith(f"{name}: not a checkpoint, but {said}")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_the_command_for_torchscript_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    torch.jit.save(torch.jit.script(module), "w.pth")
    with pytest.raises(InputError, match="not a checkpoint, but a TorchScript archive") as error:
        read_start("w.pth")
    exec(str(error.value).split("`")[1])
    saved = torch.load("weights.pth", weights_only=True)
    assert torch.equal(saved["0.weight"], module[0].weight)


def test_python_objects_in_a_checkpoint_are_named(tmp_path):
    torch.save({"model": {}, "args": Runs()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"contains Python objects \((builtins|io|_io)\.open\), not only data"):
        read_start(str(tmp_path / "w.pth"))


def test_old_files_of_torch_still_load(published, tmp_path):
    torch.save(published, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_start(str(tmp_path / "old.pth")).tensors["bn1.bias"], published["bn1.bias"])
