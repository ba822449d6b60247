"""Mask R-CNN: one stage, no attention; fair protocol.

The settings are those of the cascade's first stage, but that each class has its own box regression. Protocols and
start weights as in cascade_r101.py.
"""

from .base import data, model, optim, train

model.backbone.update(arch="resnet101", attention=False)
model.heads.stages = 1

data.image_size = 500
optim.batch = 2
train.epochs = 12
