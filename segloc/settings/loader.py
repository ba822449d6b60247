"""Read and write recipes: YAML to frozen dataclasses, with strict keys and types.

A recipe holds data only. Nothing in it is interpolated, called or imported. An unknown key is an error that names the
nearest valid key. The key ``base`` gives the path of another recipe, relative to this recipe's folder, whose settings
are read first.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from segloc.common.cli import split_override
from segloc.common.errors import InputError, unknown_key
from segloc.common.files import expanded
from segloc.common.parse import check_text, parse_yaml, parsing, shown
from segloc.settings import text_lists

BASE = "base"
Config = TypeVar("Config")


def load(schema: type[Config], path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe into a frozen dataclass and apply overrides; a `path` of None gives the defaults.

    Overrides are ``section.key=value``. The value of a text setting is used literally, so are the texts of a list (see
    `text_lists`); any other is parsed as YAML.

    Raises:
        InputError: no such file, not YAML, an unknown key, a value of the wrong type or out of range, or circular
            bases.
    """
    return _changed(schema, {} if path is None else _read(path), str(path), overrides)


def parse(schema: type[Config], text: str, where: str, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe from text, such as the one inside a checkpoint; see `load`."""
    return _changed(schema, _mapping(text, where), where, overrides)


def _changed(schema: type[Config], raw: dict[str, Any], where: str, overrides: Sequence[str]) -> Config:
    config = build(schema, raw, where)  # before the overrides, too, so that errors in the recipe name its file
    for override in overrides:
        _apply(schema, raw, override)
    return build(schema, raw, "override") if overrides else config


def to_yaml(config: Any) -> str:
    """Write all settings as YAML that `parse` reads."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _read(path: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe and its bases into nested dicts; `above` holds the recipes that led here through ``base``."""
    path = Path(expanded(str(path)))
    if not path.is_file():
        raise InputError(f"{path}: no such recipe")
    if path.resolve() in above:
        raise InputError(f"{path}: is its own base")
    raw = _mapping(path.read_bytes(), str(path))
    base = raw.pop(BASE, None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise InputError(f"{path}: {BASE}: expected the path of a recipe, got {shown(base)}")
    check_text(base, f"{path}: {BASE}")
    return _merged(_read(path.parent / expanded(base), (*above, path.resolve())), raw)


def build(schema: type[Config], raw: dict[Any, Any], where: str, prefix: str = "") -> Config:
    """Build a frozen dataclass from nested dicts; missing keys keep their defaults.

    Args:
        schema: the dataclass.
        raw: the values.
        where: source, for error messages.
        prefix: dotted key of the section and a dot.

    Raises:
        InputError: an unknown key, or a value of the wrong type or out of range.
    """
    hints = get_type_hints(schema)
    values = {}
    for key, value in raw.items():
        if key not in hints:
            raise unknown_key(f"{prefix}{key}", [prefix + name for name in hints], where)
        values[key] = _value(hints[key], value, where, f"{prefix}{key}")
    try:
        return schema(**values)
    except InputError as error:
        raise type(error)(f"{where}: {error}") from error


def keys(schema: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all settings of a dataclass."""
    for name, hint in get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings into one dict by dotted key; lists stay values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _mapping(text: str | bytes, where: str) -> dict[str, Any]:
    raw = parse_yaml(text, where)
    if raw is None:
        raise InputError(f"{where}: is empty; a recipe without changes is {{}}")
    if not isinstance(raw, dict):
        raise InputError(f"{where}: not a mapping of settings")
    return raw


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply(schema: type, raw: dict[str, Any], override: str) -> None:
    """Write an override's value into the nested dicts."""
    key, text = split_override(override)
    *sections, last = key.split(".")
    hint: Any = schema
    for part in sections:
        if get_origin(hint) is dict and part not in raw:  # the recipe has no such entry
            raise unknown_key(part, map(str, raw), f"override {override!r}")
        hint = _required(_inner(hint, part))
        if not (dataclasses.is_dataclass(hint) or get_origin(hint) is dict):
            raise unknown_key(key, keys(schema), "override")
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise InputError(f"override: {key!r} is not in a section")
    hint = _inner(hint, last)
    if hint is None:
        raise unknown_key(key, keys(schema), "override")
    if dataclasses.is_dataclass(hint):
        raise InputError(f"override: {key!r} is a section; set one of {', '.join(keys(hint, key + '.'))}")
    where = f"the value of {key!r}"
    with parsing(where, "cannot be read"):
        raw[last] = _given(hint, text, where)


def _given(hint: Any, text: str, where: str) -> Any:
    """Read the value of an override: texts and lists of texts literally, any other as YAML."""
    if hint is str:
        return text
    levels = text_lists.depth(hint)
    return text_lists.read(text, levels) if levels and text.strip().startswith("[") else parse_yaml(text, where)


def _inner(hint: Any, key: str) -> Any:
    """Return the type of a section's key; None if there is no such key."""
    if dataclasses.is_dataclass(hint):
        return get_type_hints(hint).get(key)
    return get_args(hint)[1] if get_origin(hint) is dict else None


def _required(hint: Any) -> Any:
    """Return X for ``X | None``."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    """Check a value from YAML against its annotation; convert lists to tuples and numbers to float."""
    if value is None and type(None) in get_args(hint):
        return None
    hint = _required(hint)
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint) or origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where}: {key}: expected a mapping, got {shown(value)}")
        if origin is dict:
            for name in value:
                if not isinstance(name, str):
                    raise InputError(f"{where}: {key}: expected text as a key, got {shown(name)}")
                check_text(name, f"{where}: {key}")
            return {name: _value(get_args(hint)[1], part, where, f"{key}.{name}") for name, part in value.items()}
        return build(hint, value, where, f"{key}.")  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: {key}: expected a list, got {shown(value)}")
        return tuple(_value(get_args(hint)[0], part, where, key) for part in value)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 (no dot) as text
        except (ValueError, OverflowError):
            pass
    if type(value) is not hint:
        quotes = "; put it in quotes" if hint is str and not isinstance(value, (list, dict)) else ""
        raise InputError(f"{where}: {key}: expected {hint.__name__}, got {shown(value)}{quotes}")
    if isinstance(value, str):
        check_text(value, f"{where}: {key}")
    return value


def _plain(value: Any) -> Any:
    """Convert tuples to lists, because YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
