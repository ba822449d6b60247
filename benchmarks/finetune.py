"""A step of the study's detector before and after its tuning for CPUs: ``python -m benchmarks.finetune --help``.

`before` has torch's default layout, an optimiser that is not fused and torchvision's RoIAlign. `now` is what
`segloc.finetune` runs; the variants between change one thing each. All start from the same weights and get the same
scans. `torch.manual_seed` makes them sample the same proposals.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
import torchvision

from benchmarks.common import arguments, interleave, ratio, save
from benchmarks.detector import CLASSES, scans
from benchmarks.step import finish
from segloc.detection import engine_detectron2
from segloc.detection.data import Example
from segloc.detection.detector import new_detector
from segloc.detection.trainer import make_optimizer
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load
from segloc.training.processes import ALONE

RECIPE = Path(__file__).parent.parent / "detectron_configs" / "finetune" / "study_r18.yaml"
# Layout, optimiser and RoIAlign: whether each is as before.
VARIANTS = {
    "before": (True, True, True),
    "channels last": (False, True, True),
    "fused optimiser": (True, False, True),
    "own RoIAlign": (True, True, False),
    "now": (False, False, False),
}


def of_torchvision(x: torch.Tensor, rois: torch.Tensor, size: int, scale: float, samples: int) -> torch.Tensor:
    """Pool boxes with torchvision's kernel."""
    return torchvision.ops.roi_align(x, rois, size, scale, samples, aligned=True)


@contextlib.contextmanager
def pooling(with_torchvision: bool) -> Iterator[None]:
    """Replace the detector's RoIAlign by torchvision's."""
    patch = mock.patch.object(engine_detectron2, "roi_align", of_torchvision)
    with patch if with_torchvision else contextlib.nullcontext():
        yield


def stepper(
    config: FinetuneConfig, old_layout: bool, old_optimizer: bool, old_pooling: bool
) -> Callable[[list[Example]], None]:
    """Return a function that runs a training step on a batch."""
    torch.manual_seed(0)
    model = new_detector(config.model)
    if not old_layout:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.to(ALONE.device()).train()
    optimizer = make_optimizer(model, config.optim)
    for group in optimizer.param_groups:
        group |= {"lr": 1e-6, "fused": not old_optimizer}

    def step(batch: list[Example]) -> None:
        torch.manual_seed(1)
        optimizer.zero_grad()
        with pooling(old_pooling):
            torch.stack(list(model(batch).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        optimizer.step()
        finish(model.device)

    return step


def main() -> None:
    """Measure and write the result file."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.finetune", description=__doc__.splitlines()[0])
    options.add_argument("--batch", type=int, default=8, help="scans of a step (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=12, help="default: %(default)s")
    args = arguments(options)
    engine = [f"model.num_classes={CLASSES}", "model.engine=detectron2"]
    config = load(FinetuneConfig, RECIPE, engine)
    variants = {name: stepper(config, *before) for name, before in VARIANTS.items()}
    batch = scans(args.batch, config.data.image_size)
    times = interleave(variants, [batch], args.rounds)
    rows = [
        {
            "variant": name,
            "image_size": config.data.image_size,
            "batch": args.batch,
            "s_per_step": round(statistics.median(times[name]), 3),
            "time/before": round(ratio(times, name, "before"), 2),
        }
        for name in VARIANTS
    ]
    save("finetune", rows)


if __name__ == "__main__":
    main()
