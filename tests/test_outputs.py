"""Every command checks its outputs before the work. A new option that writes a file has to do so as well."""

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from segloc.common import cli
from tests.imports import ROOT

COMMANDS = [
    *(f"pipeline.{path.stem}" for path in sorted((ROOT / "pipeline").glob("*.py")) if path.stem != "__init__"),
    "pipeline.simulate.__main__",
    *(f"segloc.{path.stem}" for path in sorted((ROOT / "segloc").glob("*.py")) if path.stem != "__init__"),
]
FOLDER_TYPES = (cli.output_folder, cli.output_store)
# Words in the help of an option that writes something.
WRITES = re.compile(r"\b(to write|write|written|draw|draws|output|save)\b")
# Options of such words that write nothing, or whose command checks them itself when it is going to write.
NO_OUTPUT = {
    ("pipeline.audit", "--shards"),
    ("pipeline.crops", "--scans"),
    ("pipeline.regions", "--steps"),
    ("pipeline.simulate.__main__", "--raw"),
    ("segloc.experiment", "--cell"),
    ("segloc.pictures", "--results"),
}
CHECKED_BY_THE_COMMAND = {("segloc.experiment", "--out"), ("pipeline.sources", "--simulated")}
# What else the parsers ask for; none of it exists, so a command that does not look at its output first fails otherwise.
NEEDED = {
    "pipeline.regions": ["--backgrounds", "x"],
    "pipeline.crops": ["--backgrounds", "x", "--regions", "x"],
    "pipeline.segments": ["--annotations", "x"],
    "pipeline.synthesize": ["--backgrounds", "x", "--regions", "x", "--segments", "x"],
    "pipeline.audit": ["--shards", "x"],
    "pipeline.manifest": ["--root", "x"],
    "pipeline.sources": ["--foregrounds", "x", "--backgrounds", "x"],
    "segloc.pretrain": ["--shards", "x"],
    "segloc.finetune": ["--weights", "x", "--config", str(ROOT / "detectron_configs/finetune/demo_r18.yaml")],
    "segloc.evaluate": ["--weights", "x"],
    "segloc.pictures": ["--results", "x", "--annotations", "x", "--images", "x"],
    "segloc.export": ["--weights", "x", "--format", "timm"],
    "segloc.probe": ["--weights", "x", "--shards", "x"],
    "segloc.report": ["x"],
}


def parser_of(module):
    """The parser that a command builds."""
    built = []
    original = cli.run
    try:
        cli.run = lambda command, parser, argv: built.append(parser) or 0
        importlib.import_module(module).main([])
    finally:
        cli.run = original
    return built[0]


def options(module):
    return [action for action in parser_of(module)._actions if not isinstance(action, argparse._HelpAction)]


def is_output(action):
    return isinstance(action.type, cli.OutputFile) or action.type in FOLDER_TYPES


@pytest.mark.parametrize("module", COMMANDS)
def test_every_option_that_writes_is_declared_as_output(module):
    for action in options(module):
        name = action.option_strings[-1] if action.option_strings else action.dest
        if (module, name) in NO_OUTPUT | CHECKED_BY_THE_COMMAND:
            continue
        writes = name == "--out" or (action.metavar not in ("N", "SHARE") and WRITES.search(action.help or ""))
        assert not writes or is_output(action), f"{module} {name}: use cli.OutputFile or cli.output_folder"


OUTPUTS = [
    (module, action.option_strings[-1], action.type)
    for module in COMMANDS
    for action in options(module)
    if is_output(action)
]


def test_there_are_outputs():
    assert {module for module, *_ in OUTPUTS} == {*COMMANDS} - {"segloc.experiment"}


@pytest.mark.parametrize(("module", "option", "kind"), OUTPUTS)
def test_an_output_that_cannot_be_written_is_refused_before_anything_else(
    module, option, kind, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    places = ["/proc/x/y", "file/y", "loop", "n" * 300, "folder" if isinstance(kind, cli.OutputFile) else "file"]
    needed = NEEDED.get(module, [])
    others = [] if option == "--out" or module not in WITH_OUT else ["--out", "good"]
    for place in places:
        assert importlib.import_module(module).main([*needed, *others, option, place]) == 2
        said = capsys.readouterr().err
        assert place in said, said
        assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "loop"]
    assert (tmp_path / "file").read_text() == "mine"


WITH_OUT = {module for module, option, _ in OUTPUTS if option == "--out"}


@pytest.mark.parametrize("module", ["segloc.experiment"])
def test_an_experiment_checks_its_folder_only_to_run(module, tmp_path, capsys):
    recipe = str(ROOT / "detectron_configs/experiment/demo.yaml")
    command = importlib.import_module(module).main
    assert command([recipe, "--out", "/proc/x/y"]) == 2
    assert "/proc/x/y: cannot be written" in capsys.readouterr().err
    assert command([recipe, "--out", "/proc/x/y", "--list"]) == 0


def test_files_beside_an_output_are_checked_too(tmp_path, capsys):
    for name in ("e.csv", "e.md", "w.report.json"):
        (tmp_path / name).mkdir()
    evaluate = importlib.import_module("segloc.evaluate").main
    assert evaluate(["--weights", "x", "--out", str(tmp_path / "e.json")]) == 2
    assert "e.csv: is a folder" in capsys.readouterr().err
    export = importlib.import_module("segloc.export").main
    assert export(["--weights", "x", "--format", "timm", "--out", str(tmp_path / "w.pth")]) == 2
    assert "w.report.json: is a folder" in capsys.readouterr().err


def test_the_default_run_folder_of_fine_tuning_is_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("mine")
    assert importlib.import_module("segloc.finetune").main(NEEDED["segloc.finetune"]) == 2
    assert "runs is a file, not a folder" in capsys.readouterr().err
    assert importlib.import_module("segloc.pretrain").main(NEEDED["segloc.pretrain"]) == 2
    assert "runs is a file, not a folder" in capsys.readouterr().err


def test_the_folder_of_a_simulation_in_sources_is_checked(tmp_path):
    simulated = "/proc/x"
    roots = ["--foregrounds", f"{simulated}/pidray", "--backgrounds", f"{simulated}/sixray", "--simulated", simulated]
    command = [sys.executable, "-m", "pipeline.sources", *roots, "--out", str(tmp_path / "m")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "/proc/x: cannot be written" in done.stderr
    assert "simulate" not in done.stderr.replace("pipeline.simulate", "")
