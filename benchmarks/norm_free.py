"""Train a ResNet-101 without norms, with and without residual scales (``python -m benchmarks.norm_free``).

The paper's ResNet-101 has no batch norm (section 5.4). Without norms, the signal grows with every block; residual
scales (`segloc.models.norm.ResidualScale`) prevent this. Both networks get the same pairs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.common import arguments, save
from segloc.common.errors import DivergedError
from segloc.contrast.run import pretrain
from segloc.models import backbone
from segloc.settings.pretraining import load_config
from segloc.training import checkpoint
from segloc.training.run_folder import read_metrics, read_run

RECIPE = Path(__file__).parent.parent / "detectron_configs" / "pretrain" / "paper_r101.yaml"
SMALL = ("data.image_size=64", "optim.batch=8", "optim.micro_batch=8", "queue.size=64", "log_every=1")
VARIANTS = ("residual scales", "plain")


def train(variant: str, shards: str, settings: list[str], out: Path) -> dict[str, Any]:
    """Train one variant and summarise its loss."""
    make = backbone._scale_residuals if variant == "residual scales" else lambda body: None
    try:
        with mock.patch.object(backbone, "_scale_residuals", make):
            pretrain(load_config(RECIPE, settings), shards, out)
        ended = "finished"
    except DivergedError:
        ended = "loss not finite"
    rows = read_metrics(out)
    tenth = max(1, len(rows) // 10)
    first, last = (statistics.mean(row["loss"] for row in part) for part in (rows[:tenth], rows[-tenth:]))
    return {
        "variant": variant,
        "settings": " ".join(settings),
        "ended": ended,
        "steps": len(rows),
        "chance_loss": round(read_run(out)["chance_loss"], 2),
        "first_tenth_loss": round(first, 2),
        "last_tenth_loss": round(last, 2),
        "largest_gradient": round(max(row["gradient_norm"] for row in rows), 1),
        "scales_at_the_end": float(f"{moved(out):.2g}") if ended == "finished" else "",
    }


def moved(out: Path) -> float:
    """Compute the mean magnitude of the residual branches' last scales after training; 0 at first, 0 without scales."""
    state = checkpoint.load(out / checkpoint.BACKBONE)["backbone"]
    scales = [tensor.abs().mean() for name, tensor in state.items() if name.endswith("bn3.weight")]
    return float(torch.stack(scales).mean()) if scales else 0.0


def main() -> None:
    """Run both variants."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.norm_free", description=__doc__)
    options.add_argument("--shards", default="data/shards", help="default: %(default)s, which `make demo` makes")
    options.add_argument("--steps", type=int, default=200, help="default: %(default)s, some seconds each on a CPU")
    options.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the reduced paper recipe")
    args = arguments(options)
    settings = [*SMALL, f"optim.steps={args.steps}", *args.overrides]
    rows = []
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(train(variant, args.shards, settings, Path(folder) / "run"))
    save("norm_free", rows)


if __name__ == "__main__":
    main()
