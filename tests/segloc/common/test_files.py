"""Outputs: refused before the work if they cannot be written, whole, through links, cleaned up after kills."""

import contextlib
import errno
import os
import re
import signal
import socket
import stat
import subprocess
import sys

import pytest

from segloc.common.errors import InputError
from segloc.common.files import (
    atomic_file,
    check_output,
    check_output_folder,
    expanded,
    make_folder,
    remove_temporary,
    was_removed,
    write_atomic,
)
from tests.imports import ROOT


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def no_files(tmp_path, monkeypatch):
    """Things that are no regular files, by kind; permissions would not stop root, so no test uses them."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-pipe").symlink_to("pipe")
    (tmp_path / "read-only").write_text("mine")
    (tmp_path / "read-only").chmod(0o444)
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # the name of a socket has at most about 100 characters
    listener.bind("socket")
    yield tmp_path
    listener.close()


REFUSED_FILES = {
    "pipe": "is a device, pipe or socket",
    "to-pipe": "is a device, pipe or socket",
    "socket": "is a device, pipe or socket",
    "/dev/null": "is a device, pipe or socket",
    "folder": "is a folder, not a file",
    "loop": "is a link that leads to itself",
    "loop/x": "Too many levels of symbolic links",
    "read-only": "is read-only",
    "file/x": "file is a file, not a folder",
    "file/x/y": "file is a file, not a folder",
    "/proc/x": "no file can be made in /proc",
    "/proc/x/y": "no file can be made in /proc",
    "n" * 256: "File name too long",
    "new/" + "n" * 256 + "/x": "File name too long",
    "a\0b": "null",
}


@pytest.mark.parametrize("given", REFUSED_FILES, ids=lambda given: given[:20].replace("\0", "0"))
def test_a_file_that_cannot_be_written_is_refused_before_and_while_writing(given, no_files):
    paths = sorted(no_files.iterdir())
    before = [(path.lstat().st_mode, path.lstat().st_ino) for path in paths]
    with pytest.raises(InputError, match=re.escape(REFUSED_FILES[given])) as error:
        check_output(given)
    assert "\n" not in str(error.value)
    with pytest.raises((InputError, OSError)):
        write_atomic(given, b"new")
    assert before == [(path.lstat().st_mode, path.lstat().st_ino) for path in paths]
    assert (no_files / "read-only").read_text() == (no_files / "file").read_text() == "mine"
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("file", "is a file, not a folder"),
        ("file/x", "is a file, not a folder"),
        ("pipe", "is a file, not a folder"),
        ("loop", "leads to itself"),
        ("/proc/x/y", "no file can be made in /proc"),
        ("n" * 256, "File name too long"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused(given, said, no_files):
    with pytest.raises(InputError, match=re.escape(said)):
        check_output_folder(given)


def test_checking_leaves_nothing(tmp_path):
    (tmp_path / "old").write_text("old")
    for path in (None, tmp_path / "a" / "b" / "new", tmp_path / "old", tmp_path / ("n" * 255)):
        check_output(path)
    for path in (None, tmp_path, tmp_path / "a" / "b"):
        check_output_folder(path)
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "o.json").write_text("old")
    (tmp_path / "link").symlink_to("disk/o.json")
    (tmp_path / "chain").symlink_to(tmp_path / "link")
    write_atomic(tmp_path / "chain", b"new")
    assert (tmp_path / "disk" / "o.json").read_bytes() == b"new"
    assert os.readlink(tmp_path / "link") == "disk/o.json"
    assert (tmp_path / "chain").is_symlink()
    assert names(tmp_path / "disk") == ["o.json"]


def test_a_dangling_link_gets_its_target(tmp_path):
    (tmp_path / "link").symlink_to("disk/deep/o.json")
    (tmp_path / "run").symlink_to("disk/run")
    check_output(tmp_path / "link")
    check_output_folder(tmp_path / "run")
    assert names(tmp_path) == ["link", "run"]
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "disk" / "deep" / "o.json").read_bytes() == b"new"
    assert make_folder(tmp_path / "run").is_dir()
    write_atomic(tmp_path / "run" / "o", b"new")
    assert (tmp_path / "disk" / "run" / "o").read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_what_the_umask_leaves(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "deep" / "new", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "new").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == mode | (mode & 0o444) >> 2
    (tmp_path / "deep" / "new").chmod(0o640)
    write_atomic(tmp_path / "deep" / "new", b"newer")
    assert stat.S_IMODE((tmp_path / "deep" / "new").stat().st_mode) == 0o640  # a replaced file keeps its own


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path):
    (tmp_path / "o").write_text("old")
    with contextlib.suppress(RuntimeError), atomic_file(tmp_path / "o") as file:
        file.write(b"half")
        raise RuntimeError
    assert names(tmp_path) == ["o"]
    assert (tmp_path / "o").read_text() == "old"


WRITER = """
import sys, time
from segloc.common.files import atomic_file
with atomic_file(sys.argv[1]) as file:
    file.write(b"half"); file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["o.json", "n" * 250, "x[1]*.{json}"])
def test_the_next_write_removes_what_a_kill_left_but_nothing_that_is_being_written(tmp_path, name):
    """Also with the longest names, and with letters that are patterns."""
    (tmp_path / ".other.abcd1234.tmp").write_text("not ours")

    def start():
        command = [sys.executable, "-c", WRITER, str(tmp_path / name)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"writing\n"
        return process

    dead = start()
    os.kill(dead.pid, signal.SIGKILL)
    dead.wait()
    dead.stdout.close()
    left = {path for path in tmp_path.iterdir() if path.name.endswith(".tmp")} - {tmp_path / ".other.abcd1234.tmp"}
    assert len(left) == 1
    alive = start()
    try:
        assert not any(path.exists() for path in left)
        being_written = {path for path in tmp_path.iterdir() if path.name.endswith(".tmp")}
        write_atomic(tmp_path / name, b"whole")
        remove_temporary(next(iter(being_written - {tmp_path / ".other.abcd1234.tmp"})))
        assert being_written == {path for path in tmp_path.iterdir() if path.name.endswith(".tmp")}
        assert (tmp_path / name).read_bytes() == b"whole"
    finally:
        alive.kill()
        alive.wait()
        alive.stdout.close()
    write_atomic(tmp_path / name, b"again")
    assert names(tmp_path) == sorted([".other.abcd1234.tmp", name])


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_of_writing_names_the_file_and_others_keep_theirs(tmp_path):
    path = tmp_path / "out.json"
    with pytest.raises(OSError, match="No space") as full, atomic_file(path):
        raise FULL
    assert full.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as missing, atomic_file(path):
        (tmp_path / "input").read_bytes()
    assert missing.value.filename == str(tmp_path / "input")
    with pytest.raises(FileNotFoundError) as removed, atomic_file(path):
        next(tmp_path.iterdir()).unlink()
    assert removed.value.filename == str(path)
    with pytest.raises(OSError, match="Input/output") as other, atomic_file(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # perhaps of an input
    assert other.value.filename is None


def test_a_written_file_that_is_gone_was_removed(tmp_path):
    path = tmp_path / "out.json"
    assert not was_removed(path)
    write_atomic(path, b"x")
    assert not was_removed(path)
    path.unlink()
    assert was_removed(path)


def test_only_a_tilde_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert expanded("~") == "/home/me"
    assert expanded("~/a b") == "/home/me/a b"
    for literal in ("a~", "$HOME", "${HOME}", "%x", "{x}", "null", "1e3", "#", "./~", "~nobody-has-this-name/x"):
        assert expanded(literal) == literal
    assert expanded("~root/x") == os.path.expanduser("~root/x") != "~root/x"
    (tmp_path / "~root").mkdir()
    assert expanded("~root") == "~root"


def test_a_check_removes_what_a_killed_one_left(tmp_path):
    (tmp_path / ".check.0badcafe.tmp").touch()
    (tmp_path / ".mine.0badcafe.tmp").touch()
    check_output_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine.0badcafe.tmp"]
