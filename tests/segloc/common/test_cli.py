"""Errors of every command: one line on stderr and the exit code of the error."""

import argparse
import re
import signal
from pathlib import Path

import pytest

from pipeline.common.executors import EXECUTORS, WorkerLostError
from segloc.common import cli
from segloc.common.errors import DivergedError, InputError, RunError
from segloc.common.files import write_atomic
from segloc.common.output_kinds import starting
from segloc.common.stops import Stopped

MINE = starting("mine", b"of the user|of the run|x")


class OutOfPatienceError(RunError):
    exit_code = 7


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("no such key"), 2, "no such key"),
        (RunError("two shards failed"), 1, "two shards failed"),
        (DivergedError("the loss is nan"), 1, "the loss is nan"),
        (WorkerLostError(), 1, "a worker process died (killed, or out of memory)"),
        (OutOfPatienceError("waited long enough"), 7, "waited long enough"),
        (PermissionError(13, "Permission denied", "/data/a b"), 2, "/data/a b: Permission denied"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C; run the same command again to start over"),
        (Stopped(signal.SIGHUP), 129, "stopped by SIGHUP; run the same command again to start over"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_ends_in_one_line_with_its_exit_code(error, code, said, capsys):
    def command(_):
        raise error

    assert cli.run(command, cli.parser("pipeline.x", "", ""), []) == code
    line = capsys.readouterr().err
    assert line.startswith(f"python -m pipeline.x: {said}")
    assert line.count("\n") == 1


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_command_that_returns_gives_its_own_code(returned, code):
    assert cli.run(lambda _: returned, cli.parser("pipeline.x", "", ""), []) == code


def test_a_programming_error_is_not_hidden():
    def command(_):
        raise AttributeError("of the programmer")

    with pytest.raises(AttributeError, match="of the programmer"):
        cli.run(command, cli.parser("pipeline.x", "", ""), [])


def test_the_offered_executors_exist():
    assert tuple(EXECUTORS) == cli.EXECUTORS


def test_an_output_that_is_removed_during_the_work_is_told(tmp_path, capsys):
    options = cli.parser("x", "", "")
    options.add_argument("--out", type=cli.OutputFile(MINE))
    out = tmp_path / "out.json"

    def command(args):
        write_atomic(args.out, b"x")
        args.out.unlink()

    assert cli.run(command, options, ["--out", str(out)]) == 1
    assert f"{out}: was removed while the command ran" in capsys.readouterr().err


RUN_FILES = (
    "run.json", "config.yaml", "start.json", "skipped.json", "metrics.json", "not_finite.json", "checkpoint.pth",
    "backbone.pth", "model.pth", ".lock", "tensorboard/events.1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("out", "whose"),
    [
        *((f"run/{name}", "run") for name in RUN_FILES),
        *((f"shards/{name}", "shards") for name in ("index.json", "sources.parquet", "pairs-000003.tar")),
        ("link.json", "run"),
        ("run/evaluation.json", ""),
        ("run/report.html", ""),
        ("shards/audit.json", ""),
        ("elsewhere/metrics.json", ""),
        ("elsewhere/index.json", ""),
    ],
)
def test_an_output_that_belongs_to_a_run_or_to_shards_is_refused(tmp_path, monkeypatch, capsys, out, whose):
    monkeypatch.chdir(tmp_path)
    for name in ("run/run.json", "run/metrics.json", "shards/index.json", "elsewhere/metrics.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of the run")
    (tmp_path / "link.json").symlink_to("run/metrics.json")
    options = cli.parser("x", "", "")
    options.add_argument("--out", type=cli.OutputFile(MINE))
    assert cli.run(lambda args: write_atomic(args.out, b"x"), options, ["--out", out]) == (2 if whose else 0)
    said = f"python -m x: {out}: belongs to the {whose} in its folder; choose another file\n"
    assert capsys.readouterr().err == (said if whose else "")
    assert (tmp_path / "run/metrics.json").read_text() == (tmp_path / "shards/index.json").read_text() == "of the run"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("truth.json", "--annotations names the same file"),
        ("link.json", "--annotations names the same file"),
        ("other.json", "--report names the same file"),
        ("scans/deep/a.JPG", "exists and is not mine; choose another place for the output, or remove it"),
        ("scans/deep/new.jpg", None),
        ("empty.json", None),
        ("scans/notes.json", None),
        ("new.json", None),
    ],
)
def test_an_output_that_is_an_input_is_refused_before_it_is_lost(tmp_path, monkeypatch, capsys, out, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans" / "deep").mkdir(parents=True)
    for name in ("truth.json", "scans/notes.json"):
        (tmp_path / name).write_text("of the user")
    (tmp_path / "scans/deep/a.JPG").write_text("a scan")
    (tmp_path / "empty.json").touch()
    (tmp_path / "link.json").symlink_to("truth.json")
    options = cli.parser("x", "", "")
    options.add_argument("--annotations", type=cli.place, nargs="+")
    options.add_argument("--images", type=cli.path)
    options.add_argument("--out", type=cli.OutputFile(MINE))
    options.add_argument("--report", type=cli.OutputFile(MINE))
    given = ["--annotations", "./truth.json", "--images", "scans", "--report", "other.json", "--out", out]
    assert cli.run(lambda args: write_atomic(args.out, b"x"), options, given) == (2 if message else 0)
    assert (f"x: {out}: {message}" in capsys.readouterr().err) == bool(message)
    assert (tmp_path / "truth.json").read_text() == "of the user"
    assert (tmp_path / "scans/deep/a.JPG").read_text() == "a scan"


@pytest.mark.parametrize(("read", "good"), [
    (cli.whole, {"7": 7, "-3": -3, "+07": 7}),
    (cli.number, {"7": 7, "-.5": -0.5, "1.": 1, "2e-3": 0.002}),
    (cli.share, {"0.25": 0.25}),
    (cli.white, {"4095": 4095}),
])  # fmt: skip
def test_option_numbers_take_the_digits_0_to_9_only(read, good):
    assert {text: read(text) for text in good} == good
    for text in ("٣", "３", "²", "1_000", " 7", "7\n", "nan", "inf", "1e", "1e999", "0x7", "9" * 5000 + "x", "-"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
            read(text)


def test_no_option_reads_its_numbers_in_another_way():
    root = Path(cli.__file__).parents[2]
    files = [file for folder in ("pipeline", "segloc") for file in (root / folder).rglob("*.py")]
    assert len(files) > 100
    assert [file.name for file in files if re.search(r"type=(int|float)\b", file.read_text())] == []
