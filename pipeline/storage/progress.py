"""Records of an unfinished folder: its plan and, per finished shard, its index entry and its sources."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from typing import Any

from pipeline.tables import sources_table
from pipeline.tables.sources_table import Source
from segloc.common.contract import Pair, Shard, shard_entry, shard_name
from segloc.common.errors import InputError
from segloc.common.files import sha256_of
from segloc.common.parse import parse_json, parsing
from segloc.common.store_protocol import Store
from segloc.common.tars import read_tar

PROGRESS_NAME = ".progress"
PLAN = f"{PROGRESS_NAME}/plan.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of a finished shard in an unfinished folder.

    Attributes:
        shard: its entry for the index.
        tag: tag of the written file in the store; see `segloc.common.store_protocol.Stat`.
        plan: digest of the plan that it was made by (`digest_of`); None in folders of earlier versions.
    """

    shard: Shard
    tag: str | None = None
    plan: str | None = None


def write_record(out: Store, number: int, record: Record) -> None:
    """Record that a shard is finished."""
    _write(out, f"{PROGRESS_NAME}/{shard_name(number)}.json", dataclasses.asdict(record))


def read_record(out: Store, number: int) -> Record | None:
    """Read the record of a finished shard; None if it is missing or invalid."""
    raw = _read(out, f"{PROGRESS_NAME}/{shard_name(number)}.json")
    try:
        with parsing(out, "not a record"):
            tag, plan = raw["tag"], raw.get("plan")
            entry = shard_entry(raw["shard"])
            return Record(entry, tag if isinstance(tag, str) else None, plan if isinstance(plan, str) else None)
    except InputError:
        return None


def write_plan_once(out: Store, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Record the plan, every parameter that the pairs depend on, unless the folder has one.

    Returns:
        The plan of the folder, the same for all processes; None if it is unreadable.

    Raises:
        InputError: see `Store.write_once`.
    """
    return _mapping(out.write_once(PLAN, _encode(plan)))


def digest_of(plan: dict[str, Any]) -> str:
    """SHA-256 of a plan."""
    return hashlib.sha256(_encode(plan)).hexdigest()


def read_plan(out: Store) -> dict[str, Any] | None:
    """Read the plan; None if it is missing or unreadable."""
    try:
        return _mapping(out.read(PLAN))
    except FileNotFoundError:
        return None


def _mapping(data: bytes) -> dict[str, Any] | None:
    try:
        found = parse_json(data, PLAN)
    except InputError:
        return None
    return with_defaults(found) if isinstance(found, dict) else None


def with_defaults(plan: dict[str, Any]) -> dict[str, Any]:
    """Add what plans of earlier versions lack; its default is the earlier behaviour."""
    return {"format_version": 1, "on_matter": 0.0, **plan}


def write_uses(out: Store, shard: str, uses: Counter[Source]) -> None:
    """Record how often a shard uses each source."""
    _write(out, f"{PROGRESS_NAME}/{shard}.sources.json", [[*source, count] for source, count in uses.items()])


def read_uses(out: Store, shard: str) -> Counter[Source]:
    """Read how often a shard uses each source, from its record or, if that is missing, from its pairs."""
    raw = _read(out, f"{PROGRESS_NAME}/{shard}.sources.json")
    with contextlib.suppress(InputError), parsing(out, "not a record"):
        if all(isinstance(kind, str) and isinstance(name, str) and count > 0 for kind, name, count in raw):
            return Counter({(kind, name): int(count) for kind, name, count in raw})
    uses = Counter[Source]()
    with out.fetch(shard) as path:
        for name, content in read_tar(path, f"{out}/{shard}"):
            if name.endswith(".json"):
                try:
                    uses.update(sources_table.of_pair(Pair.from_json(content)))
                except InputError as error:
                    raise InputError(f"{out}/{shard}: {name}: {error}") from error
    return uses


def is_intact(out: Store, record: Record) -> bool:
    """Whether the shard is the recorded one, by the store's tag or, if that differs or is missing, by its digest."""
    shard = record.shard
    found = out.stat(shard.name)
    if found is None or found.bytes != shard.bytes:
        return False
    return (record.tag is not None and found.tag == record.tag) or has_digest(out, shard.name, shard.sha256)


def has_digest(out: Store, name: str, sha256: str) -> bool:
    """Whether a file exists and has this digest."""
    try:
        with out.fetch(name) as path:
            return sha256_of(path) == sha256
    except OSError:
        return False


def _write(out: Store, name: str, content: Any) -> None:
    with out.create(name) as file:
        file.write(_encode(content))


def _encode(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _read(out: Store, name: str) -> Any:
    """Read a record; None if it is missing or unreadable."""
    try:
        data = out.read(name)
    except InputError:
        raise
    except (OSError, ValueError):
        return None
    with contextlib.suppress(InputError):
        return parse_json(data, name)
    return None
