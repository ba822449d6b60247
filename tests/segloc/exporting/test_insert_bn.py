import pytest
import torch

from segloc.exporting.insert_bn import insert, measure_moments
from segloc.models.backbone import SegLocBackbone


def norm_free(arch, dtype=torch.float32, sda_norm="ln"):
    """A norm-free backbone with trained-like weights: no residual scale is zero, some are negative."""
    torch.manual_seed(0)
    backbone = SegLocBackbone(arch, "none", sda_norm).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if ".bn" in name:
                parameter.normal_(0, 0.3)
            elif "refine.transform.3" in name:
                parameter.normal_(0, 0.05)  # so that the refinement is not the identity
    return backbone


def images(count=4, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 64, 96, generator=generator, dtype=dtype)


def with_bn(arch, backbone, batches, sda_norm="ln"):
    other = SegLocBackbone(arch, "bn", sda_norm).to(next(backbone.parameters()).dtype).eval()
    other.load_state_dict(insert(backbone, measure_moments(backbone, batches)), strict=True)
    return other


def largest_difference(one, other, x):
    """Per level, relative to the level's largest value."""
    with torch.no_grad():
        first, second = one(x), other(x)
    return max(float((first[level] - second[level]).abs().max() / first[level].abs().max()) for level in first)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_eval_computes_the_same_on_images_that_were_not_measured(arch, dtype, tolerance):
    backbone = norm_free(arch, dtype)
    other = with_bn(arch, backbone, images(4, dtype).split(2))
    assert largest_difference(backbone, other, images(2, dtype, seed=9)) < tolerance


def test_statistics_are_those_of_all_images_at_once():
    backbone = norm_free("resnet18", torch.float64)
    x = images(5, torch.float64)
    state = insert(backbone, measure_moments(backbone, [x[:2], x[2:3], x[3:]]))
    with torch.no_grad():
        stem = backbone.body["conv1"](x)
        after = backbone.body["maxpool"](stem.relu())
        inside = backbone.body["layer1"][0].conv1(after)
    for name, values in (("body.bn1", stem), ("body.layer1.0.bn1", inside)):
        expected = values.transpose(0, 1).flatten(1).numpy()
        torch.testing.assert_close(state[f"{name}.running_mean"], torch.from_numpy(expected.mean(1)))
        torch.testing.assert_close(state[f"{name}.running_var"], torch.from_numpy(expected.var(1)))


def test_training_mode_on_the_measured_images_is_the_same_up_to_rounding():
    """Batch statistics and stored statistics are then equal, so fine-tuning begins without a jump."""
    backbone = norm_free("resnet18", torch.float64)
    x = images(6, torch.float64)
    other = with_bn("resnet18", backbone, x.split(4))
    other.body.train()
    assert largest_difference(backbone, other, x) < 1e-9
    random_bn = SegLocBackbone("resnet18", "bn", "ln").double()
    random_bn.load_state_dict(backbone.state_dict(), strict=False)
    assert largest_difference(backbone, random_bn, x) > 0.1  # the paper's newly initialised batch norm


def test_channels_that_never_vary():
    backbone = norm_free("resnet18")
    with torch.no_grad():
        backbone.body["conv1"].weight[3] = 0
        backbone.body["layer2"][0].conv2.weight[5] = 0
    other = with_bn("resnet18", backbone, [images()])
    assert other.body["bn1"].running_var[3] == 0
    assert other.body["layer2"][0].bn2.running_var[5] == 0
    assert largest_difference(backbone, other, images(2, seed=3)) < 1e-4


@pytest.mark.parametrize("sda_norm", ["ln", "gn", "bn"])
def test_fpn_attention_and_the_source_do_not_change(sda_norm):
    backbone = norm_free("resnet18", sda_norm=sda_norm)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    state = insert(backbone, measure_moments(backbone.train(), [images()]))
    assert backbone.training
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    kept = [name for name in before if ".bn" not in name]
    assert all(torch.equal(before[name], state[name]) for name in kept)
    SegLocBackbone("resnet18", "bn", sda_norm).load_state_dict(state, strict=True)
