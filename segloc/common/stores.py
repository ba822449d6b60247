"""Locations of shards: a local folder, or a prefix on S3, the web or any other store that fsspec opens.

A file appears under its name only when it is complete. A local file is renamed after it is synced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, ClassVar

import fsspec
import numpy as np
import numpy.typing as npt

from segloc.common import locks
from segloc.common.contract import Index, read_index
from segloc.common.errors import InputError, one_line
from segloc.common.files import atomic_file, expanded, remove_temporary, write_atomic
from segloc.common.remote_store import RemoteStore
from segloc.common.store_protocol import Stat, Store

# Name of the lock file of a local folder.
LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class LocalStore:
    """A folder on a local file system, or on one that all machines of a cluster mount; see `Store`."""

    path: Path
    is_shared: ClassVar[bool] = True

    def __str__(self) -> str:
        return str(self.path)

    def names(self, folder: str = "") -> list[str]:
        """See `Store`."""
        root = self.path / folder
        return sorted(path.name for path in root.iterdir() if path.is_file()) if root.is_dir() else []

    def stat(self, name: str) -> Stat | None:
        """See `Store`; file systems have no tags."""
        path = self.path / name
        return Stat(path.stat().st_size, None) if path.is_file() else None

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """See `Store`."""
        return [(self.path / name).stat().st_size for name in names]

    def read(self, name: str) -> bytes:
        """See `Store`."""
        return (self.path / name).read_bytes()

    def read_array(self, name: str, pauses_s: Sequence[float] = ()) -> npt.NDArray[np.uint8]:
        """See `Store`; a local file is read once."""
        try:
            # Avoids a copy. numpy puts large arrays into large pages, which the system provides faster.
            return np.fromfile(self.path / name, np.uint8)
        except OSError as error:
            raise InputError(f"{self.path / name}: cannot be read ({one_line(error)})") from error

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """See `Store`."""
        if not stat.S_ISREG((self.path / name).stat().st_mode):
            raise InputError(f"{self.path / name}: is a device, pipe or folder, not a file")  # reading might never end
        yield self.path / name

    def create(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """See `Store`; the file is synced to disk."""
        return atomic_file(self.path / name)

    def write_once(self, name: str, data: bytes) -> bytes:
        """See `Store`; a hard link is made by one process only, and of a file that is complete."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
            write_atomic(temporary, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                with contextlib.suppress(FileExistsError), path.open("xb") as file:
                    file.write(data)
            finally:
                temporary.unlink()
        return path.read_bytes()

    def owned(self, what: str, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """See `Store`."""
        return locks.owned(self.path / LOCK, f"{self.path}: {what}", shared)

    def delete(self, name: str) -> None:
        """See `Store`."""
        (self.path / name).unlink(missing_ok=True)

    def delete_temporary(self, name: str) -> None:
        """See `Store`."""
        remove_temporary(self.path / name)

    def delete_folder(self, name: str) -> None:
        """See `Store`."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def index(self) -> Index:
        """See `Store`."""
        return read_index(self.path)


def open_store(place: str) -> Store:
    """Open the store of a path or URL. Nothing is created.

    Raises:
        InputError: it names no folder, or no installed package opens such URLs.
    """
    protocol, separator, path = place.partition("://")
    if not path.strip("/") if separator else not place:
        raise InputError(f"{place!r} names no folder")
    if not separator or protocol in ("file", "local"):
        # Absolute, because workers of a cluster start in a different folder.
        return LocalStore(Path(path if separator else expanded(place)).absolute())
    if set(place) & set("*?[]"):
        raise InputError(f"{place}: *, ?, [ and ] are patterns in stores; choose a name without them")
    try:
        fsspec.get_filesystem_class(protocol.rpartition("::")[2])
    except ImportError as error:
        extra = "; pip install s3fs" if protocol in ("s3", "s3a") else ""
        raise InputError(f"{place}: {error}{extra}") from error
    except ValueError as error:
        raise InputError(f"{place}: {error}") from error
    return RemoteStore(place.rstrip("/"))
