"""Stop commands at random moments by Ctrl-C, SIGTERM and SIGHUP, sent to the command or to its whole process group.

Each stop must end within `LIMIT_S` seconds, with exit code 128 + signal, one line that says how to go on, nothing else
after it, no traceback, no warning of a library, and no process that is left.
"""

from __future__ import annotations

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
from tests.faults import common
from tests.faults.common import Count

LONG, SHORT = 180, 9
LIMIT_S = 30.0  # most of it is for machines with other work
_NOISE = re.compile(r"Traceback|leaked|resource_tracker|Exception ignored|Error|Warning", re.IGNORECASE)

# Stops come within so many seconds of the start; the commands take longer, for the most part.
STAGE_1 = {"simulate": 5.0, "regions": 2.0, "segments": 3.0, "crops": 2.0, "synthesize": 4.0, "audit": 2.5}
SPAN_S = {**STAGE_1, "pretrain": 12.0, "finetune": 12.0}

PRETRAIN = (
    "model.arch=resnet18", "model.norm=gn", "model.sda_norm=gn", "head.convs=1", "head.conv_dim=32", "head.fc_dim=32",
    "head.dim=16", "queue.size=20", "data.image_size=64", "data.threads=2", "optim.batch=4", "optim.micro_batch=2",
    "optim.steps=40", "checkpoint_every=1000", "log_every=1",
)  # fmt: skip


def commands(out: Path) -> dict[str, list[object]]:
    """Module and arguments of each command; `out` is a folder for what it writes."""
    root, shards = common.inputs(), common.inputs() / "shards"
    scans = ["--backgrounds", root / "sixray"]
    tables = ["--regions", root / "regions.parquet"]
    training = ["segloc.pretrain", "--shards", shards, "--out", out / "run", *PRETRAIN]
    recipe = common.ROOT / "detectron_configs" / "finetune" / "demo_r18.yaml"
    return {
        "simulate": ["pipeline.simulate", "--out", out / "raw", "--scans", 144, "--width", 96, "--workers", 2],
        "regions": ["pipeline.regions", *scans, "--out", out / "regions.parquet", "--workers", 2],
        "segments": [
            "pipeline.segments", "--annotations", root / "pidray", "--out", out / "segments.parquet", "--workers", 2,
        ],
        "crops": ["pipeline.crops", *scans, *tables, "--out", out / "crops.parquet", "--workers", 2],
        "synthesize": ["pipeline.synthesize", *common.synthesis(root, out / "shards", workers=2)],
        "audit": ["pipeline.audit", "--shards", shards, "--report", out / "audit.json", "--workers", 2],
        "pretrain": training,
        "pretrain in two processes": [*training, "--processes", 2],
        "finetune": [
            "segloc.finetune", "--weights", "random", "--config", recipe, "--data", root / "pidray",
            "--out", out / "run", "train.iterations=6", "optim.batch=2", "train.checkpoint_every=1000",
        ],
    }  # fmt: skip


def count(kind: str, cases: int, seed: int) -> Count:
    """Stop a command at random moments of its time."""
    result, span = Count(kind), SPAN_S[kind.partition(" ")[0]]
    longest, stopped = 0.0, 0
    for case in range(cases):
        rng = random.Random(f"{kind} {seed} {case}")
        number, to_group, moment = rng.choice(SIGNALS), rng.random() < 0.5, rng.random() * span
        problem, code, took = stop(commands(common.fresh("stops"))[kind], number, to_group, moment)
        longest, stopped = max(longest, took), stopped + bool(code)
        whom = "group" if to_group else "command"
        result.add(f"seed {seed} case {case}: {name(number)} to the {whom} after {moment:.2f} s", problem)
    result.measured |= {"longest end, s": round(longest, 1), "stopped before its end": stopped}
    return result


def stop(command: list[object], number: int, to_group: bool, moment: float) -> tuple[str | None, int, float]:
    """Run a command and stop it. Returns what is wrong, the exit code, and the seconds from the signal to the end."""
    process = common.start(*map(str, command), preexec_fn=hear_ctrl_c, stdout=subprocess.DEVNULL)
    wait_until_it_listens(process)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        (os.killpg if to_group else os.kill)(process.pid, number)
    began = time.monotonic()
    try:
        _, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        common.end(process)
        process.communicate()
        return f"still there after {LIMIT_S:g} s", process.returncode, LIMIT_S
    took = time.monotonic() - began
    problem = wrong(process.returncode, errors, number) or left(process.pid)
    common.end(process)
    return problem, process.returncode, took


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


KINDS = {
    kind: functools.partial(count, kind) for kind in (*STAGE_1, "pretrain", "pretrain in two processes", "finetune")
}

if __name__ == "__main__":
    sys.exit(common.main(sys.modules[__name__]))
