"""Locations of shards: a local folder, or a prefix on S3, the web or any other store that fsspec opens.

A file appears under its name only when it is complete. A local file is renamed after it is synced. An object store
shows an upload only when it is complete. Other stores get the file under a temporary name first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple, Protocol

import fsspec
import numpy as np
import numpy.typing as npt

from segloc.common import locks
from segloc.common.contract import INDEX_NAME, Index, read_index
from segloc.common.errors import InputError, one_line
from segloc.common.files import atomic_file, expanded, remove_temporary, write_atomic

# Name of the lock file of a local folder.
LOCK = ".lock"
# Stores that show an object only after its upload is complete. They would rename by copying.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci"}
# Names of the content tag in different stores. Times are not used: stores give them in whole seconds.
_TAG_FIELDS = ("ETag", "etag", "md5Hash", "content_md5")


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


@dataclasses.dataclass(frozen=True)
class RemoteStore:
    """A prefix of a store that fsspec opens; see `Store`. The store's library handles credentials and endpoints.

    All errors of the store, except for missing files, become `InputError`.

    Attributes:
        url: without trailing slash.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def is_shared(self) -> bool:
        """Whether other processes see written files."""
        return "memory" not in re.split("::|://", self.url)

    def names(self, folder: str = "") -> list[str]:
        """See `Store`."""
        try:
            with self._system(folder) as (system, path):
                found = [entry["name"] for entry in system.ls(path, detail=True) if entry["type"] == "file"]
        except FileNotFoundError:
            return []
        # Some stores list the prefix as an empty file without a name.
        return sorted(name for name in (path.rpartition("/")[2] for path in found) if name)

    def stat(self, name: str) -> Stat | None:
        """See `Store`."""
        try:
            with self._system(name) as (system, path):
                info = system.info(path)
        except FileNotFoundError:
            return None
        if info["type"] != "file":
            return None
        return Stat(int(info["size"]), next((str(info[field]) for field in _TAG_FIELDS if info.get(field)), None))

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """See `Store`."""
        with self._system("") as (system, root):
            sizes: list[int | None] = system.sizes([f"{root}/{name}" for name in names])
        return sizes

    def read(self, name: str) -> bytes:
        """See `Store`."""
        with self._system(name) as (system, path):
            return bytes(system.cat_file(path))

    def read_array(self, name: str, pauses_s: Sequence[float] = ()) -> npt.NDArray[np.uint8]:
        """See `Store`."""
        try:
            for pause in pauses_s:
                try:
                    return self._fetch(name)
                except (FileNotFoundError, PermissionError):
                    raise
                except OSError:
                    time.sleep(pause)
            return self._fetch(name)
        except Exception as error:  # every store has its own exceptions
            raise InputError(f"{self.url}/{name}: cannot be read ({one_line(error)})") from error

    def _fetch(self, name: str) -> npt.NDArray[np.uint8]:
        system, path = self._open(name)
        return np.frombuffer(system.cat_file(path), np.uint8)

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """See `Store`; the file is downloaded to a temporary file."""
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "file"
            with self._system(name) as (system, path):
                system.get_file(path, str(local))
            yield local

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """See `Store`; the file is written locally and uploaded when the block ends."""
        with tempfile.NamedTemporaryFile() as file:
            yield file  # type: ignore[misc]
            file.flush()
            try:
                with self._system(name) as (system, path):
                    _put(system, file.name, path)
            except FileNotFoundError as error:  # a bucket that does not exist
                raise InputError(f"{self.url}: {_sentence(error)}") from error

    def write_once(self, name: str, data: bytes) -> bytes:
        """See `Store`.

        Each process first writes what it wants under a name of its own, then looks for others. Of two that want
        different content at least one sees the other, and then does not write.
        """
        folder, _, base = name.rpartition("/")
        claim = f"{base}.{hashlib.sha256(data).hexdigest()[:16]}.claim"
        with contextlib.suppress(FileNotFoundError):
            return self.read(name)
        with self.create(f"{folder}/{claim}") as file:
            file.write(data)
        claims = [other for other in self.names(folder) if other.startswith(base) and other.endswith(".claim")]
        try:
            with contextlib.suppress(FileNotFoundError):
                return self.read(name)
            if others := [other for other in claims if other != claim]:
                what = "a run with other settings starts here now, or was killed; remove this object if it was killed"
                raise InputError(f"{self.url}/{folder}/{others[0]}: {what}")
            with self.create(name) as file:
                file.write(data)
            return data
        finally:
            self.delete(f"{folder}/{claim}")

    def owned(self, what: str, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """See `Store`."""
        return contextlib.nullcontext()

    def delete(self, name: str) -> None:
        """See `Store`."""
        with contextlib.suppress(FileNotFoundError), self._system(name) as (system, path):
            system.rm_file(path)

    def delete_temporary(self, name: str) -> None:
        """See `Store`; a remote store has no locks, so the file is removed in any case."""
        self.delete(name)

    def delete_folder(self, name: str) -> None:
        """See `Store`."""
        with contextlib.suppress(FileNotFoundError), self._system(name) as (system, path):
            system.rm(path, recursive=True)

    def index(self) -> Index:
        """See `Store`."""
        try:
            data = self.read(INDEX_NAME)
        except FileNotFoundError:
            raise InputError(
                f"{self.url}: no {INDEX_NAME}: no shards there, or their synthesis has not finished"
            ) from None
        return Index.from_json(data, f"{self.url}/{INDEX_NAME}")

    def _open(self, name: str) -> tuple[Any, str]:
        """Open the file system, and return it with the path of `name`."""
        system, root = fsspec.core.url_to_fs(self.url)  # fsspec caches one per process and store
        system.invalidate_cache()  # other processes also write there
        return system, f"{root}/{name}" if name else root

    @contextlib.contextmanager
    def _system(self, name: str) -> Iterator[tuple[Any, str]]:
        """Like `_open`, but turn errors in the block into one sentence."""
        try:
            yield self._open(name)
        except FileNotFoundError:
            raise
        except Exception as error:  # every store has its own exceptions
            raise InputError(f"{self.url}: {_sentence(error)}") from error


def _put(store: Any, local: str, path: str) -> None:
    """Upload a local file so that `path` is never visible incomplete."""
    protocols = {store.protocol} if isinstance(store.protocol, str) else {*store.protocol}
    if protocols & _OBJECT_STORES:
        store.put_file(local, path)
        return
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{secrets.token_hex(8)}.tmp"
    try:
        store.makedirs(folder, exist_ok=True)
        store.put_file(local, temporary)
        store.mv(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            store.rm_file(temporary)
        raise


def _sentence(error: Exception) -> str:
    """Describe a store's error in one sentence. Some of its exceptions have no message."""
    if isinstance(error, NotImplementedError):
        return "this kind of store does not support the operation"
    return one_line(error)
