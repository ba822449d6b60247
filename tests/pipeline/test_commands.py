"""What all stage-1 commands have in common."""

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


def test_a_broken_pool_and_an_os_error_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.common.executors import WorkerLostError
    from segloc.common import cli

    def fail(error: BaseException) -> int:
        def command(_: object) -> int:
            raise error

        return cli.run(command, cli.parser("pipeline.x", "", ""), [])

    assert fail(WorkerLostError()) == 1
    assert fail(PermissionError(13, "Permission denied", "/data/a b")) == 2
    assert fail(KeyboardInterrupt()) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("python -m pipeline.x: a worker process died")
    assert lines[1:] == ["python -m pipeline.x: /data/a b: Permission denied", "python -m pipeline.x: stopped"]


def test_stage_one_never_imports_torch() -> None:
    modules = ", ".join(f"pipeline.{name}" for name in COMMANDS)
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'torchvision', 'webdataset'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
