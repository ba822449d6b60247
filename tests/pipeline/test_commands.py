"""Common behaviour of all stage-1 commands."""

import subprocess
import sys

import pytest

from tests.pipeline.conftest import ROOT, run_module

COMMANDS = ("regions", "segments", "crops", "synthesize", "audit", "manifest")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples(name: str) -> None:
    done = run_module(f"pipeline.{name}", "--help")
    assert done.returncode == 0
    assert f"examples:\n  python -m pipeline.{name} --" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_arguments_end_with_code_2(name: str) -> None:
    done = run_module(f"pipeline.{name}")
    assert done.returncode == 2
    assert "the following arguments are required" in done.stderr


def test_stage_one_never_imports_torch() -> None:
    modules = ", ".join(f"pipeline.{name}" for name in COMMANDS)
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'torchvision', 'webdataset'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
