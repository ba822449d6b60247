"""The demo: a small detector that two CPU cores train in minutes. It shows that the chain works, not how well."""

from .base import data, model, optim, train

model.backbone.update(arch="resnet18", norm="gn", sda_norm="gn")
model.heads.update(anchor_scale=4, rpn_batch=64, roi_batch=32, train_proposals=200, test_proposals=100)
model.heads.update(fc_dim=256, mask_convs=2, mask_dim=64)

data.update(image_size=192, threads=2)
# Heads that start from random weights in so short a run jump about unless their gradient is held tightly.
optim.update(batch=4, lr_per_16=0.08, warmup=20, clip=5.0)
train.update(iterations=100, log_every=5, checkpoint_every=50)
