"""White level of 16-bit scans: measured once for a set, and divided by without an offset."""

import re

import cv2
import numpy as np
import pytest

from segloc.common import white_level
from segloc.common.errors import InputError
from segloc.common.images import ImageError, decode, encode_jpeg, read_image

SIDE = 60


def scan(seed: int, white: int) -> np.ndarray:
    """Belt at `white`, a bag of half to nine tenths of it: uint16 [60, 60]."""
    rng = np.random.default_rng(seed)
    values = np.full((SIDE, SIDE), white, np.uint16)
    values[15:45, 10:50] = rng.integers(white // 2, white * 9 // 10, (30, 40))
    return values


def write(folder, scans, suffix=".png"):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:04d}{suffix}" for number in range(len(scans))]
    for path, values in zip(paths, scans, strict=True):
        assert cv2.imwrite(str(path), values)
    return paths


@pytest.mark.parametrize("white", [1023, 4095, 16_383, 50_000, 65_535])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_the_level_is_the_belts(tmp_path, white, suffix):
    found = white_level.choose(write(tmp_path, [scan(seed, white) for seed in range(5)], suffix))
    assert found == (white, f"16-bit scans: white level {white} (99.9 % of 5 scans)")


@pytest.mark.parametrize("mode", ["rgb", "grey"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("white", [1000, 4095, 16_383, 65_535])
def test_values_are_divided_by_the_level_without_an_offset(tmp_path, white, channels, suffix, mode):
    values = np.random.default_rng(0).integers(0, white, (SIDE, SIDE, channels)).astype(np.uint16)
    values[:10] = white
    values[10] = min(white * 3 // 2, 65_535)
    path = write(tmp_path, [values if channels == 3 else values[..., 0]], suffix)[0]
    quotient = 255 * np.minimum(values.astype(float) / white, 1)
    if mode == "grey":
        expected = quotient @ (0.114, 0.587, 0.299) if channels == 3 else quotient[..., 0]
        assert abs(read_image(path, "grey", white) - expected).max() <= 1.01
    else:
        expected = np.broadcast_to(np.floor(quotient[..., ::-1] + 0.5), (SIDE, SIDE, 3))
        assert (read_image(path, white=white) == expected).all()


def test_without_a_level_16_bits_of_a_whole_range_keep_their_high_byte(tmp_path):
    values = scan(0, 65_535)
    path = write(tmp_path, [values])[0]
    assert (read_image(path) == (values >> 8)[..., None]).all()
    assert abs(read_image(path, white=65_535).astype(int) - read_image(path)).max() <= 1


@pytest.mark.parametrize("encode", [lambda image: encode_jpeg(image, 90), lambda image: cv2.imencode(".png", image)[1]])
@pytest.mark.parametrize("mode", ["rgb", "grey"])
def test_scans_of_8_bits_are_left_as_they_are(encode, mode):
    data = bytes(encode(np.random.default_rng(0).integers(0, 90, (40, 50, 3)).astype(np.uint8)))
    assert (decode(data, mode, white=4095) == decode(data, mode)).all()


def test_a_set_of_8_bit_scans_has_no_level(tmp_path):
    paths = write(tmp_path, [np.full((9, 9), 200, np.uint8)] * 3)
    jpegs = write(tmp_path, [np.full((9, 9), 200, np.uint8)] * 3, ".jpg")
    assert white_level.choose([*paths, *jpegs]) == (None, "")
    assert white_level.choose([]) == (None, "")


def test_hot_pixels_do_not_change_the_level(tmp_path):
    scans = [scan(seed, 4095) for seed in range(4)]
    for values in scans:
        values.ravel()[:: SIDE * SIDE // 3] = 65_535  # 3 of 3,600
    assert white_level.choose(write(tmp_path, scans)).level == 4095


def test_dark_scans_do_not_change_the_level(tmp_path):
    dark = [np.full((SIDE, SIDE), 1200 + 20 * number, np.uint16) for number in range(12)]  # no belt
    paths = write(tmp_path, [*dark, *(scan(seed, 4095) for seed in range(20))])
    assert white_level.choose(paths).level == 4095
    assert (read_image(paths[0], white=4095) == 75).all()  # 255 * 1200 / 4095 = 74.7


def test_a_scan_of_more_bits_is_left_out_told_and_refused_when_read(tmp_path):
    paths = write(tmp_path, [*(scan(seed, 4095) for seed in range(9)), scan(9, 65_535)])
    found = white_level.choose(paths)
    assert found.level == 4095
    assert found.text.endswith("(99.9 % of 9 scans), without 1 more than 3 times as bright, such as 0009.png")
    with pytest.raises(ImageError, match="16 bits on another scale: used up to 65535, but the white level is 4095"):
        read_image(paths[9], white=found.level)


@pytest.mark.parametrize(("few", "belts"), [(1, [4095]), (4, [4095] * 4), (3, [3890, 3900, 3910]), (9, [4095] * 9)])
@pytest.mark.parametrize("most", [16_383, 15_500])
def test_scans_of_fewer_bits_are_not_darkened_in_silence(tmp_path, few, belts, most):
    fewer = write(tmp_path / "fewer", [scan(seed, belt) for seed, belt in enumerate(belts)])
    others = write(tmp_path / "others", [scan(seed, most) for seed in range(10)])
    said = (
        f"the 16-bit scans have two scales: {few} of {few + 10} sampled reach {belts[0]}, such as 0000.png, others "
        f"{most}, such as 0000.png; keep scans of one scale in one data set, or give --white=LEVEL, by which all are "
        "divided"
    )
    with pytest.raises(InputError, match=re.escape(said)):
        white_level.choose([*fewer, *others])
    assert white_level.choose([*fewer, *others], most).level == most
    assert white_level.choose(fewer).level <= belts[-1]


@pytest.mark.parametrize(
    "dark", [[4000], [4090], [3900, 4095 - 1], [1500, 2200, 2800, 3500, 4400, 5600], [1400] * 9, [7000] * 9]
)
def test_honest_dark_scans_are_divided_by_the_level_of_their_set(tmp_path, dark):
    scans = [np.full((SIDE, SIDE), value, np.uint16) for value in dark]  # the belt is not in the picture
    paths = write(tmp_path, [*scans, *(scan(seed, 16_383) for seed in range(20))])
    assert white_level.choose(paths).level == 16_383
    assert (read_image(paths[0], white=16_383) == round(255 * dark[0] / 16_383)).all()


@pytest.mark.parametrize(
    ("belt", "most"),
    [
        (lambda i: 3300 + i * 37 % 700 if i % 2 else 14_700, 14_700),  # 12 and 14 bits, another gain in each scan
        (lambda i: 3600 if i in (3, 7) else 14_700, 14_700),
        (lambda i: 900 if i % 2 else 7400, 7400),  # 10 and 13 bits
        (lambda i: 3600 if i % 2 else 7400, 7400),  # 12 and 13 bits
    ],
)
def test_scans_that_may_be_of_another_scale_are_never_passed_in_silence(tmp_path, belt, most):
    belts = [belt(number) for number in range(40)]
    found = white_level.choose(write(tmp_path, [scan(seed, value) for seed, value in enumerate(belts)]))
    darker = [number for number, value in enumerate(belts) if value < most / 2]
    assert found.level == most
    assert f"; {len(darker)} stay below 0.6 of it, such as {darker[0]:04d}.png with {belts[darker[0]]}" in found.text


def test_scans_of_fewer_bits_too_dark_to_read_are_counted_when_read(tmp_path):
    paths = write(tmp_path, [*(scan(seed, 16_383) for seed in range(9)), scan(9, 1023)])
    assert white_level.choose(paths).level == 16_383
    with pytest.raises(ImageError, match="16 bits on another scale: used up to 1023"):
        read_image(paths[9], white=16_383)


@pytest.mark.parametrize(("used", "white"), [(4095, None), (16_383, None), (4095, 65_535), (1023, 16_383)])
def test_a_scan_that_would_become_black_is_refused(tmp_path, used, white):
    path = write(tmp_path, [scan(0, used)])[0]
    with pytest.raises(ImageError, match=f"16 bits .*used up to {used}"):
        read_image(path, white=white)


def test_a_mixed_set_has_no_level_and_says_so(tmp_path):
    deep = write(tmp_path / "deep", [scan(seed, 4095) for seed in range(2)])
    plain = write(tmp_path / "plain", [np.full((9, 9), 200, np.uint8)] * 3, ".jpg")
    level, text = white_level.choose([*deep, *plain])
    assert level is None
    assert text.startswith("mixed scans: 2 of 5 sampled have 16 bits; all are read as 8-bit RGB")
    assert "--white=4095" in text


def test_unreadable_scans_do_not_count(tmp_path):
    paths = write(tmp_path, [scan(seed, 4095) for seed in range(3)])
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:500])
    others = [tmp_path / name for name in ("empty.png", "cut.png", "missing.png")]
    assert white_level.choose([*paths, *others]) == (4095, "16-bit scans: white level 4095 (99.9 % of 3 scans)")


def test_black_scans_are_refused_in_a_sentence(tmp_path):
    paths = write(tmp_path, [np.zeros((9, 9), np.uint16)])
    with pytest.raises(InputError, match=re.escape("the 16-bit scans are black, 99.9 % of their pixels are 0")):
        white_level.choose(paths)


def test_the_users_level_is_taken_without_looking(tmp_path):
    assert white_level.choose([tmp_path / "missing.png"], 3000) == (3000, "16-bit scans: white level 3000 (--white)")


def test_a_large_set_is_sampled_evenly_whatever_its_order(tmp_path):
    names = [f"{number:05d}.png" for number in range(1000)]
    drawn = white_level.sample(names)
    assert drawn == white_level.sample(names[::-1])
    assert len(drawn) == white_level.SAMPLE
    assert drawn[0] == names[0]
    gaps = np.diff([names.index(name) for name in drawn])
    assert set(gaps) == {3, 4}


@pytest.mark.parametrize("level", [0, -1, 65_536, True, 4095.0, "4095", [1]])
def test_a_damaged_level_in_a_table_is_refused(tmp_path, level):
    with pytest.raises(InputError, match=r"white is .*, not a whole number from 1 to 65535; make the table again"):
        white_level.stored({"white": level}, tmp_path / "regions.parquet")
