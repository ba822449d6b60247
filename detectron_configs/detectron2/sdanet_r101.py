"""SDANet with a ResNet-101 on PIDray, for Detectron2's training script.

    export DETECTRON2_DATASETS=/data        # contains pidray/, of either release
    python -m segloc.export --weights runs/pretrain --format detectron2 --out segloc.pth
    python $DETECTRON2/tools/lazyconfig_train_net.py --config-file detectron_configs/detectron2/sdanet_r101.py \
        train.init_checkpoint=segloc.pth train.output_dir=runs/detectron2

Model, data and schedule are those of `detectron_configs/finetune/sdanet_r101_fair.yaml` at its batch of two scans. One
difference: that recipe clips gradients at a norm of 35, Detectron2's script does not clip.
"""

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import OmegaConf

from segloc.detection.detectron2 import SegLocFPN
from segloc.detection.engine_detectron2 import rcnn
from segloc.models.attention import PyramidAttention
from segloc.settings.finetuning import HeadSettings

SCANS = 29_457  # in PIDray's training set
BATCH = 2
EPOCHS = 12

model = L(rcnn)(
    backbone=L(SegLocFPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="BN"),
            stages=L(ResNet.make_default_stages)(depth=101, stride_in_1x1=False, norm="${..stem.norm}"),
            out_features=["res2", "res3", "res4", "res5"],
        ),
        in_features="${.bottom_up.out_features}",
        out_channels=256,
        norm="",
        top_block=L(LastLevelMaxPool)(),
        attention=L(PyramidAttention)(channels="${..out_channels}", levels=5, norm="bn"),
    ),
    heads=L(HeadSettings)(),
    num_classes=12,
)

dataloader = OmegaConf.create()
dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="pidray_train"),
    mapper=L(DatasetMapper)(
        is_train=True,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=500, max_size=500), L(T.RandomFlip)(horizontal=True)],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    ),
    total_batch_size=BATCH,
    num_workers=4,
)
# PIDray's files reuse image ids, so evaluate each test set in a separate run.
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="pidray_easy", filter_empty=False),
    mapper=L(DatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=500, max_size=500)],
        image_format="RGB",
    ),
    num_workers=4,
)
dataloader.evaluator = L(COCOEvaluator)(
    dataset_name="${..test.dataset.names}",
    output_dir="${train.output_dir}",
    allow_cached_coco=False,  # a cached file is not updated when the data change
)

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(), lr=0.02 * BATCH / 16, momentum=0.9, weight_decay=1e-4
)

train = OmegaConf.create(
    {
        "output_dir": "runs/detectron2",
        "init_checkpoint": "",
        "max_iter": EPOCHS * SCANS // BATCH,
        "amp": {"enabled": False},
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
        "checkpointer": {"period": 5000, "max_to_keep": 2},
        "eval_period": SCANS // BATCH,
        "log_period": 20,
        "device": "cuda",
    }
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[8, 11, 12]),
    warmup_length=500 / (EPOCHS * SCANS // BATCH),
    warmup_method="linear",
    warmup_factor=1 / 3,
)
