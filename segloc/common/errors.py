"""Errors that commands report in one line, their wording, and their exit codes.

Exit code 0 means success, 128 + signal a stop (`segloc.common.stops`). To add a kind of error, add a class here with
its own `exit_code`; `segloc.common.cli.run` and `segloc.training.processes.launch` read it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_MESSAGE = 400


class InputError(ValueError):
    """Bad input that the user can correct. Commands print its message in one line."""

    exit_code = 2


class RunError(RuntimeError):
    """The input was good, but the work failed. Commands print the message in one line."""

    exit_code = 1


class DivergedError(RunError):
    """The loss or its gradient is no longer finite."""


class FailedElsewhere(RunError):
    """The work failed in another process of a group, which says why; this one prints nothing.

    Args:
        exit_code: that of the other process.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of the group failed")
        self.exit_code = exit_code


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a command that ends with an error."""
    return InputError.exit_code if isinstance(error, OSError) else getattr(error, "exit_code", RunError.exit_code)


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line, or its class name if it has no message."""
    return " ".join(str(error).split())[:LONGEST_MESSAGE] or type(error).__name__


def describe_os_error(error: OSError) -> str:
    """Describe an `OSError` in one sentence, without its number."""
    reason = "the disk is full; free some space and run the same command again"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason


def unknown_key(key: str, valid: Iterable[str], where: str) -> InputError:
    """Make the error for an unknown key, with the most similar known key."""
    valid = list(valid)
    near = [k for k in valid if k.startswith(key)] or get_close_matches(key, valid, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"{where}: unknown key {key!r}{hint}")
