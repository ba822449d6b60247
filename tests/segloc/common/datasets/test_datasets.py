import contextlib
import json
import os
from pathlib import Path

import pytest

from segloc.common import datasets
from segloc.common.datasets import Annotations, Split, coco, leakage, pidray
from segloc.common.datasets.scan_paths import resolve
from segloc.common.errors import InputError
from segloc.detection.data import evaluation_splits
from segloc.settings.finetuning import DataSettings


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


NOT_SEARCHED = "folders not searched (hidden, of a system, or links to a folder above)"


def test_folders_that_systems_add_are_not_searched_and_told_in_one_line(tmp_path, capsys):
    names = ["a.png", "deep/b.png"]
    litter = ["deep/@eaDir/b.png", "__MACOSX/a.png", ".Trash-1000/files/c.png", "deep/.thumbnails/b.png"]
    root = touch(tmp_path, *names, *litter)
    assert datasets.backgrounds(root) == names
    said = f"{NOT_SEARCHED}: .Trash-1000, __MACOSX, deep/.thumbnails, ..."
    assert capsys.readouterr().out == f"{root}: 4 {said}\n"
    assert resolve(root, ["elsewhere/c.png"]) == {"elsewhere/c.png": None}


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.png")
    (root / "more").symlink_to(touch(tmp_path / "elsewhere", "b.png"))
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    assert datasets.backgrounds(root) == ["a.png", "more/b.png"]
    (tmp_path / "link").symlink_to(root)
    assert datasets.backgrounds(tmp_path / "link") == ["a.png", "more/b.png"]


@pytest.mark.parametrize("by_link", [False, True])
def test_links_to_folders_above_are_not_followed_and_told(tmp_path: Path, capsys, by_link) -> None:
    """Their scans lie beside the root: they may be the items' scans."""
    root = touch(tmp_path / "disk" / "deep" / "root", "a.png", "b/c.png")
    touch(tmp_path / "disk", "beside.png")
    (root / "b" / "up").symlink_to(tmp_path / "disk")
    if by_link:
        touch(tmp_path / "named", "beside too.png")
        (tmp_path / "named" / "root").symlink_to(root)
        (root / "up").symlink_to(tmp_path / "named")
        root = tmp_path / "named" / "root"
    assert datasets.backgrounds(root) == ["a.png", "b/c.png"]
    links = ["up", "b/up"] if by_link else ["b/up"]
    assert capsys.readouterr().out == f"{root}: {len(links)} {NOT_SEARCHED}: {', '.join(links)}\n"
    assert resolve(root, ["elsewhere/beside.png"]) == {"elsewhere/beside.png": None}


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


def test_stray_files_alone_are_not_pidray(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a PIDray folder"):
        datasets.training_source(touch(tmp_path, "annotations/._xray_train.json", "train/1.png"), None)
    with pytest.raises(InputError, match="no such folder"):
        datasets.training_source(touch(tmp_path / "b", "annotations/xray_train.json"), None)


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


def test_a_name_that_only_contains_a_test_word_is_accepted(tmp_path: Path) -> None:
    touch(tmp_path, "hardware_latest.json", "contest/1.png")
    assert datasets.training_source(tmp_path / "hardware_latest.json", tmp_path / "contest").images.name == "contest"


def test_the_scans_of_a_single_file_are_beside_it_by_default(tmp_path: Path) -> None:
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
    for image in content["images"] or ():
        with contextlib.suppress(KeyError, OSError, ValueError):
            touch(path.parent, image["file_name"])
    return path


def instances_of(path: Path) -> Annotations:
    return coco.read_instances(path, path.parent)


def test_class_ids_are_positions_in_ascending_category_ids(tmp_path: Path) -> None:
    found = instances_of(coco_file(tmp_path / "f.json", [GOOD, GOOD | {"id": 6, "category_id": 3}]))
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
        ({"area": -3}, "malformed area"),
        ({"area": 2e10}, "malformed area"),
        ({"bbox": [0, 0, 9, -1]}, "malformed bbox"),
        ({"bbox": [0, 0, 0.5, 9]}, "degenerate"),
        ({"bbox": [0, 0, 9, 0]}, "degenerate"),
        ({"bbox": [0, 0, 9]}, "malformed bbox"),
        ({"bbox": "box"}, "malformed bbox"),
        ({"area": float("nan")}, "malformed area"),
        ({"area": "large"}, "malformed area"),
        ({"iscrowd": "perhaps"}, "malformed iscrowd"),
        ({"iscrowd": 2}, "malformed iscrowd"),
        ({"iscrowd": float("nan")}, "malformed iscrowd"),
        ({"iscrowd": True}, "crowd"),
        ({"image_id": None}, "no image_id"),
        ({"category_id": None}, "no category_id"),
        ({"category_id": float("inf")}, "malformed category_id"),
        ({"bbox": [0, 0, float("nan"), 9]}, "malformed bbox"),
        ({"image_id": 2}, "image not in the file"),
        ({"image_id": [1]}, "malformed image_id"),
        ({"category_id": 1}, "category not in the file"),
        ({"id": 5}, "annotation id repeats"),
        ({"segmentation": [[[[[[1]]]]]]}, "malformed segmentation"),
        ({"segmentation": {"size": [1, 1], "counts": [[[[[1]]]]]}}, "malformed segmentation"),
    ],
)
def test_unusable_annotations_are_counted_by_reason(change: dict, reason: str, tmp_path: Path) -> None:
    found = instances_of(coco_file(tmp_path / "f.json", [GOOD, GOOD | {"id": 6} | change]))
    assert [instance.annotation_id for instance in found.instances] == ["5"]
    assert found.skipped == {reason: 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "no list 'images'"),
        ({"categories": []}, "no categories"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category id 1 occurs more than once"),
        ({"categories": [{"name": "a"}]}, "category without id"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": "1", "name": "b"}]}, "category id 1 occurs more than once"),
        ({"categories": [{"id": float("inf"), "name": "a"}]}, "category id 'inf' is not a whole number"),
        ({"categories": [{"id": 1, "name": None}]}, "category without name"),
        ({"images": [{"id": 1}]}, "image without"),
        ({"images": [{"id": 1, "file_name": "a", "width": float("nan")}]}, "image width 'nan' is not a whole number"),
        ({"images": [{"id": 1, "file_name": "a"}] * 2}, "image id 1 occurs more than once"),
        ({"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}, "stands for 'a' and 'b'"),
        ({"images": [{"id": 1, "file_name": "xray_hard00014.png"}]}, "test part"),
    ],
)
def test_invalid_files_are_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        instances_of(coco_file(tmp_path / "f.json", [GOOD], **changes))


@pytest.mark.parametrize("field", ["id", "bbox", "area", "iscrowd", "ignore"])
def test_null_means_absent(field: str, tmp_path: Path) -> None:
    absent = {key: value for key, value in GOOD.items() if key != field}
    expected = coco.read_coco(coco_file(tmp_path / "f.json", [absent]))
    assert coco.read_coco(coco_file(tmp_path / "f.json", [GOOD | {field: None}])) == expected
    assert expected.items[0].problem is None


def test_text_that_is_a_number_is_that_number(tmp_path: Path) -> None:
    expected = coco.read_coco(coco_file(tmp_path / "f.json", [GOOD]))
    text = {"id": "5", "image_id": "1.0", "category_id": 7.0, "area": "50", "iscrowd": "0", "bbox": ["0", 0, "9", 9]}
    images = [{"id": "1", "file_name": "a.png", "width": "20", "height": 10.0}]
    categories = [{"id": "7", "name": "Knife"}, {"id": " 3", "name": "Gun"}]
    path = coco_file(tmp_path / "g.json", [GOOD | text], images=images, categories=categories)
    assert coco.read_coco(path) == expected


def test_other_text_and_64_bit_numbers_are_distinct_ids(tmp_path: Path) -> None:
    ids = [2**63 + 1, 2**63 + 2, "a", "A", "1e3", 1000]
    images = [{"id": key, "file_name": f"{position}.png"} for position, key in enumerate(ids)]
    categories = [{"id": "knife", "name": "Knife"}, {"id": 9, "name": "Gun"}]
    annotations = [GOOD | {"image_id": key, "category_id": "knife"} | {"id": key} for key in ids]
    found = instances_of(coco_file(tmp_path / "f.json", annotations, images=images, categories=categories))
    assert found.classes == ("Gun", "Knife")
    expected = [f"{position}.png#{key}" for position, key in enumerate(ids)]
    assert [instance.segment_id for instance in found.instances] == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_accepted(encoding: str, tmp_path: Path) -> None:
    expected = instances_of(coco_file(tmp_path / "f.json", [GOOD]))
    (tmp_path / "f.json").write_text((tmp_path / "f.json").read_text(), encoding=encoding)
    assert instances_of(tmp_path / "f.json") == expected


def test_text_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_bytes(b'{"images": [')
    with pytest.raises(InputError, match="not JSON"):
        instances_of(tmp_path / "f.json")
    (tmp_path / "f.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not JSON"):
        instances_of(tmp_path / "f.json")
    with pytest.raises(InputError, match="no such file"):
        instances_of(tmp_path / "none.json")


def test_parts_of_a_copy_without_a_training_file_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "pidray/annotations/test_hard.json")
    assert datasets.splits(tmp_path)["hard"].images == tmp_path / "pidray" / "test"
    with pytest.raises(InputError, match="no such file"):
        datasets.training_source(tmp_path, None)


def test_a_new_data_set_is_found_once_it_is_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Opixray:
        NOT_FOUND = "not an OPIXray folder"

        @staticmethod
        def splits(root: Path) -> dict[str, Split] | None:
            file = root / "items.json"
            return {name: Split(name, file, root) for name in ("train", "occluded")} if file.exists() else None

    monkeypatch.setattr(datasets, "_ANNOTATED", (pidray, Opixray))
    root = touch(tmp_path / "opixray", "1.png")
    assert datasets.backgrounds(root) == ["1.png"]
    with pytest.raises(InputError, match=r"not a PIDray folder .*, not an OPIXray folder"):
        datasets.splits(root)
    touch(root, "items.json")
    assert list(datasets.splits(root)) == ["train", "occluded"]
    with pytest.raises(InputError, match="an annotated data set, whose scans have prohibited items"):
        datasets.backgrounds(root)
    assert datasets.training_source(root, None).annotations == root / "items.json"
    assert [split.name for split in evaluation_splits(DataSettings(root=str(root)))] == ["occluded"]


def test_every_test_part_of_a_known_data_set_is_recognised_by_its_name(tmp_path: Path) -> None:
    """A finder whose test parts have other names has to add them to `leakage.TEST_WORDS`."""
    touch(tmp_path, "annotations/xray_train.json", "annotations/xray_test_easy.json")
    for data_set in datasets._ANNOTATED:
        parts = data_set.splits(tmp_path)
        assert parts is not None, "lay out an example of the new data set above"
        for name, split in parts.items():
            if name != datasets.TRAIN:
                with pytest.raises(InputError, match="looks like a test part"):
                    leakage.refuse_test_parts(split.annotations, tmp_path / "all")
                with pytest.raises(InputError, match="looks like a test part"):
                    leakage.refuse_test_parts(tmp_path / "all.json", split.images)


def test_real_annotations_are_all_usable(real_scans: Path) -> None:
    source = datasets.training_source(real_scans / "pidray", None)
    found = datasets.read_split_instances(source)
    content = json.loads(source.annotations.read_text())
    assert len(found.instances) == len(content["annotations"])
    assert found.skipped == {}
    assert {instance.image for instance in found.instances} <= set(os.listdir(source.images))


# Files known to exist beside or instead of the scans (PIDray, SIXray).


def pidray_copy(root: Path, release: int, scans: list[str], owners: list[object], **changes: object) -> Path:
    """A PIDray copy whose train file lists `scans`, with ids from 0, and an annotation per entry of `owners`."""
    touch(root, *(f"train/{name}" for name in scans), "annotations/._train.json")
    (root / "test").mkdir(exist_ok=True)
    listed = [{"id": i, "file_name": name, "width": 20, "height": 10} for i, name in enumerate(scans)]
    annotations = [GOOD | {"id": i, "image_id": owner} for i, owner in enumerate(owners)]
    coco_file(
        root / "annotations" / ("xray_train.json", "train.json")[release - 1],
        annotations,
        **{"images": listed} | changes,
    )
    return root


SCANS = [f"xray_{number:05d}.png" for number in range(5)]


@pytest.mark.parametrize("nested", ["", "pidray", "pidray/pidray"])
def test_pidray_v2_gives_its_unannotated_training_scans(nested: str, tmp_path: Path) -> None:
    root = pidray_copy(tmp_path / nested, 2, SCANS, [0, 0, 3])
    touch(root, "test/xray_easy00001.png", "train/unlisted.png", "train/._xray_00001.png")
    (root / "train" / SCANS[4]).unlink()  # listed as benign, but missing
    prefix = f"{nested}/" if nested else ""
    assert datasets.backgrounds(tmp_path) == [f"{prefix}train/{SCANS[1]}", f"{prefix}train/{SCANS[2]}"]


def test_every_annotation_counts_against_a_background_even_an_unusable_one(tmp_path: Path) -> None:
    root = pidray_copy(tmp_path, 2, SCANS[:3], [])
    unusable = [GOOD | {"image_id": 0, "iscrowd": 1}, {"image_id": 1}]
    images = [{"id": i, "file_name": name} for i, name in enumerate(SCANS[:3])]
    coco_file(root / "annotations" / "train.json", unusable, images=images)
    assert datasets.backgrounds(root) == [f"train/{SCANS[2]}"]
    # The text and the number of an id are the same id.
    coco_file(root / "annotations" / "train.json", [GOOD | {"image_id": "2"}], images=images)
    assert datasets.backgrounds(root) == [f"train/{SCANS[0]}", f"train/{SCANS[1]}"]


def test_repacked_file_names_with_folders_find_their_scans(tmp_path: Path) -> None:
    names = [f"images/train/{name}" for name in SCANS[:3]]
    root = pidray_copy(
        tmp_path, 2, SCANS[:3], [0], images=[{"id": i, "file_name": name} for i, name in enumerate(names)]
    )
    assert datasets.backgrounds(root) == [f"train/{SCANS[1]}", f"train/{SCANS[2]}"]


def test_annotations_of_unknown_images_make_all_backgrounds_unsafe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not list \(image_id 77\)"):
        datasets.backgrounds(pidray_copy(tmp_path, 2, SCANS, [0, 77]))


def test_pidray_v1_has_no_backgrounds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in the first release every scan has prohibited items"):
        datasets.backgrounds(pidray_copy(tmp_path, 1, SCANS, [0, 1, 2, 3, 4]))


@pytest.mark.parametrize("name", ["xray_00001.png", "xray_easy00001.png", "sub/xray_hidden00001.png"])
def test_a_bare_folder_of_pidray_has_no_backgrounds(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scans of PIDray, which have prohibited items"):
        datasets.backgrounds(touch(tmp_path, name))


def test_an_image_id_that_repeats_across_splits_stays_within_its_own_file(tmp_path: Path) -> None:
    root = pidray_copy(tmp_path, 1, SCANS, [1])
    other = [{"id": 1, "file_name": "xray_easy00001.png"}]
    coco_file(root / "annotations" / "xray_test_easy.json", [GOOD], images=other)
    (instance,) = datasets.read_split_instances(datasets.training_source(root, None)).instances
    assert instance.image == SCANS[1]


def test_a_converted_copy_keeps_its_own_ids_and_spelling(tmp_path: Path) -> None:
    categories = [{"id": 2, "name": "gun"}, {"id": 0, "name": "Handcuffs"}, {"id": 1, "name": "knife"}]
    found = instances_of(coco_file(tmp_path / "f.json", [GOOD | {"category_id": 0}], categories=categories))
    assert found.classes == ("Handcuffs", "knife", "gun")
    assert found.instances[0].class_id == 0


def test_a_box_beyond_the_scan_does_not_lose_the_item(tmp_path: Path) -> None:
    found = instances_of(coco_file(tmp_path / "f.json", [GOOD | {"bbox": [-5, -5, 400, 300]}]))
    assert len(found.instances) == 1


def test_entries_marked_ignore_are_left_out(tmp_path: Path) -> None:
    assert instances_of(coco_file(tmp_path / "f.json", [GOOD | {"ignore": 1}])).skipped == {"marked ignore": 1}


def test_two_categories_of_one_name_are_refused(tmp_path: Path) -> None:
    categories = [{"id": 7, "name": "Knife"}, {"id": 8, "name": "knife"}]
    with pytest.raises(InputError, match="category name 'knife' occurs more than once"):
        instances_of(coco_file(tmp_path / "f.json", [GOOD], categories=categories))


@pytest.mark.parametrize("name", ["test/xray_00001.png", "pidray/hard/1.png", "test_hidden\\1.png", "Easy/1.png"])
def test_a_repacked_file_with_scans_from_a_test_folder_is_refused(name: str, tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": name}]
    with pytest.raises(InputError, match="test part"):
        instances_of(coco_file(tmp_path / "f.json", [GOOD], images=images))


def test_links_to_test_parts_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "original", "annotations/train.json", "annotations/test_hard.json", "test/1.png", "train/1.png")
    annotations, train = tmp_path / "original" / "annotations", tmp_path / "original" / "train"
    (tmp_path / "mine.json").symlink_to(annotations / "test_hard.json")
    (tmp_path / "mine").symlink_to(tmp_path / "original" / "test")
    for file, images in ((tmp_path / "mine.json", train), (annotations / "train.json", tmp_path / "mine")):
        with pytest.raises(InputError, match="test part"):
            datasets.training_source(file, images)
    (tmp_path / "link").symlink_to(tmp_path / "original")
    assert datasets.training_source(tmp_path / "link", None).images == tmp_path / "link" / "train"


@pytest.mark.parametrize("folder", ["test/images", "hidden/data", "xray_test_easy/JPEGImages"])
def test_test_scans_in_a_folder_with_a_generic_name_are_refused(folder: str, tmp_path: Path) -> None:
    touch(tmp_path, "all.json", f"{folder}/1.png", "train/images/1.png")
    with pytest.raises(InputError, match="test part"):
        datasets.training_source(tmp_path / "all.json", tmp_path / folder)
    assert datasets.training_source(tmp_path / "all.json", tmp_path / "train" / "images")


def test_sixray_with_all_files_of_its_archives(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "disk",
        "JPEGImage/N0000001.jpg",
        "JPEGImage/P00001.jpg",
        "JPEGImage/P05110.jpg",  # a positive without a usable XML is not a negative
        "JPEGImage/._N0000003.jpg",
        "JPEGImage/Thumbs.db",
        "Annotation/P00001.xml",
        "0/N0000001.jpg",  # unpacked twice
        "0/N0000002.jpg",
        "data_list.txt",
    )
    (root / "ImageSet" / "10").mkdir(parents=True)
    rows = ["name,Gun,Knife,Wrench,Pliers,Scissors", "P00001,1,-1,-1,-1,-1", "P05110,-1,-1,-1,-1,-1", "N0000009.jpg"]
    (root / "ImageSet" / "10" / "train.csv").write_text("\n".join(rows))
    (tmp_path / "link").symlink_to(root)
    assert datasets.backgrounds(tmp_path / "link") == ["0/N0000001.jpg", "0/N0000002.jpg"]


def test_positives_of_a_converted_sixray_are_left_out(tmp_path: Path) -> None:
    assert datasets.backgrounds(touch(tmp_path, "N0000001.png", "N0000002.png", "P00001.png")) == [
        "N0000001.png",
        "N0000002.png",
    ]
