import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from pipeline import manifest
from pipeline.common import manifest as manifest_body
from segloc.common.errors import InputError
from segloc.common.skips import Skips

NONE = Skips("files")  # nothing is read without digests


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in ("b.jpg", "a/2.jpg", "a/10.jpg", "a b/ü.jpg", ".hidden", ".git/x"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
        os.utime(root / name, ns=(0, 1_700_000_000_123_456_789))
    return root


def test_lines_are_sizes_times_and_paths_in_order(root: Path, tmp_path: Path) -> None:
    assert manifest_body.write_manifest(root, tmp_path / "m") == (4, True, NONE)
    time = 1_700_000_000_123_456_789
    names = ["a/10.jpg", "a/2.jpg", "a b/ü.jpg", "b.jpg"]
    sizes = [len(name.encode()) for name in names]
    lines = [f"{size} {time} {name}\n" for size, name in zip(sizes, names, strict=True)]
    assert (tmp_path / "m").read_text() == "".join(lines)
    assert manifest_body.write_manifest(root, tmp_path / "n", with_mtime=False) == (4, True, NONE)
    assert (tmp_path / "n").read_text() == "".join(line.replace(f" {time}", "") for line in lines)


def test_an_unchanged_manifest_is_not_touched(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    manifest_body.write_manifest(root, out)
    os.utime(out, ns=(5, 5))
    assert manifest_body.write_manifest(root, out) == (4, False, NONE)
    assert out.stat().st_mtime_ns == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "root"]


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "new.jpg").touch(),
        lambda root: (root / "b.jpg").unlink(),
        lambda root: (root / "b.jpg").rename(root / "c.jpg"),
        lambda root: (root / "b.jpg").write_bytes(b"longer than before"),
        lambda root: os.utime(root / "b.jpg", ns=(0, 1_700_000_000_123_456_790)),
    ],
    ids=["added", "removed", "renamed", "grown", "touched"],
)
def test_any_change_changes_the_manifest(change, root: Path, tmp_path: Path) -> None:
    manifest_body.write_manifest(root, tmp_path / "m")
    change(root)
    assert manifest_body.write_manifest(root, tmp_path / "m")[1]


def test_odd_names_and_links_do_not_break_it(root: Path, tmp_path: Path) -> None:
    (root / "line\nbreak\\.jpg").touch()
    (root / "loop").symlink_to(root)
    (root / "nowhere").symlink_to(tmp_path / "none")
    (root / "self").symlink_to("self")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.jpg").touch()
    (root / "outside").symlink_to(tmp_path / "outside")
    (root / "outside too").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "back").symlink_to(root)
    with open(os.fsencode(root) + b"/\xff.jpg", "wb"):
        pass
    count, _, _ = manifest_body.write_manifest(root, tmp_path / "m", with_mtime=False)
    lines = (tmp_path / "m").read_bytes().splitlines()
    assert count == len(lines) == 9
    assert b"0 line\\nbreak\\\\.jpg" in lines
    assert b"0 outside/x.jpg" in lines
    assert b"0 \\xff.jpg" in lines
    assert (tmp_path / "m").read_bytes().decode()


def test_bad_roots(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert manifest.main(["--root", str(tmp_path / "none"), "--out", str(tmp_path / "m")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no files in"):
        manifest_body.write_manifest(tmp_path / "empty", tmp_path / "m")
    with pytest.raises(InputError, match="list itself"):
        manifest_body.write_manifest(root, root / "m")
    assert not (tmp_path / "m").exists()


def test_digests_are_added_on_request_only(root: Path, tmp_path: Path) -> None:
    for flags in ([], ["--no-mtime"], ["--no-mtime", "--digest"]):  # each replaces the manifest before it
        assert manifest.main(["--root", str(root), "--out", str(tmp_path / "m"), *flags]) == 0
    names = ["a/10.jpg", "a/2.jpg", "a b/ü.jpg", "b.jpg"]
    contents = [name.encode() for name in names]
    lines = [f"{len(c)} {hashlib.sha256(c).hexdigest()} {n}\n" for c, n in zip(contents, names, strict=True)]
    assert (tmp_path / "m").read_text() == "".join(lines)


def test_a_digest_detects_changes_that_size_and_time_do_not(root: Path, tmp_path: Path) -> None:
    for with_digest, changed in ((False, False), (True, True)):
        (root / "b.jpg").write_bytes(b"12345")
        os.utime(root / "b.jpg", ns=(0, 7))
        manifest_body.write_manifest(root, tmp_path / "m", with_digest=with_digest)
        (root / "b.jpg").write_bytes(b"54321")
        os.utime(root / "b.jpg", ns=(0, 7))
        assert manifest_body.write_manifest(root, tmp_path / "m", with_digest=with_digest) == (
            4,
            changed,
            Skips("files", 4 if with_digest else 0),
        )


def test_without_digests_no_file_is_opened(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "nowhere.jpg").symlink_to(tmp_path / "none")
    manifest_body.write_manifest(root, tmp_path / "m", with_mtime=False, with_digest=True)
    assert b" - nowhere.jpg\n" in (tmp_path / "m").read_bytes()

    def fail(path: object) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(manifest_body, "_digest", fail)
    assert manifest_body.write_manifest(root, tmp_path / "n") == (5, True, NONE)


def test_folders_that_systems_add_are_not_listed(root: Path, tmp_path: Path) -> None:
    for name in ("@eaDir/a.jpg", "a/__MACOSX/2.jpg"):
        (root / name).parent.mkdir()
        (root / name).touch()
    assert manifest_body.write_manifest(root, tmp_path / "m") == (4, True, NONE)


@pytest.mark.parametrize(("share", "code"), [(None, 1), ("0.25", 0)])
def test_files_without_a_digest_are_counted(root, tmp_path, share, code, capsys):
    (root / "nowhere.jpg").symlink_to(tmp_path / "none")  # not used
    (root / "self.jpg").symlink_to("self.jpg")
    os.mkfifo(root / "pipe")
    (root / "b.jpg").unlink()
    out = tmp_path / "m"
    option = [] if share is None else ["--max-skipped", share]
    assert manifest.main(["--root", str(root), "--out", str(out), "--no-mtime", "--digest", *option]) == code
    said, complained = capsys.readouterr()
    counts = "1 of 6 files skipped: 1 cannot be read: not a regular file (pipe)"
    assert said == (
        f"{out}: 6 files, written\nskipped 1 of 6 files: 1 cannot be read: not a regular file (pipe); "
        "not used: 2 link without a target\n"
    )
    assert (f"more than --max-skipped 0.05: {counts}; {out} is written" in complained) == bool(code)
    lines = out.read_text().splitlines()
    assert [line.split()[-1] for line in lines if " - " in line] == ["nowhere.jpg", "pipe", "self.jpg"]


@pytest.mark.parametrize("with_digest", [False, True])
def test_a_file_that_is_removed_meanwhile_is_left_out(root, tmp_path, monkeypatch, with_digest):
    listed = os.scandir

    def listed_and_removed(folder):
        if folder != os.fsencode(root):
            return listed(folder)
        entries = list(listed(folder))
        (root / "b.jpg").unlink()
        return contextlib.nullcontext(entries)

    monkeypatch.setattr(os, "scandir", listed_and_removed)
    found = manifest_body.write_manifest(root, tmp_path / "m", with_digest=with_digest)
    assert found == (3, True, Skips("files", 3 if with_digest else 0))
    assert "b.jpg" not in (tmp_path / "m").read_text()
