"""Long runs and large files: memory stays flat, and time and memory are stated.

``--cases`` is the size in per cent, summed over the five kinds: 500 is full size. *slope* is the growth of resident
memory per 1,000 pairs, fitted over all but the first quarter of the run, where caches fill.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import re
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import common
from tests.faults.common import Count

LONG, SHORT = 500, 1
SHORT_KINDS = ("synthesis", "index", "table of regions")  # the others import torch, which takes longer than they do
_TABLE, _COCO, _STREAM = "pipeline.tables.region_table", "segloc.common.datasets.coco", "segloc.data.stream"
_SPLITS = "segloc.detection.splits"
PAIRS, INSTANCES, SHARDS, ROWS = 20_000, 100_000, 2_000, 1_000_000
# Growth over all pairs that counts as flat, in MB: a hundredth of what the pairs themselves take.
FLAT_MB = 8.0
_MB = 1 << 20


def _resident_mb(pid: int | str = "self") -> float:
    pages = int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
    return pages * resource.getpagesize() / _MB


def _flat(count: Count, samples: list[tuple[int, float]], pairs: int) -> Count:
    """Fit a line through (pairs, MB) and count whether it is flat."""
    kept = np.array(samples[len(samples) // 4 :], float)
    slope = float(np.polyfit(kept[:, 0], kept[:, 1], 1)[0]) if len(kept) > 2 else 0.0
    count.measured |= {"pairs": pairs, "memory MB": round(float(kept[:, 1].max())), "slope MB": round(1000 * slope, 3)}
    growth = slope * pairs
    count.add(f"{pairs} pairs", f"memory grows by {growth:.1f} MB" if growth > FLAT_MB else None)
    return count


def synthesis(cases: int, seed: int) -> Count:
    """Memory of a synthesis in one process."""
    pairs, out = max(400, PAIRS * cases // 100), common.fresh("long")
    arguments = common.synthesis(common.inputs(), out / "shards", pairs, 100, workers=1, seed=seed)
    process, samples = common.start("pipeline.synthesize", *arguments, stdout=None, stderr=None), []
    while process.poll() is None:
        done = 100 * len(list((out / "shards").glob("pairs-*.tar"))) if (out / "shards").is_dir() else 0
        try:
            samples.append((done, _resident_mb(process.pid)))
        except (OSError, IndexError, ValueError):
            break
        time.sleep(0.05)
    count = Count("synthesis")
    if process.wait():
        count.add(f"{pairs} pairs", f"exit code {process.returncode}")
        return count
    return _flat(count, [sample for sample in samples if sample[0]], pairs)


def _streamed(shards: str, pairs: int, seed: int) -> list[tuple[int, float]]:
    from segloc.data.stream import PairStream, ShardFolder

    stream = PairStream(ShardFolder.open(shards), batch=20, image_size=96, seed=seed, mix_shards=2, threads=2)
    samples = []
    for number, _ in zip(range(pairs // 20), stream.batches(), strict=False):
        if number % 5 == 0:
            samples.append((20 * number, _resident_mb()))
    return samples


def stream(cases: int, seed: int) -> Count:
    """Memory of the stream of batches, over several epochs."""
    pairs = max(2000, PAIRS * cases // 100)
    samples, _, _ = _in_process(functools.partial(_streamed, str(common.inputs() / "shards"), pairs, seed), _STREAM)
    return _flat(Count("stream"), samples, pairs)


def _measured(function: Callable[[], Any], module: str) -> tuple[Any, float, float]:
    importlib.import_module(module)
    before, began = _resident_mb(), time.perf_counter()
    result = function()
    seconds = time.perf_counter() - began
    # Not `getrusage`, whose peak includes that of the process that started this one.
    peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]
    return result, seconds, peak - before


def _in_process(function: Callable[[], Any], module: str) -> tuple[Any, float, float]:
    """Call a function in a new process; return its result, its seconds, and the MB it added at most.

    The import of `module` is not measured.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, function, module).result()


def _bounded(
    kind: str, size: dict[str, float], parts: dict[str, tuple[str, Callable[[], Any]]], limits: tuple[float, float]
) -> Count:
    """Run each part in a new process; count those within limits of seconds and MB."""
    count, most_s, most_mb = Count(kind, measured=dict(size)), 0.0, 0.0
    for name, (module, part) in parts.items():
        wrong, seconds, memory = _in_process(part, module)
        most_s, most_mb = max(most_s, seconds), max(most_mb, memory)
        late = f"{seconds:.1f} s and {memory:.0f} MB" if seconds > limits[0] or memory > limits[1] else None
        count.add(name, wrong or late)
    count.measured |= {"s at most": round(most_s, 2), "memory MB": round(most_mb)}
    return count


def _write_annotations(path: Path, instances: int) -> None:
    """Write a COCO file of a fifth as many images, and an empty file for each."""
    images = [{"id": n, "file_name": f"xray_{n:06d}.png", "width": 500, "height": 400} for n in range(instances // 5)]
    box = {"bbox": [10, 20, 30, 40], "area": 1200, "iscrowd": 0, "segmentation": [[10, 20, 40, 20, 40, 60, 10, 60]]}
    items = [{"id": n, "image_id": n // 5, "category_id": 1 + n % 12, **box} for n in range(instances)]
    categories = [{"id": n, "name": f"class {n}"} for n in range(1, 13)]
    path.write_text(json.dumps({"images": images, "annotations": items, "categories": categories}))
    (path.parent / "scans").mkdir()
    for image in images:
        (path.parent / "scans" / str(image["file_name"])).touch()


def _read_instances(path: Path, instances: int) -> str | None:
    from segloc.common.datasets import coco

    found = len(coco.read_instances(path, path.parent / "scans").instances)
    return None if found == instances else f"{found} instances"


def _read_split(path: Path, instances: int) -> str | None:
    from segloc.common.datasets import Split
    from segloc.detection.splits import read_split

    found = sum(len(scan.annotations) for scan in read_split(Split("train", path, path.parent / "scans")).scans)
    return None if found == instances else f"{found} annotations"


def annotations(cases: int, seed: int) -> Count:
    """An annotation file read by both stages."""
    instances, path = INSTANCES * cases // 100, common.fresh("annotations") / "train.json"
    _write_annotations(path, instances)
    parts = {
        "instances to cut": (_COCO, functools.partial(_read_instances, path, instances)),
        "training set": (_SPLITS, functools.partial(_read_split, path, instances)),
    }
    return _bounded("annotation file", {"instances": instances}, parts, (60, 2000))


def _write_index(folder: Path, shards: int) -> None:
    from segloc.common.contract import INDEX_NAME, SOURCES_NAME, Index, Shard, Sources, shard_name

    counts = (84,) * 8 + (82,) * 4
    entries = tuple(Shard(shard_name(n), 1000, 10_240_000, "0" * 64, counts) for n in range(shards))
    classes = tuple(f"class {n}" for n in range(12))
    sources = Sources(SOURCES_NAME, "0" * 64, 0)
    index = Index(classes, 0, {}, {"pairs": 1000 * shards, "shards": shards}, entries, sources)
    (folder / INDEX_NAME).write_bytes(index.to_json())
    for entry in entries:
        with (folder / entry.name).open("wb") as file:
            file.truncate(entry.bytes)


def _open_index(folder: Path, shards: int) -> str | None:
    from segloc.data.stream import ShardFolder, epoch_order

    opened = ShardFolder.open(str(folder))
    opened.check_sizes()
    pairs = len(epoch_order(opened.index, 0, 0, 4))
    return None if pairs == 1000 * shards else f"{pairs} pairs in the order"


def index(cases: int, seed: int) -> Count:
    """An index of many shards: opened, sizes checked, an epoch put in order."""
    shards, folder = SHARDS * cases // 100, common.fresh("index")
    _write_index(folder, shards)
    parts = {"open, check sizes, order": (_STREAM, functools.partial(_open_index, folder, shards))}
    return _bounded("index", {"shards": shards}, parts, (30, 500))


def _write_table(path: Path, rows: int) -> str | None:
    from pipeline.tables import region_table

    row = {"width": 500, "height": 400, "x0": 10, "y0": 20, "x1": 400, "y1": 300, "bags": [[10, 20, 400, 300]]}
    with region_table.writer(path) as table:
        table.parameters["mode"] = "adaptive"
        for number in range(rows):
            state = {"background_level": 255, "crc32": number, "status": "ok", "message": ""}
            table.write({"image": f"JPEGImage/N{number:07d}.jpg", **row, **state})
    return None


def _load_table(path: Path, rows: int) -> str | None:
    from pipeline.tables import region_table

    table = region_table.load(path)
    drawn = table.draw_bag(np.random.default_rng(0), rows - 1)
    return None if len(table.images) == rows and drawn == (10, 20, 400, 300) else f"{len(table.images)} rows, {drawn}"


def table(cases: int, seed: int) -> Count:
    """A table of regions written and loaded."""
    rows, path = ROWS * cases // 100, common.fresh("table") / "regions.parquet"
    parts = {
        "write": (_TABLE, functools.partial(_write_table, path, rows)),
        "load": (_TABLE, functools.partial(_load_table, path, rows)),
    }
    return _bounded("table of regions", {"rows": rows}, parts, (120, 1000))


KINDS = {
    "synthesis": synthesis,
    "stream": stream,
    "annotation file": annotations,
    "index": index,
    "table of regions": table,
}

if __name__ == "__main__":
    sys.exit(common.main(sys.modules[__name__]))
