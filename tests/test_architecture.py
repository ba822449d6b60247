"""The rules of the house: who may import whom."""

import subprocess
import sys

import pytest

from tests.imports import ROOT, closure, imported, modules

MODULES = list(modules())
TORCH = ("torch", "torchvision", "webdataset", "detectron2", "tensorboard")

# Data flows one way; a module may import from its own row and from those above it.
LAYERS = (
    ("segloc.contract",),
    (
        "segloc.cli",
        "segloc.schedules",
        "segloc.losses",
        "segloc.queues",
        "segloc.single_queue",
        "segloc.charts",
        "segloc.locks",
        "segloc.classifiers",
    ),
    ("segloc.config", "segloc.engine", "segloc.lazy", "segloc.checkpoint"),
    ("segloc.distributed", "segloc.stopping"),
    ("segloc.models", "segloc.runs"),
    ("segloc.shard_folder", "segloc.run_results"),
    ("segloc.batches", "segloc.results_table"),
    ("segloc.probe_table",),
    ("segloc.stream", "segloc.augment", "segloc.box_augment", "segloc.gauges", "segloc.detection"),
    ("segloc.pretrainer", "segloc.export_formats", "segloc.bn_export", "segloc.held_out", "segloc.roi_features"),
    (
        "segloc.pretrain",
        "segloc.finetune",
        "segloc.evaluate",
        "segloc.export",
        "segloc.probe",
        "segloc.report",
        "segloc.pictures",
    ),
    ("segloc.experiment_recipe",),
    ("segloc.experiment_jobs",),
    ("segloc.experiment",),
)


def top(name):
    return name.split(".")[0]


@pytest.mark.parametrize("module", [name for name in MODULES if top(name) == "pipeline"])
def test_stage_1_knows_of_stage_2_only_the_contract(module):
    ours = {name for name in imported(module) if top(name) == "segloc"}
    assert all(name == "segloc.contract" or name.startswith("segloc.contract.") for name in ours)
    assert not {top(name) for name in imported(module)} & set(TORCH)


@pytest.mark.parametrize("module", [name for name in MODULES if top(name) == "segloc"])
def test_stage_2_does_not_know_stage_1(module):
    assert "pipeline" not in {top(name) for name in imported(module)}


def test_stage_1_runs_without_torch():
    names = [name for name in MODULES if top(name) == "pipeline"]
    code = f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\n"
    code += f"print([n for n in {TORCH!r} if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_the_contract_needs_the_standard_library_only():
    assert {top(name) for name in imported("segloc.contract")} <= sys.stdlib_module_names


def layer(module):
    for rank, row in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in row):
            return rank
    return None


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("segloc.")])
def test_nothing_lower_imports_anything_higher(module):
    assert layer(module) is not None, f"{module} has no place in LAYERS"
    for name in imported(module):
        if layer(name) is not None:
            assert layer(name) <= layer(module), f"{module} imports {name}"


def test_the_import_reader_finds_what_is_behind_other_modules():
    assert "segloc/contract.py" in closure("pipeline.audit")
    assert "segloc/models/attention.py" in closure("segloc.pretrain")
