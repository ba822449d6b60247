import pytest
import torch
from torch.nn import functional as F

from segloc.models.attention import ChannelAttention, DependencyRefinement, LevelAttention, PyramidAttention
from segloc.models.backbone import LEVELS, STRIDES, SegLocBackbone, normalize
from segloc.models.norm import MOMENTUM, SplitBatchNorm2d, average_over
from segloc.models.roi_head import BoxHead, InsLocHead, pool_boxes
from segloc.models.segloc import SegLoc
from segloc.settings.pretraining import HeadConfig, ModelConfig

SMALL = ModelConfig(arch="resnet18", norm="gn", sda_norm="gn")


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_published_modules():
    attention = PyramidAttention()
    assert parameters(attention) == 1_036_935
    assert [parameters(level) for level in attention.levels] == [207_387] * 5
    assert parameters(attention.levels[0].channel) == 198_144
    assert parameters(attention.levels[0].spatial) == 490
    assert parameters(attention.levels[0].refine) == 8_753
    assert parameters(SegLocBackbone("resnet101").fpn) == 3_344_384
    assert parameters(InsLocHead()) == 16_388_224


def maps_of(sizes=((16, 20), (8, 10), (4, 5), (2, 3), (1, 2)), n=2, channels=32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, channels, *size, generator=generator) for size in sizes]


def written_out(module, maps):
    """The SDA module in the steps of the published code, without shared sums."""
    size = maps[module.level].shape[-2:]
    stack = []
    for i, x in enumerate(maps):
        if i < module.level:
            x = F.adaptive_max_pool2d(x, size)
        elif i > module.level:
            x = F.interpolate(x, size, mode="nearest")
        stack.append(x)
    stack = torch.stack(stack, 1)  # [N, L, C, H, W]
    total = stack.sum(1)
    squeezed = module.channel.squeeze(F.adaptive_avg_pool2d(total, 1))
    channel = torch.stack([conv(squeezed) for conv in module.channel.expand], 1).softmax(1)
    first = (channel * stack).sum(1)
    pooled = torch.cat([total.mean(1, keepdim=True), total.max(1, keepdim=True).values], 1)
    spatial = torch.cat([conv(pooled) for conv in module.spatial.convs], 1).softmax(1)
    second = (spatial[:, :, None] * stack).sum(1)
    mixed = first + second
    n, c, h, w = mixed.shape
    mask = module.refine.mask(mixed).view(n, 1, h * w).softmax(-1)
    context = torch.bmm(mixed.view(n, c, h * w), mask.transpose(1, 2)).view(n, c, 1, 1)
    return mixed + module.refine.transform(context) + maps[module.level]


@pytest.mark.parametrize("attention", [True, False])
def test_the_pyramid_has_the_requested_channels(attention):
    backbone = SegLocBackbone("resnet18", attention=attention, fpn_channels=80)
    levels = backbone(torch.zeros(2, 3, 64, 96))
    assert {x.shape[1] for x in levels.values()} == {80} == {backbone.out_channels}


@pytest.mark.parametrize("channels", [0, -64, 48, 72])
def test_channels_the_attention_cannot_have_are_refused(channels):
    with pytest.raises(ValueError, match=f"fpn_channels {channels} is not a multiple of 16 that is at least 64"):
        SegLocBackbone("resnet18", fpn_channels=channels)


@pytest.mark.parametrize("level", range(5))
def test_attention_equals_the_published_steps(level):
    torch.manual_seed(level)
    module = LevelAttention(level, 32, 5, "bn")
    torch.nn.init.normal_(module.refine.transform[-1].weight)
    maps = maps_of()
    assert torch.allclose(module(maps), written_out(module, maps), atol=1e-5)


def test_initial_refinement_is_the_identity_and_channel_weights_sum_to_one():
    x = maps_of()[0]
    assert torch.equal(DependencyRefinement(32)(x), x)
    weights = ChannelAttention(32, 5, "gn")(x)
    assert torch.allclose(weights.sum(0), torch.ones(2, 32, 1, 1))


def test_one_image_with_batch_norm_in_the_attention_is_refused():
    maps = maps_of(n=1)
    with pytest.raises(ValueError, match="sda_norm=gn"):
        PyramidAttention(32, 5, "bn")(maps)
    PyramidAttention(32, 5, "bn").eval()(maps)
    PyramidAttention(32, 5, "ln")(maps)


@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
def test_pyramid_has_the_strides_and_every_parameter_learns(norm):
    torch.manual_seed(0)
    backbone = SegLocBackbone("resnet18", norm=norm, sda_norm="ln")
    for name, parameter in backbone.named_parameters():
        if norm == "none" and name.endswith("bn2.weight"):
            torch.nn.init.ones_(parameter)  # initial zeros would block the gradient of the branch before it
        if "refine.transform.3" in name:
            torch.nn.init.normal_(parameter)
    out = backbone(torch.randn(2, 3, 128, 192))
    for name, stride in zip(LEVELS, STRIDES, strict=True):
        assert out[name].shape == (2, 256, 128 // stride, 192 // stride)
    sum(x.square().mean() for x in out.values()).backward()
    silent = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A constant shift of the mask's logits does not change the softmax.
    assert [name for name in silent if not name.endswith("refine.mask.bias")] == []


def test_white_is_one_after_normalisation():
    assert normalize(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def roi_align_by_grid_sample(feature, box, stride, pooled=7, samples=2):
    """RoIAlign, aligned, as bilinear sampling at the bin's sample points."""
    x0, y0, x1, y1 = (float(v) / stride for v in box)
    height, width = feature.shape[-2:]
    points = (torch.arange(pooled * samples) + 0.5) / (pooled * samples)
    xs, ys = x0 + points * (x1 - x0) - 0.5, y0 + points * (y1 - y0) - 0.5
    grid_y, grid_x = torch.meshgrid(2 * ys / (height - 1) - 1, 2 * xs / (width - 1) - 1, indexing="ij")
    grid = torch.stack([grid_x, grid_y], -1)[None]
    sampled = F.grid_sample(feature[None], grid, align_corners=True, padding_mode="border")
    return F.avg_pool2d(sampled, samples)[0]


def test_roi_align_equals_grid_sampling_on_every_level():
    generator = torch.Generator().manual_seed(0)
    features = {
        name: torch.randn(2, 4, 256 // stride, 320 // stride, generator=generator)
        for name, stride in zip(LEVELS, STRIDES, strict=True)
    }
    boxes = torch.tensor([[70.0, 65.5, 200.0, 170.0], [96.0, 80.0, 133.0, 181.0]])
    pooled = pool_boxes(features, boxes, sampling_ratio=2)
    for level, (name, stride) in enumerate(zip(LEVELS, STRIDES, strict=True)):
        for image in range(2):
            expected = roi_align_by_grid_sample(features[name][image], boxes[image], stride)
            assert torch.allclose(pooled[level, image], expected, atol=1e-4)


def position_maps(height, width, scale):
    """Maps of an image scaled by `scale`; their two channels hold the cell centres in unscaled image coordinates."""
    maps = {}
    for name, stride in zip(LEVELS, STRIDES, strict=True):
        y, x = ((torch.arange(round(side * scale) // stride) + 0.5) * stride / scale for side in (height, width))
        maps[name] = torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]
    return maps


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("scale", [0.5, 1, 2])
def test_image_box_and_map_scaled_together_give_the_same_features(samples, scale):
    """Bilinear sampling of coordinates is exact, so each bin on each level must equal its own centre."""
    box = torch.tensor([[290.0, 310, 430, 520]])
    pooled = pool_boxes(position_maps(896, 768, scale), box * scale, samples)
    (x0, y0, x1, y1), bins = box[0].tolist(), (torch.arange(7) + 0.5) / 7
    centres = torch.stack(torch.meshgrid(x0 + (x1 - x0) * bins, y0 + (y1 - y0) * bins, indexing="xy"))
    for level in pooled:
        assert torch.allclose(level[0], centres, atol=0.01)


def test_every_level_can_have_its_own_box():
    generator = torch.Generator().manual_seed(0)
    features = {
        name: torch.randn(2, 4, 256 // stride, 320 // stride, generator=generator)
        for name, stride in zip(LEVELS, STRIDES, strict=True)
    }
    boxes = torch.rand(5, 2, 4, generator=generator) * 100 + torch.tensor([0.0, 0, 100, 100])
    pooled = pool_boxes(features, boxes, 2)
    for number, own in enumerate(boxes):
        assert torch.equal(pooled[number], pool_boxes(features, own, 2)[number])
        assert not torch.equal(pooled[number], pool_boxes(features, boxes[number - 1], 2)[number])


def test_box_head_has_the_detectors_names_shapes_and_sums():
    layers = pytest.importorskip("detectron2.layers", reason="its box head is the model")
    heads = pytest.importorskip("detectron2.modeling.roi_heads")
    torch.manual_seed(0)
    ours = BoxHead()
    theirs = heads.FastRCNNConvFCHead(
        layers.ShapeSpec(channels=256, height=7, width=7), conv_dims=[], fc_dims=[1024, 1024]
    )
    theirs.load_state_dict(ours.box.state_dict())
    features = torch.randn(3, 256, 7, 7)
    assert torch.allclose(theirs(features), ours.box(features), atol=1e-6)


def test_box_head_is_the_two_layers_and_one_more():
    torch.manual_seed(0)
    head = BoxHead(fc_dim=64, dim=16)
    assert parameters(BoxHead()) == (256 * 49 + 1) * 1024 + 1025 * 1024 + 1025 * 128
    pooled = torch.randn(2, 3, 256, 7, 7)
    state = head.state_dict()
    x = pooled.reshape(2, 3, -1)
    for layer in ("box.fc1", "box.fc2"):
        x = (x @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]).relu()
    expected = x @ state["embedding.weight"].T + state["embedding.bias"]
    assert torch.allclose(head(pooled), expected / expected.norm(dim=2, keepdim=True), atol=1e-5)
    normed = BoxHead(64, 16, embedding_bn=True)
    assert normed(torch.randn(1, 16, 256, 7, 7) + 5)[0].mean(0).norm() < 0.3


def frozen_model(stages, norm="bn"):
    torch.manual_seed(0)
    settings = ModelConfig(arch="resnet18", norm=norm, sda_norm="gn", bn_images=0, frozen=stages)
    return SegLoc(settings, HeadConfig(kind="box2fc", fc_dim=32, dim=16))


@pytest.mark.parametrize("stages", range(5))
def test_frozen_stages_keep_weights_and_statistics_and_the_rest_learns(stages):
    model = frozen_model(stages).train()
    model.eval().train()  # changing modes does not unfreeze
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    images, boxes = torch.rand(4, 3, 64, 64) * 255, torch.tensor([[5.0, 6, 50, 40]]).repeat(4, 1)
    model.query(images, boxes)[..., 0].sum().backward()
    model.key(images, boxes)
    optimizer.step()
    after = model.state_dict()
    names = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    expected = names[: stages + 2] if stages else []
    for part in names:
        moved = {
            name.rpartition(".")[2]
            for name, value in after.items()
            if name.startswith(f"query.backbone.body.{part}.") and not torch.equal(value, before[name])
        }
        assert (not moved) == (part in expected), part
        # The key network's batch norm sees the same images, so only its frozen parts keep their statistics, too.
        statistics = [n for n in after if n.startswith(f"key.backbone.body.{part}.") and n.endswith("running_mean")]
        for name in statistics:
            assert torch.equal(after[name], before[name]) == (part in expected), name
    assert not torch.equal(
        after["query.backbone.fpn.inner_blocks.0.0.weight"], before["query.backbone.fpn.inner_blocks.0.0.weight"]
    )


def test_split_batch_norm_equals_separate_batches():
    torch.manual_seed(0)
    x = torch.randn(6, 5, 4, 3)
    split, plain = SplitBatchNorm2d(5, images=2), torch.nn.BatchNorm2d(5)
    parts = [plain(part) for part in x.chunk(3)]
    assert torch.allclose(split(x), torch.cat(parts), atol=1e-6)
    split.eval()
    assert torch.allclose(split.running_mean, plain.running_mean, atol=1e-6)
    assert torch.allclose(split.running_var, plain.running_var, atol=1e-6)
    assert split.num_batches_tracked == plain.num_batches_tracked == 3
    assert torch.allclose(split(x)[:2], split(x[:2]), atol=1e-6)


def test_a_step_moves_the_running_statistics_equally_whatever_its_parts():
    x = torch.ones(8, 5, 2, 2)
    for images, size in ((2, 8), (2, 4), (0, 8), (4, 4)):
        norm = SplitBatchNorm2d(5, images)
        average_over(norm, 8 if images else size)
        for part in x.split(size):
            norm(part)
        assert torch.allclose(norm.running_mean, torch.full((5,), MOMENTUM)), (images, size)


def test_parts_have_the_same_images_whatever_the_size_of_the_forward_pass():
    torch.manual_seed(0)
    norm, x = SplitBatchNorm2d(5, images=2), torch.randn(5, 5, 4, 3)
    assert torch.allclose(norm(x)[:4], torch.cat([norm(x[:2]), norm(x[2:4])]), atol=1e-6)
    assert torch.allclose(norm(x)[4:], torch.nn.BatchNorm2d(5)(x[4:]), atol=1e-6), "the last part is smaller"


def test_embeddings_are_unit_vectors_and_keys_come_back_in_order():
    torch.manual_seed(0)
    model = SegLoc(SMALL, HeadConfig(convs=1, conv_dim=32, fc_dim=64, dim=16))
    images, boxes = torch.rand(4, 3, 64, 64) * 255, torch.tensor([[5.0, 6, 50, 40]]).repeat(4, 1)
    places = []

    def embed(images, boxes, chosen):
        places.extend(chosen.tolist())
        return model.key(images, boxes)

    keys = model.embed_keys(images, boxes, embed, 3, torch.Generator().manual_seed(1))
    assert places == [0, 1, 2, 3], "without batch norm they need no shuffling"
    assert torch.allclose(keys.norm(dim=2), torch.ones(5, 4), atol=1e-5)
    # The key network is initialised as a copy of the query network, and group norm sees one image only.
    assert torch.allclose(keys, model.query(images, boxes), atol=1e-4)


def test_key_network_is_the_moving_average_of_all_parameters():
    model = SegLoc(SMALL, HeadConfig(convs=1, conv_dim=32, fc_dim=64, dim=16))
    before = [p.clone() for p in model.key.parameters()]
    with torch.no_grad():
        for p in model.query.parameters():
            p.add_(1.0)
    model.update_keys(0.9)
    names = [name for name, _ in model.key.named_parameters()]
    assert any(name.startswith("backbone.attention") for name in names)
    for old, new in zip(before, model.key.parameters(), strict=True):
        assert torch.allclose(new, old + 0.1, atol=1e-5)
        assert not new.requires_grad


def test_embedding_bn_is_taken_over_each_part_of_the_batch():
    torch.manual_seed(0)
    head = InsLocHead(1, 32, 64, 16, norm="none", embedding_bn=True, bn_images=4)
    pooled = torch.randn(1, 8, 256, 7, 7)
    whole, halves = head(pooled), torch.cat([head(half) for half in pooled.chunk(2, 1)], 1)
    assert torch.allclose(whole[:, :4].mean(1), torch.zeros(16), atol=0.2)
    head.fcs[-1][1].images = 0
    assert torch.allclose(whole, torch.cat([head(half) for half in pooled.chunk(2, 1)], 1), atol=1e-5)
    assert not torch.allclose(whole, head(pooled), atol=1e-2)
    assert halves.shape == whole.shape


def test_head_with_embedding_bn_cannot_give_all_items_one_direction():
    """With embedding_bn the embeddings of a batch have zero mean, even if the features have a common part."""
    torch.manual_seed(0)
    common = torch.randn(1, 1, 256, 7, 7) * 20
    pooled = common + torch.randn(1, 16, 256, 7, 7)
    plain = InsLocHead(1, 32, 64, 16)(pooled)[0]
    normed = InsLocHead(1, 32, 64, 16, norm="none", embedding_bn=True)
    for parameter in normed.parameters():
        torch.nn.init.normal_(parameter, 0.1)  # as after training: no learned parameter restores the mean
    assert plain.std(0).norm() < 0.9
    assert normed(pooled)[0].mean(0).norm() < 0.3
