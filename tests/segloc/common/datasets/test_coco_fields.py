"""The table of normalisation, row by row; docs/guide_own_data.md shows it to users."""

import json
import math

import numpy as np
import pytest

from segloc.common.datasets import coco_fields
from segloc.common.datasets.coco import read_coco
from segloc.common.datasets.coco_fields import area, box, flag, identifier, number, text, whole
from segloc.common.errors import InputError

REFUSED = ValueError
BIG = 2**63 + 12345


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (7.0, 7),
        ("7", 7),
        (" +007.00 ", 7),
        ("-3", -3),
        (-3.0, -3),
        (BIG, BIG),
        (str(BIG), BIG),
        (2.0**53, 2**53),
        (2.0**54, REFUSED),
        (1e300, REFUSED),
        ("1e3", "1e3"),  # a hash may look like this
        (1e3, 1000),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("", ""),
        ("a7 ", "a7 "),
        ("7.5", "7.5"),
        ("\u0667", "\u0667"),  # a digit of another script
        (7.5, REFUSED),
        (True, REFUSED),
        (math.inf, REFUSED),
        (math.nan, REFUSED),
        ([7], REFUSED),
        ({}, REFUSED),
    ],
)
def test_ids(value: object, expected: object) -> None:
    check(identifier, value, expected)


@pytest.mark.parametrize(
    ("parse", "value", "expected"),
    [
        (whole, "640", 640),
        (whole, 640.0, 640),
        (whole, "640.0", 640),
        (whole, "wide", REFUSED),
        (whole, 640.5, REFUSED),
        (whole, "Infinity", REFUSED),
        (whole, False, REFUSED),
        (number, "5e3", 5000.0),
        (number, " -.5 ", -0.5),
        (number, 5, 5),
        (number, "1_0", REFUSED),
        (number, "nan", REFUSED),
        (number, "inf", REFUSED),
        (number, "1e999", REFUSED),
        (number, 10**400, REFUSED),
        (number, math.nan, REFUSED),
        (number, True, REFUSED),
        (number, None, REFUSED),
        (flag, 0, False),
        (flag, 1, True),
        (flag, "0", False),
        (flag, "1", True),
        (flag, 1.0, True),
        (flag, True, True),
        (flag, " False ", False),
        (flag, "true", True),
        (flag, 2, REFUSED),
        (flag, -1, REFUSED),
        (flag, "yes", REFUSED),
        (flag, math.nan, REFUSED),
        (flag, [], REFUSED),
        (box, [1, "2", 3.5, "4"], [1, 2, 3.5, 4]),
        (box, [], None),
        (box, [1, 2, 3], REFUSED),
        (box, [1, 2, 3, None], REFUSED),
        (box, [-1, -2, 3, 0], [-1, -2, 3, 0]),
        (box, [1, 2, -3, 4], REFUSED),
        (box, [1, 2, 3, "-4"], REFUSED),
        (area, "7.5", 7.5),
        (area, 0, 0),
        (area, -1, REFUSED),
        (area, 1e10, 1e10),
        (area, 1.1e10, REFUSED),
        (box, [1, 2, 3, math.inf], REFUSED),
        (box, "1,2,3,4", REFUSED),
        (box, {"x": 1}, REFUSED),
        (text, "a", "a"),
        (text, 5, "5"),
        (text, ["a"], REFUSED),
        (text, True, REFUSED),
        (coco_fields.class_name, "Größe \U0001f512", "Größe \U0001f512"),
        (coco_fields.class_name, "\udce4", REFUSED),
        (coco_fields.class_name, " Cafe\u0301\n", "Caf\u00e9"),
        (coco_fields.class_name, "Gu\u200bn", "Gu\u200bn"),
        (coco_fields.class_name, 5, "5"),
        (coco_fields.class_name, True, REFUSED),
        (coco_fields.class_name, "", REFUSED),
        (coco_fields.class_name, " \u00a0\n", REFUSED),
        (coco_fields.class_name, "\u200b \ufeff", REFUSED),
    ],
)
def test_other_fields(parse: object, value: object, expected: object) -> None:
    check(parse, value, expected)


def check(parse, value, expected):
    if expected is REFUSED:
        with pytest.raises(ValueError, match=r"\S") as caught:
            parse(value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 160
        str(caught.value).encode()
    else:
        found = parse(value)
        assert found == expected
        assert type(found) is type(expected)


SAME = ["Gun ", "\tGun", "gun", "Gu\u200bn", "\ufeffGun", "Gun\u2060", "G\u00adun", " \u200b Gun"]
SAME += ["Gun\ufe0f", "Gun \u3164", "Gu\u2800n", "\u034fGun", "Gun\U000e0101"]


@pytest.mark.parametrize("name", [*SAME, "\uff27un"])
def test_names_of_one_class_in_a_file_are_refused(tmp_path, name):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "Gun"}, {"id": 2, "name": name}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    if name not in SAME:  # another letter
        assert read_coco(tmp_path / "a.json").categories == {1: "Gun", 2: name}
        return
    said = r"a\.json: not COCO: category name .*'.* occurs more than once, first as 'Gun' \(case, outer blanks and "
    with pytest.raises(InputError, match=said):
        read_coco(tmp_path / "a.json")


def test_names_in_composed_and_decomposed_letters_are_one_class():
    assert coco_fields.class_key("Ko\u0308rper") == coco_fields.class_key("K\u00d6RPER")


def test_far_too_many_categories_are_refused_at_once(tmp_path):
    categories = [{"id": number, "name": f"c{number}"} for number in range(20_001)]
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    with pytest.raises(InputError, match=r"a\.json: not COCO: 20001 categories, at most 20000 are read"):
        read_coco(tmp_path / "a.json")
    categories.pop()
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    assert len(read_coco(tmp_path / "a.json").categories) == 20_000


def test_every_way_to_write_a_number_is_one_id() -> None:
    rng = np.random.default_rng(0)
    for digits in (1, 5, 15, 19, 40, 300, 4299):
        for _ in range(20):
            value = int("".join(map(str, rng.integers(0, 10, digits)))) * int(rng.choice([-1, 1]))
            forms = [value, str(value), f" {value} ", f"{value}.0"]
            if abs(value) <= 2**53:
                forms += [float(value), str(float(value)) if abs(value) < 10**15 else value]
            assert {identifier(form) for form in forms} == {value}


def test_reading_an_id_again_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    letters = list("0179+-.e \t#aé\u0660\ud800")
    for _ in range(3000):
        read = identifier("".join(rng.choice(letters, rng.integers(0, 8))))
        assert identifier(read) == read


def test_nested_and_huge_values_are_shown_short() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, 10**4000, [["\ud800"] * 10**5], {"a": deep}):
        assert len(coco_fields.shown(value)) <= 70


@pytest.mark.parametrize("key", ["annotations", "id"])
def test_a_key_that_occurs_twice_is_refused_because_a_value_would_be_lost(tmp_path, key):
    text = '{"images": [], "annotations": [{"id": 1}], "categories": []}'
    again = text.replace(f'"{key}": ', f'"{key}": [], "{key}": ', 1)
    (tmp_path / "a.json").write_text(again)
    with pytest.raises(InputError, match=rf"a\.json: not JSON \(the key '{key}' occurs twice\)"):
        read_coco(tmp_path / "a.json")
