import json

import cv2
import numpy as np
import pytest

from segloc import pictures
from segloc.common.datasets import Split
from segloc.detection.image_scores import examples, judge, rank
from segloc.detection.splits import Scan, read_split
from segloc.reporting import pictures as pictures_body
from tests.segloc.toy_coco import annotation, coco, write_split

SIZE = (40, 60)  # height, width


def mask_at(x, y, w=10, h=10):
    mask = np.zeros(SIZE, np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def item(x, y, category=1, crowd=0, w=10):
    return {**annotation(1, 0, category, mask_at(x, y, w)), "iscrowd": crowd}


def found(x, y, score=0.9, category=1, mask=True):
    entry = annotation(1, 0, category, mask_at(x, y))
    keys = ("image_id", "category_id", "bbox", *(["segmentation"] if mask else []))
    return {**{key: entry[key] for key in keys}, "score": score}


def scan_of(*items):
    return Scan(0, None, SIZE[1], SIZE[0], tuple(items))


# A shift by 2 of 10 leaves an IoU of 80 / 120, by 5 of 50 / 150, which is too little to count as found.
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize(
    ("items", "detections", "expected"),
    [
        ([(0, 0)], [(0, 0)], (1.0, 0, 0)),
        ([(0, 0)], [(2, 0)], (2 / 3, 0, 0)),
        ([(0, 0)], [(5, 0)], (0.0, 1, 1)),
        ([(0, 0)], [], (0.0, 1, 0)),
        ([], [(0, 0)], (0.0, 0, 1)),
        ([(0, 0)], [(30, 20)], (0.0, 1, 1)),  # elsewhere
        ([(0, 0)], [(0, 0, 0.9, 4)], (0.0, 1, 1)),  # of another class
        ([(0, 0)], [(0, 0, 0.4)], (0.0, 1, 0)),  # too weak to count
        ([(0, 0)], [(0, 0, 0.6), (2, 0, 0.9)], (2 / 3 / 2, 0, 1)),  # the better one takes it, the other is false
        ([(0, 0)], [(0, 0, 0.6), (5, 0, 0.9)], (1 / 2, 0, 1)),  # the better detection overlaps too little
        ([(0, 0), (20, 0)], [(0, 0)], (0.5, 1, 0)),
        ([(0, 0), (5, 0)], [(5, 0), (0, 0)], (1.0, 0, 0)),  # each takes what it overlaps most
    ],
)
def test_score_of_an_image_by_hand(items, detections, expected, mask):
    judged = judge(scan_of(*(item(*one) for one in items)), [found(*one, mask=mask) for one in detections], 0.5)
    assert (pytest.approx(judged.score), judged.missed, judged.false_alarms) == expected


def test_detections_in_a_crowd_are_no_false_alarms():
    judged = judge(scan_of(item(0, 0), item(20, 0, crowd=1, w=30)), [found(0, 0), found(30, 0)], 0.5)
    assert (judged.score, judged.false_alarms, len(judged.items)) == (1.0, 0, 1)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize(("inside", "false_alarms"), [(4, 1), (5, 0), (6, 0)])
def test_half_a_detection_in_a_crowd_is_enough(inside, false_alarms, mask):
    detection = found(20 + inside - 10, 0, mask=mask)  # 10 wide, the crowd begins at 20
    judged = judge(scan_of(item(20, 0, crowd=1, w=30)), [detection], 0.5)
    assert judged.false_alarms == false_alarms


def test_masks_are_used_instead_of_boxes_if_present():
    """Detections with the right box and 0.64, a half and a quarter of the mask."""
    for (w, h), score in (((8, 8), 0.64), ((10, 5), 0.5), ((5, 5), 0)):
        one = found(0, 0)
        one["segmentation"] = annotation(1, 0, 1, mask_at(0, 0, w, h))["segmentation"]
        assert judge(scan_of(item(0, 0)), [one], 0.5).score == pytest.approx(score)


@pytest.fixture
def data(tmp_path):
    write_split(tmp_path / "truth.json", tmp_path / "images", 9, seed=0)
    return tmp_path


def perfect(data, share=1.0):
    """Return results equal to the truth for the first images, none for the others."""
    content = json.loads((data / "truth.json").read_text())
    kept = content["annotations"][: round(len(content["annotations"]) * share)]
    return [{key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.8} for a in kept]


def test_ranking_puts_faults_last_and_leaves_empty_images_out(data):
    content = json.loads((data / "truth.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in (7, 8)]
    (data / "truth.json").write_text(json.dumps(content))
    split = read_split(Split("t", data / "truth.json", data / "images"))
    results = perfect(data, 3 / 7)
    results += [{**results[0], "image_id": 8}, {**results[0], "image_id": 5}, {**results[0], "image_id": 5}]
    ranked = rank(split, results, 0.5)
    assert sorted(one.scan.image_id for one in ranked[:3]) == [0, 1, 2]
    assert 7 not in [one.scan.image_id for one in ranked]  # no item and no detection
    assert ranked[-1].scan.image_id == 5  # an item missed and two false alarms
    chosen = examples(ranked, 2)
    assert {kind: len(images) for kind, images in chosen.items()} == {"best": 2, "median": 2, "worst": 2}
    assert chosen["median"] == ranked[3:5]
    shown = [one.scan.image_id for images in chosen.values() for one in images]
    assert len(set(shown)) == 6


@pytest.mark.parametrize(("count", "expected"), [(1, [1, 0]), (2, [1, 1]), (3, [1, 1, 1]), (5, [1, 1, 1])])
def test_few_images_are_shown_once(count, expected):
    ranked = [judge(scan_of(item(0, 0)), [], 0.5) for _ in range(count)]
    chosen = examples(ranked, 2)
    assert [len(images) for images in chosen.values()] == expected
    shown = [id(one) for images in chosen.values() for one in images]
    assert len(set(shown)) == len(shown)


def run(data, results, *arguments):
    (data / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
    where = ["--annotations", str(data / "truth.json"), "--images", str(data / "images")]
    return pictures.main(["--results", str(data / "results.json"), *where, "--out", str(data / "p.png"), *arguments])


def test_the_picture_shows_the_items_and_what_was_found(data):
    assert run(data, perfect(data)) == 0
    whole = (data / "p.png").read_bytes()
    assert run(data, perfect(data)) == 0
    assert (data / "p.png").read_bytes() == whole  # equal results, equal picture
    image = cv2.imread(str(data / "p.png"))
    assert image.shape[1] == round(pictures_body.PANEL_INCHES[0] * 4 * pictures_body.DPI)
    # Without detections, the left panels stay the same and the right panels have no outlines.
    assert run(data, []) == 0
    bare = cv2.imread(str(data / "p.png"))
    assert bare.shape == image.shape
    assert (bare != image).any()
    assert run(data, perfect(data), "--score", "0.9", "--each", "1") == 0
    assert cv2.imread(str(data / "p.png")).shape[1] == image.shape[1] // 2


def test_results_without_masks_or_boxes_and_names_with_dollars(data):
    content = json.loads((data / "truth.json").read_text())
    for category in content["categories"]:
        category["name"] = f"$Messer_$ Ä{category['id']}"
    (data / "truth.json").write_text(json.dumps(content))
    pages = []
    for left_out in ("segmentation", "bbox"):
        assert run(data, [{k: v for k, v in r.items() if k != left_out} for r in perfect(data)]) == 0
        pages.append((data / "p.png").read_bytes())
    assert pages[0] != pages[1]


@pytest.mark.parametrize(
    ("results", "arguments", "message"),
    [
        ("{", [], "not JSON"),
        ("{}", [], "not COCO results"),
        ("[" * 100_000, [], "not JSON"),
        ([{"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], [], "image_id 99"),
        ([{"image_id": 0, "category_id": 1, "score": 1}], [], "has no 'bbox'"),
        ([{"image_id": 0, "category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": {}, "score": 1}], [], "not an RLE"),
        ([], ["--score", "2"], "0 to 1 for --score"),
        ([], ["--each", "0"], "at least 1 for --each"),
        ([], ["--out", "p.jpg"], "p.jpg: is not a .png file"),
        ([], ["--images", "nowhere"], "nowhere: no such folder"),
        ([], ["--annotations", "nowhere"], "nowhere: no such file (annotations)"),
        ([], ["--results", "nowhere"], "nowhere: no such file (results)"),
    ],
)
def test_bad_input_gives_one_sentence(data, capsys, results, arguments, message):
    assert run(data, results, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_another_image_takes_the_place_of_an_unreadable_one(data, capsys):
    assert run(data, perfect(data, 0.5), "--each", "1") == 0
    best = rank(read_split(Split("t", data / "truth.json", data / "images")), perfect(data, 0.5), 0.5)[0]
    best.scan.path.write_bytes(b"no image")
    (data / "p.png").unlink()
    capsys.readouterr()
    assert run(data, perfect(data, 0.5), "--each", "1") == 1
    said = capsys.readouterr()
    counts = f"1 of 4 images skipped: 1 not a JPEG, PNG, BMP or TIFF file ({best.scan.path.name})"
    assert f"python -m segloc.pictures: more than --max-skipped 0.05: {counts}; " in said.err
    assert "p.png is written; check --annotations and --images, or raise --max-skipped" in said.err
    assert (data / "p.png").stat().st_size > 10_000
    assert run(data, perfect(data, 0.5), "--each", "1", "--max-skipped", "0.25") == 0
    assert "skipped 1 of 4 images: 1 not a JPEG" in capsys.readouterr().out


def test_annotations_that_are_left_out_count(data, capsys):
    content = json.loads((data / "truth.json").read_text())
    content["annotations"][0]["image_id"] = 99
    (data / "truth.json").write_text(json.dumps(content))
    assert run(data, perfect(data, 1.0)[1:], "--each", "1") == 1
    assert "1 of 9 annotations skipped: 1 image not in the file (annotation" in capsys.readouterr().err


def test_a_test_set_without_items_or_readable_images_is_refused(data, capsys):
    for path in (data / "images").iterdir():
        path.write_bytes(b"no image")
    assert run(data, [], "--each", "3") == 2
    said = "no image with an item or a detection can be read: 9 not a JPEG, PNG, BMP or TIFF file (scan 000.png, "
    assert said in capsys.readouterr().err
    (data / "truth.json").write_text(json.dumps(coco(json.loads((data / "truth.json").read_text())["images"])))
    assert run(data, []) == 2
    assert "no image has an item or a detection" in capsys.readouterr().err
