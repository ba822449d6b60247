"""The paper's ResNet-101 without norms (section 5.4) trains, because its residual branches are initialised to zero."""

import pytest
import torch

from segloc.contrast import pretrainer
from segloc.data.stream import ShardFolder
from segloc.models import backbone
from segloc.models.backbone import SegLocBackbone
from segloc.models.norm import ResidualScale
from segloc.settings.pretraining import load_config
from tests.imports import ROOT

SMALL = [
    "data.image_size=64", "data.threads=1", "data.augment=none", "head.convs=1", "head.conv_dim=32", "head.fc_dim=32",
    "head.dim=16", "queue.size=64", "optim.batch=8", "optim.micro_batch=8", "optim.steps=4", "optim.lr_per_256=0.3",
    "log_every=1",
]  # fmt: skip


def spread(images):
    """Standard deviation of the untrained ResNet's last maps."""
    torch.manual_seed(0)
    with torch.no_grad():
        return float(SegLocBackbone("resnet101", norm="none", attention=False).body(images)["p5"].std())


def test_untrained_maps_stay_in_range_and_without_the_scales_would_not(monkeypatch):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert 0.01 < spread(images) < 1
    monkeypatch.setattr(backbone, "_scale_residuals", lambda body: None)
    assert spread(images) > 1000


@pytest.mark.slow
def test_the_papers_network_takes_finite_steps_that_reach_every_block(shards, tmp_path):
    """Four steps; ``benchmarks/norm_free.py`` shows how far two hundred get."""
    config = load_config(ROOT / "detectron_configs" / "pretrain" / "paper_r101.yaml", SMALL)
    trainer = pretrainer.Pretrainer(config, ShardFolder.open(str(shards)), tmp_path, torch.device("cpu"))
    trainer.fill_queues()
    gradients = []
    for trainer.iter in range(4):
        trainer.run_step()  # raises when the loss is not finite
        gradients.append(trainer.metrics["gradient_norm"])
    trainer.close()
    assert max(gradients) < 1000
    scales = [m for m in trainer.model.query.modules() if isinstance(m, ResidualScale)]
    assert len(scales) == 33
    assert all(scale.weight.abs().max() > 0 for scale in scales)
    convolutions = [p for name, p in trainer.model.query.backbone.body.named_parameters() if "conv" in name]
    assert len(convolutions) == 1 + 3 * 33
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in convolutions)
