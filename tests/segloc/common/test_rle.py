import numpy as np
import pytest
from pycocotools import mask as mask_api

from segloc.common import rle

SIZE = (37, 53)


def decompress(text):
    """Decode COCO's compression character by character; None if it is incomplete."""
    counts, number, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number, shift = 0, 0
    return None if shift or not counts else counts


def expected(text):
    counts = decompress(text)
    return counts is not None and min(counts) >= 0 and sum(counts) == SIZE[0] * SIZE[1]


@pytest.fixture(scope="module")
def texts():
    """Many kinds of masks, each followed by a damaged text, with characters lost, changed or added."""
    rng = np.random.default_rng(0)
    whole = []
    for share in np.linspace(0, 1, 60):
        mask = np.asfortranarray((rng.random(SIZE) < share).astype(np.uint8))
        mask[: rng.integers(38), : rng.integers(54)] = rng.integers(2)
        whole.append(mask_api.encode(mask)["counts"].decode())
    damaged = ["", "0", "\x00", "é", "\ud800", "~", "P13", "e5QncV", "o" * 9 + "0", "0" * 50]
    for text in whole * 20:
        at = rng.integers(len(text))
        damaged.append(text[:at] + rng.choice(["", chr(rng.integers(40, 120)), "0"]) + text[at + rng.integers(2) :])
    return [text for pair in zip(whole * 22, damaged, strict=False) for text in pair]


def test_validity_equals_that_of_a_plain_decoder(texts):
    segmentations = [{"size": list(SIZE), "counts": text} for text in texts]
    found = rle.sound(segmentations, [SIZE] * len(texts))
    assert found.tolist() == [expected(text) for text in texts]
    assert 0.4 < found.mean() < 0.9
    alone = [bool(rle.sound([one], [SIZE])[0]) for one in segmentations]  # neighbours do not matter
    assert alone == found.tolist()


def test_values_that_are_not_masks_are_invalid():
    good = {"size": [2, 3], "counts": [1, 5]}
    bad = [None, 5, "x", [], {}, {"size": [2, 3]}, {**good, "size": [3, 2]}, {**good, "counts": [1, 6]}]
    bad += [{**good, "counts": [-1, 7]}, {**good, "counts": ["1", 5]}, {**good, "counts": None}]
    bad += [{**good, "counts": [True, 5]}, {**good, "counts": [1, 5, False]}]
    assert rle.sound([good, *bad], [(2, 3)] * (1 + len(bad))).tolist() == [True] + [False] * len(bad)
    assert rle.sound([], []).tolist() == []


def test_runs_that_would_overflow_are_invalid():
    """The largest possible runs, so many that their sum exceeds 2^63."""
    text = "ooooooO" * 20_000
    assert not rle.sound([{"size": [65500, 65500], "counts": text}], [(65500, 65500)])[0]
