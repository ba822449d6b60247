"""Commands of jobs, several at a time; a stop of this process reaches all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from segloc.common import stops
from segloc.experiments.jobs import Step

POLL_S = 0.1


class Commands:
    """The commands that run now. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._halted = 0
        self._came: Callable[[], int] = lambda: 0

    def stop(self) -> int:
        """Return the signal that came to this process or to a command; 0 if none did."""
        return self._halted or self._came()

    def kill(self) -> None:
        """End all commands at once."""
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def execute(self, step: Step, log: Path, descriptors: Sequence[int] = (), devices: Sequence[str] = ()) -> int:
        """Run a command, append its output to `log`, and return its exit code; pass a stop on to it.

        Args:
            step: the command.
            log: created if missing.
            descriptors: lock files that the command inherits.
            devices: the only GPUs that it sees, as in CUDA_VISIBLE_DEVICES; empty: those of this process.

        Raises:
            Stopped: this process or a command was stopped; this command has saved what it can go on from.
        """
        if number := self.stop():
            raise stops.Stopped(number)
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
        with log.open("ab") as file:
            file.write(f"$ {step}\n".encode("utf-8", "backslashreplace"))
            file.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", *step.arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **visible},
                start_new_session=True,  # a terminal's signal reaches it once, from here
            )
        self._running.add(process)
        told, code = False, None
        while code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(POLL_S)
            if self.stop() and not told:
                process.terminate()
                told = True
        self._running.discard(process)
        if number := stops.signal_of(code):
            self._halted = self._halted or self._came() or number
            raise stops.Stopped(self._halted)
        return code

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Hold stops of this process back in the block, for the commands; a second one kills them.

        Raises:
            Stopped: at the end of the block, if this process was stopped.
        """
        with stops.held(self.kill) as came:
            self._came = came
            yield
