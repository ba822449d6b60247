from urllib.error import URLError

import pytest
import torch
from torchvision.models import resnet18

from segloc.common.errors import InputError
from segloc.models import initial_weights
from segloc.models.backbone import SegLocBackbone
from segloc.models.initial_weights import load_start, load_strict, read_backbone
from segloc.models.segloc import SegLoc
from segloc.settings.pretraining import HeadConfig, load_config
from segloc.training import checkpoint

SETTINGS = {"arch": "resnet18", "norm": "gn", "sda_norm": "gn", "attention": True, "fpn_channels": 64}


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
        (lambda s: s.update(extra=torch.zeros(1)), "extra is not in the model"),
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


@pytest.mark.parametrize("other", [{"arch": "resnet50"}, {"norm": "bn"}, {"attention": False}, {"fpn_channels": 256}])
def test_another_architecture_gives_a_clear_error(pretrained, other):
    folder, _, _ = pretrained
    name = next(iter(other))
    with pytest.raises(InputError, match=f"pretrained with {name}={SETTINGS[name]}, the recipe has {other[name]}"):
        load_start(SegLocBackbone(**SETTINGS), str(folder), {**SETTINGS, **other})


def test_weights_from_before_fpn_channels_was_a_setting_have_256(tmp_path):
    settings = {**SETTINGS, "fpn_channels": 256}
    backbone = SegLocBackbone(**settings)
    del settings["fpn_channels"]
    content = {"kind": "backbone", **settings, "iteration": 7, "backbone": backbone.state_dict()}
    checkpoint.save(tmp_path / "run" / checkpoint.BACKBONE, content)
    assert read_backbone(tmp_path / "run").settings["fpn_channels"] == 256


def test_start_anew_loads_the_tensors_that_match(pretrained):
    folder, backbone, content = pretrained
    state = content["backbone"]
    state.pop("body.layer3.0.conv1.weight")
    state.update({"body.conv1.weight": torch.zeros(64, 1, 7, 7), "extra": torch.zeros(1)})
    checkpoint.save(folder / checkpoint.BACKBONE, content)
    fresh = SegLocBackbone(**SETTINGS)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    started = load_start(fresh, str(folder), SETTINGS, unmatched="start_anew")
    assert set(started.anew) == {"body.layer3.0.conv1.weight", "body.conv1.weight"}
    assert started.unused == ("extra is not in the model", "body.conv1.weight is (64, 1, 7, 7), not (64, 3, 7, 7)")
    assert (
        f"{len(before) - 2} of {len(before)} tensors loaded; 2 newly initialised (body.conv1.weight" in started.summary
    )
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, before[name] if name in started.anew else backbone.state_dict()[name])


@pytest.mark.parametrize(("stages", "fixed", "keeping"), [(0, False, ""), (1, False, "1"), (0, True, "1234")])
def test_residual_scales_become_those_of_batch_norm_that_does_not_train(tmp_path, stages, fixed, keeping):
    free = SegLocBackbone("resnet18", "none", "gn")
    for name, tensor in free.state_dict().items():
        if ".bn2.weight" in name:
            tensor.fill_(0.25)
    settings = {"arch": "resnet18", "norm": "none", "sda_norm": "gn", "attention": True}
    checkpoint.save(tmp_path / "free.pth", {"kind": "backbone", **settings, "backbone": free.state_dict()})
    backbone = SegLocBackbone("resnet18", "bn", "gn")
    backbone.freeze(stages, fixed)
    load_start(backbone, str(tmp_path / "free.pth"), settings | {"norm": "bn"}, unmatched="start_anew")
    for stage in "1234":
        scale = backbone.body[f"layer{stage}"][1].bn2.weight
        assert scale.eq(0.25 if stage in keeping else 1).all()


def test_start_anew_refuses_weights_if_none_match(pretrained):
    folder, _, content = pretrained
    content["backbone"] = {f"module.{name}": tensor for name, tensor in content["backbone"].items()}
    checkpoint.save(folder / checkpoint.BACKBONE, content)
    with pytest.raises(InputError, match="no weight matches the model by name and shape"):
        load_start(SegLocBackbone(**SETTINGS), str(folder), SETTINGS, unmatched="start_anew")


def test_start_anew_loads_torchvisions_convolutions_with_another_norm(tmp_path):
    published = resnet18().state_dict()
    torch.save(published, tmp_path / "resnet18.pth")
    backbone = SegLocBackbone(**SETTINGS)
    started = load_start(backbone, str(tmp_path / "resnet18.pth"), SETTINGS, unmatched="start_anew")
    assert torch.equal(backbone.body.conv1.weight, published["conv1.weight"])
    assert "bn1.running_mean is not in the model" in started.unused
    assert not [name for name in started.anew if name.startswith("body.")]


def test_checkpoints_of_another_kind_are_refused(tmp_path):
    checkpoint.save(tmp_path / "other.pth", {"kind": "pretrain", "iteration": 1})
    with pytest.raises(InputError, match="a pretrain checkpoint without 'backbone'"):
        read_backbone(tmp_path / "other.pth")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_start(SegLocBackbone(**SETTINGS), str(tmp_path / "nothing"), SETTINGS)


def test_imagenet_fills_the_resnet_and_nothing_else(monkeypatch):
    published = resnet18().state_dict()

    class Downloaded:
        def get_state_dict(self, **_):
            return dict(published)

    monkeypatch.setattr(
        initial_weights, "get_model_weights", lambda arch: type("W", (), {"IMAGENET1K_V1": Downloaded()})
    )
    settings = {**SETTINGS, "norm": "bn"}
    backbone = SegLocBackbone(**settings)
    fpn = backbone.fpn.inner_blocks[0][0].weight.clone()
    load_start(backbone, "imagenet", settings)
    body = backbone.body.state_dict()
    assert all(torch.equal(body[name], tensor) for name, tensor in published.items() if not name.startswith("fc."))
    assert torch.equal(backbone.fpn.inner_blocks[0][0].weight, fpn)
    with pytest.raises(InputError, match="norm=bn"):
        load_start(SegLocBackbone(**SETTINGS), "imagenet", SETTINGS)


@pytest.mark.parametrize("counters", [True, False], ids=["", "of an old release"])
def test_a_torchvision_file_fills_the_resnet_and_nothing_else(tmp_path, counters):
    published = resnet18().state_dict()
    published = {name: x for name, x in published.items() if counters or not name.endswith("num_batches_tracked")}
    torch.save(published, tmp_path / "resnet18.pth")
    model = model_from(tmp_path / "resnet18.pth", norm="bn")
    assert "ResNet loaded, FPN and attention random" in model.started_from
    for network in (model.query, model.key):
        body = network.backbone.body.state_dict()
        assert all(torch.equal(body[name], x) for name, x in published.items() if not name.startswith("fc."))


def test_other_files_give_a_one_line_error(tmp_path):
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"has batch norm and needs model\.norm=bn, the recipe has gn"):
        model_from(tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"is a resnet18, the recipe has resnet50; set model\.arch=resnet18"):
        model_from(tmp_path / "resnet18.pth", norm="bn", arch="resnet50")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="a segloc checkpoint of format 1 or 2 or 3 nor the state dict of a torch"):
        model_from(tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["backbone"].update({"body.conv1.weight": "x"}),
            r"the weight 'body\.conv1\.weight' is a str, not a tensor by name",
        ),
        (lambda c: c["backbone"].update({3: torch.zeros(1)}), "the weight 3 is a Tensor, not a tensor by name"),
        (lambda c: c.update(backbone=[1]), "the weights are a list, not a dict of tensors by name"),
        (
            lambda c: c["backbone"]["body.layer2.0.conv1.weight"].view(-1)[5:6].fill_(float("nan")),
            r"body\.layer2\.0\.conv1\.weight has values that are not finite",
        ),
    ],
)
@pytest.mark.parametrize("unmatched", ["refuse", "start_anew"])
def test_invalid_weights_are_refused(pretrained, change, message, unmatched):
    folder, _, content = pretrained
    change(content)
    checkpoint.save(folder / checkpoint.BACKBONE, content)
    with pytest.raises(InputError, match=message):
        load_start(SegLocBackbone(**SETTINGS), str(folder), SETTINGS, unmatched=unmatched)


def test_torchvision_files_with_other_than_numbers_are_refused(tmp_path):
    for value in ("x", torch.tensor([float("inf")])):
        torch.save({**resnet18().state_dict(), "bn1.bias": value}, tmp_path / "r.pth")
        with pytest.raises(InputError, match=r"bn1\.bias"):
            model_from(tmp_path / "r.pth", norm="bn")


def test_a_pickled_model_gives_a_one_line_error(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(InputError, match=r"for a pickled model, save its state_dict\(\) instead\)$") as error:
        checkpoint.read_any(tmp_path / "whole.pth")
    assert "weights_only" not in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("prefix", "wrapper"), [("module.encoder_q.", "state_dict"), ("", "state_dict"), ("module.", None), ("a.", "model")]
)
def test_the_suggested_conversion_of_a_wrapped_resnet_works(tmp_path, monkeypatch, prefix, wrapper):
    monkeypatch.chdir(tmp_path)
    published = resnet18().state_dict()
    longer = {f"{prefix}{name}": x for name, x in published.items()}
    if prefix:
        longer["other.x"] = torch.zeros(1)
    torch.save({"epoch": 3, wrapper: longer} if wrapper else longer, "wrapped.pth")
    with pytest.raises(InputError, match=r"extract it with `torch\.save\(.*\)`$") as error:
        model_from("wrapped.pth", norm="bn")
    exec(str(error.value).split("`")[1])
    model = model_from("resnet.pth", norm="bn")
    assert torch.equal(model.query.backbone.body.conv1.weight, published["conv1.weight"])


def test_strict_loading_lists_a_few_faults_and_counts_the_rest():
    module = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(10)))
    with pytest.raises(InputError, match="and 12 more"):
        load_strict(module, {}, "x.pth")


HEAD = HeadConfig(convs=1, conv_dim=32, fc_dim=32, dim=16)


def model_from(init, head=HEAD, **changes):
    settings = {**SETTINGS, **changes}
    overrides = [f"model.{name}={value}" for name, value in settings.items()]
    return SegLoc(load_config(None, [*overrides, f"model.init={init}", "optim.micro_batch=64"]).model, head)


@pytest.mark.parametrize("same_head", [True, False])
def test_pretraining_loads_a_checkpoint_and_its_head_if_it_matches(tmp_path, same_head):
    torch.manual_seed(1)
    old = model_from("random").query
    parts = {"backbone": old.backbone.state_dict(), "head": old.head.state_dict()}
    checkpoint.save(tmp_path / checkpoint.BACKBONE, {"kind": "backbone", **SETTINGS, "iteration": 7, **parts})
    new = model_from(tmp_path, HEAD if same_head else HeadConfig(kind="box2fc", fc_dim=32, dim=16))
    for network in (new.query, new.key):
        assert all(torch.equal(x, parts["backbone"][name]) for name, x in network.backbone.state_dict().items())
        if same_head:
            assert all(torch.equal(x, parts["head"][name]) for name, x in network.head.state_dict().items())
    assert f"RoI head {'loaded' if same_head else 'random'}" in new.started_from
    assert not any(parameter.requires_grad for parameter in new.key.parameters())


def test_pretraining_refuses_a_checkpoint_of_another_backbone(pretrained):
    with pytest.raises(InputError, match=r"pretrained with norm=gn, the recipe has none; set model\.norm=gn"):
        model_from(pretrained[0], norm="none")


def test_imagenet_without_a_network_gives_a_one_line_error(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    monkeypatch.setattr("torch.hub.urlopen", _no_network)
    with pytest.raises(InputError, match="the ImageNet weights cannot be downloaded") as error:
        model_from("imagenet", norm="bn")
    assert "\n" not in str(error.value)


def _no_network(*_, **__):
    raise URLError("no route to host")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.to(torch.int8), "torch.int8, not floating-point"),
        (lambda x: x > 0, "torch.bool, not floating-point"),
        (lambda x: x.to(torch.complex64), "torch.complex64, not floating-point"),
        (lambda x: x.to(torch.int64), "weight is torch.int64, not torch.float32"),
        (lambda x: x.double() * 1e300, "not finite"),
    ],
)
def test_weights_of_another_kind_are_refused(change, reason):
    module = torch.nn.Linear(2, 2)
    state = {**module.state_dict(), "weight": change(module.state_dict()["weight"])}
    with pytest.raises(InputError, match=reason):
        load_strict(module, state, "here")
    load_strict(module, {name: x.half() for name, x in module.state_dict().items()}, "here")
