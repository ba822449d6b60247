"""The two DVC pipelines: every module a stage runs is among its dependencies."""

import re

import pytest
import yaml

from tests.imports import ROOT, closure


def stages():
    for file in ("dvc.yaml", "detectron_configs/dvc.yaml"):
        for name, stage in yaml.safe_load((ROOT / file).read_text())["stages"].items():
            stage = stage.get("do", stage)
            commands = stage["cmd"] if isinstance(stage["cmd"], list) else [stage["cmd"]]
            modules = [found for command in commands for found in re.findall(r"python -m (\S+)", command)]
            yield pytest.param(modules, stage, id=f"{file}:{name}")


@pytest.mark.parametrize(("modules", "stage"), list(stages()))
def test_stage_depends_on_every_module_it_runs(modules, stage):
    assert modules
    needed = set().union(*(closure(module) for module in modules))
    listed = {path for path in stage["deps"] if path.endswith(".py") and not path.startswith("detectron_configs/")}
    assert needed - listed == set(), "not listed"
    assert listed - needed == set(), "listed, but not run"


def test_building_the_data_set_never_trains():
    commands = str(yaml.safe_load((ROOT / "dvc.yaml").read_text()))
    assert "segloc." not in commands
