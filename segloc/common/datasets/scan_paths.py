r"""Where scans lie: names in annotation files become files below an image folder, and folders of scans are listed.

`resolve` is the one reader of names that others listed. It looks for a name

1. as listed, below the image folder; a backslash is a character of the name,
2. with ``\`` read as ``/``,
3. by its bare file name, if exactly one file at any depth below the image folder has it.

Absolute names and names with ``..`` go to the third rule directly, so no name leads out of the folder. Names that we
listed ourselves are joined as they are (`below`).

Links that a user placed in the folder are followed wherever they lead. A link without a target is returned like a file:
the reader gives the reason, and no other file takes its place. Hidden folders and `LITTER` are not searched, and hidden
files only for names that begin with a dot.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from segloc.common.errors import InputError
from segloc.common.text import shortened

# Folders of thumbnails and deleted files, which systems put among scans. Hidden ones begin with a dot.
LITTER = frozenset({"@eaDir", "__MACOSX", "#recycle", "@Recycle", "@Recently-Snapshot", "$RECYCLE.BIN", "lost+found"})
_SHOWN = 10
_DRIVE = re.compile(r"[A-Za-z]:")


def resolve(root: Path, names: Iterable[str]) -> dict[str, Path | None]:
    """Find the files of names listed in an annotation file, by the rules of this module.

    The folder is walked, once, only if a name is not found by the first two rules. If the third rule finds no file, it
    is tried again with both names in Unicode's composed form, because archives from macOS decompose accented letters.

    Args:
        root: the image folder.
        names: a name per entry of the file.

    Returns:
        For each name a path below `root`; None if it is missing.

    Raises:
        InputError: two entries are the same file, or several files have a bare name.
    """
    listed = list(names)
    found: dict[str, str | None] = {name: _as_listed(root, name) for name in listed}
    if missing := [name for name, path in found.items() if path is None]:
        found |= _by_bare_name(root, missing)
    _refuse_shared(root, listed, found)
    return {name: None if path is None else root / path for name, path in found.items()}


def below(root: Path, name: str) -> Path:
    """Join a name that we listed ourselves, relative to `root` with ``/`` separators, without reading it in any way.

    Raises:
        ValueError: it leads out of `root`, which no name of ours does.
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"path {name!r} leaves its folder")
    return root / name


def bare_name(name: str) -> str:
    r"""Return the part after the last ``/`` or ``\``."""
    return re.split(r"[\\/]", name)[-1]


def is_litter(name: str) -> bool:
    """Whether a folder of this name is hidden or one of `LITTER`, so that it is not searched."""
    return name.startswith(".") or name in LITTER


class Entry(NamedTuple):
    """A file of `walk`.

    Attributes:
        path: relative to the root, ``/`` separators.
        is_broken: whether it is a link without a target, which may have been a file or a folder.
    """

    path: str
    is_broken: bool


def walk(root: Path, hidden: Collection[str] = (), litter: list[str] | None = None) -> Iterator[Entry]:
    """Yield the files at any depth below a folder, without `is_litter` folders; of hidden files, those named `hidden`.

    The paths of the folders that are not searched are appended to `litter`.

    Links to folders are followed, but each folder is visited once: by its own path if that lies below `root`, else by
    the first of its links. So a link to a parent ends, and the result does not depend on the order on disk. A link to a
    folder above `root` is not followed, because it would take in what lies beside `root`; it is appended to `litter`.

    Raises:
        OSError: a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    above = {
        _identity(folder) for path in (os.path.abspath(root), os.path.realpath(root)) for folder in Path(path).parents
    }
    folders, links = [""], deque[str]()
    while folders or links:
        prefix = folders.pop() if folders else links.popleft()
        if (identity := _identity(root / prefix)) in seen:
            continue
        seen.add(identity)
        with os.scandir(root / prefix) as found:
            entries = sorted(found, key=lambda one: one.name)
        for entry in entries:
            kind = _kind(entry)
            if kind == "folder":
                if is_litter(entry.name) or (entry.is_symlink() and _identity(entry) in above):
                    if litter is not None:
                        litter.append(prefix + entry.name)
                    continue
                (links if entry.is_symlink() else folders).append(f"{prefix}{entry.name}/")
            elif kind != "other" and (not entry.name.startswith(".") or entry.name in hidden):
                yield Entry(prefix + entry.name, kind == "broken")


def _identity(folder: Path | os.DirEntry[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[str]) -> str:
    """Return ``file``, ``folder``, ``broken`` (a link without a target) or ``other`` (a device, a pipe)."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        entry.stat()
    except OSError:  # a link that leads nowhere, or to itself
        return "broken" if entry.is_symlink() else "other"
    return "other"


def _as_listed(root: Path, name: str) -> str | None:
    """Find a name by the first two rules; return its path relative to `root`."""
    path = _inside(name)
    if path is not None and _is_scan(root, path):
        return path
    if "\\" not in name or _DRIVE.match(name):
        return None
    path = _inside(name.replace("\\", "/"))
    return path if path is not None and _is_scan(root, path) else None


def _inside(name: str) -> str | None:
    """Remove empty and ``.`` parts; None for a name that is empty, absolute or has ``..``."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if not parts or ".." in parts or name.startswith("/") else "/".join(parts)


def _is_scan(root: Path, path: str) -> bool:
    """Whether there is a file, a link to one, or a link without a target."""
    full = os.path.join(root, path)
    try:
        mode = os.lstat(full).st_mode
    except (OSError, ValueError):  # also a name that is too long, or that no file can have
        return False
    if not stat.S_ISLNK(mode):
        return stat.S_ISREG(mode)
    try:
        return stat.S_ISREG(os.stat(full).st_mode)
    except OSError:
        return True


def _by_bare_name(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Find names by the third rule; return paths relative to `root`."""
    # On Linux a backslash may belong to the bare name.
    forms = {name: list(dict.fromkeys((name.rpartition("/")[2], bare_name(name)))) for name in names}
    wanted = {form for several in forms.values() for form in several if form not in ("", ".", "..")}
    composed = {_composed(form) for form in wanted}
    exact, alike = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for entry in walk(root, wanted):
        path, base = entry.path, entry.path.rpartition("/")[2]
        if base in wanted:
            exact[base].append(path)
        if not base.isascii() and _composed(base) in composed:
            alike[_composed(base)].append(path)
    found = {}
    for name, several in forms.items():
        matches = next((exact[form] for form in several if form in exact), [])
        if not matches:
            matches = next((alike[_composed(form)] for form in several if _composed(form) in alike), [])
            own_path = _composed(name.replace("\\", "/"))
            matches = [path for path in matches if _composed(path) == own_path] or matches
        if (only := _only(root, name, matches)) is not None:
            found[name] = only
    return found


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _only(root: Path, name: str, matches: Sequence[str]) -> str | None:
    """Return the only match; None without one. Paths that lead to one file are one match.

    Raises:
        InputError: there are several.
    """
    if len(matches) <= 1:
        return matches[0] if matches else None
    different = {_file(root, match): match for match in sorted(matches, reverse=True)}
    if len(different) > 1:
        shown = sorted(matches)
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        raise InputError(
            f"{root}: image {_quoted(name)} is not there, and {len(shown)} files have its bare name: "
            f"{', '.join(map(_quoted, shown[:_SHOWN]))}{more}; correct the file_name, or leave only one of them"
        )
    return next(iter(different.values()))


def _refuse_shared(root: Path, listed: Sequence[str], found: dict[str, str | None]) -> None:
    """Refuse entries that are the same file.

    Raises:
        InputError: two are.
    """
    owners: dict[str, str] = {}
    parents: dict[str, str] = {}
    for name in listed:
        if (path := found[name]) is None:
            continue
        file = _file(root, path, parents)
        if file in owners:
            what = f"{_quoted(owners[file])} and {_quoted(name)}" + (" (listed twice)" if owners[file] == name else "")
            raise InputError(
                f"{root}: the images {what} are the same file, {_quoted(path)}, so annotations of one would be used on "
                "the other; correct the file_name entries, or add the missing file"
            )
        owners[file] = name


def _quoted(name: str) -> str:
    """Show a name as it is listed; `repr` would double its backslashes."""
    return f"'{shortened(name)}'"


def _file(root: Path, path: str, parents: dict[str, str] | None = None) -> str:
    """Identify a file of the data set.

    Links to folders are resolved, and so are links to a visible file below `root`. A link that leaves the data set is a
    file of its own: stores of contents, such as DVC's cache, keep equal files once.

    Args:
        root: the image folder.
        path: relative to `root`.
        parents: real paths of folders, as a cache.
    """
    parents = {} if parents is None else parents
    folder, _, base = path.rpartition("/")
    for part in (folder, ""):
        if part not in parents:
            parents[part] = os.path.realpath(os.path.join(root, part))
    own = os.path.join(parents[folder], base)
    if not os.path.islink(own):
        return own
    target = os.path.realpath(own)
    inside = target.removeprefix(parents[""] + os.sep)
    is_visible = inside != target and not any(part.startswith(".") for part in inside.split(os.sep))
    return target if is_visible else own
