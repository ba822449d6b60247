"""Shared by the scripts: counts, result files, the command line, small inputs, and running segloc's commands."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import functools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType

from segloc.common.files import write_json
from tests.imports import ROOT

RESULTS = Path(__file__).parent / "results"
SCRIPTS = ("kill", "disk", "dirty", "fuzz", "hostile", "stops", "distributed", "long")
LIMIT_S = 600
PRETRAINING = (
    "--config", "detectron_configs/pretrain/demo_r18.yaml", "optim.steps=8", "optim.batch=4", "optim.micro_batch=4",
    "optim.warmup=2", "optim.method=sgd", "queue.size=24", "data.image_size=64", "checkpoint_every=3", "log_every=1",
    "model.fpn_channels=64", "head.fc_dim=32", "head.dim=16",
)  # fmt: skip
FINETUNING = (
    "--config", "detectron_configs/finetune/demo_r18.yaml", "--weights", "random", "model.engine=torchvision",
    "model.backbone.fpn_channels=64", "model.heads.fc_dim=32", "model.heads.mask_convs=1", "model.heads.mask_dim=16",
    "model.heads.train_proposals=50", "data.image_size=64", "data.threads=1", "optim.method=sgd", "optim.batch=2",
    "train.iterations=6", "train.checkpoint_every=2", "train.log_every=1",
)  # fmt: skip
_SCRATCH = re.compile(r"/\S*?/segloc-faults-\w+/(fuzz-[\d-]+/)?")  # folders of this run say nothing to others
_SHOWN = 20  # findings printed per kind; the result file has all


@dataclasses.dataclass
class Count:
    """Outcome of the cases of one kind of fault.

    Attributes:
        kind: a few words.
        cases: number of cases that ran.
        as_expected: number of them that ended as promised.
        findings: one line for each other case: how to repeat it, and what happened.
        measured: what was measured beside, by a name with a unit.
    """

    kind: str
    cases: int = 0
    as_expected: int = 0
    findings: list[str] = dataclasses.field(default_factory=list)
    measured: dict[str, float | str] = dataclasses.field(default_factory=dict)

    def add(self, repeat: str, problem: str | None) -> None:
        """Count a case; `problem` says what was not as promised, and `repeat` how to get it again."""
        self.cases += 1
        if problem is None:
            self.as_expected += 1
        else:
            self.findings.append(f"{repeat}: {_SCRATCH.sub('', problem)}")


Kinds = Mapping[str, Callable[[int, int], Count]]


def shares(cases: int, kinds: Iterable[str]) -> dict[str, int]:
    """Divide cases evenly over kinds, at least one each; the first kinds take the remainder."""
    names = list(kinds)
    each, rest = divmod(max(cases, len(names)), len(names))
    return {name: each + (number < rest) for number, name in enumerate(names)}


def main(script: ModuleType, argv: list[str] | None = None) -> int:
    """Run a script's long form from the command line. Return 1 if there are findings.

    The result is written after each kind. The same command at the same commit goes on after the last written kind.
    """
    name = str(script.__spec__.name).rpartition(".")[2] if script.__spec__ else Path(str(script.__file__)).stem
    options = argparse.ArgumentParser(f"python -m tests.faults.{name}", description=script.__doc__)
    options.add_argument("--cases", type=int, default=script.LONG, help="in all (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the choice of cases (default: %(default)s)")
    options.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="result file")
    args = options.parse_args(argv)
    command = f"python -m tests.faults.{name} --cases {args.cases} --seed {args.seed}"
    counts = _earlier(args.out, command)
    for kind, cases in shares(args.cases, script.KINDS).items():
        if kind not in {count.kind for count in counts}:
            began = time.monotonic()
            counts.append(script.KINDS[kind](cases, args.seed))
            counts[-1].measured.setdefault("seconds", round(time.monotonic() - began, 1))
            print(line(counts[-1]), flush=True)
            for finding in counts[-1].findings[:_SHOWN]:
                print(f"  {finding}", flush=True)
            write_result(args.out, command, counts, script.KINDS)
    print(line(total(counts)))
    return 1 if any(count.findings for count in counts) else 0


def line(count: Count) -> str:
    """Format a count for the terminal."""
    return f"{count.kind}: {count.cases} cases, {count.as_expected} as expected, {len(count.findings)} findings"


def total(counts: Iterable[Count]) -> Count:
    """Add up counts."""
    counts = list(counts)
    findings = [finding for count in counts for finding in count.findings]
    return Count("all", sum(c.cases for c in counts), sum(c.as_expected for c in counts), findings)


def write_result(path: Path, command: str, counts: Iterable[Count], kinds: Iterable[str]) -> None:
    """Write a result file. It names the class of the machine, and no host, path or user."""
    content = {
        "command": command,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "kinds": list(kinds),
        "counts": [dataclasses.asdict(count) for count in counts],
    }
    write_json(path, content)


def _earlier(path: Path, command: str) -> list[Count]:
    """Counts of an unfinished run of the same command at the same commit."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text())
        counts = [Count(**count) for count in content["counts"]]
        if (content["command"], content["commit"]) == (command, commit()) and len(counts) < len(content["kinds"]):
            return counts
    return []


def commit() -> str:
    """Revision of this checkout, with ``-dirty`` if tracked files other than result files differ."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    results = f":(exclude){RESULTS.relative_to(ROOT)}"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", results)
    return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")


def machine() -> str:
    """Class of this machine: cores, memory, system, Python."""
    gigabytes = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    return f"{os.cpu_count()} cores, {gigabytes} GB, {platform.system()}, Python {platform.python_version()}"


@functools.cache
def scratch() -> Path:
    """A folder of this process for what the scripts write; removed when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="segloc-faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def fresh(name: str) -> Path:
    """A new, empty folder below `scratch`."""
    folder = scratch() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@functools.cache
def inputs() -> Path:
    """144 simulated scans and what follows from them.

    ``sixray``, ``pidray``, ``regions.parquet``, ``segments.parquet``, ``shards`` (48 pairs in four tars) and
    ``easy.results.json``, detections that equal the annotations of the easy test set.
    """
    root = scratch() / "inputs"
    scans, items = root / "sixray", root / "pidray"
    passed(run("pipeline.simulate", "--out", root, "--scans", 144, "--width", 96, "--workers", 1))
    passed(run("pipeline.regions", "--backgrounds", scans, "--out", root / "regions.parquet", "--workers", 1))
    passed(run("pipeline.segments", "--annotations", items, "--out", root / "segments.parquet", "--workers", 1))
    passed(run("pipeline.synthesize", *synthesis(root, root / "shards", workers=1)))
    truth = json.loads((items / "annotations" / "xray_test_easy.json").read_text())["annotations"]
    fields = ("image_id", "category_id", "bbox", "segmentation")
    results = [{**{field: item[field] for field in fields}, "score": 0.9} for item in truth]
    for result, item in zip(results, truth, strict=True):
        if isinstance(item["segmentation"], list):  # results have no polygons
            del result["segmentation"]
    (root / "easy.results.json").write_text(json.dumps(results))
    return root


def synthesis(root: Path, out: Path, pairs: int = 48, per_shard: int = 12, **options: object) -> list[object]:
    """Arguments of ``pipeline.synthesize`` for `inputs`."""
    sources = ["--backgrounds", root / "sixray", "--regions", root / "regions.parquet"]
    size = ["--pairs", pairs, "--per-shard", per_shard, "--width", 96, "--scale", "3:5"]
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    return [*sources, "--segments", root / "segments.parquet", "--out", out, *size, *flags]


def shards() -> Path:
    """The shards of `inputs`."""
    return inputs() / "shards"


def environment() -> dict[str, str]:
    """Environment of the commands: this checkout, one thread each."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def start(module: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start ``python -m module`` as the leader of a process group; a test ends it with `end`."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    settings = {"cwd": ROOT, "env": environment(), "text": True, "errors": "replace", "start_new_session": True}
    return subprocess.Popen(command, **{**pipes, **settings, **options})  # type: ignore[call-overload]


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Send a signal to all processes of a group that `start` started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def run(
    module: str, *arguments: object, limit_s: float = LIMIT_S, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` to its end. After `limit_s` the group is killed, and the exit code is -9."""
    process = start(module, *arguments, **options)
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        end(process)
        output, errors = process.communicate()
        errors += f"\nkilled after {limit_s:g} s"
    finally:
        end(process)  # what it started and left
    return subprocess.CompletedProcess(process.args, process.returncode, output or "", errors or "")


def passed(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Return a result whose exit code is 0; else raise, because the script itself cannot go on."""
    if done.returncode:
        raise RuntimeError(f"{done.args} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done


def last_line(text: str) -> str:
    """The last line of a command's stderr, without the bars of tqdm before it."""
    lines = [part.strip() for part in re.split(r"[\r\n]+", text) if part.strip()]
    return lines[-1] if lines else ""


def refusal(done: subprocess.CompletedProcess[str], codes: Iterable[int], names: str | Path) -> str | None:
    """What is wrong with a refusal: None if it is one sentence that contains `names`, with one of the exit codes."""
    shown = last_line(done.stderr)
    if "Traceback" in done.stderr:
        return f"traceback: {shown[:200]}"
    if done.returncode not in set(codes):
        return f"exit code {done.returncode}: {shown[:200]}"
    if str(names) not in shown:
        return f"does not name {Path(names).name!r}: {shown[:200]}"
    return None


def contents(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder, by relative path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def difference(expected: Mapping[str, bytes], found: Mapping[str, bytes]) -> str | None:
    """The first differences between the contents of two folders; None if they are equal."""
    missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    kinds = {"missing": missing, "left": more, "other bytes": other}
    return "; ".join(f"{what} {names[:3]}" for what, names in kinds.items() if names) or None
