"""Features of boxed items: RoIAlign on every level of a backbone, and the RoI head if there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from segloc.common.errors import InputError
from segloc.data.batches import Batch, Batcher, BatchStep, Views
from segloc.data.shard_folder import Sample
from segloc.models.backbone import SegLocBackbone, normalize
from segloc.models.initial_weights import BACKBONE_SETTINGS, RANDOM, load_start, load_strict, read_backbone
from segloc.models.roi_head import POOLED, BoxHead, InsLocHead, RoIHead, pool_boxes
from segloc.models.segloc import Encoder
from segloc.probing.held_out import SIDES, Chosen
from segloc.settings.pretraining import HeadConfig, PretrainConfig
from segloc.training.processes import ALONE

# Pairs per batch.
PAIRS = 8


@dataclasses.dataclass(frozen=True)
class Network:
    """The network to probe.

    Attributes:
        backbone: in eval mode.
        head: the pretrained RoI head, or None.
        about: settings and iteration, for the report.
    """

    backbone: SegLocBackbone
    head: RoIHead | None
    about: dict[str, Any]


def start(weights: str, config: PretrainConfig) -> Network:
    """Build an untrained network.

    Args:
        weights: ``random``, exactly the initial network of a pretraining run of that recipe, or ``imagenet``, whose FPN
            and attention are random.
        config: the recipe.

    Raises:
        InputError: the weights cannot be downloaded or do not match the recipe.
    """
    torch.manual_seed(config.seed)
    encoder = Encoder(config.model, config.head).eval()
    settings = {name: getattr(config.model, name) for name in BACKBONE_SETTINGS}
    load_start(encoder.backbone, weights, settings)
    head = encoder.head if weights == RANDOM else None
    return Network(encoder.backbone, head, {**settings, "iteration": 0})


def trained(weights: str) -> Network:
    """Load a pretraining or fine-tuning result, with its RoI head if it has one.

    Raises:
        InputError: the file is not such a result, or its tensors do not match its settings.
    """
    stored, head = read_backbone(weights), None
    if stored.head:
        head = head_like(stored.head, weights).eval()
        load_strict(head, stored.head, f"{weights}: RoI head")
    return Network(stored.build(), head, {**stored.settings, "iteration": stored.iteration})


def head_like(state: Mapping[str, torch.Tensor], source: str) -> RoIHead:
    """Build the RoI head of a state dict; infer sizes and norm from its tensors.

    The norm can differ from the backbone's if batch norm was inserted into a norm-free backbone.

    Raises:
        InputError: the state dict is not of a segloc RoI head.
    """
    standardised = any(name.endswith("running_mean") for name in state if name.startswith(("fcs.", "embedding.")))
    if "box.fc1.weight" in state:
        dim = next(len(tensor) for name, tensor in state.items() if name.startswith("embedding.") and tensor.dim() == 2)
        channels = state["box.fc1.weight"].shape[1] // POOLED**2
        return BoxHead(len(state["box.fc1.weight"]), dim, standardised, channels=channels)
    convs = [tensor for name, tensor in state.items() if name.startswith("convs.") and tensor.dim() == 4]
    linears = [tensor for name, tensor in state.items() if name.startswith("fcs.") and tensor.dim() == 2]
    if len(linears) != 3:
        raise InputError(f"{source}: its RoI head has {len(linears)} fully connected layers, not 3")
    conv_dim = len(convs[0]) if convs else HeadConfig().conv_dim
    norm = "none" if "convs.0.bias" in state else "bn" if "convs.1.running_mean" in state else "gn"
    channels = convs[0].shape[1] if convs else linears[0].shape[1] // POOLED**2
    widths = len(linears[0]), len(linears[2])
    return InsLocHead(len(convs), conv_dim, *widths, norm, standardised, channels=channels)


@torch.no_grad()
def features(
    network: Network, views: Sequence[Chosen], image_size: int, label: str
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Compute the features of the views' items.

    Args:
        network: the network.
        views: the views; if both views of a pair are included, they must be adjacent.
        image_size: side of the square that larger images are shrunk to fit, pixels.
        label: text of the progress bar.

    Returns:
        ``levels`` [L, N, C] and, with a head, ``embedding`` [L, N, dim], float64 on the CPU, and the class ids [N].
        The order differs from `views` but is deterministic.

    Raises:
        InputError: an image cannot be decoded, or the features are not finite.
    """
    device = ALONE.device()
    network.backbone.to(device)
    if network.head is not None:
        network.head.to(device)
    samples = {chosen.pair.pair: chosen.sample for chosen in views}
    wanted = {(chosen.pair.pair, chosen.side) for chosen in views}
    numbers = list(samples)
    names = {chosen.label: chosen.pair.class_name for chosen in views}
    classes = [names.get(label, "") for label in range(1 + max(names))]
    batcher = Batcher(image_size)
    levels, embeddings, labels = [], [], []
    with tqdm(total=len(views), desc=label, unit="view") as bar:
        for first in range(0, len(numbers), PAIRS):
            chunk = numbers[first : first + PAIRS]
            batch = make_batch([samples[number] for number in chunk], classes, batcher)
            for side in SIDES:
                rows = [row for row, number in enumerate(chunk) if (number, side) in wanted]
                if not rows:
                    continue
                seen: Views = getattr(batch, side)
                pyramid = network.backbone(normalize(seen.images[rows].to(device)))
                pooled = pool_boxes(pyramid, seen.boxes[rows].to(device), HeadConfig().sampling_ratio)
                levels.append(pooled.mean((3, 4)).double().cpu())
                if network.head is not None:
                    embeddings.append(network.head(pooled).double().cpu())
                labels.append(batch.labels[rows])
                bar.update(len(rows))
    found = {"levels": torch.cat(levels, 1)}
    if embeddings:
        found["embedding"] = torch.cat(embeddings, 1)
    if not all(torch.isfinite(x).all() for x in found.values()):
        raise InputError("the features are not finite; the training of these weights diverged")
    return found, torch.cat(labels)


def make_batch(samples: list[Sample], classes: Sequence[str], batcher: Batcher) -> Batch:
    """Decode exactly these pairs.

    Raises:
        InputError: a pair is damaged.
    """
    batch, damaged = batcher.make(BatchStep([(samples, place) for place in range(len(samples))], classes))
    if damaged:
        raise InputError(damaged[0])
    return batch
