"""The DVC pipelines: every module a stage runs lies in a folder, or is a file, that the stage depends on."""

import re

import pytest
import yaml

from segloc.common.skips import MAX_SKIPPED
from segloc.settings.experiments import Experiment
from segloc.settings.loader import load
from tests.imports import ROOT, closure


def stages():
    for file in ("dvc.yaml", "data/dvc.yaml", "detectron_configs/dvc.yaml"):
        for name, stage in yaml.safe_load((ROOT / file).read_text())["stages"].items():
            stage = stage.get("do", stage)
            commands = stage["cmd"] if isinstance(stage["cmd"], list) else [stage["cmd"]]
            modules = [found for command in commands for found in re.findall(r"python -m (\S+)", command)]
            yield pytest.param(modules, stage, id=f"{file}:{name}")


# They hold nothing but a docstring and the version.
TOPS = {"pipeline/__init__.py", "segloc/__init__.py"}


@pytest.mark.parametrize(("modules", "stage"), list(stages()))
def test_stage_depends_on_the_folders_of_all_it_runs(modules, stage):
    assert modules
    needed = set().union(*(closure(module) for module in modules)) - TOPS
    listed = [path for path in stage["deps"] if path.startswith(("pipeline/", "segloc/"))]
    outside = {file for file in needed if not any(file == path or file.startswith(f"{path}/") for path in listed)}
    idle = {path for path in listed if not any(file == path or file.startswith(f"{path}/") for file in needed)}
    assert (outside, idle) == (set(), set()), "(not listed, listed but not run)"


@pytest.mark.parametrize("file", ["dvc.yaml", "data/dvc.yaml"])
def test_building_data_sets_never_trains(file):
    commands = str(yaml.safe_load((ROOT / file).read_text()))
    assert "python -m segloc." not in commands


def test_named_data_sets_share_no_output_with_the_others():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    outs = []
    for file in ("dvc.yaml", "data/dvc.yaml"):
        for stage in yaml.safe_load((ROOT / file).read_text())["stages"].values():
            of_stage = stage.get("do", stage)
            for entry in [*of_stage["outs"], *of_stage.get("metrics", []), *of_stage.get("plots", [])]:
                (path,) = entry
                names = params["data_sets"] if "${key}" in path else ("adaptive", "paper")
                outs += {path.replace("${key}", name).replace("${item}", name) for name in names}
    assert len(outs) == len({*outs})
    assert {"data/shards", "data/shards-paper", "data/shards-insloc"} <= {*outs}


@pytest.mark.parametrize("recipe_name", ["table1", "ablations"])
def test_experiments_need_what_params_makes(recipe_name):
    data_sets = yaml.safe_load((ROOT / "params.yaml").read_text())["data_sets"]
    recipe = load(Experiment, ROOT / f"detectron_configs/experiment/{recipe_name}.yaml")
    for pretraining in recipe.pretrainings.values():
        needs, name = pretraining.needs, pretraining.shards.removeprefix("data/shards-")
        made = data_sets[name]
        assert needs.make == f"dvc repro data/dvc.yaml:audit@{name}"
        assert (needs.blend, needs.region_mode, needs.pairs) == (made["blend"], made["regions"], made["pairs"])
        assert (needs.on_matter, needs.occluded, needs.width) == (made["on_matter"], made["occluded"], made["width"])
        ranges = [":".join(f"{edge:g}" for edge in edges) for edges in (needs.scale_range, needs.coefficient_range)]
        assert ranges == [made["scale"], made["coefficients"]]
        assert needs.positives == {"segments": "class", "crops": "instance"}[made["items"]]


def test_every_stage_that_may_skip_inputs_passes_the_share_of_params():
    root = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    passed = {name for name, stage in root.items() if "--max-skipped ${max_skipped}" in stage["cmd"]}
    assert passed == {"regions", "segments"}
    training = yaml.safe_load((ROOT / "detectron_configs/dvc.yaml").read_text())
    assert training["vars"] == ["../params.yaml:max_skipped"]
    stages = [stage.get("do", stage) for stage in training["stages"].values()]
    commands = [
        part for stage in stages for part in ([stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"])
    ]
    given = {part.split()[2] for part in commands if part.endswith("--max-skipped ${max_skipped}")}
    assert given == {f"segloc.{name}" for name in ("pretrain", "finetune", "evaluate")}
    assert yaml.safe_load((ROOT / "params.yaml").read_text())["max_skipped"] == MAX_SKIPPED
