"""Stops: Ctrl-C, SIGTERM and SIGHUP end every command alike, in one line and with exit code 128 + signal.

The first signal raises `Stopped` in the main thread: at once, or at the end of a `held` block, which finishes what must
not end half-way (a training step and its checkpoint, the end of a pool of workers). A second signal ends the process at
once. Signals that the process was started to ignore, as SIGHUP under ``nohup``, stay ignored.
"""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A signal so soon after the first is the same stop: `timeout`, torchrun and schedulers signal both a process and its
# group. People press Ctrl-C again later than programs repeat SIGTERM.
SAME_STOP_S, SAME_STOP_OF_PROGRAMS_S = 0.5, 2.0
# A command that has not ended so long after a stop is ended: it hangs in a library, or in a read that never returns.
GRACE_S = 10.0
# Time for a process to end after its work is done, and after a stop.
END_S, END_STOPPED_S = 60.0, 5.0
# Pause before a stop is raised again that Python dropped, because it came inside a finaliser.
_AGAIN_S = 0.02


class Stopped(KeyboardInterrupt):
    """A signal stopped the command.

    Args:
        number: the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"stopped by {name(number)}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """Exit code as in shells."""
        return exit_code(self.number)


class _State:
    """The stop of this process.

    Attributes:
        number: the first signal that came; 0 if none has.
        since: when it came.
        raised: whether `Stopped` was raised for it.
        held: number of `held` blocks that are open.
        at_once: called before a second signal ends the process.
        patient: more signals never end the process: a launcher decides.
        active: whether `handled` is open.
        line: what to say when the process has to be ended.
    """

    def __init__(self) -> None:
        self.number, self.since, self.raised, self.held = 0, 0.0, False, 0
        self.at_once: list[Callable[[], object]] = []
        self.patient, self.active, self.line = False, False, ""


_state = _State()
_owns_process = _done = False


def name(number: int) -> str:
    """Name a signal for people."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def exit_code(number: int) -> int:
    """Exit code after a signal, as in shells."""
    return 128 + number


def signal_of(code: int) -> int:
    """Return the stop behind an exit code of a process (128 + signal, or minus the signal); 0 if it is no stop."""
    return next((int(number) for number in SIGNALS if code in (exit_code(number), -number)), 0)


def speaks() -> bool:
    """Whether this process prints for its group: the main process of a run under torchrun, or any other process."""
    return os.environ.get("RANK", "0") == "0"


def listen() -> None:
    """From here on, let a stop end ``python -m COMMAND`` in one line; called while its package is imported."""
    global _owns_process
    if not _in_main_thread() or not _module().startswith(("pipeline.", "segloc.")):
        return
    _owns_process = True
    for number in _wanted():
        signal.signal(number, _before)


def _module() -> str:
    """Name of the module of ``python -m``, which may be somebody else's that imports ours; empty if there is none."""
    arguments = iter(sys.orig_argv[1:])
    return next((part[2:] or next(arguments, "") for part in arguments if part.startswith("-m")), "")


def obey_launcher() -> None:
    """In a process of a launcher: ignore a terminal's signals, and let SIGTERM mean one stop however often it comes."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _state.patient = True


@contextlib.contextmanager
def handled(line: str = "", holding: int = 0) -> Iterator[None]:
    """Raise `Stopped` in the block when a signal comes. Does nothing in an inner block, or outside the main thread.

    Args:
        line: printed if the process does not end by itself after a stop.
        holding: 1 to begin with stops held back, before signals that were blocked come in.
    """
    global _state
    if _state.active or not _in_main_thread():
        yield
        return
    patient = _state.patient
    _state = _State()
    _state.active, _state.held, _state.patient, _state.line = True, holding, patient, line
    previous = {number: signal.signal(number, _on_signal) for number in _wanted()}
    alarm, hook = signal.signal(signal.SIGALRM, _on_alarm), sys.unraisablehook
    sys.unraisablehook = lambda unraisable: _on_dropped(unraisable, hook)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        _state.active = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in () if _done else {**previous, signal.SIGALRM: alarm}.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


@contextlib.contextmanager
def held(at_once: Callable[[], object] | None = None) -> Iterator[Callable[[], int]]:
    """Hold a stop back until the block ends; yields a function that returns the signal that came, 0 if none did.

    Signals that came while they were blocked, as in a process of `segloc.training.processes.launch`, count.

    Args:
        at_once: called before a second signal ends this process, to end processes that it started.

    Raises:
        Stopped: at the end of the block, if a signal came in it.
    """
    if not _in_main_thread():
        yield lambda: 0
        return
    inner = _state.active
    with handled(holding=1):
        state = _state
        state.held += inner
        state.at_once += [at_once] if at_once else []
        try:
            yield lambda: state.number
        finally:
            state.held -= 1
            if at_once:
                state.at_once.remove(at_once)
        if state.number and not state.raised and not state.held:
            _raise()


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """Start processes in the block with all stops blocked; they inherit this, until they install their own handlers.

    Otherwise a Ctrl-C, which a terminal sends to all processes, would end them with tracebacks while they start.
    """
    with held():
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            # The tracker of multiprocessing unblocks signals when it starts, so it is first.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def came() -> int:
    """Return the signal that came in the open `handled` block; 0 if none did."""
    return _state.number if _state.active else 0


def keep_handlers() -> None:
    """Install the handlers again after a library replaced them."""
    if _state.active and _in_main_thread():
        for number in _wanted():
            signal.signal(number, _on_signal)


def finish(code: int, within_s: float = END_S) -> int:
    """Return the exit code of this process, whose work is done or stopped: a stop no longer changes anything.

    The process ends after `within_s` even if some of its threads do not.
    """
    global _done
    if _owns_process:
        _done = True
        for number in SIGNALS:  # Python itself would install the default handlers before it ends
            signal.signal(number, signal.SIG_IGN)
        _thread.start_new_thread(_end_later, (code, within_s))
    return code


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _wanted() -> list[int]:
    """Signals that this process was not started to ignore."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _raise() -> None:
    _state.raised = True
    raise Stopped(_state.number)


def _on_signal(number: int, frame: FrameType | None) -> None:
    state, now = _state, time.monotonic()
    if not state.number:
        state.number, state.since = number, now
        if not state.held:
            _thread.start_new_thread(_end_if_hanging, (state,))
            _raise()
    elif not state.patient and now - state.since > _same_stop_s(number):
        for end in state.at_once:
            with contextlib.suppress(Exception):
                end()
        command = state.line.partition(": ")[0]
        # On a line of its own, because a progress bar may be open.
        _write(f"\n{command}{': ' * bool(command)}stopped at once by {name(number)}; what was saved before stays")
        os._exit(exit_code(number))


def _same_stop_s(number: int) -> float:
    of_person = number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ
    return SAME_STOP_S if of_person else SAME_STOP_OF_PROGRAMS_S


def _on_dropped(unraisable: Any, hook: Callable[[Any], Any]) -> None:
    """Raise a stop again that came in a finaliser, where Python drops all exceptions."""
    if isinstance(unraisable.exc_value, Stopped):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    else:
        hook(unraisable)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    if _state.number:
        _state.raised = False
        if not _state.held:
            _raise()


def _end_if_hanging(state: _State) -> None:
    time.sleep(GRACE_S)
    if state.active and state is _state and not state.held and _owns_process:
        _write(state.line.format(name(state.number)))
        os._exit(exit_code(state.number))


def _end_later(code: int, after_s: float) -> None:
    time.sleep(after_s)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


def _before(number: int, frame: FrameType | None) -> None:
    """End at once: the command has not begun."""
    command = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
    _write(f"python -m {command}: stopped by {name(number)} before it began; run the same command again")
    os._exit(exit_code(number))


def _write(line: str) -> None:
    if speaks() and multiprocessing.parent_process() is None:
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode("utf-8", "backslashreplace"))
