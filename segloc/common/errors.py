"""The errors that commands report in one line, and how they are worded."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_MESSAGE = 400


class InputError(ValueError):
    """Bad input the user can mend. Commands print its message in one line and exit with code 2."""


def one_line(error: BaseException) -> str:
    """Say what an exception says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split())[:LONGEST_MESSAGE] or type(error).__name__


class RunError(RuntimeError):
    """Good input, but the work failed. Commands print the message in one line and exit with code 1."""


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
