"""A wheel holds all that git tracks of the two packages, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import PurePosixPath

import pytest

from tests.imports import PACKAGES, ROOT


def tracked(*folders):
    """Files below these folders of the checkout, or at its top level where none is named."""
    output = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, check=True, text=True)
    return {name for name in output.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names in a wheel built from a copy: a build leaves files in its source folder."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = (source / "dist").glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_a_wheel_holds_every_module_template_and_recipe(wheel):
    inside = {name for name in wheel if not PurePosixPath(name).parts[0].endswith(".dist-info")}
    assert inside == tracked(*PACKAGES)


def test_templates_and_recipes_are_there_to_be_missed():
    assert {PurePosixPath(name).suffix for name in tracked(*PACKAGES)} >= {".py", ".j2", ".yaml"}
