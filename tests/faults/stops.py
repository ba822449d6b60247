"""Stop commands at random moments by Ctrl-C, SIGTERM and SIGHUP, sent to the command or to its whole process group.

Each stop must end within `LIMIT_S` seconds, with exit code 128 + signal, one line that says how to go on, nothing else
after it, no traceback, no warning of a library, and no process that is left. A stopped training has saved its last
step. In a fifth of the cases the same signal comes again up to half a second later, or up to three: the command must
end within `AGAIN_LIMIT_S` with the same exit code, and need not print the line.

After every stop no file with a final name is half-written, and the same command runs again to the files, losses and
tensors of an undisturbed run. A command that ended before its signal must have that result, too.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from segloc.common.stops import SIGNALS, name
from segloc.training import checkpoint
from segloc.training.run_folder import read_metrics
from tests.faults import common
from tests.faults.common import Count
from tests.faults.targets import TARGETS, half_written, undisturbed, wrong_rerun, wrong_state

LONG, SHORT = 117, 8
SHORT_KINDS = (
    "simulate",
    "regions",
    "segments",
    "crops",
    "synthesis",
    "audit",
    "pretraining",
    "fine-tuning",
)  # test_processes.py stops two processes
LIMIT_S, AGAIN_LIMIT_S = 30.0, 10.0  # most of it is for machines with other work
_NOISE = re.compile(r"Traceback|leaked|resource_tracker|Exception ignored|Error|Warning", re.IGNORECASE)
NAMES = (
    "simulate", "regions", "segments", "crops", "synthesis", "audit", "pretraining", "pretraining in two processes",
    "fine-tuning",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stop:
    """When and how a command is stopped.

    Attributes:
        number: the signal.
        to_group: whether all its processes get it.
        moment: seconds after the command began.
        again: seconds until the same signal comes again; None if it does not.
    """

    number: int
    to_group: bool
    moment: float
    again: float | None = None

    @classmethod
    def drawn(cls, rng: random.Random, span: float) -> Stop:
        """Draw a stop in the time that a command takes."""
        again = rng.random() * rng.choice((0.5, 3.0)) if rng.random() < 0.2 else None
        return cls(rng.choice(SIGNALS), rng.random() < 0.5, rng.random() * span, again)

    def __str__(self) -> str:
        whom = "group" if self.to_group else "command"
        again = "" if self.again is None else f", again {self.again:.2f} s later"
        return f"{name(self.number)} to the {whom} after {self.moment:.2f} s{again}"

    def send(self, process: subprocess.Popen[str]) -> None:
        """Send the signal once."""
        (os.killpg if self.to_group else os.kill)(process.pid, self.number)


def count(kind: str, cases: int, seed: int) -> Count:
    """Stop a command at random moments of its time."""
    result, longest, stopped, twice = Count(kind), 0.0, 0, 0
    for case in range(cases):
        out = common.fresh("stops")
        stop = Stop.drawn(random.Random(f"{kind} {seed} {case}"), undisturbed(kind).seconds)
        problem, code, took = ended(TARGETS[kind].command(out, workers=2), stop)
        longest, stopped = max(longest, took if code else 0.0), stopped + bool(code)
        twice += bool(code) and stop.again is not None
        if not problem and code:
            problem = half_written(kind, out) or not_saved(out, stop) or wrong_rerun(kind, out)
        result.add(f"seed {seed} case {case}: {stop}", problem or wrong_state(kind, out))
    result.measured |= {"longest end, s": round(longest, 1), "stopped before its end": stopped, "by two signals": twice}
    return result


def ended(command: list[object], stop: Stop) -> tuple[str | None, int, float]:
    """Run a command and stop it. Returns what is wrong, the exit code, and the seconds from the signal to the end."""
    process = common.start(*map(str, command), preexec_fn=hear_ctrl_c, stdout=subprocess.DEVNULL)
    wait_until_it_listens(process)
    began, twice = time.monotonic(), False
    try:
        process.wait(stop.moment)
    except subprocess.TimeoutExpired:
        stop.send(process)
        began = time.monotonic()
        if stop.again is not None:
            try:
                process.wait(stop.again)
            except subprocess.TimeoutExpired:
                stop.send(process)
                twice = True
    limit = AGAIN_LIMIT_S if twice else LIMIT_S
    try:
        _, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        common.end(process)
        process.communicate()
        return f"still there after {limit:g} s", process.returncode, limit
    took = time.monotonic() - began
    wrong_end = wrong_second if twice else wrong
    problem = wrong_end(process.returncode, errors, stop.number) or left(process.pid)
    common.end(process)
    return problem, process.returncode, took


def not_saved(out: Path, stop: Stop) -> str | None:
    """Whether the checkpoint of a stopped training lacks steps that its metrics have."""
    steps = [row["iteration"] + 1 for row in read_metrics(out / "run")]
    if stop.again is not None or not steps:
        return None
    files = [path for path in (out / "run").glob("*.pth") if path.name in (checkpoint.LAST, "model.pth")]
    saved = max((checkpoint.load(path)["iteration"] for path in files), default=0)
    return None if saved == steps[-1] else f"{steps[-1]} steps were done, and {saved} were saved"


def hear_ctrl_c() -> None:
    """A shell lets its background jobs ignore Ctrl-C, and they let their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until_it_listens(process: subprocess.Popen[str]) -> None:
    """Wait until Python has started and a command's own handlers are there."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught >> (signal.SIGHUP - 1) & 1:
            return
        time.sleep(0.002)


def wrong(code: int, errors: str, number: int) -> str | None:
    """What is wrong with the end of a command that was sent a signal, perhaps after its work; None if nothing is."""
    lines = [line for line in re.split(r"[\r\n]+", errors) if "stopped by" in line]
    if noise := _NOISE.search(errors):
        return f"{noise[0]}: {errors[-600:]!r}"
    if code == 0 and not lines:
        return None
    if code != 128 + number:
        return f"exit code {code}: {errors[-300:]!r}"
    if len(lines) != 1:
        return f"{len(lines)} lines say that it stopped: {errors[-300:]!r}"
    if f"stopped by {name(number)}" not in lines[0] or "same command again" not in lines[0]:
        return f"does not say how to go on: {lines[0]!r}"
    if not errors.rstrip().endswith(lines[0].strip()):
        return f"more after the line: {errors[-300:]!r}"
    return None


def wrong_second(code: int, errors: str, number: int) -> str | None:
    """What is wrong with the end of a command that was sent the same signal twice; None if nothing is."""
    if "Traceback" in errors:
        return f"traceback: {errors[-600:]!r}"
    return None if code in (0, 128 + number) else f"exit code {code}: {errors[-300:]!r}"


def left(group: int, wait_s: float = 10.0) -> str | None:
    """Whether processes of the group are left, once they have had time to notice."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return None
        time.sleep(0.02)
    return "a process is left"


KINDS = {kind: functools.partial(count, kind) for kind in NAMES}

if __name__ == "__main__":
    sys.exit(common.main(sys.modules[__name__]))
