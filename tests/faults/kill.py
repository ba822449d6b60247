"""Commands killed by SIGKILL at random moments and started again: the result is that of an undisturbed run.

Every other case is killed at a moment drawn uniformly from the duration of an undisturbed run; the others are killed at
a change of the output folder, also drawn uniformly, to hit files that are being written. The whole process group is
killed. In a third of the cases the second run is killed as well. Files, losses and tensors are compared bit by bit.
*kills* are those that came before the result was complete; a process lives a moment longer than its work.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

import numpy as np

from tests.faults import common
from tests.faults.common import Count
from tests.faults.targets import QUIET, TARGETS, half_written, is_complete, undisturbed, watch, wrong_rerun

LONG, SHORT = 105, 7
NAMES = ("simulate", "regions", "segments", "synthesis", "audit", "pretraining", "fine-tuning")


def kill(name: str, out: Path, case: int, rng: np.random.Generator) -> str:
    """Start a target and kill it; return when. One that ends before is started again and killed earlier."""
    whole, share = undisturbed(name), float(rng.random())
    while True:
        process = common.start(*TARGETS[name].command(out, workers=1 + case % 2), **QUIET)
        if case % 2 and whole.changes:
            change = 1 + int(share * whole.changes)
            watch(process, out, change=change)
            moment = f"at change {change}"
        else:
            moment = f"after {share * whole.seconds:.3f} s"
            watch(process, out, until=time.monotonic() + share * whole.seconds)
        killed = process.poll() is None
        common.end(process)
        process.wait()
        if killed:
            return moment
        share *= 0.8


def count(name: str, cases: int, seed: int) -> Count:
    """Kill a target in several cases."""
    result, kills, late = Count(name), 0, 0
    for case in range(cases):
        rng = np.random.default_rng([seed, list(TARGETS).index(name), case])
        out = common.fresh(f"{name}-{case}")
        moments = []
        for _ in range(1 + (rng.random() < 1 / 3)):
            moments.append(kill(name, out, case, rng))
            late += is_complete(name, out)
        kills += len(moments)
        problem = half_written(name, out) or wrong_rerun(name, out)
        result.add(f"seed {seed}, case {case}, killed {' and '.join(moments)}", problem)
    result.measured |= {"kills": kills - late, "kills after the work": late}
    return result


KINDS = {name: functools.partial(count, name) for name in NAMES}

if __name__ == "__main__":
    sys.exit(common.main(sys.modules[__name__]))
