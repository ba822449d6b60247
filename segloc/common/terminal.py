"""Standard output and error that never stop the work: letters they cannot show, and readers that have gone."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO, cast

_UTF8_MODE = "PYTHONUTF8"
_LAST_STANDARD = 2  # descriptor of stderr
# The reader of a pipe has ended, such as `head`; the terminal has been closed.
_GONE = (errno.EPIPE, errno.EIO)


def prepare() -> None:
    """Prepare the streams of this process, before it prints.

    A letter that the terminal's encoding lacks is printed as its number. Once the reader of a stream
    has gone, what is printed is dropped and the work goes on. A stream that was closed from the start drops all.
    """
    while (descriptor := os.open(os.devnull, os.O_WRONLY)) <= _LAST_STANDARD:
        pass  # no file of ours may get the number of a closed stream, to which others print
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):  # not replaced, as in a notebook or a test
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, cast(TextIO, Lasting(stream)))


def in_utf8(module: str) -> None:
    """Start ``python -m module`` again in Python's UTF-8 mode, if names of files are in another encoding.

    In a locale such as C or ISO-8859-1 this process could not open a file whose name an annotation file gives, and
    libraries would write their files in that encoding. Only the terminal keeps its encoding.
    """
    arguments = sys.orig_argv
    if sys.getfilesystemencoding().lower() == "utf-8" or os.environ.get(_UTF8_MODE) == "1":
        return
    if "-m" not in arguments or arguments[arguments.index("-m") :][1:2] != [module] or sys.stdout is None:
        return
    flush_all()
    terminal = {"PYTHONIOENCODING": f"{sys.stdout.encoding}:backslashreplace"}
    os.execve(sys.executable, arguments, {**terminal, **os.environ, _UTF8_MODE: "1"})


def flush_all() -> None:
    """Flush both streams."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


class Lasting:
    """A text stream of a file descriptor that drops what is written once its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; returns its length."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Lead the descriptor to nowhere, also for what the stream still holds; raise other errors again."""
        if error.errno not in _GONE:
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
