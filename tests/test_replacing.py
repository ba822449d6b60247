"""An output replaces only a file of its own kind, for every command and every option that names a file to write."""

import importlib
import json
import re
import shutil

import cv2
import numpy as np
import pytest

from pipeline.tables import region_table
from segloc.common import cli
from segloc.exporting.export import report_beside
from segloc.training import run_folder
from tests.test_outputs import COMMANDS, NEEDED, OUTPUTS, WITH_OUT, options

FILES = [(module, option) for module, option, kind in OUTPUTS if isinstance(kind, cli.OutputFile)]
REPLACES_REGIONS = {("pipeline.regions", "--out")}


def foreign(folder):
    """Write one file of each kind that no command below may replace, except for the table of regions."""
    (folder / "text.md").write_text("# Project\n\nMy notes.\n")
    (folder / "table.csv").write_text("engine,power\ndiesel,90\n")
    (folder / "page.html").write_text("<!DOCTYPE html>\n<title>mine</title>")
    (folder / "annotations.json").write_text(json.dumps({"info": {}, "images": [], "annotations": []}))
    (folder / "results.json").write_text(json.dumps([{"image_id": 1, "score": 0.5}]))
    cv2.imwrite(str(folder / "photo.png"), np.zeros((8, 8, 3), np.uint8))
    (folder / "weights.pth").write_bytes(b"PK\x03\x04 of another program")
    (folder / "short.parquet").write_bytes(b"PAR1")
    (folder / "damaged.parquet").write_bytes(b"\xff\xff\xff\xffPAR1")
    with region_table.writer(folder / "regions.parquet") as table:
        table.write({"image": "a.png"})
    return sorted(folder.iterdir())


def refused(module, arguments, out, capsys):
    before = out.read_bytes()
    code, said = importlib.import_module(module).main([*NEEDED.get(module, []), *arguments]), capsys.readouterr().err
    assert out.read_bytes() == before
    # Of the command alone: what other tests left behind in this process may print at any moment.
    lines = [line for line in said.splitlines() if line.startswith(f"python -m {module.removesuffix('.__main__')}: ")]
    sentence = f": {re.escape(str(out))}: exists and is not .*; choose another place for the output, or remove it"
    assert code == 2, said
    assert len(lines) == 1, said
    return re.search(f"{sentence}$", lines[0]) is not None


@pytest.mark.parametrize(("module", "option"), FILES)
def test_a_file_of_another_kind_is_not_replaced(module, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    others = [] if option == "--out" or module not in WITH_OUT else ["--out", "good"]
    (tmp_path / "user").mkdir()
    for out in foreign(tmp_path / "user"):
        if out.suffix in (".csv", ".md") and module == "segloc.evaluate":
            continue  # refused by their names, which the tables have
        replaces = (module, option) in REPLACES_REGIONS and out.name == "regions.parquet"
        assert refused(module, [*others, option, str(out)], out, capsys) != replaces, out


def test_all_commands_that_write_files_are_covered():
    assert {module for module, _ in FILES} == {
        *COMMANDS} - {"segloc.experiment", "segloc.pretrain", "segloc.finetune", "pipeline.simulate.__main__",
        "pipeline.sources", "pipeline.synthesize"}  # fmt: skip


def test_a_table_does_not_replace_the_picture_of_steps_nor_the_reverse(tmp_path, capsys):
    foreign(tmp_path)
    table, picture = tmp_path / "regions.parquet", tmp_path / "steps.png"
    command = importlib.import_module("pipeline.regions").main
    cv2.imwrite(str(tmp_path / "scan.png"), np.full((60, 90, 3), 255, np.uint8))
    steps = ["--steps", str(tmp_path / "scan.png"), "--out"]
    for _ in range(2):  # its own picture is replaced
        assert command([*steps, str(picture)]) == 0
    assert command([*steps, str(table)]) == 2
    assert "regions.parquet: exists and is not a PNG that segloc drew" in capsys.readouterr().err
    assert command(["--backgrounds", "x", "--out", str(picture)]) == 2
    assert "steps.png: exists and is not a table of regions; choose another place" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "out", "beside"),
    [
        ("segloc.evaluate", "README.json", "README.md"),
        ("segloc.evaluate", "README.json", "README.csv"),
        ("segloc.export", "x.pth", "x.report.json"),
    ],
)
def test_a_file_beside_the_output_is_not_replaced(module, out, beside, tmp_path, capsys):
    for mine in foreign(tmp_path):
        sibling = tmp_path / "new" / beside
        sibling.parent.mkdir(exist_ok=True)
        shutil.copy(mine, sibling)
        assert refused(module, ["--out", str(sibling.with_name(out))], sibling, capsys), mine


def test_a_checkpoint_without_a_report_is_not_replaced_by_an_export(tmp_path, capsys):
    out = tmp_path / "x.pth"
    out.write_bytes(b"PK\x03\x04")
    assert refused("segloc.export", ["--out", str(out)], out, capsys)
    [report] = report_beside(out)
    report.write_text(json.dumps({"format": "timm", "weights": "w"}))
    assert not refused("segloc.export", ["--out", str(out)], out, capsys)


def test_a_table_of_the_audit_replaces_only_a_table_of_the_audit(tmp_path, capsys):
    out = tmp_path / "classes.csv"
    out.write_text("class_name,teacher\n1a,Ms Smith\n")
    assert refused("pipeline.audit", ["--tables", str(tmp_path)], out, capsys)
    out.write_text("class_name,pairs\n")
    assert not refused("pipeline.audit", ["--tables", str(tmp_path)], out, capsys)


@pytest.mark.parametrize("module", ["segloc.pretrain", "segloc.finetune"])
@pytest.mark.parametrize("name", ["start.json", "skipped.json", "not_finite.json", "backbone.pth"])
def test_a_training_does_not_replace_files_of_no_run(module, name, tmp_path, capsys):
    out = tmp_path / name
    out.write_text("mine")
    assert importlib.import_module(module).main([*NEEDED[module], "--out", str(tmp_path)]) == 2
    assert f"{out}: exists and is not of a run" in capsys.readouterr().err
    (tmp_path / run_folder.RUN).write_text("{}")
    assert importlib.import_module(module).main([*NEEDED[module], "--out", str(tmp_path)]) == 2
    assert "contains a run of kind" in capsys.readouterr().err


def test_help_says_what_is_written_beside_the_output():
    for module, names in (
        ("segloc.evaluate", ("NAME.csv", "NAME.md", ".results.json")),
        ("segloc.export", (".report.json",)),
    ):
        said = next(action.help for action in options(module) if action.dest == "out")
        assert all(name in said for name in names), said
