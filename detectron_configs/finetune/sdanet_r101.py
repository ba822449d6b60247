"""SDANet's settings under the fair protocol: nothing is frozen and batch norm is trained, whatever the start weights.

SDANet itself freezes the stem and the batch statistics, which only ImageNet weights survive. So a comparison of random,
ImageNet and SegLoc starts uses this recipe for all three.
"""

from .base import data, model, optim, train

model.backbone.arch = "resnet101"
data.image_size = 500
optim.batch = 16
train.epochs = 12
