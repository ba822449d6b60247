"""Recipes, checkpoints and run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from segloc.detection.weights import detector_content, read_detector, recipe_inside
from segloc.models.backbone import SegLocBackbone
from segloc.models.initial_weights import read_backbone, read_start
from segloc.reporting.page import render
from segloc.reporting.results_table import results_csv, results_markdown, results_table
from segloc.reporting.run_results import load_run
from segloc.settings.experiments import Experiment
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load, to_yaml
from segloc.settings.pretraining import PretrainConfig
from segloc.training import checkpoint
from segloc.training.run_folder import MetricsLog, origin
from tests.faults.mutations import changed, damaged, odd
from tests.faults.readers.registry import copied, target, write_changed

_SCHEMAS = (FinetuneConfig, PretrainConfig, Experiment)


@target("recipes", lambda folder: None)
def recipes(rng: np.random.Generator, folder: Path) -> None:
    """YAML of each schema, and overrides."""
    schema = _SCHEMAS[rng.integers(3)]
    if schema is Experiment:
        tree = {"starts": {"a": {"weights": "random"}}, "protocols": {"p": {"config": "c.yaml"}}, "seeds": [0, 1]}
        tree |= {"probe": {"shards": "s"}, "pretrainings": {"q": {"shards": "s", "overrides": ["optim.batch=2"]}}}
    else:
        tree = yaml.safe_load(to_yaml(schema()))
    path = folder / "r.yaml"
    try:
        other = yaml.safe_dump(changed(tree, rng), allow_unicode=True)
    except RecursionError:
        return  # too deep to be written
    if rng.random() < 0.5:
        path.write_bytes(damaged(yaml.safe_dump(tree).encode(), rng))
    else:
        text = other
        if rng.random() < 0.5:
            tags = ("!!int ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!float ", "!!null ")
            tags += (
                "!!python/name:os.system ",
                "!x ",
                "&a ",
                "*a",
                "<<: ",
                "? ",
                "=",
                "!!merge ",
                "!!pairs ",
                "!!str ",
            )
            at = text.find(":", int(rng.integers(len(text)))) + 1
            text = f"{text[:at]} {tags[rng.integers(len(tags))]}{text[at:]}"
        path.write_text(text, errors="surrogatepass")
    overrides = [f"seed={odd(rng)}"[:1000]] if rng.random() < 0.2 else []
    to_yaml(load(schema, path, overrides)).encode()


def _checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    settings = {"arch": "resnet18", "norm": "bn", "sda_norm": "bn", "attention": True, "fpn_channels": 64}
    backbone = SegLocBackbone(**settings)
    small = {"body.conv1.weight": torch.randn(4, 3, 3, 3), "body.bn1.num_batches_tracked": torch.tensor(3)}
    content = {"kind": "backbone", **settings, "iteration": 5, "backbone": small, "head": {}}
    checkpoint.save(folder / "small.pth", content)
    checkpoint.save(folder / "backbone.pth", {**content, "backbone": backbone.state_dict()})

    class Fake:
        engine, net, backbone = "torchvision", torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    detector = detector_content(Fake, FinetuneConfig(), ["a", "b"], 7)  # type: ignore[arg-type]
    checkpoint.save(folder / "detector.pth", {**detector, "steps": 9, "start": "random"})


@target("checkpoints", _checkpoints)
def checkpoints(rng: np.random.Generator, folder: Path) -> None:
    """Read by evaluate, finetune and export."""
    name = ("small", "detector", "backbone" if rng.random() < 0.1 else "small")[rng.integers(3)]
    source, path = folder / f"{name}.pth", folder / "x.pth"
    if rng.random() < 0.3:
        path.write_bytes(damaged(source.read_bytes(), rng))
    else:
        content = changed(torch.load(source, weights_only=True), rng)
        if rng.random() < 0.3:
            _odd_tensor(content, rng)
        torch.save(content, path)
    reader = rng.integers(3)
    if name == "detector":
        content = read_detector(path)
        to_yaml(recipe_inside(content, str(path))).encode()
        " ".join(content["classes"]).encode()
    elif reader == 0:
        read_start(str(path))
    else:
        read_backbone(path).build()


def _odd_tensor(content: Any, rng: np.random.Generator) -> None:
    for holder in (content, *(content.values() if isinstance(content, dict) else ())):
        if isinstance(holder, dict) and holder:
            key = list(holder)[int(rng.integers(len(holder)))]
            odd_tensors = (
                torch.tensor(float("nan")),
                torch.zeros(1).expand(10**6, 10**6),
                torch.zeros(2, device="meta"),
                torch.zeros(0),
                torch.zeros(2, dtype=torch.complex64),
                torch.zeros(3, dtype=torch.bool),
                torch.eye(2).to_sparse(),
            )
            holder[key] = odd_tensors[int(rng.integers(len(odd_tensors)))]


def _runs(folder: Path) -> None:
    for kind in ("pretrain", "finetune"):
        run = folder / "good" / kind
        run.mkdir(parents=True)
        about = {"kind": kind, "engine": "torchvision (stand-in)", "device": "cpu", "git_revision": "abc"}
        about |= {"command": "x", "weights": "random", "steps": 4, "chance_loss": 9.0, "chance_class_accuracy": 0.5}
        (run / "run.json").write_text(json.dumps({**about, "data_digest": "d", "shards": "s", "classes": ["a"]}))
        (run / "config.yaml").write_text(to_yaml(FinetuneConfig() if kind == "finetune" else PretrainConfig()))
        lines = [{"iteration": i, "loss": 3.0 - i, "class_accuracy": 0.5, "top1/p2": 0.1} for i in range(4)]
        (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = {"AP": 5.0, "AP50": 9.0, "AP75": None, "AR1": 1.0, "AR10": 2.0, "AR100": 3.0, "per_class": {"a": {}}}
    part = {"images": 3, "digest": "x", "bbox": figures, "segm": figures}
    report = {"engine": "torchvision (stand-in)", "iteration": 4, "steps": 4, "subsets": {"easy": part, "hard": part}}
    (folder / "good" / "finetune" / "evaluation.json").write_text(
        json.dumps({**report, "mean": part, "pooled": part, "classes": ["a"]})
    )
    (folder / "good" / "finetune" / "start.json").write_text(json.dumps({"origin": "x", "pretraining_seed": 3}))


@target("metrics lines and reports", _runs)
def runs(rng: np.random.Generator, folder: Path) -> None:
    """Run folders as the report reads them, and a log that is continued."""
    out = copied(folder)
    run = out / ("pretrain", "finetune")[rng.integers(2)]
    files = sorted(path for path in run.iterdir())
    path = files[int(rng.integers(len(files)))]
    if path.name == "metrics.json" and rng.random() < 0.7:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed(lines, rng) or [])
                        if isinstance(changed(lines, rng), list) else "3\n")  # fmt: skip
    elif path.suffix == ".json" and path.name != "metrics.json":
        write_changed(path, json.loads(path.read_text()), rng)
    else:
        path.write_bytes(damaged(path.read_bytes(), rng))
    if rng.random() < 0.1:
        MetricsLog(run, 2).close()
    found = [load_run(out / name) for name in ("pretrain", "finetune")]
    if rng.random() < 0.15:  # drawing takes most of the time
        page = render(found, [], "title")
        page.encode()
        assert "<script>alert" not in page, "text from a file is not escaped"
    table = results_table(found)
    (results_markdown(table) + results_csv(table)).encode()
    origin(str(run))
