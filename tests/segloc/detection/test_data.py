import json

import cv2
import numpy as np
import pytest
import torch

from segloc.common import datasets
from segloc.common.datasets import Split
from segloc.common.errors import InputError
from segloc.common.images import encode_jpeg, encode_png
from segloc.detection.data import TrainingData, evaluation_splits, fit, make_example, read_scan, train_split
from segloc.detection.splits import Scan, is_trainable, mask_of, read_split
from segloc.settings.finetuning import DataSettings
from tests.segloc.common.test_images import jpeg_header, png_header
from tests.segloc.toy_coco import CATEGORY_IDS, CLASSES, rle, write_pidray, write_split


@pytest.fixture
def split(tmp_path):
    write_split(tmp_path / "a.json", tmp_path / "images", 4, seed=0)
    return Split("train", tmp_path / "a.json", tmp_path / "images")


def change(split, edit):
    content = json.loads(split.annotations.read_text())
    edit(content)
    split.annotations.write_text(json.dumps(content))


def test_classes_follow_ascending_ids(split):
    read = read_split(split)
    assert (read.classes, read.category_ids) == (CLASSES, CATEGORY_IDS)


@pytest.mark.parametrize("layout", ["v1", "v2", "nested"])
def test_both_releases_of_pidray_are_found(tmp_path, layout):
    root = tmp_path / "pidray" if layout == "nested" else tmp_path
    write_pidray(root, 2, 1)
    (root / "annotations" / "._xray_train.json").write_bytes(b"\x00\x05\x16\x07litter")
    if layout == "v2":
        for old in list((root / "annotations").glob("xray_*.json")):
            old.rename(old.with_name(old.name.removeprefix("xray_")))
        for subset in ("easy", "hard", "hidden"):  # one flat folder; the toy's names collide, so any copy will do
            (root / subset).rename(root / "test") if not (root / "test").exists() else None
    settings = DataSettings(root=str(tmp_path))
    assert len(read_split(train_split(settings)).scans) == 2
    assert [read_split(s).name for s in evaluation_splits(settings)] == ["easy", "hard", "hidden"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["images"].append(dict(c["images"][0])), "image id 0 occurs more than once"),
        (lambda c: c.pop("categories"), "not a COCO annotation file"),
        (lambda c: c["images"][0].pop("width"), "not COCO"),
        (lambda c: c["images"][1].update(id=1.5), "image id '1.5' is not a whole number"),
        (lambda c: c["images"][1].update(id=[1]), "image id .* is not a whole number"),
        (lambda c: c["categories"][1].update(id=True), "category id 'True' is not a whole number"),
        (lambda c: c["images"][0].update(width=-5), "not between 1 and 65500 pixels"),
        (lambda c: c["images"][0].update(width=float("inf")), "not COCO"),
    ],
)
def test_faulty_files_are_refused_before_work_starts(split, edit, message):
    change(split, edit)
    with pytest.raises(InputError, match=message):
        read_split(split)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c["annotations"][0].update(image_id=99), "image not in the file"),
        (lambda c: c["annotations"][0].update(category_id=2), "category not in the file"),
        (lambda c: c["annotations"][0].pop("image_id"), "no image_id"),
        (lambda c: c["annotations"][0].update(category_id=None), "no category_id"),
        (lambda c: c["annotations"][0].update(iscrowd="x"), "malformed iscrowd"),
        (lambda c: c["annotations"][0].update(id=float("nan")), "malformed id"),
        (lambda c: c["annotations"][0].update(image_id=[0]), "malformed image_id"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "malformed bbox"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "malformed bbox"),
        (lambda c: c["annotations"][0].update(area=float("inf")), "malformed area"),
        (lambda c: c["annotations"][0].update(c["annotations"][2]), "annotation id repeats"),
    ],
)
def test_a_faulty_annotation_is_left_out_and_counted(split, edit, reason):
    whole = read_split(split)
    change(split, edit)
    read = read_split(split)
    assert dict(read.skips.counts) == {reason: 1}
    assert (read.skips.total, read.skips.skipped) == (4, 1)
    gone = 2 if reason == "annotation id repeats" else 0  # the second of the two
    kept = [annotation for number, annotation in enumerate(whole.ground_truth["annotations"]) if number != gone]
    if gone:
        kept[0] = {**whole.ground_truth["annotations"][2], "id": 1}
    assert read.ground_truth["annotations"] == kept
    assert read.ground_truth["images"] == whole.ground_truth["images"]


def test_an_id_that_other_images_have_too_stands_for_an_annotation_of_each(split):
    whole = read_split(split)
    change(split, lambda content: [annotation.update(id=1) for annotation in content["annotations"]])
    assert read_split(split) == whole


def test_a_file_whose_annotations_are_all_faulty_is_refused(split):
    change(split, lambda content: [annotation.update(image_id=99) for annotation in content["annotations"]])
    with pytest.raises(InputError, match="no usable annotation; skipped 4 of 4 annotations: 4 image not in the file"):
        read_split(split)


@pytest.mark.parametrize("name", ["gone.png", "../images/../secret.png", "/etc/hostname", "a/../../secret.png"])
def test_a_missing_image_stays_in_the_set_and_never_leaves_the_folder(split, name):
    (split.images.parent / "secret.png").write_bytes((split.images / "scan 001.png").read_bytes())
    change(split, lambda content: content["images"][1].update(file_name=name))
    scan = read_split(split).scans[1]
    assert scan.path.parent == split.images
    with pytest.raises(InputError, match="no such file"):
        read_scan(scan)


def test_a_folder_that_is_not_pidray_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a PIDray folder"):
        datasets.splits(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        datasets.splits(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no data"):
        train_split(DataSettings())


def test_annotations_without_a_mask_are_counted_and_left_out(split):
    def edit(content):
        content["annotations"][0]["segmentation"] = [[1, 1, 5, 5]]  # two points are no polygon
        content["annotations"][1]["segmentation"] = []
        content["annotations"][2]["segmentation"]["size"] = [5, 5]

    change(split, edit)
    read = read_split(split)
    assert read.dropped == 3
    assert [len(scan.annotations) for scan in read.scans] == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 1, 1e12, 1, 5, 5]],  # drawing it would take all memory
        [[1, 1, float("nan"), 1, 5, 5]],
        [[1, 1, 9, 1, 5]],
        [["1", 1, 9, 1, 5, 5]],
        {"size": [56, 80], "counts": [10, 5]},
        {"size": [56, 80], "counts": [-1, 4481]},
        {"size": [56, 80], "counts": "P13"},
        {"size": [56, 80], "counts": "P137000j1ppp"},
        {"size": [56, 80], "counts": "\u00e9"},
        {"size": [56, 80]},
        {"size": 3, "counts": [4480]},
        "mask",
        [[1, 1, 9, 1, 9, 9], [1e9, 1, 5, 5, 1, 9]],  # one valid part is not enough
        {"size": [56, 80], "counts": "e5QncV"},  # pycocotools would loop over billions of runs
    ],
)
def test_masks_that_pycocotools_cannot_handle_are_left_out(split, segmentation):
    change(split, lambda content: content["annotations"][0].update(segmentation=segmentation))
    assert read_split(split).dropped == 1


@pytest.mark.parametrize("segmentation", [[[5, 5, 5, 5, 5, 5]], {"size": [56, 80], "counts": [4480]}])
def test_an_item_whose_mask_has_no_pixel_counts_but_is_not_trained_on(split, segmentation):
    change(split, lambda content: content["annotations"][0].update(segmentation=segmentation))
    read = read_split(split)
    assert read.dropped == 0
    assert read.ground_truth["annotations"][0]["segmentation"] == segmentation
    assert len(TrainingData(read, DataSettings(train_empty=False), 1, 0)) == 3


@pytest.mark.parametrize("box", [None, "missing"])
def test_a_missing_box_is_computed_from_the_mask_if_there_is_one(split, box):
    before = read_split(split)

    def edit(content):
        content["annotations"][1].pop("bbox") if box == "missing" else content["annotations"][1].update(bbox=box)

    change(split, edit)
    assert read_split(split) == before
    for segmentation in (None, [[5, 5, 5, 5, 5, 5]]):
        change(split, lambda content, new=segmentation: content["annotations"][1].update(segmentation=new))
        skips = read_split(split).skips
        assert skips.names == {"no box and no mask to compute it from": ["annotation 1 of image 1"]}


def test_a_byte_order_mark_is_skipped(split):
    before = read_split(split)
    split.annotations.write_text(split.annotations.read_text(), encoding="utf-8-sig")
    assert split.annotations.read_bytes().startswith(b"\xef\xbb\xbf")
    assert read_split(split) == before


def test_polygons_and_both_kinds_of_rle_decode_alike(split):
    mask = np.zeros((56, 80), np.uint8)
    mask[10:30, 20:50] = 1
    runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=0)), prepend=0).tolist()
    polygon = [[20, 10, 50, 10, 50, 30, 20, 30]]
    plain = {"size": [56, 80], "counts": [*runs, mask.size - sum(runs)]}
    for segmentation in (polygon, plain):
        assert (mask_of({"segmentation": segmentation}, 56, 80) == mask).all()
    scan = read_split(split).scans[0]
    x, y, w, h = scan.annotations[0]["bbox"]
    assert mask_of(scan.annotations[0], 56, 80)[y : y + h, x : x + w].all()  # the toy's first item fills its box


def test_training_leaves_out_crowds_and_degenerate_boxes(split):
    def edit(content):
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][1]["area"] = 0
        content["annotations"][2]["bbox"][2] = 0.5
        content["annotations"][2]["segmentation"] = []  # its mask would contradict the box

    change(split, edit)
    read = read_split(split)
    assert len(TrainingData(read, DataSettings(), 1, 0)) == 1
    assert len(TrainingData(read, DataSettings(train_empty=True), 1, 0)) == 4
    assert len(read.ground_truth["annotations"]) == 4  # COCO's own code handles them in evaluation
    assert all(len(make_example(s, {1: 0, 4: 1, 7: 2}, 80, False).boxes) == 0 for s in read.scans[:3])


@pytest.mark.parametrize(
    ("bbox", "trainable"),
    [
        ((10, 10, 1, 1), True),
        ((10, 10, 0.9, 5), False),
        ((10, 10, 5, 0.9), False),
        ((-4, 10, 4.9, 5), False),  # only the part inside the scan (80 by 56) counts
        ((10, -4, 5, 4.9), False),
        ((79.1, 10, 5, 5), False),
        ((10, 55.1, 5, 5), False),
        ((-4, -4, 5, 5), True),
        ((79, 55, 5, 5), True),
    ],
)
def test_boxes_of_at_least_a_pixel_each_way_are_trained_on(bbox, trainable):
    annotation = {"bbox": list(bbox), "area": 1, "iscrowd": 0}
    assert is_trainable(annotation, 56, 80) == trainable


def test_shrinking_averages_what_a_pixel_covers():
    """Thin wires must not be skipped."""
    image = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    blocks = image.reshape(12, 4, 24, 4, 3).mean((1, 3))
    assert np.abs(fit(image, 24) - blocks).max() <= 0.5
    wire = np.zeros((48, 96), np.uint8)
    wire[:, 40] = 200
    assert (fit(wire, 24)[:, 10] == 50).all()


def test_enlarging_is_bilinear():
    image = np.random.default_rng(0).integers(0, 256, (14, 20, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image.transpose(2, 0, 1)[None]).float()
    expected = torch.nn.functional.interpolate(pixels, (35, 50), mode="bilinear", align_corners=False)
    assert np.abs(fit(image, 50) - expected[0].permute(1, 2, 0).numpy()).max() <= 1


def test_boxes_and_masks_follow_scaling_and_flipping(split):
    scan = read_split(split).scans[0]
    class_of = {category: i for i, category in enumerate(CATEGORY_IDS)}
    plain = make_example(scan, class_of, 160, False)
    flipped = make_example(scan, class_of, 160, True)
    x, y, w, h = scan.annotations[0]["bbox"]
    assert plain.image.shape == (3, 112, 160)
    assert plain.boxes[0].tolist() == [2 * x, 2 * y, 2 * (x + w), 2 * (y + h)]
    assert torch.equal(flipped.image, plain.image.flip(2))
    for example in (plain, flipped):
        x0, y0, x1, y1 = (int(v) for v in example.boxes[0])
        inside = torch.zeros_like(example.masks[0])
        inside[y0:y1, x0:x1] = True
        assert torch.equal(example.masks[0], inside)
        inner = example.image[:, y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].float().mean((1, 2))
        assert inner.tolist() == pytest.approx((40, 60, 200), abs=1)  # RGB


def test_batches_are_a_pure_function_of_seed_and_iteration(split):
    data = TrainingData(read_split(split), DataSettings(image_size=40, threads=2), 3, seed=5)
    whole = list(data.batches(0, 6))
    resumed = list(TrainingData(read_split(split), DataSettings(image_size=40), 3, seed=5).batches(4, 6))
    for one, other in zip(whole[4:], resumed, strict=True):
        assert [e.image_id for e in one] == [e.image_id for e in other]
        assert all(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))
    order = [i for iteration in range(4) for i in data.indices(iteration)]
    assert all(sorted(order[n : n + 4]) == [0, 1, 2, 3] for n in (0, 4, 8))  # every pass sees every scan once


def test_every_pass_and_every_seed_has_its_own_order(tmp_path):
    write_split(tmp_path / "a.json", tmp_path / "images", 12, seed=0)
    read = read_split(Split("train", tmp_path / "a.json", tmp_path / "images"))
    orders = set()
    for seed in range(2):
        data = TrainingData(read, DataSettings(), 4, seed)
        order = [i for iteration in range(9) for i in data.indices(iteration)]
        orders |= {tuple(order[n : n + 12]) for n in (0, 12, 24)}
    assert len(orders) == 6
    assert all(sorted(order) == list(range(12)) for order in orders)


def test_every_slot_of_every_iteration_has_its_own_flip(split):
    read = read_split(split)
    for scan in read.scans[1:]:
        scan.path.unlink()  # only the first is loaded
    class_of = {category: i for i, category in enumerate(CATEGORY_IDS)}
    mirrored = make_example(read.scans[0], class_of, 32, True).image

    def flips(probability, seed=0):
        data = TrainingData(read, DataSettings(image_size=32, flip=probability), 8, seed)
        data.indices = lambda iteration: [0] * 8
        return np.array([[torch.equal(data.example(i, s).image, mirrored) for s in range(8)] for i in range(24)])

    found = flips(0.5)
    assert len(np.unique(found, axis=0)) == 24  # no two iterations alike
    assert len(np.unique(found, axis=1).T) == 8  # no two slots alike
    assert found.mean() == pytest.approx(0.5, abs=0.12)
    assert flips(0.2).mean() == pytest.approx(0.2, abs=0.1)
    assert (flips(0.5, seed=1) != found).any()
    assert not flips(0.0).any()
    assert flips(1.0).all()


def test_an_example_does_not_depend_on_the_encoding_of_its_mask(split):
    """Polygon, uncompressed RLE, compressed RLE."""
    x, y, w, h = 20, 10, 30, 20
    mask = np.zeros((56, 80), np.uint8)
    mask[y : y + h, x : x + w] = 1
    runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=0)), prepend=0).tolist()
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    numbers = {"size": [56, 80], "counts": [*runs, mask.size - sum(runs)]}
    found = []
    for segmentation in (polygon, numbers, rle(mask)):
        new = {"segmentation": segmentation, "bbox": [x, y, w, h], "area": w * h}
        change(split, lambda content, new=new: content["annotations"][0].update(new))
        found.append(make_example(read_split(split).scans[0], {1: 0, 4: 1, 7: 2}, 160, True))
    for other in found[1:]:
        assert torch.equal(other.masks, found[0].masks)
        assert torch.equal(other.boxes, found[0].boxes)
    assert found[0].masks.sum() == 4 * w * h


def test_ids_that_repeat_across_files_stay_apart(tmp_path):
    """Every file of PIDray counts its images from the same number."""
    write_pidray(tmp_path, 2, 2)
    splits = [read_split(s) for s in evaluation_splits(DataSettings(root=str(tmp_path)))]
    assert all([scan.image_id for scan in split.scans] == [0, 1] for split in splits)
    assert len({scan.path for split in splits for scan in split.scans}) == 6
    assert len({repr(split.scans[0].annotations) for split in splits}) == 3


@pytest.mark.parametrize("fault", ["size", "bytes", "gone"])
def test_an_image_that_cannot_be_read_is_named_and_replaced_by_the_next(split, fault):
    read = read_split(split)
    whole = [example.image_id for example in next(TrainingData(read, DataSettings(), 4, 0).batches(0, 1))]
    assert sorted(whole) == [scan.image_id for scan in read.scans]
    spoil(read.scans[2].path, fault)
    data = TrainingData(read, DataSettings(), 4, 0)
    found = [example.image_id for example in next(data.batches(0, 1))]
    bad, following = read.scans[2].image_id, read.scans[3].image_id
    assert found == [following if image_id == bad else image_id for image_id in whole]
    assert list(data.unreadable) == [2]
    assert "scan 002.png" in data.unreadable[2]
    for scan in read.scans:
        scan.path.unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"none of the 4 training images can be read; .*scan 00\d\.png"):
        next(TrainingData(read, DataSettings(), 4, 0).batches(0, 1))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda scan: encode_jpeg(scan, 90)[:-200], "truncated file"),  # decoders fill the rest with grey
        (lambda scan: encode_png(scan)[:-12], "truncated file"),
        (lambda _: jpeg_header(65_000, 65_000), "too large: 65000x65000 pixels"),
        (lambda _: png_header(60_000, 60_000), "too large: 60000x60000 pixels"),
        (lambda _: b"", "empty file"),
    ],
)
def test_scans_that_decoders_would_fill_in_are_unreadable_with_the_reason_of_stage_1(split, make, reason):
    scan = read_split(split).scans[2]
    scan.path.write_bytes(make(np.full((scan.height, scan.width, 3), 90, np.uint8)))
    data = TrainingData(read_split(split), DataSettings(), 4, 0)
    next(data.batches(0, 1))
    assert data.unreadable == {2: f"{scan.path}: {reason}"}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_good_images_give_the_pixels_of_opencv(suffix, kind, channels, tmp_path):
    if suffix in (".jpg", ".bmp") and (kind is np.uint16 or channels == 4):
        pytest.skip("the format has no such images")
    image = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (37, 53, channels)).astype(kind)
    path = tmp_path / f"scan{suffix}"
    assert cv2.imwrite(str(path), image)
    expected = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    if kind is np.uint16:  # of a 16-bit TIFF, OpenCV rounds colours and darkens them by alpha
        expected = (image[..., :3] >> 8)[..., ::-1]
    assert (read_scan(Scan(0, path, 53, 37, ())) == expected).all()


def spoil(path, fault):
    if fault == "size":
        path.write_bytes(cv2.imencode(".png", np.zeros((5, 6, 3), np.uint8))[1].tobytes())
    elif fault == "bytes":
        path.write_bytes(path.read_bytes()[:40])
    else:
        path.unlink()


def test_a_fraction_is_part_of_every_larger_one_and_the_same_for_every_seed(split):
    whole = read_split(split)
    chosen = [
        {scan.path.name for scan in TrainingData(whole, DataSettings(fraction=fraction), 1, seed).scans}
        for fraction, seed in ((0.25, 0), (0.25, 1), (0.5, 0), (1.0, 0))
    ]
    assert [len(names) for names in chosen] == [1, 1, 2, 4]
    assert chosen[0] == chosen[1] < chosen[2] < chosen[3]
    with pytest.raises(InputError, match=r"data\.fraction=0\.1 of 4 images rounds to 0"):
        TrainingData(whole, DataSettings(fraction=0.1), 1, 0)
