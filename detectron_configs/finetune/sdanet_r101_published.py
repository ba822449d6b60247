"""SDANet as its configuration was released: stem and layer1 frozen, statistics of batch norm fixed in the ResNet.

Its scales and shifts are trained, and so is the attention's own batch norm. All of this is made for ImageNet weights
(`--weights imagenet`, or a torchvision file). It takes SegLoc weights with batch norm, too, but not a random start,
whose stem would stay random: compare starts by sdanet_r101_fair.py, and report both.

Weights pretrained without batch norm go in by `train.unmatched=start_anew`: with fixed statistics, batch norm that
starts anew changes nothing of what they compute. The paper trained it instead (see sdanet_r101_fair.py).
"""

from .base import data, model, optim, train

model.backbone.update(arch="resnet101", norm="bn", sda_norm="bn", attention=True)
model.update(frozen=1, fixed_statistics=True)

data.image_size = 500
optim.batch = 2
train.epochs = 12
