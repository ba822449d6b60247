"""The study on a CPU (docs/study.md): the demo's detector with batch norm and the study's narrow pyramid."""

from .demo_r18 import data, model, optim, train  # noqa: F401 - a recipe has all four

model.backbone.update(norm="bn", fpn_channels=64)
train.update(iterations=250, log_every=10, checkpoint_every=250)
