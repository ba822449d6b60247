"""What fuzzing reads: for each kind of file, a valid one, a mutation of it, and the reader under test."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from pipeline.checks import audit
from pipeline.storage import progress
from pipeline.tables import region_table, segment_table, sources_table
from segloc.common.contract import Index, read_index
from segloc.common.datasets import Split
from segloc.common.datasets.coco import read_instances, read_results, unannotated
from segloc.common.errors import InputError
from segloc.common.images import ImageError, decode, encode_rgba
from segloc.common.masks import MaskError, decode_rle, rasterise
from segloc.common.stores import LocalStore
from segloc.data.batches import Batcher, BatchStep, ImageGroup
from segloc.data.shard_folder import ShardFolder
from segloc.data.stream import epoch_order
from segloc.detection import coco_eval
from segloc.detection.splits import read_split
from segloc.detection.weights import detector_content, read_detector, recipe_inside
from segloc.experiments.jobs import Job, Step
from segloc.experiments.jobs import changed as changed_settings
from segloc.models.backbone import SegLocBackbone
from segloc.models.initial_weights import read_backbone, read_start
from segloc.reporting.page import render
from segloc.reporting.probe_table import probes_markdown, read_probes
from segloc.reporting.results_table import results_csv, results_markdown, results_table
from segloc.reporting.run_results import load_run
from segloc.settings.experiments import Experiment
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load, to_yaml
from segloc.settings.pretraining import PretrainConfig
from segloc.training import checkpoint
from segloc.training.run_folder import MetricsLog, origin
from tests.faults.mutations import changed, damaged, odd
from tests.segloc.conftest import write_shards
from tests.segloc.toy_coco import write_split

DOCUMENTED = (InputError, ImageError, MaskError)
WIDTH, HEIGHT = 80, 56
Target = Callable[[np.random.Generator, Path], None]
TARGETS: dict[str, Target] = {}
_PREPARE: dict[str, Callable[[Path], None]] = {}


def target(kind: str, prepare: Callable[[Path], None]) -> Callable[[Target], Target]:
    """Register a target with what writes its valid files into a folder."""

    def register(run: Target) -> Target:
        TARGETS[kind], _PREPARE[kind] = run, prepare
        return run

    return register


def prepare(kind: str, folder: Path) -> None:
    """Write the valid files of a kind, unless an earlier worker has; limit the threads of libraries."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    if not (folder / "ready").exists():
        _PREPARE[kind](folder)
        (folder / "ready").touch()


def _write(path: Path, content: Any, rng: np.random.Generator, share_bytes: float = 0.3) -> None:
    """Write JSON after a change of its structure or of its bytes."""
    if rng.random() < share_bytes:
        path.write_bytes(damaged(json.dumps(content).encode(), rng))
    else:
        path.write_bytes(json.dumps(changed(content, rng)).encode())


def _coco(folder: Path) -> None:
    write_split(folder / "good.json", folder / "images", 4, seed=0, width=WIDTH, height=HEIGHT)
    content = json.loads((folder / "good.json").read_text())
    content["annotations"][0]["segmentation"] = [[5, 5, 30, 5, 30, 30]]
    content["annotations"][1]["segmentation"]["counts"] = [100, 50, WIDTH * HEIGHT - 150]
    (folder / "good.json").write_text(json.dumps(content))
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.5, "bbox": a["bbox"]}
        for a in content["annotations"]
    ]
    results[2]["segmentation"] = content["annotations"][2]["segmentation"]
    (folder / "results.json").write_text(json.dumps(results))


@target("annotation files", _coco)
def annotation_files(rng: np.random.Generator, folder: Path) -> None:
    """Read by segments, by regions and by fine-tuning."""
    path = folder / "a.json"
    _write(path, json.loads((folder / "good.json").read_text()), rng)
    reader = rng.integers(3)
    if reader == 0:
        found = read_instances(path, folder / "images")
        for one in found.instances:
            with contextlib.suppress(MaskError):
                rasterise(one.segmentation, WIDTH, HEIGHT)
        json.dumps(found.skipped).encode()
    elif reader == 1:
        unannotated(path, folder / "images")
    else:
        images = folder / "images" if rng.random() < 0.5 else None
        split = read_split(Split("a", path, images))
        coco_eval.match(split.ground_truth, [], "bbox")


@target("masks", lambda folder: None)
def masks(rng: np.random.Generator, folder: Path) -> None:
    """Polygons and run lengths."""
    del folder
    text = coco_eval.to_rle([[5, 5, 60, 5, 60, 40, 20, 50]], HEIGHT, WIDTH)["counts"].decode()
    if rng.random() < 0.4:
        decode_rle(damaged(text.encode(), rng).decode("latin-1"), WIDTH, HEIGHT)
        return
    good = [
        [[5, 5, 60, 5, 60, 40, 20, 50], [1, 1, 5, 5, 5, 1]],
        {"size": [HEIGHT, WIDTH], "counts": text},
        {"size": [HEIGHT, WIDTH], "counts": [1000, 100, WIDTH * HEIGHT - 1100]},
    ]
    side = WIDTH if rng.random() < 0.7 else int(rng.choice([1, 2, 100_000]))
    rasterise(changed(good[rng.integers(3)], rng), side, HEIGHT)


def write_tables(folder: Path) -> None:
    """Write a small table of each kind."""
    with region_table.writer(folder / "regions.parquet") as table:
        for number in range(6):
            bags = [[1, 2, 30, 40], [31, 2, 60, 40]]
            row = {"image": f"{number}.jpg", "width": 80, "height": 60, "bags": bags, "background_level": 250}
            row |= {"x0": 1, "y0": 2, "x1": 60, "y1": 40, "crc32": 5, "status": "ok", "message": ""}
            table.write({name: value for name, value in row.items() if name in region_table.SCHEMA.names})
        table.parameters["mode"] = "paper"
    with segment_table.writer(folder / "segments.parquet") as table:
        for number in range(10):
            rgba = np.random.default_rng(number).integers(0, 255, (20, 16, 4), np.uint8)
            rgba[..., 3] = 255
            row = {"segment_id": f"{number}.png#{number}", "class_id": number % 2, "class_name": "ab"[number % 2]}
            row |= {"image": f"{number}.png", "annotation_id": str(number), "x0": 1, "y0": 2, "x1": 17, "y1": 22}
            row |= {"area": 320, "scan_width": 80, "scan_height": 60, "cut_by_frame": False, "whole": True}
            row |= dict.fromkeys(("background_r", "background_g", "background_b"), 250.0)
            row |= {"scan_group": number, "scan_fingerprint": bytes(32), "png": encode_rgba(rgba)}
            fingerprint = segment_table.SCHEMA.field("scan_fingerprint").type.byte_width
            row["scan_fingerprint"] = bytes(fingerprint)
            table.write({name: value for name, value in row.items() if name in segment_table.SCHEMA.names})
        table.parameters |= {"classes": ["a", "b"], "counts": {"a": 5, "b": 5}, "skipped": {}}
    uses = {("background", f"{number}.jpg"): number for number in range(6)}
    sources_table.write_sources(folder / "sources.parquet", uses)  # type: ignore[arg-type]


def _read_table(kind: str, path: Path, rng: np.random.Generator) -> None:
    if kind == "regions":
        regions = region_table.load(path)
        for number in range(min(len(regions.images), 3)):
            box = regions.draw_bag(rng, number)
            assert all(isinstance(edge, int) for edge in box)
    elif kind == "sources":
        assert all(count >= 0 for count in sources_table.read(path).values())
    else:
        table = segment_table.SegmentTable(path)
        for class_id in table.usable[:2]:
            for rows in table.draw(rng, class_id):
                segment = table.segment(rows[0])
                assert segment.hull.ndim == 2
                table.find(segment.segment_id)


@target("tables: bytes", write_tables)
def table_bytes(rng: np.random.Generator, folder: Path) -> None:
    """Random damage; what is read without an error has the right values."""
    kind = ("regions", "segments", "sources")[rng.integers(3)]
    whole = (folder / f"{kind}.parquet").read_bytes()
    (folder / "t.parquet").write_bytes(damaged(whole, rng))
    _read_table(kind, folder / "t.parquet", rng)


@target("tables: values", write_tables)
def table_values(rng: np.random.Generator, folder: Path) -> None:
    """Tables that another program wrote: odd values, types, columns and metadata."""
    kind = ("regions", "segments", "sources")[rng.integers(3)]
    good = pq.read_table(folder / f"{kind}.parquet")
    columns = {name: good[name].to_pylist() for name in good.schema.names}
    metadata = {key.decode(): value.decode() for key, value in good.schema.metadata.items() if key != b"segloc.checked"}
    if rng.random() < 0.4:
        key = list(metadata)[rng.integers(len(metadata))]
        value = json.dumps(changed(json.loads(metadata[key]), rng)) if rng.random() < 0.7 else str(odd(rng))
        metadata[key] = value.encode("utf-8", "replace").decode()
    else:
        name = list(columns)[rng.integers(len(columns))]
        values = changed(columns[name], rng)
        columns[name] = ((values if isinstance(values, list) else [values]) * len(good))[: len(good)]
        columns[name] += [None] * (len(good) - len(columns[name]))
    typed = rng.random() < 0.7
    try:
        arrays = [pa.array(v, good.schema.field(n).type if typed else None) for n, v in columns.items()]
        table = pa.table(dict(zip(columns, arrays, strict=True))).replace_schema_metadata(metadata)
        pq.write_table(table, folder / "t.parquet", row_group_size=4)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return  # no table can hold this value
    _read_table(kind, folder / "t.parquet", rng)


def _shards(folder: Path) -> None:
    write_shards(folder / "good", shards=2, per_shard=3)


def _copied(folder: Path) -> Path:
    out = folder / "copy"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder / "good", out)
    return out


@target("shard index", _shards)
def shard_index(rng: np.random.Generator, folder: Path) -> None:
    """Read by training and by the audit; and the records of unfinished folders."""
    out = _copied(folder)
    _write(out / "index.json", json.loads((out / "index.json").read_bytes()), rng)
    opened = ShardFolder.open(str(out))
    opened.index.to_json()
    for _, order in epoch_order(opened.index, 0, 0, 2):
        len(order)
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
    out = _copied(folder)
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
    group = ImageGroup(np.array([[0, number] for number in range(len(samples))]), {0: samples})
    step = BatchStep([(group, number) for number in range(len(samples))], opened.index.classes)
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


_SCHEMAS = (FinetuneConfig, PretrainConfig, Experiment)


@target("recipes", lambda folder: None)
def recipes(rng: np.random.Generator, folder: Path) -> None:
    """YAML of each schema, and overrides."""
    schema = _SCHEMAS[rng.integers(3)]
    if schema is Experiment:
        tree = {"starts": {"a": {"weights": "random"}}, "protocols": {"p": {"config": "c.yaml"}}, "seeds": [0, 1]}
        tree |= {"probe": {"shards": "s"}, "pretrainings": {"q": {"shards": "s", "overrides": ["optim.batch=2"]}}}
    else:
        tree = yaml.safe_load(to_yaml(schema()))
    path = folder / "r.yaml"
    try:
        other = yaml.safe_dump(changed(tree, rng), allow_unicode=True)
    except RecursionError:
        return  # too deep to be written
    if rng.random() < 0.5:
        path.write_bytes(damaged(yaml.safe_dump(tree).encode(), rng))
    else:
        text = other
        if rng.random() < 0.5:
            tags = ("!!int ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!float ", "!!null ")
            tags += (
                "!!python/name:os.system ",
                "!x ",
                "&a ",
                "*a",
                "<<: ",
                "? ",
                "=",
                "!!merge ",
                "!!pairs ",
                "!!str ",
            )
            at = text.find(":", int(rng.integers(len(text)))) + 1
            text = f"{text[:at]} {tags[rng.integers(len(tags))]}{text[at:]}"
        path.write_text(text, errors="surrogatepass")
    overrides = [f"seed={odd(rng)}"[:1000]] if rng.random() < 0.2 else []
    to_yaml(load(schema, path, overrides)).encode()


def _checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    settings = {"arch": "resnet18", "norm": "bn", "sda_norm": "bn", "attention": True, "fpn_channels": 64}
    backbone = SegLocBackbone(**settings)
    small = {"body.conv1.weight": torch.randn(4, 3, 3, 3), "body.bn1.num_batches_tracked": torch.tensor(3)}
    content = {"kind": "backbone", **settings, "iteration": 5, "backbone": small, "head": {}}
    checkpoint.save(folder / "small.pth", content)
    checkpoint.save(folder / "backbone.pth", {**content, "backbone": backbone.state_dict()})

    class Fake:
        engine, net, backbone = "torchvision", torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    detector = detector_content(Fake, FinetuneConfig(), ["a", "b"], 7)  # type: ignore[arg-type]
    checkpoint.save(folder / "detector.pth", {**detector, "steps": 9, "start": "random"})


@target("checkpoints", _checkpoints)
def checkpoints(rng: np.random.Generator, folder: Path) -> None:
    """Read by evaluate, finetune and export."""
    name = ("small", "detector", "backbone" if rng.random() < 0.1 else "small")[rng.integers(3)]
    source, path = folder / f"{name}.pth", folder / "x.pth"
    if rng.random() < 0.3:
        path.write_bytes(damaged(source.read_bytes(), rng))
    else:
        content = changed(torch.load(source, weights_only=True), rng)
        if rng.random() < 0.3:
            _odd_tensor(content, rng)
        torch.save(content, path)
    reader = rng.integers(3)
    if name == "detector":
        content = read_detector(path)
        to_yaml(recipe_inside(content, str(path))).encode()
        " ".join(content["classes"]).encode()
    elif reader == 0:
        read_start(str(path))
    else:
        read_backbone(path).build()


def _odd_tensor(content: Any, rng: np.random.Generator) -> None:
    for holder in (content, *(content.values() if isinstance(content, dict) else ())):
        if isinstance(holder, dict) and holder:
            key = list(holder)[int(rng.integers(len(holder)))]
            odd_tensors = (
                torch.tensor(float("nan")),
                torch.zeros(1).expand(10**6, 10**6),
                torch.zeros(2, device="meta"),
                torch.zeros(0),
                torch.zeros(2, dtype=torch.complex64),
                torch.zeros(3, dtype=torch.bool),
                torch.eye(2).to_sparse(),
            )
            holder[key] = odd_tensors[int(rng.integers(len(odd_tensors)))]


@target("results files", _coco)
def results_files(rng: np.random.Generator, folder: Path) -> None:
    """COCO results against their annotations."""
    path = folder / "r.json"
    _write(path, json.loads((folder / "results.json").read_text()), rng)
    split = read_split(Split("good", folder / "good.json", None))
    found = read_results(path)
    for kind in coco_eval.IOU_TYPES if rng.random() < 0.5 else ["bbox"]:
        json.dumps(coco_eval.evaluate(split.ground_truth, found, kind))


def _images(folder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    for suffix, picture in ((".jpg", image), (".png", image), (".bmp", image), (".tiff", image)):
        (folder / f"good{suffix}").write_bytes(cv2.imencode(suffix, picture)[1].tobytes())
    (folder / "grey.png").write_bytes(cv2.imencode(".png", image[..., 0])[1].tobytes())
    (folder / "deep.png").write_bytes(cv2.imencode(".png", image.astype(np.uint16) * 16)[1].tobytes())
    (folder / "deep.tiff").write_bytes(cv2.imencode(".tiff", image.astype(np.uint16) * 16)[1].tobytes())
    (folder / "alpha.png").write_bytes(encode_rgba(np.dstack([image, image[..., :1]])))


@target("images", _images)
def images(rng: np.random.Generator, folder: Path) -> None:
    """Each format, in each mode and at each reduction."""
    files = sorted(path for path in folder.iterdir() if path.suffix)
    data = damaged(files[int(rng.integers(len(files)))].read_bytes(), rng)
    if rng.random() < 0.3:  # a size in the header
        at = int(rng.integers(8, min(200, len(data)) or 9))
        data = data[:at] + b"\x7f\xff" + data[at + 2 :]
    found = decode(data, ("rgb", "grey")[rng.integers(2)], (1, 2, 4, 8)[rng.integers(4)])  # type: ignore[call-overload]
    assert found.dtype == np.uint8


def _runs(folder: Path) -> None:
    for kind in ("pretrain", "finetune"):
        run = folder / "good" / kind
        run.mkdir(parents=True)
        about = {"kind": kind, "engine": "torchvision (stand-in)", "device": "cpu", "git_revision": "abc"}
        about |= {"command": "x", "weights": "random", "steps": 4, "chance_loss": 9.0, "chance_class_accuracy": 0.5}
        (run / "run.json").write_text(json.dumps({**about, "data_digest": "d", "shards": "s", "classes": ["a"]}))
        (run / "config.yaml").write_text(to_yaml(FinetuneConfig() if kind == "finetune" else PretrainConfig()))
        lines = [{"iteration": i, "loss": 3.0 - i, "class_accuracy": 0.5, "top1/p2": 0.1} for i in range(4)]
        (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = {"AP": 5.0, "AP50": 9.0, "AP75": None, "AR1": 1.0, "AR10": 2.0, "AR100": 3.0, "per_class": {"a": {}}}
    part = {"images": 3, "digest": "x", "bbox": figures, "segm": figures}
    report = {"engine": "torchvision (stand-in)", "iteration": 4, "steps": 4, "subsets": {"easy": part, "hard": part}}
    (folder / "good" / "finetune" / "evaluation.json").write_text(
        json.dumps({**report, "mean": part, "pooled": part, "classes": ["a"]})
    )
    (folder / "good" / "finetune" / "start.json").write_text(json.dumps({"origin": "x", "pretraining_seed": 3}))


@target("metrics lines and reports", _runs)
def runs(rng: np.random.Generator, folder: Path) -> None:
    """Run folders as the report reads them, and a log that is continued."""
    out = _copied(folder)
    run = out / ("pretrain", "finetune")[rng.integers(2)]
    files = sorted(path for path in run.iterdir())
    path = files[int(rng.integers(len(files)))]
    if path.name == "metrics.json" and rng.random() < 0.7:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed(lines, rng) or [])
                        if isinstance(changed(lines, rng), list) else "3\n")  # fmt: skip
    elif path.suffix == ".json" and path.name != "metrics.json":
        _write(path, json.loads(path.read_text()), rng)
    else:
        path.write_bytes(damaged(path.read_bytes(), rng))
    if rng.random() < 0.1:
        MetricsLog(run, 2).close()
    found = [load_run(out / name) for name in ("pretrain", "finetune")]
    if rng.random() < 0.15:  # drawing takes most of the time
        page = render(found, [], "title")
        page.encode()
        assert "<script>alert" not in page, "text from a file is not escaped"
    table = results_table(found)
    (results_markdown(table) + results_csv(table)).encode()
    origin(str(run))


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
        _write(folder / "p.json", content, rng)
        probes_markdown(read_probes([("a", 0, folder / "p.json")]))
    elif name == "record":
        _write(store / ".progress" / "pairs-000000.tar.json", content, rng)
        if record := progress.read_record(LocalStore(store), 0):
            progress.is_intact(LocalStore(store), record)
    elif name == "uses":
        _write(store / ".progress" / "pairs-000000.tar.sources.json", content, rng)
        with contextlib.suppress(FileNotFoundError):  # no such shard, so only its record can answer
            progress.read_uses(LocalStore(store), "pairs-000000.tar")
    else:
        job = Job("job", folder, (Step("finetune", (), folder / "made"),), {"weights": "random"}, lambda: None)
        _write(job.record, content, rng)
        changed_settings(job)


if sys.flags.optimize:  # pragma: no cover
    raise RuntimeError("the checks here are assertions")
