"""Shards on S3, the web or any other store that fsspec opens.

An object store shows an upload only when it is complete. Other stores get the file under a temporary name first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import numpy.typing as npt

from segloc.common.contract import INDEX_NAME, Index
from segloc.common.errors import InputError, one_line
from segloc.common.store_protocol import Stat

# Stores that show an object only after its upload is complete. They would rename by copying.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci"}
# Names of the content tag in different stores. Times are not used: stores give them in whole seconds.
_TAG_FIELDS = ("ETag", "etag", "md5Hash", "content_md5")


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
