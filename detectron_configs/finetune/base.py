"""Shared nodes of the fine-tuning recipes: SDANet's detector and settings (method of Wang et al., ICCV 2021).

What a recipe does not spell out keeps the default of the class it names; every run writes all of it to config.yaml.
"""

from segloc.detection.detector import HeadSettings, detector
from segloc.models.backbone import SegLocBackbone
from segloc.settings.finetuning import DataSettings, OptimSettings, TrainSettings
from segloc.settings.lazy import LazyCall as L

model = L(detector)(
    engine="auto",  # Detectron2 when installed, else torchvision, labelled as the stand-in
    num_classes=0,  # as many as the annotations have
    backbone=L(SegLocBackbone)(arch="resnet101", norm="bn", sda_norm="bn", attention=True, fpn_channels=256),
    heads=L(HeadSettings)(stages=3, anchor_scale=8, fc_dim=1024, score_threshold=0.05, detections=100),
    frozen=0,
    fixed_statistics=False,
)

data = L(DataSettings)(root="", image_size=500, flip=0.5)

optim = L(OptimSettings)(
    method="sgd",
    batch=2,  # of the paper and of SDANet's configuration
    lr_per_16=0.02,  # SDANet's library means 16 images by it; at 2 it gives 0.0025
    momentum=0.9,
    weight_decay=1e-4,
    warmup=500,
    warmup_start=1 / 3,
    milestones=(8 / 12, 11 / 12),
    clip=35.0,
)

train = L(TrainSettings)(epochs=12, seed=0)
