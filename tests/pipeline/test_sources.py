"""The first stage of `dvc repro`: its lists, and its report of changes."""

import json

import pytest

from pipeline import sources


@pytest.fixture
def folders(tmp_path):
    for name in ("pidray/train/a.png", "sixray/N0000001.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "pidray" / "train.json").write_text(json.dumps({}))
    return tmp_path


def run(root, foregrounds="pidray", *more):
    arguments = ["--foregrounds", str(root / foregrounds), "--backgrounds", str(root / "sixray")]
    return sources.main([*arguments, "--out", str(root / "manifest"), "--images", "", *more])


def test_the_second_call_reports_no_change_and_touches_nothing(folders, capsys):
    assert run(folders) == 0
    assert "the scans have changed" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (folders / "manifest").iterdir()}
    assert run(folders) == 0
    assert capsys.readouterr().out.endswith("nothing changed\n")
    assert {path: path.stat().st_mtime_ns for path in (folders / "manifest").iterdir()} == before


def test_a_new_background_changes_its_manifest_only(folders, capsys):
    run(folders)
    foregrounds = (folders / "manifest" / "foregrounds.manifest").read_bytes()
    backgrounds = (folders / "manifest" / "backgrounds.manifest").read_bytes()
    (folders / "sixray" / "N0000002.jpg").write_bytes(b"y")
    capsys.readouterr()
    assert run(folders) == 0
    assert "the scans have changed" in capsys.readouterr().out
    assert (folders / "manifest" / "foregrounds.manifest").read_bytes() == foregrounds
    assert (folders / "manifest" / "backgrounds.manifest").read_bytes() != backgrounds


def test_a_coco_file_is_listed_too_and_no_stale_manifest_stays(folders):
    assert run(folders, "pidray/train.json", "--images", str(folders / "pidray" / "train")) == 0
    manifest = folders / "manifest"
    assert b"train.json" in (manifest / "annotations.manifest").read_bytes()
    assert b"a.png" in (manifest / "foregrounds.manifest").read_bytes()
    assert run(folders) == 0
    assert not (manifest / "annotations.manifest").exists()


def test_missing_folder_is_one_line(folders, capsys):
    assert run(folders, "nowhere") == 2
    error = capsys.readouterr().err
    assert "nowhere: no such file or folder; correct foregrounds in params.yaml" in error
    assert len(error.strip().splitlines()) == 1
