"""Workers and ranks killed while they work together.

A killed worker of Ray or of the local executor costs no bytes: the command goes on or ends in one sentence, and the
shards in the end are those of an undisturbed run. A killed rank of a training ends the others with one sentence within
a minute, and the same command resumes to the losses and tensors of an undisturbed run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.faults import common
from tests.faults.common import Count
from tests.faults.targets import TARGETS, State, run_state, wrong_state

LONG, SHORT = 24, 1
SHORT_KINDS = ("local worker killed",)  # the others take a minute each; test_processes.py kills a rank, too
_END_S = 60
_PAIRS = {"pairs": 480, "per_shard": 24}


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below a process, by id."""
    parents, found = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for child in [child for child, above in parents.items() if above == parent]:
            waiting.append(child)
            with contextlib.suppress(OSError):
                found[child] = (Path("/proc") / str(child) / "cmdline").read_text().replace("\0", " ").strip()
    return found


def _kill_one(process: subprocess.Popen[str], kind: str, rng: np.random.Generator) -> bool:
    """Kill one of the processes whose command line has `kind`; False if there is none before the command ends."""
    while process.poll() is None:
        if found := [pid for pid, line in sorted(descendants(process.pid).items()) if kind in line]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(rng.choice(found)), signal.SIGKILL)
                return True
        time.sleep(0.01)
    return False


def _finish(process: subprocess.Popen[str], limit_s: float) -> tuple[str, str | None]:
    """Wait for a command; return its stderr, and what is wrong with its end."""
    try:
        _, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        common.end(process)
        return process.communicate()[1], f"still running {limit_s:g} s later"
    finally:
        common.end(process)
    return errors, None


def worker(executor: str, mark: str, out: Path, rng: np.random.Generator) -> tuple[str, str | None]:
    """Kill up to three workers of a synthesis at random moments after the first shard."""
    arguments = common.synthesis(common.inputs(), out / "shards", **_PAIRS, workers=2, executor=executor)
    process, killed = common.start("pipeline.synthesize", *arguments), 0
    first = int(rng.integers(0, 12))
    while process.poll() is None and len(list(out.rglob("pairs-*.tar"))) < first:
        time.sleep(0.005)
    for _ in range(int(rng.integers(1, 4))):
        time.sleep(float(rng.random()) * 0.2)
        killed += _kill_one(process, mark, rng)
    errors, problem = _finish(process, common.LIMIT_S)
    repeat = f"{killed} workers killed after {first} shards, exit code {process.returncode}"
    if problem or process.returncode == 0:
        return repeat, problem or wrong_state("synthesis", out)
    done = subprocess.CompletedProcess([], process.returncode, "", errors)
    if problem := common.refusal(done, [1], "worker"):
        return repeat, problem
    again = common.run("pipeline.synthesize", *arguments)
    return repeat, f"next: {common.last_line(again.stderr)}" if again.returncode else wrong_state("synthesis", out)


def _training(out: Path, launcher: str) -> list[str]:
    if launcher == "torchrun":
        arguments = map(str, TARGETS["pretraining"].command(out))
        torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
        return [*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", *arguments]
    return [*map(str, TARGETS["pretraining in two processes"].command(out))]


@functools.cache
def _undisturbed(launcher: str) -> tuple[State, float]:
    out, began = common.fresh(f"ranks-{launcher}"), time.monotonic()
    common.passed(common.run(*_training(out, launcher)))
    return run_state(out), time.monotonic() - began


def rank(launcher: str, mark: str, out: Path, rng: np.random.Generator) -> tuple[str, str | None]:
    """Kill a rank at a random moment of its life."""
    whole, seconds = _undisturbed(launcher)
    process, moment = common.start(*_training(out, launcher)), float(rng.random()) * 0.95 * seconds
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < moment:
        time.sleep(0.01)
    if not _kill_one(process, mark, rng):
        process.communicate()
        return f"at {moment:.2f} s, after its end", None if run_state(out) == whole else "differs"
    killed = time.monotonic()
    errors, problem = _finish(process, _END_S)
    repeat = f"at {moment:.2f} s, ended {time.monotonic() - killed:.1f} s later with {process.returncode}"
    if problem or process.returncode == 0:
        return repeat, problem or "exit code 0"
    if launcher != "torchrun" and (problem := _ranks_sentence(errors)):
        return repeat, problem
    again = common.run(*_training(out, launcher))
    if again.returncode:
        lines = [line for line in again.stderr.splitlines() if "Error" in line or "segloc" in line]
        return repeat, f"resuming: exit code {again.returncode}: {' | '.join(lines)[:1000]}"
    found = run_state(out)
    different = {name: found.get(name) for name in {*whole, *found} if whole.get(name) != found.get(name)}
    return repeat, f"resuming: differs: {str(different)[:300]}" if different else None


def _ranks_sentence(errors: str) -> str | None:
    """What is wrong with what the launcher prints about a killed rank."""
    if "Traceback" in errors:
        return f"traceback: {common.last_line(errors)[:300]}"
    return None if "SIGKILL" in errors else f"does not say what happened: {common.last_line(errors)[:300]}"


Case = Callable[[Path, np.random.Generator], "tuple[str, str | None]"]


def count(kind: str, case: Case, cases: int, seed: int) -> Count:
    """Run several cases of a kind."""
    result = Count(kind)
    for number in range(cases):
        out = common.fresh(f"{kind.replace(' ', '-')}-{number}")
        repeat, problem = case(out, np.random.default_rng([seed, number]))
        result.add(f"seed {seed}, case {number}, {repeat}", problem)
    return result


KINDS = {
    kind: functools.partial(count, kind, case)
    for kind, case in {
        "local worker killed": functools.partial(worker, "local", "multiprocessing.spawn"),
        "Ray worker killed": functools.partial(worker, "ray", "ray::_run_on_ray"),
        "rank killed (--processes)": functools.partial(rank, "processes", "multiprocessing.spawn"),
        "rank killed (torchrun)": functools.partial(rank, "torchrun", "segloc"),
    }.items()
}

if __name__ == "__main__":
    sys.exit(common.main(sys.modules[__name__]))
