"""SDANet under the fair protocol: nothing is frozen and batch norm is trained, whatever the start weights.

The recipe for comparing starts: a frozen stem and fixed statistics, as in sdanet_r101_published.py, suit ImageNet
weights only. With `optim.batch=16` on a larger card the statistics are those of more scans; the learning rate follows.

Weights pretrained without batch norm (the paper's) have three ways in: `model.backbone.norm=none` keeps the network
they are from; `segloc.export --insert-bn` first puts in batch norm that changes nothing; `train.unmatched=start_anew`
starts batch norm anew among pretrained layers, as the paper did, which calls it a weak spot.
"""

from .base import data, model, optim, train

model.backbone.update(arch="resnet101", norm="bn", sda_norm="bn", attention=True)
model.update(frozen=0, fixed_statistics=False)

data.image_size = 500
optim.batch = 2
train.epochs = 12
