"""The demo: a small detector that two CPU cores train in minutes. It shows that the chain works, not how well."""

from .base import data, model, optim, train

# The backbone has to be the one of the pretraining demo, so without batch norm.
model.backbone.update(arch="resnet18", norm="none", sda_norm="ln")
model.heads.update(anchor_scale=4, rpn_batch=64, roi_batch=32, train_proposals=200, test_proposals=100)
# A detector this young is sure of nothing; a higher threshold would leave no detections to measure.
model.heads.update(fc_dim=256, mask_convs=2, mask_dim=64, score_threshold=0.001)

data.update(image_size=128, threads=2)
# In so short a run SGD hardly gets anywhere, and the untrained heads jump about unless their gradient is held tightly.
optim.update(method="adamw", batch=4, lr_per_16=1.2e-3, warmup=10, clip=5.0)
train.update(iterations=120, log_every=5, checkpoint_every=60)
