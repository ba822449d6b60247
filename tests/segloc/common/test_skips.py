"""Counts of skipped inputs, and the rule of --max-skipped."""

import json

import pytest

from segloc.common import cli
from segloc.common.skips import MAX_SKIPPED, SkippedError, Skips, require


def counted(total, **reasons):
    skips = Skips("scans", total)
    for reason, count in reasons.items():
        for number in range(count):
            skips.add(reason.replace("_", " "), f"{reason}{number}.png")
    return skips


@pytest.mark.parametrize(
    ("skipped", "total", "share", "refused"),
    [
        (0, 0, 0.0, False),
        (0, 20, 0.0, False),
        (1, 1_000_000, 0.0, True),
        (1, 20, 0.05, False),  # exactly the share
        (1, 19, 0.05, True),
        (29, 100, 0.29, False),  # 0.29 * 100 is less than 29 in floating point
        (7, 100, 0.07, False),
        (30, 100, 0.29, True),
        (50_001, 1_000_000, 0.05, True),
        (20, 20, 1.0, False),
    ],
)
def test_a_share_above_the_limit_is_refused_and_an_equal_one_is_not(skipped, total, share, refused):
    skips = counted(total, broken=skipped)
    assert skips.more_than(share) == refused
    if refused:
        with pytest.raises(SkippedError) as error:
            require([skips], share, "mend them", "out.parquet")
        assert error.value.exit_code == 1
    else:
        require([skips], share, "mend them", "out.parquet")


def test_every_decimal_share_of_a_thousand_inputs_is_exact():
    for skipped in range(1001):
        assert not counted(1000, broken=skipped).more_than(float(f"{skipped / 1000:.3f}"))
        assert skipped == 0 or counted(1000, broken=skipped).more_than(float(f"{(skipped - 1) / 1000:.3f}"))


def test_the_message_has_the_counts_the_first_names_and_what_to_do():
    skips = counted(144, image_missing=120, broken_header=2)
    with pytest.raises(SkippedError) as error:
        require([counted(9), skips], MAX_SKIPPED, "check --images", "a.parquet")
    assert str(error.value) == (
        "more than --max-skipped 0.05: 122 of 144 scans skipped: 120 image missing (image_missing0.png, "
        "image_missing1.png, image_missing2.png, ...), 2 broken header (broken_header0.png, broken_header1.png); "
        "a.parquet is written; check --images, or raise --max-skipped"
    )


def test_each_kind_of_input_is_held_to_the_share():
    with pytest.raises(SkippedError, match="2 of 10 scans"):
        require([counted(1000), counted(10, broken=2)], 0.1, "mend them", "out")


def test_many_annotations_of_one_scan_have_its_name_once():
    skips = Skips("annotations", 9)
    skips.add("image missing", "a\nb.png", 3)
    skips.add("image missing", "a\nb.png", 2)
    assert skips.summary() == "skipped 5 of 9 annotations: 5 image missing (a\\nb.png, ...)"


def test_counts_survive_json():
    skips = counted(50, image_missing=7, broken=1)
    again = Skips.from_json(json.loads(json.dumps(skips.to_json())))
    assert again == skips
    assert skips.to_json()["skipped"] == 8
    assert skips.to_json()["reasons"]["image missing"] == {
        "count": 7, "first": ["image_missing0.png", "image_missing1.png", "image_missing2.png"],
    }  # fmt: skip


@pytest.mark.parametrize("text", ["nan", "-0.1", "1.01", "5%", "", "inf", "none"])
def test_a_share_that_is_none_is_refused_in_one_sentence(text, capsys):
    options = cli.parser("pipeline.x", "", "")
    cli.add_max_skipped(options)
    with pytest.raises(SystemExit) as stop:
        options.parse_args([f"--max-skipped={text}"])
    assert stop.value.code == 2
    said = f"python -m pipeline.x: argument --max-skipped: {text!r} is not a number from 0 to 1 (see --help)\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("given", "share"), [([], 0.05), (["--max-skipped", "0"], 0.0), (["--max-skipped=1"], 1.0)])
def test_the_option_is_a_share(given, share):
    options = cli.parser("pipeline.x", "", "")
    cli.add_max_skipped(options)
    assert options.parse_args(given).max_skipped == share
