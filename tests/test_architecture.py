"""The rules of the house: which folder may import from which, and what lies at the top of a package."""

import subprocess
import sys

import pytest

from tests.imports import ROOT, imported, modules

MODULES = list(modules())
TORCH = ("torch", "torchvision", "webdataset", "detectron2", "tensorboard")

# Folders from low to high. A module imports from its own folder and from those in rows above it; commands, the files
# at the top of a package, import from all folders and from no other command.
LAYERS = {
    "segloc": (
        ("common",),
        ("settings",),
        ("training",),
        ("models",),
        ("data",),
        ("contrast", "detection"),
        ("probing", "exporting", "reporting"),
        ("experiments",),
    ),
    "pipeline": (
        ("common",),
        ("tables", "simulate"),
        ("bags",),
        ("pairing",),
        ("storage",),
        ("checks",),
    ),
}
MOST_COMMANDS = {"segloc": 12, "pipeline": 10}


def top(name):
    return name.split(".")[0]


def folder(module):
    """Folder of a module below its package; None for a command and for a package itself."""
    package, *parts = module.split(".")
    return parts[0] if parts and (ROOT / package / parts[0]).is_dir() else None


def rank(module):
    return next((place for place, row in enumerate(LAYERS[top(module)]) if folder(module) in row), None)


@pytest.mark.parametrize("module", MODULES)
def test_folders_import_from_lower_folders_only(module):
    assert folder(module) is None or rank(module) is not None, f"{folder(module)} has no place in LAYERS"
    for name in imported(module):
        if top(name) != top(module) or name == module:
            continue
        if folder(name) is None:
            assert not is_command(name) or folder(module) is None, f"{module} imports the command {name}"
        elif folder(module) not in (None, folder(name)):
            assert rank(name) < rank(module), f"{module} imports {name}"


def is_command(module):
    return module.count(".") == 1 and folder(module) is None and module in MODULES


@pytest.mark.parametrize("module", [name for name in MODULES if top(name) == "pipeline"])
def test_stage_1_uses_only_the_common_part_of_stage_2(module):
    ours = {name for name in imported(module) if top(name) == "segloc"}
    assert all(name == "segloc.common" or name.startswith("segloc.common.") for name in ours - {"segloc"})
    assert not {top(name) for name in imported(module)} & set(TORCH)


@pytest.mark.parametrize("module", [name for name in MODULES if top(name) == "segloc"])
def test_stage_2_does_not_know_stage_1(module):
    assert "pipeline" not in {top(name) for name in imported(module)}


def test_stage_1_runs_without_torch():
    names = [name for name in MODULES if top(name) == "pipeline" or name.startswith("segloc.common")]
    code = f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\n"
    code += f"print([n for n in {TORCH!r} if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("package", MOST_COMMANDS)
def test_the_top_of_a_package_holds_few_files_all_commands(package):
    names = [name for name in MODULES if name.count(".") == 1 and top(name) == package and folder(name) is None]
    assert len(names) <= MOST_COMMANDS[package]
    for name in names:
        assert "def main(" in (ROOT / f"{name.replace('.', '/')}.py").read_text(), f"{name} is no command"


def test_the_import_reader_finds_what_is_behind_other_modules():
    from tests.imports import closure

    assert "segloc/common/contract.py" in closure("pipeline.audit")
    assert "segloc/models/attention.py" in closure("segloc.pretrain")
