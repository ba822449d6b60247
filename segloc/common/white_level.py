"""White level of a set of 16-bit scans: the value of the empty belt, by which all its scans are divided.

Scanners store 10, 12 or 14 bits in files of 16, so the files' own range would make every scan black. The level is the
value that 99.9 % of the pixels do not exceed, which a few hot pixels do not change. Nothing is subtracted: the quotient
is the transmission. A data set has one level, because a level per scan would make equal thicknesses look different.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from segloc.common.errors import InputError
from segloc.common.image_headers import may_have_16_bits
from segloc.common.images import DARKEST, FULL, ImageError, decode_16_bits, histogram, level_of, read_file, read_header

Scan = TypeVar("Scan", Path, str)

OPTION = "--white"
SETTING = "data.white"
SAMPLE = 256  # scans that are looked at
# A scan is left out if its own level is this many times the median scan's: it has more bits than the others.
OUTLIER = 3.0
# Scans below this share of the level are dark, or have fewer bits than the others: see `_of_fewer_bits`.
DARK = 0.5
# Belts of one scanner differ by a few per cent. With two bits more or less, they differ by a factor of 4.
ALIKE, LEAST_ALIKE, FEWER_BITS = 0.05, 3, (3.0, 5.0)
# Scans below this share of the level are told, because some may be of another scale.
TOLD = 0.6
_LEAST_BITS = 10  # of scanners
_START_BYTES = 32
_COUNTED_PIXELS = 1 << 20  # of each scan
_THREADS = 4


class WhiteLevel(NamedTuple):
    """White level of a data set.

    Attributes:
        level: 1 to 65535; None if scans are read as 8-bit RGB, 16 bits by their high byte.
        text: a line for the screen; empty if all scans have 8 bits.
    """

    level: int | None
    text: str


class _Counted(NamedTuple):
    path: Path
    values: npt.NDArray[np.int64]
    level: int

    @property
    def is_saturated(self) -> bool:
        """Whether the level is the largest value of the scan and of its number of bits: 1023, 4095, ..."""
        full = self.level.bit_length() >= _LEAST_BITS and self.level & (self.level + 1) == 0
        return full and not self.values[self.level + 1 :].any()


def choose(paths: Iterable[Path], given: int | None = None, option: str = OPTION) -> WhiteLevel:
    """Return the white level `given` by the user, or measure the level of a data set.

    Up to `SAMPLE` scans, evenly spread over the sorted paths, are looked at. If all have 16 bits, the level is measured
    over them. If only some do, the set is of mixed kinds and has no level.

    Args:
        paths: all scans of the set.
        given: the user's level.
        option: name of the option or setting that gives a level, for messages.

    Raises:
        InputError: the 16-bit scans are black, or some have fewer bits than the others.
    """
    if given is not None:
        return WhiteLevel(given, f"16-bit scans: white level {given} ({option})")
    looked = [_has_16_bits(path) for path in sample(paths)]
    return _measure([path for path, deep in looked if deep], sum(deep is not None for _, deep in looked), option)


def parameters(level: int | None) -> dict[str, int]:
    """Entry of a table's parameters: ``white``, only for a set that has a level, so that other tables stay the same."""
    return {} if level is None else {"white": level}


def stored(parameters: Mapping[str, Any], source: Path) -> int | None:
    """Level in a table's parameters; None for 8-bit scans and in older tables.

    Raises:
        InputError: it is no level, so the table of file `source` is damaged.
    """
    level = parameters.get("white")
    if level is not None and not (type(level) is int and 1 <= level <= FULL):
        raise InputError(f"{source}: white is {level!r}, not a whole number from 1 to {FULL}; make the table again")
    return level


def sample(scans: Iterable[Scan]) -> list[Scan]:
    """Up to `SAMPLE` of these paths or names, evenly spread over their sorted order."""
    ordered = sorted(scans, key=str)
    count = min(SAMPLE, len(ordered))
    return [ordered[place * len(ordered) // count] for place in range(count)]


def _has_16_bits(path: Path) -> tuple[Path, bool | None]:
    """Whether a scan has 16 bits; None if it cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            return path, None
        with path.open("rb") as file:
            if not may_have_16_bits(start := file.read(_START_BYTES)):
                return path, False if start else None
            return path, read_header(start + file.read()).bits == 16
    except (OSError, ValueError):
        return path, None


def _measure(deep: Sequence[Path], readable: int, option: str) -> WhiteLevel:
    """Measure the level of the 16-bit scans among the `readable` scans of the sample."""
    if not deep:
        return WhiteLevel(None, "")
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        found = tqdm(threads.map(_count, deep), total=len(deep), unit="scan", desc="white level", disable=None)
        counted = [one for one in found if one is not None]
    if not counted:
        return WhiteLevel(None, "")
    most = OUTLIER * float(np.median([one.level for one in counted]))
    kept = [one for one in counted if one.level <= most]
    level = level_of(np.sum([one.values for one in kept], axis=0))
    if len(deep) < readable:
        return WhiteLevel(
            None,
            f"mixed scans: {len(deep)} of {readable} sampled have 16 bits; all are read as 8-bit RGB, these by their "
            f"high byte ({option}={level} would divide them by their 99.9 % level)",
        )
    if level < 1:
        raise InputError(f"the 16-bit scans are black, 99.9 % of their pixels are 0; give {option}=LEVEL")
    if fewer := _of_fewer_bits(kept, level):
        other = max(kept, key=lambda one: one.level)
        raise InputError(
            f"the 16-bit scans have two scales: {len(fewer)} of {len(kept)} sampled reach {fewer[0].level}, such as "
            f"{fewer[0].path.name}, others {other.level}, such as {other.path.name}; keep scans of "
            f"one scale in one data set, or give {option}=LEVEL, by which all are divided"
        )
    text = f"16-bit scans: white level {level} (99.9 % of {len(kept)} scans)"
    if outliers := [one for one in counted if one.level > most]:
        text += f", without {len(outliers)} more than {OUTLIER:g} times as bright, such as {outliers[0].path.name}"
    if dark := [one for one in kept if one.level < TOLD * level]:
        text += (
            f"; {len(dark)} stay below {TOLD:g} of it, such as {dark[0].path.name} with {dark[0].level}: they show no "
            "belt, or are of another scale and become too dark"
        )
    return WhiteLevel(level, text)


def _of_fewer_bits(counted: Sequence[_Counted], level: int) -> list[_Counted]:
    """Find scans of two bits less than the others, which `level` would make four times too dark.

    One scan is enough if its belt has the largest value of fewer bits. Otherwise the belts of several scans have to
    agree, because dark scans of the same bits, whose belt is not in the picture, have all kinds of levels.
    """
    dark = [one for one in counted if DARKEST * level <= one.level < DARK * level]
    if saturated := [one for one in dark if one.is_saturated]:
        return saturated
    middle = float(np.median([one.level for one in dark])) if dark else 0.0
    alike = [one for one in dark if abs(one.level - middle) <= ALIKE * middle]
    least, most = FEWER_BITS
    enough = len(alike) >= LEAST_ALIKE and 2 * len(alike) > len(dark)
    return alike if enough and least * middle <= level <= most * middle else []


def _count(path: Path) -> _Counted | None:
    """Count the values of a 16-bit scan; None if it cannot be decoded."""
    with contextlib.suppress(ImageError):
        values = histogram(decode_16_bits(read_file(path)), _COUNTED_PIXELS)
        return _Counted(path, values, level_of(values))
    return None
