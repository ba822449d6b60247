"""Faults planted in finished shards: the audit finds exactly as many as were planted."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline import audit
from segloc.common.contract import INDEX_NAME
from tests.faults import common
from tests.faults.dirty.world import Problem, ended

# Contents of a tar by member, in order.
Members = dict[str, bytes]


@dataclasses.dataclass
class Planted:
    """A copy of finished shards, with pairs drawn to be spoiled.

    Attributes:
        root: the folder.
        pairs: numbers of the pairs to spoil.
        rng: for further choices.
    """

    root: Path
    pairs: list[int]
    rng: np.random.Generator

    def index(self) -> dict[str, Any]:
        """Content of index.json, without the digest that a change would no longer fit."""
        content = json.loads((self.root / INDEX_NAME).read_text())
        content.pop("digest", None)
        return content

    def edit(self, change: Callable[[int, Members], None]) -> None:
        """Change the members of every drawn pair; size and digest in the index follow, so that only this is wrong."""
        index, first = self.index(), 0
        for shard in index["shards"]:
            path = self.root / shard["name"]
            members = _read(path)
            for pair in self.pairs:
                if first <= pair < first + shard["pairs"]:
                    change(pair, members)
            _write(path, members)
            data = path.read_bytes()
            shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            first += shard["pairs"]
        (self.root / INDEX_NAME).write_text(json.dumps(index))

    def describe(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the description of every drawn pair."""

        def edit(pair: int, members: Members) -> None:
            content = json.loads(members[f"{pair:09d}.json"])
            change(content)
            members[f"{pair:09d}.json"] = json.dumps(content).encode()

        self.edit(edit)


def _read(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def _write(path: Path, members: Members) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _image(make: Callable[[bytes], bytes]) -> Callable[[Planted], object]:
    def plant(planted: Planted) -> None:
        def edit(pair: int, members: Members) -> None:
            name = f"{pair:09d}.key.jpg"
            members[name] = make(members[name])

        planted.edit(edit)

    return plant


def _smaller(data: bytes) -> bytes:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", image[:-8])[1].tobytes()


def _view(**changes: Any) -> Callable[[Planted], object]:
    return lambda planted: planted.describe(lambda pair: pair["query"].update(changes))


def _pair(change: Callable[[dict[str, Any]], object]) -> Callable[[Planted], object]:
    return lambda planted: planted.describe(lambda pair: change(pair) and None)


def _moved(pair: dict[str, Any]) -> None:
    """Move the box by a pixel: it is no longer the tight box of the mask."""
    x0, y0, x1, y1 = pair["query"]["box"]
    pair["query"]["box"] = [x0 + 1, y0, x1, y1]


def _text(data: bytes) -> Callable[[Planted], object]:
    def plant(planted: Planted) -> None:
        planted.edit(lambda pair, members: members.update({f"{pair:09d}.json": data}))

    return plant


# How to plant, and words of each violation. One violation per spoiled pair.
PER_PAIR: dict[str, tuple[Callable[[Planted], object], str]] = {
    "picture of noise": (_image(lambda data: b"noise" * 50), "image:"),
    "picture empty": (_image(lambda data: b""), "image: empty file"),
    "picture cut short": (_image(lambda data: data[: len(data) // 2]), "image: truncated file"),
    "picture of another size": (_image(_smaller), "its description gives"),
    "box moved by a pixel": (_pair(_moved), "mask has tight box"),
    "box outside": (_view(box=[0, 0, 5000, 5]), "is not inside region"),
    "scale zero": (_view(scale=0), "scale"),
    "blend unknown": (_view(blend="dissolve"), "blend"),
    "coefficient too large": (_view(coefficient=99.0), "coefficient"),
    "mask of another size": (_view(mask="1"), "mask:"),
    "share on matter above one": (_view(on_matter=1.5), "on_matter"),
    "number of another pair": (_pair(lambda pair: pair.update(pair=10**6)), "its number is"),
    "one background twice": (
        _pair(lambda pair: pair["key"].update(background=pair["query"]["background"])), "both views have background"
    ),
    "one item twice": (
        _pair(lambda pair: pair["key"].update(segment=pair["query"]["segment"])), "both views have segment"
    ),
}  # fmt: skip


def _flip(planted: Planted) -> None:
    """Flip one bit in a picture of a tar."""
    path = planted.root / "pairs-000001.tar"
    data = bytearray(path.read_bytes())
    data[int(planted.rng.integers(700, 900))] ^= 1 << int(planted.rng.integers(8))
    path.write_bytes(data)


def _stray(planted: Planted) -> None:
    shutil.copy(planted.root / "pairs-000000.tar", planted.root / "pairs-000777.tar")


def _counts(planted: Planted) -> None:
    index = planted.index()
    index["counts"]["pairs"] += 1
    (planted.root / INDEX_NAME).write_text(json.dumps(index))


def _cut(planted: Planted) -> None:
    path = planted.root / "pairs-000002.tar"
    path.write_bytes(path.read_bytes()[: -int(planted.rng.integers(2_000, 20_000))])


# How to plant, and words that one of the violations has.
PER_FOLDER: dict[str, tuple[Callable[[Planted], object], str]] = {
    "a bit of a shard flipped": (_flip, "pairs-000001.tar: sha256 differs"),
    "a shard cut short": (_cut, "pairs-000002.tar"),
    "a shard removed": (lambda planted: (planted.root / "pairs-000003.tar").unlink(), "pairs-000003.tar: missing"),
    "a shard more": (_stray, "pairs-000777.tar: not in the index"),
    "count of pairs": (_counts, "counts lists"),
    "sources removed": (lambda planted: (planted.root / "sources.parquet").unlink(), "sources.parquet: missing"),
    "sources cut short": (
        lambda planted: (planted.root / "sources.parquet").write_bytes(
            (planted.root / "sources.parquet").read_bytes()[:-9]
        ),
        "sources.parquet: sha256 differs",
    ),
    "a description that is no JSON": (_text(b"{"), "not a pair description"),
    "a class that is not in the index": (_pair(lambda pair: pair.update(class_id=99)), "class id 99"),
    "a class of another name": (_pair(lambda pair: pair.update(class_name="Bomb")), "'Bomb'"),
}


def _planted(seed: tuple[int, ...]) -> Planted:
    root, rng = common.fresh("planted") / "shards", np.random.default_rng(seed)
    shutil.copytree(common.inputs() / "shards", root)
    pairs = sorted(rng.choice(48, int(rng.integers(1, 6)), replace=False).tolist())
    return Planted(root, pairs, rng)


def _audit(root: Path) -> tuple[Any, list[str]]:
    path = root.parent / "audit.json"
    done = ended(audit.main, "--shards", root, "--report", path, "--workers", 1)
    return done, json.loads(path.read_text())["violations"] if path.is_file() else []


def _shown(done: Any, violations: list[str]) -> str:
    said = done.traceback[-200:] or done.errors[-200:]
    return f"exit code {done.code}, {len(violations)} violations {violations[:2]}, {said}"


def _per_pair(plant: Callable[[Planted], object], words: str, seed: tuple[int, ...]) -> str | None:
    """The audit names each spoiled pair once, and no other; counts of sources may differ where sources were changed."""
    planted = _planted(seed)
    plant(planted)
    done, violations = _audit(planted.root)
    found = [text for text in violations if text.startswith("pair ")]
    numbers = [int(text.split()[1].rstrip(":")) for text in found]
    if done.code != 1 or numbers != planted.pairs or not all(words in text for text in found):
        return f"planted {planted.pairs}: {_shown(done, violations)}"
    others = [text for text in violations if not text.startswith(("pair ", "sources.parquet"))]
    return f"more: {others[:2]}" if others else None


def _per_folder(plant: Callable[[Planted], object], words: str, seed: tuple[int, ...]) -> str | None:
    planted = _planted(seed)
    plant(planted)
    done, violations = _audit(planted.root)
    told = done.code == 1 and not done.traceback and any(words in text for text in violations)
    return None if told else _shown(done, violations)


def _clean(seed: tuple[int, ...]) -> str | None:
    done, violations = _audit(_planted(seed).root)
    return _shown(done, violations) if done.code or violations else None


FAULTS: Mapping[str, Problem] = {
    "nothing planted": _clean,
    **{name: functools.partial(_per_pair, *fault) for name, fault in PER_PAIR.items()},
    **{name: functools.partial(_per_folder, *fault) for name, fault in PER_FOLDER.items()},
}
