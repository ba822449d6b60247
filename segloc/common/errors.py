"""The errors that commands report in one line, how they are worded, and the exit code of each.

A command ends with 0 when it is done. An error of a new kind is a class here with its own `exit_code`;
`segloc.common.cli.run` and `segloc.training.processes.launch` read it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_MESSAGE = 400
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


class InputError(ValueError):
    """Bad input the user can mend. Commands print its message in one line."""

    exit_code = 2


class RunError(RuntimeError):
    """Good input, but the work failed. Commands print the message in one line."""

    exit_code = 1


class DivergedError(RunError):
    """The loss or its gradient is no longer finite."""


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line; its class name where it has none."""
    return " ".join(str(error).split())[:LONGEST_MESSAGE] or type(error).__name__


def describe(error: OSError) -> str:
    """One sentence for an `OSError`, without its number."""
    reason = "the disk is full; free some space and run the same command again"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def unknown_key(key: str, valid: Iterable[str], where: str) -> InputError:
    """Make the error for a key that does not exist, naming the nearest one that does."""
    valid = list(valid)
    near = [k for k in valid if k.startswith(key)] or get_close_matches(key, valid, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"{where}: unknown key {key!r}{hint}")
