"""The two DVC pipelines: every module a stage runs lies in a folder, or is a file, that the stage depends on."""

import re

import pytest
import yaml

from segloc.common.skips import MAX_SKIPPED
from tests.imports import ROOT, closure


def stages():
    for file in ("dvc.yaml", "detectron_configs/dvc.yaml"):
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


def test_building_the_data_set_never_trains():
    commands = str(yaml.safe_load((ROOT / "dvc.yaml").read_text()))
    assert "python -m segloc." not in commands


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
