"""Fuzzing: damaged and odd files of every kind that is read. Only documented errors, no hang, bounded memory.

Each case is a function of (seed, kind, number), so that a finding can be repeated alone:
``python -m tests.faults.fuzz --kind KIND --number N``.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
import sys
import time
import traceback
import zlib
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from tests.faults import common, readers
from tests.faults.common import Count

LONG, SHORT = 102_000, 1_200
# A case takes some milliseconds of a core. The memory is what a worker may take beyond what it has after its imports.
LIMIT_S, LIMIT_BYTES = 10.0, 1 << 30
HANG_S = 180.0  # of the clock, on a machine that may be busy
START_S = 300.0  # a worker imports torch, and builds its valid files


def run_case(kind: str, number: int, seed: int, folder: Path) -> str | None:
    """Run one case; None if it ended as documented, else what happened."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
    began = time.process_time()
    try:
        readers.TARGETS[kind](rng, folder)
    except readers.DOCUMENTED as error:
        text = str(error)
        if "\n" in text or not text:
            return f"not one sentence: {text[:100]!r}"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/tests/faults/" not in frame.filename] or frames
        last = next((frame for frame in reversed(ours) if "site-packages" not in frame.filename), ours[-1])
        place = f"{Path(last.filename).name}:{last.lineno}"
        return f"{type(error).__name__} at {place}: {str(error)[:120]!r}"
    spent = time.process_time() - began
    return f"took {spent:.0f} s" if spent > LIMIT_S else None


def _work(kind: str, first: int, cases: int, seed: int, folder: Path, sender: Connection) -> None:
    """Run cases in a process of their own; send each result."""
    readers.prepare(kind, folder)
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + LIMIT_BYTES, held + LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sender.send(None)
    for number in range(first, cases):
        sender.send((run_case(kind, number, seed, folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


def fuzz(cases: int, seed: int, kind: str) -> Count:
    """Run the cases of one kind. A worker that hangs or dies is a finding, and the next one goes on."""
    count, folder = Count(kind), common.fresh(f"fuzz-{len(kind)}-{zlib.crc32(kind.encode())}")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.readers"])  # imports torch once, not for every worker
    peak = 0
    while count.cases < cases:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(kind, count.cases, cases, seed, folder, sender), daemon=True)
        worker.start()
        sender.close()
        try:
            if not receiver.poll(START_S):
                raise TimeoutError(f"{kind}: the worker did not start")
            receiver.recv()
            while count.cases < cases:
                repeat = f"seed {seed} number {count.cases}"
                if not receiver.poll(HANG_S):
                    count.add(repeat, f"no end after {HANG_S:.0f} s")
                    break
                problem, megabytes = receiver.recv()
                peak = max(peak, megabytes)
                count.add(repeat, problem)
        except EOFError:
            worker.join(10)
            count.add(f"seed {seed} number {count.cases}", f"the process died with {worker.exitcode}")
        else:
            worker.join(10)
        finally:
            worker.kill()
            worker.join()
    count.measured["peak MB"] = peak
    return count


KINDS = {kind: functools.partial(fuzz, kind=kind) for kind in readers.TARGETS}


def main(argv: list[str] | None = None) -> int:
    """Repeat one case with its traceback, or run the long form."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--kind", choices=readers.TARGETS)
    options.add_argument("--number", type=int, default=0)
    options.add_argument("--seed", type=int, default=0)
    args, _ = options.parse_known_args(argv)
    if args.kind is None:
        return common.main(sys.modules[__name__], argv)
    folder = common.fresh("fuzz-one")
    readers.prepare(args.kind, folder)
    readers.TARGETS[args.kind](np.random.default_rng([args.seed, zlib.crc32(args.kind.encode()), args.number]), folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
