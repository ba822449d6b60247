"""The share of the training scans that is held out for validation during training.

Scans of one bag stay on one side (`near_duplicates`); otherwise the figures would be of items that training has seen.
The choice depends on the scans alone, not on the seed or the number of processes. It is kept in the run's
``validation.json``, so that a resumed run needs no fingerprints.
"""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from segloc.common.datasets import near_duplicates
from segloc.common.datasets.coco_fields import Id
from segloc.common.errors import InputError
from segloc.common.files import write_json
from segloc.common.parse import parse_json
from segloc.common.run_files import VALIDATION
from segloc.detection.data import digest_of, in_threads, read_scan
from segloc.detection.splits import CocoSplit, Scan
from segloc.settings.finetuning import DataSettings
from segloc.training.processes import ALONE, Group

NAME = "validation"


def hold_out(
    split: CocoSplit, settings: DataSettings, folder: Path, group: Group = ALONE
) -> tuple[CocoSplit, CocoSplit | None]:
    """Divide a training set into scans to train on and scans for validation.

    Args:
        split: the training set.
        settings: share and threads.
        folder: the run folder, where the choice is kept.
        group: the processes; the main one chooses, the others read its choice.

    Returns:
        The scans to train on and those held out; None with a share of 0.

    Raises:
        InputError: the share of the scans, or of the items, is too small.
    """
    if not settings.validation:
        return split, None
    chosen = group.of_main(lambda: _chosen(split, settings, folder / VALIDATION))
    ids: tuple[set[Id], set[Id]] = (set(), set())
    for position, scan in enumerate(split.scans):
        ids[position in chosen].add(scan.image_id)
    training, validation = split.only(ids[False], split.name), split.only(ids[True], NAME)
    if not any(not item["iscrowd"] for item in validation.ground_truth["annotations"]):
        raise InputError(
            f"data.validation {settings.validation:g} of {len(split.scans)} scans holds out {len(chosen)}, which have "
            "no item; set a larger share, or 0 for no validation"
        )
    return training, validation


def _chosen(split: CocoSplit, settings: DataSettings, path: Path) -> set[int]:
    """Return the positions of the scans that are held out, as kept in `path`, or choose and keep them."""
    wanted = {"data_digest": digest_of(split.scans), "share": settings.validation}
    chosen = _kept(path, wanted)
    if chosen is None:
        groups = group_scans(split.scans, settings.threads)
        chosen = choose([scan.path.name for scan in split.scans], groups, settings.validation)
        write_json(path, {**wanted, "positions": sorted(chosen)})
    return chosen


def choose(names: Sequence[str], groups: Sequence[int | None], share: float) -> set[int]:
    """Choose whole groups of scans, about a share of all scans, by the digests of their first names.

    Args:
        names: of the scans.
        groups: group of each scan; None for one that is not held out.
        share: of the scans, at most reached.

    Returns:
        Positions of the scans that are held out.
    """
    members = collections.defaultdict(list)
    for position, number in enumerate(groups):
        if number is not None:
            members[number].append(position)
    ranked = sorted(
        members.values(), key=lambda some: hashlib.sha256(os.fsencode(min(names[p] for p in some))).digest()
    )
    chosen: set[int] = set()
    for some in ranked:
        if len(chosen) + len(some) <= round(share * len(names)):
            chosen.update(some)
    return chosen


def group_scans(scans: Sequence[Scan], threads: int) -> list[int | None]:
    """Return the group of each scan, by what it shows; None if it cannot be read."""

    def hashed(scan: Scan) -> bytes | None:
        try:
            return near_duplicates.fingerprint(read_scan(scan))
        except InputError:
            return None

    bar = tqdm(in_threads(hashed, scans, threads, 4 * threads), total=len(scans), unit="scan", desc="near-duplicates")
    prints = {f"{position:09d}": found for position, found in enumerate(bar) if found is not None}
    groups = near_duplicates.group(prints)
    return [groups.get(f"{position:09d}") for position in range(len(scans))]


def _kept(path: Path, wanted: dict[str, Any]) -> set[int] | None:
    """Read an earlier choice; None if there is none for this training set and share."""
    try:
        content = parse_json(path.read_bytes(), path)
        if all(content[key] == value for key, value in wanted.items()):
            return {int(position) for position in content["positions"]}
    except (OSError, InputError, ValueError, TypeError, KeyError):
        pass
    return None
