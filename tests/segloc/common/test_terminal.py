"""Terminals that cannot show a letter, readers that have gone, and locales that are no UTF-8."""

import os
import subprocess
import sys

import pytest

from tests.imports import ROOT

# How a terminal or a log that cannot show all letters is met with.
TERMINALS = {
    "C": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    "no UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ISO-8859-1": {"PYTHONIOENCODING": "latin-1"},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},
}
# The name of the file is "枪.csv"; a process in the C locale must find it under the name that a JSON file gives.
COMMAND = """
import json, sys
from pathlib import Path
from tqdm import tqdm
from segloc.common import cli

def command(args):
    name = json.loads(b'"\\\\u67aa.csv"')
    text = Path(args.data, name).read_text()
    print(f"Schlüssel 枪 {text} \\udce4 " + "x" * args.letters)
    for _ in tqdm(range(3), desc="枪"):
        pass
    Path(args.data, "made.txt").write_text("枪")
    if args.data == "wrong":
        raise ValueError

def main(argv=None):
    options = cli.parser("said", "Größe 枪", "  ü")
    options.add_argument("--data", type=cli.place)
    options.add_argument("--letters", type=int, default=0)
    return cli.run(command, options, argv)

if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "said.py").write_text(COMMAND, encoding="utf-8")
    (tmp_path / "枪.csv").write_text("gelöst", encoding="utf-8")
    return tmp_path


def run(folder, *arguments, variables=None, **options):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", **(variables or {})}
    command = [sys.executable, "-m", "said", *arguments]
    return subprocess.run(command, env=environment, capture_output="stdout" not in options, check=False, **options)


@pytest.mark.parametrize("terminal", TERMINALS)
def test_letters_that_cannot_be_shown_are_escaped_and_files_are_utf_8(folder, terminal):
    done = run(folder, "--data", str(folder), variables=TERMINALS[terminal])
    assert done.returncode == 0, done.stderr
    assert b"\\u67aa" in done.stdout
    assert b"Traceback" not in done.stderr
    assert rb"\udce4" in done.stdout
    # Only the locale may change the encoding of files that a library opens without naming one.
    assert (folder / "made.txt").read_text(encoding="utf-8") == "枪"


def test_letters_that_can_be_shown_are_shown(folder):
    done = run(folder, "--data", str(folder), variables={"PYTHONIOENCODING": "utf-8"})
    assert "Schlüssel 枪 gelöst".encode() in done.stdout


@pytest.mark.parametrize("terminal", TERMINALS)
def test_help_and_errors_are_escaped(folder, terminal):
    done = run(folder, "--help", variables=TERMINALS[terminal])
    assert done.returncode == 0
    assert b"\\u67aa" in done.stdout
    done = run(folder, "--data", "枪/fehlt", variables=TERMINALS[terminal])
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"\\u67aa/fehlt" in done.stderr


@pytest.mark.parametrize("letters", [0, 1_000_000], ids=["buffered", "larger than the pipe"])
def test_a_reader_that_ends_early_does_not_stop_the_work(folder, letters):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = run(folder, "--data", str(folder), "--letters", str(letters), stdout=pipe, stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert b"Error" not in done.stderr
    assert (folder / "made.txt").exists()
    with os.fdopen(os.dup(os.open(os.devnull, os.O_RDONLY)), "rb") as closed:
        help_done = run(folder, "--help", stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=closed)
    assert help_done.returncode == 0


def test_closed_streams_do_not_stop_the_work(folder):
    command = f"'{sys.executable}' -m said --data '{folder}' >&- 2>&-"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    assert subprocess.run(command, shell=True, env=environment, check=False).returncode == 0
    assert (folder / "made.txt").exists()


def test_a_full_disk_behind_stdout_is_an_error(folder):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "wb") as full:
        done = run(folder, "--data", str(folder), "--letters", "100000", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode not in (0, 120)
    assert b"Traceback" not in done.stderr
