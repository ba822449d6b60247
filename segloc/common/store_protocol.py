"""What a store of shards offers; `segloc.common.stores` opens one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from segloc.common.contract import Index


class Stat(NamedTuple):
    """Information about a file that a store gives without reading it.

    Attributes:
        bytes: size of the file.
        tag: changes whenever the content changes; None if the store has no tags.
    """

    bytes: int
    tag: str | None


class Store(Protocol):
    """A folder of shards. Names are relative to it, with ``/`` separators. Instances can be sent to other processes."""

    @property
    def is_shared(self) -> bool:
        """Whether other processes see written files."""

    def names(self, folder: str = "") -> list[str]:
        """Names of the files directly in `folder`, sorted; empty if there is no such folder."""

    def stat(self, name: str) -> Stat | None:
        """Size and tag of a file; None if there is no such file."""

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Sizes of several files in bytes; None where the store gives no size.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def read(self, name: str) -> bytes:
        """Read a small file.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def read_array(self, name: str, pauses_s: Sequence[float] = ()) -> npt.NDArray[np.uint8]:
        """Read a file, [bytes]. A remote store that does not answer is tried again after each pause.

        Raises:
            InputError: it cannot be read.
        """

    def fetch(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Provide a file as a local file, to read all of it.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def create(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Write a file. It appears under its name, complete, if the block ends without error."""

    def write_once(self, name: str, data: bytes) -> bytes:
        """Write a small file, unless it exists; return its content. All processes get the same.

        Raises:
            InputError: in a store without locks, another process writes other content at this moment.
        """

    def owned(self, what: str, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Lock the folder in the block; object stores have no locks. See `segloc.common.locks.owned`."""

    def delete(self, name: str) -> None:
        """Remove a file, if it exists."""

    def delete_temporary(self, name: str) -> None:
        """Remove a temporary file that `create` left when it was killed. A file that is being written stays."""

    def delete_folder(self, name: str) -> None:
        """Remove a folder and its content, if it exists."""

    def index(self) -> Index:
        """Read the index.

        Raises:
            InputError: the folder is missing, unfinished (no index), or its index is invalid.
        """
