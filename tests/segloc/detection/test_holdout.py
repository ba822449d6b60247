"""Scans held out for validation: whole groups of one bag, the same choice for every seed, kept in the run."""

import dataclasses
import itertools
import json

import cv2
import numpy as np
import pytest

from segloc.common.datasets import Split
from segloc.common.errors import InputError
from segloc.common.run_files import VALIDATION
from segloc.detection import holdout
from segloc.detection.holdout import choose, hold_out
from segloc.detection.splits import read_split
from segloc.settings.finetuning import DataSettings

BAGS, COPIES = 8, 3


@pytest.fixture
def split(tmp_path):
    """24 scans of 8 bags, each three times with another brightness, one item each."""
    rng, images, annotations = np.random.default_rng(0), [], []
    (tmp_path / "scans").mkdir()
    for bag in range(BAGS):
        shape = cv2.resize(rng.integers(0, 2, (6, 8), dtype=np.uint8) * 200, (160, 120), interpolation=cv2.INTER_CUBIC)
        for copy in range(COPIES):
            number = copy * BAGS + bag
            scan = np.full((120, 160, 3), 255, np.uint8) - (shape * (0.7 + 0.1 * copy)).astype(np.uint8)[..., None]
            cv2.imwrite(str(tmp_path / "scans" / f"{number:02d}.png"), scan)
            images.append({"id": number, "file_name": f"{number:02d}.png", "width": 160, "height": 120})
            box = [10, 10, 50, 40]
            annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "Gun"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return read_split(Split("train", tmp_path / "a.json", tmp_path / "scans"))


def bags(split):
    return [scan.image_id % BAGS for scan in split.scans]


def test_scans_of_one_bag_stay_on_one_side(split, tmp_path):
    training, validation = hold_out(split, DataSettings(validation=0.25), tmp_path)
    assert len(validation.scans) == 6
    assert not {*bags(training)} & {*bags(validation)}
    assert sorted(bags(training) + bags(validation)) == sorted(bags(split))
    for part in (training, validation):
        ids = {scan.image_id for scan in part.scans}
        assert {image["id"] for image in part.ground_truth["images"]} == ids
        assert {item["image_id"] for item in part.ground_truth["annotations"]} == ids
    assert (training.name, validation.name) == ("train", "validation")


def test_the_choice_is_kept_in_the_run(split, tmp_path, monkeypatch):
    first = hold_out(split, DataSettings(validation=0.25), tmp_path)
    assert len(json.loads((tmp_path / VALIDATION).read_text())["positions"]) == 6
    grouped = []
    group_scans = holdout.group_scans
    monkeypatch.setattr(holdout, "group_scans", lambda *some: grouped.append(1) or group_scans(*some))
    assert hold_out(split, DataSettings(validation=0.25), tmp_path) == first
    assert not grouped
    hold_out(split, DataSettings(validation=0.4), tmp_path)  # another share
    other = dataclasses.replace(split, scans=split.scans[1:])
    hold_out(other, DataSettings(validation=0.4), tmp_path)  # another data set
    (tmp_path / VALIDATION).write_text('{"positions": ')
    hold_out(other, DataSettings(validation=0.4), tmp_path)
    assert len(grouped) == 3


def test_a_larger_share_holds_out_more(split):
    names, groups = [scan.path.name for scan in split.scans], [scan.image_id % BAGS for scan in split.scans]
    shares = [choose(names, groups, share) for share in (0, 0.13, 0.26, 0.5)]
    assert [len(chosen) for chosen in shares] == [0, 3, 6, 12]
    assert all(small < large for small, large in itertools.pairwise(shares))


def test_scans_that_cannot_be_read_are_not_held_out(split, tmp_path):
    for scan in split.scans[::BAGS]:
        scan.path.write_bytes(b"damaged")
    assert not {0} & {*bags(hold_out(split, DataSettings(validation=0.5), tmp_path)[1])}


def test_without_a_share_nothing_is_read(split, tmp_path, monkeypatch):
    monkeypatch.setattr(holdout, "group_scans", None)
    assert hold_out(split, DataSettings(), tmp_path) == (split, None)
    assert not (tmp_path / VALIDATION).exists()


def test_a_share_that_holds_out_no_item_is_refused(split, tmp_path):
    with pytest.raises(InputError, match=r"data\.validation 0\.05 of 24 scans holds out 0, which have no item; set a"):
        hold_out(split, DataSettings(validation=0.05), tmp_path)
