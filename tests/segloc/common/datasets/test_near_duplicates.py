"""Near-duplicate scans: copies of a picture are one group, other bags are not."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segloc.common.datasets import near_duplicates
from segloc.common.datasets.near_duplicates import THRESHOLD_BITS, fingerprint, group
from segloc.common.images import decode, encode_jpeg


def bag(number: int) -> np.ndarray:
    """A bag of a dozen boxes on a white belt, RGB [240, 320, 3]."""
    rng = np.random.default_rng(number)
    scan = np.full((240, 320, 3), 250, np.uint8)
    for _ in range(12):
        x, y = rng.integers(50, 220), rng.integers(40, 160)
        w, h = rng.integers(15, 60, 2)
        part = scan[y : y + h, x : x + w]
        part[:] = part * rng.uniform(0.4, 0.9, 3)
    return scan


def moved(scan: np.ndarray, right: int, down: int) -> np.ndarray:
    return cv2.warpAffine(
        scan,
        np.float32([[1, 0, right], [0, 1, down]]),
        (320, 240),
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=[250] * 3,
    )


def distance(a: np.ndarray, b: np.ndarray) -> int:
    both = [np.frombuffer(fingerprint(scan), np.uint8) for scan in (a, b)]
    return int(np.unpackbits(both[0] ^ both[1]).sum())


@pytest.mark.parametrize(
    "copy",
    [
        lambda scan: decode(encode_jpeg(scan, 50)),
        lambda scan: cv2.resize(scan, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        lambda scan: cv2.resize(scan, (450, 337), interpolation=cv2.INTER_CUBIC),
        lambda scan: moved(scan, 9, -4),
        lambda scan: moved(scan, -20, 15),
        lambda scan: scan[10:, 15:],
        lambda scan: np.clip(scan * 0.92 + 8, 0, 255).astype(np.uint8),
        lambda scan: np.clip(scan + np.random.default_rng(0).normal(0, 6, scan.shape), 0, 255).astype(np.uint8),
    ],
    ids=["re-encoded", "half size", "larger", "moved", "moved far", "cropped", "brighter", "noise"],
)
def test_copies_of_a_scan_are_near(copy) -> None:
    for number in range(10):
        assert distance(bag(number), copy(bag(number))) <= THRESHOLD_BITS


def test_different_bags_are_far() -> None:
    bits = np.array([np.unpackbits(np.frombuffer(fingerprint(bag(number)), np.uint8)) for number in range(80)])
    distances = (bits[:, None] != bits[None]).sum(axis=2)[np.triu_indices(80, 1)]
    assert distances.min() > THRESHOLD_BITS
    assert np.median(distances) == pytest.approx(128, abs=16)


def test_an_empty_scan_has_a_fingerprint() -> None:
    for empty in (np.full((50, 70, 3), 255, np.uint8), np.zeros((1, 1), np.uint8)):
        assert fingerprint(empty) == bytes(near_duplicates.FINGERPRINT_BYTES)


def test_chains_join_and_numbers_follow_the_sorted_names() -> None:
    def bits(*ones: int) -> bytes:
        row = np.zeros(256, np.uint8)
        row[list(ones)] = 1
        return np.packbits(row).tobytes()

    prints = {"d": bits(), "c": bits(*range(40)), "b": bits(*range(80)), "a": bits(*range(120, 220)), "e": bits()}
    assert group(prints) == {"a": 0, "b": 1, "c": 1, "d": 1, "e": 1}
    assert group(prints, 39) == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 3}
    assert group({}) == {}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 8), st.sampled_from([3, 7, 4096]))
def test_groups_are_the_connected_components(seed: int, scans: int, threshold: int, tile: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2, (scans, 16), dtype=np.uint8)
    prints = {f"{number:02d}": np.packbits(row).tobytes() for number, row in enumerate(rows)}
    # The definition: walk from neighbour to neighbour.
    expected: dict[str, int] = {}
    for start in sorted(prints):
        if start in expected:
            continue
        number, waiting = len(set(expected.values())), [start]
        while waiting:
            name = waiting.pop()
            if name not in expected:
                expected[name] = number
                waiting += [other for other in prints if (rows[int(other)] != rows[int(name)]).sum() <= threshold]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_TILE", tile)
        assert group(prints, threshold) == expected
        assert group(dict(reversed(prints.items())), threshold) == expected
