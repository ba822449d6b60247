"""Cascade Mask R-CNN without SDANet's attention, the detector it is built on; fair protocol.

`model.frozen=1 model.fixed_statistics=true` make it the published protocol, for ImageNet weights. SegLoc weights come
from a pretraining with `model.attention=false`; `train.unmatched=start_anew` leaves the attention of others out.
"""

from .base import data, model, optim, train

model.backbone.update(arch="resnet101", attention=False)

data.image_size = 500
optim.batch = 2
train.epochs = 12
