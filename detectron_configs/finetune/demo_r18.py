"""The demo: a small detector that two CPU cores train in minutes. It shows that the chain works, not how well."""

from .base import data, model, optim, train

model.backbone.update(arch="resnet18", norm="gn", sda_norm="gn")
model.heads.update(
    anchor_scale=4,
    rpn_batch=64,
    roi_batch=64,
    train_proposals=200,
    test_proposals=100,
    fc_dim=256,
    mask_convs=2,
    mask_dim=64,
)

data.update(image_size=192, threads=2)
optim.update(batch=4, lr_per_16=0.08, warmup=10)
train.update(iterations=100, log_every=5, checkpoint_every=50)
