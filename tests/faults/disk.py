"""Disks that fill up, outputs that cannot be written, files and folders that vanish, and locks left behind.

Each case ends in one sentence that names a file or folder, with a non-zero exit code; no file with a final name is
half-written; and the same command succeeds once the cause is gone, with the bytes of an undisturbed run. A command that
ends before the fault reaches it has to end as undisturbed. One that could not read some of its scans counts them, and
the rest of its result is that of an undisturbed run.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.faults import common, partial
from tests.faults.common import Count
from tests.faults.targets import TARGETS, half_written, is_complete, undisturbed, watch, wrong_rerun, wrong_state

LONG, SHORT = 120, 12
FAILED = (1, 2)
# The cheap ones first: the short form has few cases of each kind.
NAMES = (
    "synthesis", "segments", "regions", "audit", "crops", "manifest", "simulate", "evaluation", "fine-tuning",
    "pretraining",
)  # fmt: skip
_BLOCK = 4096

Case = Callable[[str, Path, np.random.Generator], "tuple[str, str | None]"]


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path | None]:
    """A file system of `size` bytes; None where mounting is not allowed."""
    folder = common.fresh("disk")
    mounted = _mount("-t", "tmpfs", "-o", f"size={max(size, _BLOCK)}", "tmpfs", folder)
    if mounted:
        atexit.register(subprocess.run, ["umount", "-l", folder], capture_output=True)
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


def _mount(*arguments: object) -> bool:
    try:
        return not subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


def full_disk(name: str, out: Path, rng: np.random.Generator) -> tuple[str, str | None]:
    """A tmpfs that holds a random share of the outputs."""
    needed = sum(-(-len(data) // _BLOCK) * _BLOCK for data in undisturbed(name).files.values())
    size = int(rng.random() * needed) // _BLOCK * _BLOCK
    with small_disk(size) as disk:
        if disk is None:
            return size_limit(name, out, rng)
        done = common.run(*TARGETS[name].command(disk))
        problem = _failed(name, disk, done)
        if not problem and not _mount("-o", f"remount,size={2 << 30}", disk):
            problem = "could not enlarge the disk"
        return f"{size} bytes", problem or wrong_rerun(name, disk)


def size_limit(name: str, out: Path, rng: np.random.Generator) -> tuple[str, str | None]:
    """A limit on the size of a file (RLIMIT_FSIZE)."""
    limit = int(rng.random() * max(map(len, undisturbed(name).files.values())))
    set_limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    done = common.run(*TARGETS[name].command(out), preexec_fn=set_limit)
    return f"limit {limit} bytes", _failed(name, out, done) or wrong_rerun(name, out)


def read_only(name: str, out: Path, rng: np.random.Generator) -> tuple[str, str | None]:
    """An output folder on a read-only file system or, where mounting is not allowed, without write permission."""
    with small_disk(2 << 30) as disk:
        folder = disk or out
        _set_writable(folder, disk is not None, False)
        try:
            done = common.run(*TARGETS[name].command(folder))
        finally:
            _set_writable(folder, disk is not None, True)
        problem = common.refusal(done, FAILED, folder)
        if not problem and any(folder.iterdir()):
            problem = "wrote something"
        return "", problem or wrong_rerun(name, folder)


def _set_writable(folder: Path, is_mount: bool, writable: bool) -> None:
    if is_mount:
        assert _mount("-o", f"remount,{'rw' if writable else 'ro'}", folder)
    else:
        folder.chmod(0o755 if writable else 0o555)


def removed_output(name: str, out: Path, rng: np.random.Generator) -> tuple[str, str | None]:
    """The output folder is removed while the command runs."""
    moment, whole = float(rng.random()), undisturbed(name)
    process = common.start(*TARGETS[name].command(out))
    if rng.random() < 0.5 and whole.changes:
        watch(process, out, change=1 + int(moment * whole.changes))
    else:
        watch(process, out, until=time.monotonic() + moment * whole.seconds)
    common.end(process, signal.SIGSTOP)  # or it would go on between the look and the removal
    complete = is_complete(name, out)  # the command may be about to end
    for path in out.iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    common.end(process, signal.SIGCONT)
    done = _finish(process)
    fault = None if complete and done.returncode == 0 else _ended(name, out, done)
    return f"at {moment:.3f}", fault or wrong_rerun(name, _made(out))


def removed_input(name: str, out: Path, rng: np.random.Generator) -> tuple[str, str | None]:
    """An input is renamed while the command runs, and put back."""
    inputs = common.fresh("copied-inputs")
    shutil.copytree(common.inputs(), inputs, dirs_exist_ok=True)
    lost = inputs / str(rng.choice(sorted(READS[name])))
    moment, whole = float(rng.random()), undisturbed(name)
    process = common.start(*TARGETS[name].command(out, inputs=inputs))
    watch(process, out, until=time.monotonic() + moment * whole.seconds)
    away = inputs / "away"
    lost.rename(away)
    done = _finish(process)
    away.rename(lost)
    audited = name == "audit" and done.returncode == 1 and not done.stderr.strip()
    problem = _reported(done, lost.name) if audited else _ended(name, out, done)
    return f"{lost.relative_to(inputs)} at {moment:.3f}", problem or wrong_rerun(name, out, inputs)


READS = {
    "synthesis": ("sixray", "regions.parquet", "segments.parquet"),
    "segments": ("pidray/train", "pidray/annotations"),
    "regions": ("sixray",),
    "audit": ("shards", "shards/pairs-000002.tar", "shards/sources.parquet", "segments.parquet"),
    "crops": ("sixray", "regions.parquet"),
    "manifest": ("sixray",),
    "simulate": ("sixray",),  # it reads nothing
    "evaluation": ("easy.results.json", "pidray/annotations"),
    "fine-tuning": ("pidray/train", "pidray/annotations"),
    "pretraining": ("shards", "shards/pairs-000001.tar"),
}


def stale_lock(name: str, out: Path, rng: np.random.Generator) -> tuple[str, str | None]:
    """Every lock file that the command makes is left behind, with the name of a process that no longer runs."""
    moment, whole = float(rng.random()), undisturbed(name)
    process = common.start(*TARGETS[name].command(out))
    watch(process, out, until=time.monotonic() + moment * whole.seconds)
    common.end(process)
    process.communicate()
    locks = [path for path in out.rglob("*") if path.is_file() and "lock" in path.name]
    for lock in locks:
        lock.write_text(f"process {2**22 + 1} on another-machine\n")
    return f"at {moment:.3f}, {len(locks)} locks", half_written(name, out) or wrong_rerun(name, out)


def _finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    try:
        output, errors = process.communicate(timeout=common.LIMIT_S)
    finally:
        common.end(process)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _failed(name: str, out: Path, done: subprocess.CompletedProcess[str]) -> str | None:
    """What is wrong with a command on a full disk; it may have ended well if everything fitted."""
    if done.returncode == 0:
        return wrong_state(name, out)
    return common.refusal(done, FAILED, out) or half_written(name, out)


def _ended(name: str, out: Path, done: subprocess.CompletedProcess[str]) -> str | None:
    """What is wrong with a command whose files vanished: it fails in one sentence, or ends well and tells of them."""
    if done.returncode == 0:
        different = partial.wrong_result(name, _made(out), partial.told(done))
        return different and f"exit code 0, but {different}"
    if "--max-skipped" in done.stderr:  # more scans were missing than allowed
        return common.refusal(done, [1], ".") or partial.wrong_result(name, out, partial.told(done))
    return common.refusal(done, FAILED, common.scratch()) or half_written(name, out)


def _reported(done: subprocess.CompletedProcess[str], lost: str) -> str | None:
    """What is wrong with an audit that found violations: they must name the file that vanished."""
    return None if f"{lost}: " in done.stdout else f"does not report {lost!r}: {done.stdout[:200]}"


def _made(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return out


def count(kind: str, case: Case, cases: int, seed: int) -> Count:
    """Run several cases of a kind, the commands in turn."""
    result = Count(kind)
    for number in range(cases):
        name, rng = NAMES[number % len(NAMES)], np.random.default_rng([seed, number])
        out = common.fresh(f"{kind.replace(' ', '-')}-{number}")
        repeat, problem = case(name, out, rng)
        result.add(f"seed {seed}, case {number}, {name}, {repeat}", problem)
    return result


KINDS = {
    kind: functools.partial(count, kind, case)
    for kind, case in {
        "full disk": full_disk,
        "limit on file size": size_limit,
        "read-only output": read_only,
        "output removed": removed_output,
        "input removed": removed_input,
        "stale lock": stale_lock,
    }.items()
}

if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(common.main(sys.modules[__name__]))
