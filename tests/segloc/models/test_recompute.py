"""Recomputed activations: same values, gradients and running statistics, and fewer saved bytes."""

import dataclasses

import pytest
import torch

from benchmarks.memory import saved_bytes
from segloc.common.errors import InputError
from segloc.models.attention import PyramidAttention
from segloc.models.backbone import SegLocBackbone
from segloc.settings.pretraining import PretrainConfig
from tests.segloc.models.test_models import maps_of, written_out


def attention_with_gradients(forward, module, maps):
    maps = [x.clone().requires_grad_() for x in maps]
    module.zero_grad()
    out = forward(maps)
    sum((x.square() * (1 + level)).mean() for level, x in enumerate(out)).backward()
    return [*out, *(x.grad for x in maps), *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_attention_has_the_gradients_of_the_plain_formula(layout):
    torch.manual_seed(0)
    module = PyramidAttention(32, 5, "bn").double()
    for level in module.levels:
        torch.nn.init.normal_(level.refine.transform[-1].weight)
    maps = [x.double().contiguous(memory_format=layout) for x in maps_of(n=3)]
    found = attention_with_gradients(module, module, maps)
    plain = attention_with_gradients(lambda x: [written_out(level, x) for level in module.levels], module, maps)
    for got, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_the_attention_saves_little_more_than_its_inputs():
    with torch.device("meta"):
        module = PyramidAttention(256, 5, "bn")
        maps = [torch.empty(4, 256, 128 // 2**level, 128 // 2**level, requires_grad=True) for level in range(5)]
        inputs = sum(x.untyped_storage().nbytes() for x in maps)
        ours = saved_bytes(lambda: module(maps))
        plain = saved_bytes(lambda: [written_out(level, maps) for level in module.levels])
    assert ours < 1.1 * inputs
    assert ours < 0.4 * plain


def trained_once(recompute, norm):
    torch.manual_seed(0)
    backbone = SegLocBackbone("resnet18", norm=norm, bn_images=2, fpn_channels=64).to(memory_format=torch.channels_last)
    backbone.recompute = recompute
    images = torch.randn(4, 3, 64, 64)
    sum(x.square().mean() for x in backbone(images).values()).backward()
    return {**backbone.state_dict(), **{f"gradient of {n}": p.grad for n, p in backbone.named_parameters()}}


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_recomputed_blocks_change_no_gradient_and_no_running_statistics(norm):
    plain, recomputed = trained_once(False, norm), trained_once(True, norm)
    assert plain.keys() == recomputed.keys()
    assert [name for name in plain if not torch.equal(plain[name], recomputed[name])] == []


def test_recomputed_blocks_save_at_most_six_tenths_of_the_backbone_before():
    with torch.device("meta"):
        backbone = SegLocBackbone("resnet101", bn_images=2)
        images = torch.empty(4, 3, 512, 512)
        with_attention = saved_bytes(lambda: backbone(images))
        backbone.recompute = True
        recomputed = saved_bytes(lambda: backbone(images))
    # 57.9 GiB for 64 images before the attention was recomputed, 42.4 GiB since.
    assert recomputed < 0.6 * with_attention


def test_recomputing_cannot_be_compiled():
    config = PretrainConfig()
    optim = dataclasses.replace(config.optim, recompute="stages", compile=True)
    with pytest.raises(InputError, match=r"optim\.recompute=stages cannot be compiled"):
        dataclasses.replace(config, optim=optim)
