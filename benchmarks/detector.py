"""SegLoc's detector against Detectron2's Cascade Mask R-CNN R101-FPN: ``python -m benchmarks.detector --help``.

Detectron2's model has the settings of its model zoo, except for the number of classes, proposals and samples, which are
SegLoc's. By default it freezes the stem and the first stage and fixes the batch-norm statistics; this is the peer of
the published protocol. The peer of the fair protocol freezes nothing and trains its batch norm. SegLoc's detector adds
attention. All models get the same scans in the same batches. The time of a test image covers all work from the scaled
scan to masks in COCO's format. The weights are random, so each model finds the maximum of 100 items.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn
from torchvision.models.resnet import Bottleneck

from benchmarks.common import arguments, interleave, machine, ratio, save
from benchmarks.step import finish
from segloc.detection.data import Example
from segloc.detection.detector import Detector, new_detector
from segloc.detection.engine_detectron2 import Detectron2Detector
from segloc.models.backbone import LEVELS
from segloc.settings.finetuning import HeadSettings, ModelSettings
from segloc.training.processes import ALONE

CLASSES = 12
STAGES = ["res2", "res3", "res4", "res5"]
# Number of frozen parts of the ResNet, and whether the batch-norm statistics are fixed.
PROTOCOLS = {"published": (1, True), "fair": (0, False)}


def zoo_config() -> CfgNode:
    """Make Detectron2's config ``Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml`` with 101 layers, without its files."""
    config = get_cfg()
    model = config.MODEL
    model.WEIGHTS, model.MASK_ON, model.BACKBONE.NAME = "", True, "build_resnet_fpn_backbone"
    model.RESNETS.DEPTH, model.RESNETS.OUT_FEATURES, model.FPN.IN_FEATURES = 101, STAGES, STAGES
    model.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    model.RPN.IN_FEATURES, model.ROI_HEADS.IN_FEATURES = list(LEVELS), list(LEVELS[:4])
    model.RPN.PRE_NMS_TOPK_TRAIN, model.RPN.POST_NMS_TOPK_TRAIN = 2000, 2000
    model.RPN.PRE_NMS_TOPK_TEST, model.RPN.POST_NMS_TOPK_TEST = 1000, 1000
    model.ROI_HEADS.NAME = "CascadeROIHeads"
    box, mask = model.ROI_BOX_HEAD, model.ROI_MASK_HEAD
    box.NAME, box.NUM_FC, box.POOLER_RESOLUTION, box.CLS_AGNOSTIC_BBOX_REG = "FastRCNNConvFCHead", 2, 7, True
    mask.NAME, mask.NUM_CONV, mask.POOLER_RESOLUTION = "MaskRCNNConvUpsampleHead", 4, 14
    return config


def peer(heads: HeadSettings, frozen: int, fixed: bool, device: torch.device) -> Detector:
    """Build Detectron2's model with the interface of `Detector`: same input tensors, same form of detections."""
    config = zoo_config()
    model = config.MODEL
    model.DEVICE, model.ROI_HEADS.NUM_CLASSES = device.type, CLASSES
    model.RPN.PRE_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TRAIN = heads.train_proposals
    model.RPN.PRE_NMS_TOPK_TEST = model.RPN.POST_NMS_TOPK_TEST = heads.test_proposals
    model.RPN.BATCH_SIZE_PER_IMAGE, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = heads.rpn_batch, heads.roi_batch
    if not frozen:
        model.BACKBONE.FREEZE_AT = 0
    if not fixed:
        model.RESNETS.NORM = "BN"
    net = build_model(config)
    calm([block.conv3.norm for block in net.backbone.bottom_up.modules() if isinstance(block, BottleneckBlock)])
    return Detectron2Detector(net)


def ours(heads: HeadSettings, frozen: int, fixed: bool, device: torch.device) -> Detector:
    """Build SegLoc's detector."""
    built = new_detector(ModelSettings("detectron2", CLASSES, frozen, fixed, heads=heads))
    calm([block.bn3 for block in built.backbone.body.modules() if isinstance(block, Bottleneck)])
    return built.to(device)


def calm(norms: list[nn.Module]) -> None:
    """Zero the residual branches; random ones without measured batch-norm statistics overflow after 33 blocks."""
    with torch.no_grad():
        for norm in norms:
            norm.weight.zero_()  # type: ignore[operator,union-attr]


def scans(count: int, size: int) -> list[Example]:
    """Make random scans with four boxes and their masks each."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        height, width = (3 * size // 4, size) if number % 2 else (size, 3 * size // 4)
        corners = rng.uniform(0, 0.7, (4, 2)) * (width, height)
        boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.3, (4, 2)) * (width, height)], 1)
        masks = torch.zeros(4, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        labels = torch.from_numpy(rng.integers(0, CLASSES, 4))
        found.append(Example(number, image, torch.from_numpy(boxes.astype(np.float32)), labels, masks))
    return found


def stepper(model: Detector, amp: bool) -> Callable[[list[Example]], None]:
    """Return a function that runs a training step on a batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)

    def step(batch: list[Example]) -> None:
        model.train()
        optimizer.zero_grad()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=amp):
            losses = model(batch)
        torch.stack([value.float() for value in losses.values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
        finish(model.device)

    return step


def tester(model: Detector) -> Callable[[list[Example]], None]:
    """Return a function that predicts each image of a batch separately."""

    def test(batch: list[Example]) -> None:
        model.eval()
        for example in batch:
            model.predict(example.image, (example.image.shape[1], example.image.shape[2]))
        finish(model.device)

    return test


def parse() -> argparse.Namespace:
    """Parse the command line."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.detector",
        description=__doc__.splitlines()[0],
        epilog="example, on a GPU: python -m benchmarks.detector --image-size 500 --samples 512 --proposals 2000 "
        "--batches 10 --rounds 5 --amp",
    )
    options.add_argument("--image-size", type=int, default=256, help="longer side in pixels (default: %(default)s)")
    options.add_argument("--batch", type=int, default=2, help="scans per step (default: %(default)s)")
    options.add_argument("--samples", type=int, default=64, help="sampled proposals per scan (default: %(default)s)")
    options.add_argument("--proposals", type=int, default=500, help="proposals per scan (default: %(default)s)")
    options.add_argument("--batches", type=int, default=2, help="batches per round (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    options.add_argument("--amp", action="store_true", help="train in bfloat16")
    return arguments(options)


def main() -> None:
    """Run the benchmark."""
    args = parse()
    device = ALONE.device()
    torch.manual_seed(0)
    heads = HeadSettings(train_proposals=args.proposals, test_proposals=args.proposals // 2, roi_batch=args.samples)
    models = {}
    for name, protocol in PROTOCOLS.items():
        models[f"detectron2 {name}"] = peer(heads, *protocol, device)
        models[name] = ours(heads, *protocol, device)
    examples = scans(args.batch * args.batches, args.image_size)
    batches = [examples[first : first + args.batch] for first in range(0, len(examples), args.batch)]
    steps = {name: stepper(model, args.amp) for name, model in models.items()}
    training = interleave(steps, batches, args.rounds)
    testing = interleave({name: tester(model) for name, model in models.items()}, batches, args.rounds)
    rows: list[dict[str, Any]] = [
        {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else machine(),
            "protocol": name,
            "image_size": args.image_size,
            "batch": args.batch,
            "samples": args.samples,
            "amp": args.amp,
            "s_per_step": round(statistics.median(training[name]), 3),
            "over_detectron2": round(ratio(training, name, f"detectron2 {name}"), 2),
            "test_s_per_image": round(statistics.median(testing[name]) / args.batch, 3),
            "test_over_detectron2": round(ratio(testing, name, f"detectron2 {name}"), 2),
            "found": len(models[name].predict(examples[0].image, (args.image_size, args.image_size)).scores),
        }
        for name in PROTOCOLS
    ]
    save("detector", rows)


if __name__ == "__main__":
    main()
