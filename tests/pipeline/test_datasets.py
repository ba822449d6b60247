import json
import os
from pathlib import Path

import pytest

from pipeline import datasets
from pipeline.datasets import coco, pidray
from segloc.contract import InputError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    "names",
    [
        ["N0000001.jpg", "N0052516.jpg", "P00001.jpg"],
        ["JPEGImage/N0000001.jpg", "JPEGImage/N0052516.jpg", "JPEGImage/P00001.jpg", "Annotation/P00001.xml"],
        ["JPEGImages/N0000001.jpg", "JPEGImages/P00001.jpg", "JPEGImages/N0000002.JPG"],
        ["Image/N0000001.jpg", "Image/N0000002.jpg", "ImageSet/10/train.csv"],
        ["0/N0000001.jpg", "1/N0052516.jpg", "20/N1050302.jpg", "positive/P00001.jpg", "positive/P00002.jpg"],
        ["N0000001.jpg", "N0000002.jpg", "P00001.jpg", "preview.jpg"],
    ],
    ids=["flat", "JPEGImage", "JPEGImages", "Image", "numbered", "stray file"],
)
def test_sixray_gives_its_negatives_in_every_packaging(names: list[str], tmp_path: Path) -> None:
    expected = sorted(name for name in names if name.rpartition("/")[2].startswith("N"))
    assert datasets.backgrounds(touch(tmp_path, *names)) == expected


def test_sixray_positives_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="positives only"):
        datasets.backgrounds(touch(tmp_path, "P00001.jpg", "P00002.jpg"))


def test_any_folder_gives_all_its_scans_sorted(tmp_path: Path) -> None:
    names = ["b.png", "a b/Koffer ü.JPG", "a b/2.tiff", "Z.bmp", "P00001.jpg", "N.jpg"]
    litter = [".hidden.png", ".cache/x.png", "._b.png", "notes.txt", "scan.npy"]
    assert datasets.backgrounds(touch(tmp_path, *names, *litter)) == sorted(names)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.png")
    (root / "more").symlink_to(touch(tmp_path / "elsewhere", "b.png"))
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    assert datasets.backgrounds(root) == ["a.png", "more/b.png"]
    (tmp_path / "link").symlink_to(root)
    assert datasets.backgrounds(tmp_path / "link") == ["a.png", "more/b.png"]


def test_missing_and_empty_folders_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        datasets.backgrounds(tmp_path / "none")
    with pytest.raises(InputError, match="no scan in this folder"):
        datasets.backgrounds(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        datasets.backgrounds(touch(tmp_path, "file.png") / "file.png")


def test_both_pidray_releases_are_found_nested_or_not(tmp_path: Path) -> None:
    for base, name in [("v1", "xray_train.json"), ("v2/pidray", "train.json"), ("v3/pidray/pidray", "xray_train.json")]:
        touch(
            tmp_path / base,
            f"annotations/{name}",
            f"annotations/._{name}",
            "train/1.png",
            "annotations/xray_test_easy.json",
        )
        source = datasets.training_source(tmp_path / base.partition("/")[0], None)
        assert source.annotations == tmp_path / base / "annotations" / name
        assert source.images == tmp_path / base / "train"


def test_litter_alone_is_not_pidray(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a PIDray folder"):
        datasets.training_source(touch(tmp_path, "annotations/._xray_train.json", "train/1.png"), None)
    with pytest.raises(InputError, match="no such folder"):
        pidray.training_part(touch(tmp_path / "b", "annotations/xray_train.json"))


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("xray_test_easy.json", "all"),
        ("test.json", "all"),
        ("test_hidden.json", "all"),
        ("instances_test2017.json", "all"),
        ("all.json", "easy"),
        ("all.json", "hard"),
        ("all.json", "hidden"),
        ("all.json", "test"),
    ],
)
def test_test_parts_are_refused(file: str, folder: str, tmp_path: Path) -> None:
    touch(tmp_path, f"annotations/{file}", f"{folder}/1.png")
    with pytest.raises(InputError, match="test part"):
        datasets.training_source(tmp_path / "annotations" / file, tmp_path / folder)


def test_a_name_that_only_contains_such_a_word_is_fine(tmp_path: Path) -> None:
    touch(tmp_path, "hardware_latest.json", "contest/1.png")
    assert datasets.training_source(tmp_path / "hardware_latest.json", tmp_path / "contest").images.name == "contest"


def test_the_scans_of_a_single_file_lie_beside_it_unless_told(tmp_path: Path) -> None:
    touch(tmp_path, "mine/train.json", "scans/1.png")
    file = tmp_path / "mine" / "train.json"
    assert datasets.training_source(file, None).images == tmp_path / "mine"
    assert datasets.training_source(file, tmp_path / "scans").images == tmp_path / "scans"


GOOD = {
    "id": 5,
    "image_id": 1,
    "category_id": 7,
    "bbox": [0, 0, 9, 9],
    "area": 50,
    "iscrowd": 0,
    "segmentation": [[0] * 6],
}


def coco_file(path: Path, annotations: list, **changes: object) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "categories": [{"id": 7, "name": "Knife"}, {"id": 3, "name": "Gun"}],
        "annotations": annotations,
    } | changes
    path.write_text(json.dumps(content))
    return path


def test_class_ids_are_positions_in_ascending_category_ids(tmp_path: Path) -> None:
    found = coco.read(coco_file(tmp_path / "f.json", [GOOD, GOOD | {"id": 6, "category_id": 3}]))
    assert found.classes == ("Gun", "Knife")
    assert [(i.class_id, i.segment_id, i.size) for i in found.instances] == [
        (0, "a.png#6", (20, 10)),
        (1, "a.png#5", (20, 10)),
    ]
    assert found.skipped == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iscrowd": 1}, "crowd"),
        ({"area": 0}, "degenerate"),
        ({"area": -3}, "degenerate"),
        ({"bbox": [0, 0, 0.5, 9]}, "degenerate"),
        ({"bbox": [0, 0, 9, 0]}, "degenerate"),
        ({"bbox": [0, 0, 9]}, "malformed annotation"),
        ({"bbox": "box"}, "malformed annotation"),
        ({"area": float("nan")}, "degenerate"),
        ({"area": None}, "malformed annotation"),
        ({"image_id": 2}, "image not in the file"),
        ({"image_id": [1]}, "malformed annotation"),
        ({"category_id": 1}, "category not in the file"),
        ({"id": 5}, "annotation id repeats"),
    ],
)
def test_unusable_annotations_are_counted_by_reason(change: dict, reason: str, tmp_path: Path) -> None:
    found = coco.read(coco_file(tmp_path / "f.json", [GOOD, GOOD | {"id": 6} | change]))
    assert [instance.annotation_id for instance in found.instances] == ["5"]
    assert found.skipped == {reason: 1}


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/a.png", "a/../../b.png", "..\\b.png", "", "C:\\a.png", "a\0b.png"]
)
def test_paths_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": name, "width": 20, "height": 10}]
    found = coco.read(coco_file(tmp_path / "f.json", [GOOD], images=images))
    assert found.instances == ()
    assert found.skipped == {"image path leaves its folder": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "no list 'images'"),
        ({"categories": []}, "no categories"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category ids repeat"),
        ({"categories": [{"name": "a"}]}, "category without id"),
        ({"images": [{"id": 1}]}, "image without"),
        ({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, "stands for 'a' and 'b'"),
        ({"images": [{"id": 1, "file_name": "xray_hard00014.png"}]}, "test part"),
    ],
)
def test_files_that_make_no_sense_are_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        coco.read(coco_file(tmp_path / "f.json", [GOOD], **changes))


def test_what_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_bytes(b'{"images": [')
    with pytest.raises(InputError, match="not JSON"):
        coco.read(tmp_path / "f.json")
    with pytest.raises(InputError, match="no such file"):
        coco.read(tmp_path / "none.json")


def test_real_annotations_are_all_usable(real_scans: Path) -> None:
    source = datasets.training_source(real_scans / "pidray", None)
    found = datasets.read(source)
    content = json.loads(source.annotations.read_text())
    assert len(found.instances) == len(content["annotations"])
    assert found.skipped == {}
    assert {instance.image for instance in found.instances} <= set(os.listdir(source.images))
