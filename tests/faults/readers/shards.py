"""Folders of shards: the index, tars, and the records of unfinished ones; and other records."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np

from pipeline.checks import audit
from pipeline.storage import progress
from segloc.common.contract import Index, read_index
from segloc.common.errors import InputError
from segloc.common.stores import LocalStore
from segloc.data.batches import Batcher, BatchStep
from segloc.data.shard_folder import ShardFolder
from segloc.data.stream import epoch_order
from segloc.experiments.jobs import Job, Step
from segloc.experiments.jobs import changed as changed_settings
from segloc.reporting.probe_table import probes_markdown, read_probes
from tests.faults.mutations import changed, damaged, odd
from tests.faults.readers.registry import copied, target, write_changed
from tests.segloc.conftest import write_shards


def _shards(folder: Path) -> None:
    write_shards(folder / "good", shards=2, per_shard=3)


@target("shard index", _shards)
def shard_index(rng: np.random.Generator, folder: Path) -> None:
    """Read by training and by the audit; and the records of unfinished folders."""
    out = copied(folder)
    write_changed(out / "index.json", json.loads((out / "index.json").read_bytes()), rng)
    opened = ShardFolder.open(str(out))
    opened.index.to_json()
    assert len(epoch_order(opened.index, 0, 0, 2)) == opened.index.num_pairs
    with contextlib.suppress(InputError):
        opened.check_sizes()
    audit_of(out, opened.index)


def audit_of(out: Path, index: Index) -> None:
    """Audit a folder; its report is JSON."""
    with contextlib.redirect_stderr(io.StringIO()):
        violations, statistics = audit.audit(LocalStore(out), index, workers=1)
    json.dumps(audit.report(index, violations, statistics)).encode()


@target("tars", _shards)
def tars(rng: np.random.Generator, folder: Path) -> None:
    """Read by training, which checks the digest first, and by the audit, which reads on; half have the right digest."""
    out = copied(folder)
    path = out / "pairs-000000.tar"
    data = _odd_tar(path.read_bytes(), rng) if rng.random() < 0.6 else damaged(path.read_bytes(), rng)
    path.write_bytes(data)
    index = read_index(out)
    if rng.random() < 0.8:
        first = dataclasses.replace(index.shards[0], bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        index = dataclasses.replace(index, shards=(first, *index.shards[1:]))
        (out / "index.json").write_bytes(index.to_json())
    if rng.random() < 0.5:
        audit_of(out, index)
        audit.draw_pair_gallery(out / "gallery.png", LocalStore(out), index, damaged=True)
        progress.read_uses(LocalStore(out), path.name)
        return
    opened = ShardFolder.open(str(out))
    samples = opened.load(opened.index.shards[0])
    step = BatchStep([(samples, number) for number in range(len(samples))], opened.index.classes)
    Batcher(64).make(step)


def _odd_tar(data: bytes, rng: np.random.Generator) -> bytes:
    """Rewrite a tar: other members, names, types, links, sizes, pax headers; descriptions with odd values."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old:
        members = [(member, old.extractfile(member).read()) for member in old]  # type: ignore[union-attr]
    chosen = int(rng.integers(len(members)))
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as new:
        for number, (member, content) in enumerate(members):
            if number == chosen:
                content = _odd_member(member, content, rng)
            member.size = len(content) if member.isreg() else 0
            with contextlib.suppress(UnicodeError, ValueError):
                new.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _odd_member(member: tarfile.TarInfo, content: bytes, rng: np.random.Generator) -> bytes:
    match rng.integers(5):
        case 0:
            member.name = str(odd(rng))[:300].replace("\0", "") or "x"
        case 1:
            kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
            member.type = (*kinds, b"S", b"L", b"K", b"x", b"g", b"V")[rng.integers(11)]
            member.linkname = ("../../../etc/passwd", member.name, "pairs", "")[rng.integers(4)]
        case 2:
            keys = ("path", "size", "linkpath", "mtime", "uid", "GNU.sparse.major", "GNU.sparse.realsize", "charset")
            values = ("-1", "99999999999999", "1e3", "x", "", "../x", "1", "\ud7ff")
            member.pax_headers = {keys[rng.integers(8)]: values[rng.integers(8)] for _ in range(2)}
        case 3 if member.name.endswith(".json"):
            return json.dumps(changed(json.loads(content), rng)).encode()
        case _:
            return damaged(content, rng)
    return content


def _records(folder: Path) -> None:
    accuracy = {"all levels": {"knn": 0.5, "linear": 0.6}}
    views = {"views": 10}
    probe = {"accuracy": accuracy, "iteration": 3, "train": views, "test": views, "shards": "x", "chance": 0.3}
    (folder / "probe.json").write_text(json.dumps(probe))
    shard = {"name": "pairs-000000.tar", "pairs": 3, "bytes": 10_000, "sha256": "0" * 64, "classes": [1, 2]}
    (folder / "record.json").write_text(json.dumps({"shard": shard, "tag": None}))
    (folder / "uses.json").write_text(json.dumps([["background", "a.jpg", 3]]))
    (folder / "job.json").write_text(json.dumps({"settings": {"weights": "random"}, "commands": [], "failure": ""}))


@target("records", _records)
def records(rng: np.random.Generator, folder: Path) -> None:
    """Probes, jobs, and the records of unfinished synthesis."""
    name = ("probe", "record", "uses", "job")[rng.integers(4)]
    content = json.loads((folder / f"{name}.json").read_text())
    store = folder / "store"
    (store / ".progress").mkdir(parents=True, exist_ok=True)
    if name == "probe":
        write_changed(folder / "p.json", content, rng)
        probes_markdown(read_probes([("a", 0, folder / "p.json")]))
    elif name == "record":
        write_changed(store / ".progress" / "pairs-000000.tar.json", content, rng)
        if record := progress.read_record(LocalStore(store), 0):
            progress.is_intact(LocalStore(store), record)
    elif name == "uses":
        write_changed(store / ".progress" / "pairs-000000.tar.sources.json", content, rng)
        with contextlib.suppress(FileNotFoundError):  # no such shard, so only its record can answer
            progress.read_uses(LocalStore(store), "pairs-000000.tar")
    else:
        job = Job("job", folder, (Step("finetune", (), folder / "made"),), {"weights": "random"}, lambda: None, "stub")
        write_changed(job.record, content, rng)
        changed_settings(job)
