"""Recipes as Python files, and strict overrides of them.

With Detectron2 installed, `LazyCall`, the loader and `instantiate` are Detectron2's own. Detectron2 is on no package
index, so a stand-in on omegaconf reads the same files, relative imports included, when it is missing. Detectron2
accepts an override of a key that does not exist in silence; here every key is checked, whichever of the two loads.
"""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import pydoc
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segloc.common.cli import split_override
from segloc.common.errors import InputError, one_line, unknown_key

__all__ = ["LazyCall", "apply_overrides", "complete", "from_yaml", "instantiate", "load", "to_yaml"]

TARGET = "_target_"

try:
    from detectron2.config import LazyCall, LazyConfig
    from detectron2.config import instantiate as _instantiate

    _load: Callable[[str], DictConfig] = LazyConfig.load

except ImportError:

    class LazyCall:  # type: ignore[no-redef]
        """Describes a call instead of making it: ``LazyCall(f)(a=1)`` is a node that `instantiate` calls later.

        Args:
            target: what to call.
        """

        def __init__(self, target: Callable[..., Any]) -> None:
            self.target = target

        def __call__(self, **arguments: Any) -> DictConfig:
            """Return the node. A dataclass goes by name, because omegaconf takes the class itself for a schema."""
            target = _name(self.target) if dataclasses.is_dataclass(self.target) else self.target
            return _node({**arguments, TARGET: target})

    def _load(path: str) -> DictConfig:
        """Run a recipe; its public dicts and nodes are the sections."""
        return _node({name: value for name, value in _run(Path(path)).items() if isinstance(value, DictConfig)})

    def _instantiate(node: Any) -> Any:
        """Make the described calls, innermost first."""
        if isinstance(node, (list, ListConfig)):
            return [_instantiate(item) for item in node]
        if not isinstance(node, Mapping) or TARGET not in node:
            return node
        return _target(node)(**{key: _instantiate(value) for key, value in node.items() if key != TARGET})


def load(path: str | Path) -> DictConfig:
    """Read a recipe.

    Returns:
        Its sections by name; each is a `LazyCall` node or a dict.

    Raises:
        InputError: no such file, or running it failed.
    """
    if not Path(path).is_file() or Path(path).suffix != ".py":
        raise InputError(f"{path}: no such recipe (a .py file)")
    try:
        return _load(str(path))
    except Exception as error:  # the recipe is the user's code, so anything can come out of it
        raise InputError(f"{path}: not a recipe ({type(error).__name__}: {one_line(error)})") from error


def complete(config: DictConfig, sections: Iterable[str], where: str) -> None:
    """Check every key of a recipe and write out, in place, the settings it leaves at their defaults.

    Args:
        config: the recipe.
        sections: the sections it must have; it may have no others.
        where: name for error messages.

    Raises:
        InputError: a key that its target does not take, or one that is missing.
    """
    sections = list(sections)
    for section in map(str, config):
        if section not in sections:
            raise unknown_key(section, sections, where)
    for section in sections:
        if section not in config:
            raise InputError(f"{where}: section {section!r} is missing")
    for prefix, node in _nodes(config):
        parameters = inspect.signature(_target(node)).parameters
        for key in map(str, node):
            if key != TARGET and key not in parameters:
                raise unknown_key(prefix + key, [prefix + name for name in parameters], where)
        for name, parameter in parameters.items():
            if name not in node and parameter.default is parameter.empty:
                raise InputError(f"{where}: {prefix}{name} is not set")
            node.setdefault(name, parameter.default)


def apply_overrides(config: DictConfig, overrides: Iterable[str]) -> None:
    """Apply ``section.key=value`` overrides in place; the value is read as YAML.

    Raises:
        InputError: not ``key=value``, a key that does not exist, or a value that is no YAML.
    """
    for override in overrides:
        key, text = split_override(override)
        *parents, last = key.split(".")
        node: Any = config
        for part in parents:
            node = node[part] if isinstance(node, DictConfig) and part in node else None
        if not isinstance(node, DictConfig) or last not in node or last == TARGET:
            raise unknown_key(key, _keys(config), "override")
        if isinstance(node[last], DictConfig):
            raise InputError(f"override: {key!r} is a section; set one of {', '.join(_keys(node[last], key + '.'))}")
        try:
            node[last] = yaml.safe_load(text)
            OmegaConf.to_container(node, resolve=True)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise InputError(f"{override!r}: the value cannot be read") from error


def instantiate(config: DictConfig, where: str) -> Any:
    """Make the calls a node describes.

    Args:
        config: a node of a recipe that `complete` has seen.
        where: name for error messages.

    Raises:
        InputError: a value of the wrong type, or one that its target refuses.
    """
    node = OmegaConf.to_container(config, resolve=True)
    for prefix, inner in _nodes(node):
        target = _target(inner)
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
        for key, value in inner.items():
            if key != TARGET:
                inner[key] = _typed(hints.get(key), value, f"{where}.{prefix}{key}")
    try:
        return _instantiate(node)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def to_yaml(config: DictConfig) -> str:
    """Write a recipe as YAML that `from_yaml` reads; targets go by their full name."""
    content = OmegaConf.to_container(config, resolve=True)
    for _, node in _nodes(content):
        node[TARGET] = _name(_target(node))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def from_yaml(text: str, targets: Iterable[Callable[..., Any]], where: str) -> DictConfig:
    """Read a recipe that `to_yaml` wrote.

    Such text comes out of checkpoints, which may be anybody's, so it may only name what is expected.

    Args:
        text: the YAML.
        targets: what it may call.
        where: name for error messages.

    Raises:
        InputError: not YAML, or another target.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: the recipe inside is not YAML ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: the recipe inside is not a mapping")
    allowed = {_name(target) for target in targets}
    for _, node in _nodes(content):
        if not isinstance(node[TARGET], str) or node[TARGET] not in allowed:
            raise InputError(f"{where}: the recipe inside would call {node[TARGET]!r}; refused")
    return _node(content)


def _node(content: dict[str, Any]) -> DictConfig:
    return DictConfig(content, flags={"allow_objects": True})


def _nodes(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted prefix, node) of every node with a target, outer before inner, lists included."""
    if isinstance(config, (dict, DictConfig)):
        if TARGET in config:
            yield prefix, config
        children = [(f"{prefix}{key!s}.", value) for key, value in config.items()]
    else:
        children = [(prefix, value) for value in config]
    for name, value in children:
        if isinstance(value, (dict, list, DictConfig, ListConfig)):
            yield from _nodes(value, name)


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in config.items():
        if isinstance(value, DictConfig):
            keys += _keys(value, f"{prefix}{key!s}.")
        elif key != TARGET:
            keys.append(f"{prefix}{key!s}")
    return keys


def _target(node: Mapping[str, Any]) -> Callable[..., Any]:
    target = pydoc.locate(node[TARGET]) if isinstance(node[TARGET], str) else node[TARGET]
    if not callable(target):
        raise InputError(f"recipe: {node[TARGET]!r} is nothing that can be called")
    return target


def _name(target: Callable[..., Any]) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Check plain settings against their annotation; numbers may be given as YAML reads them."""
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4, without a dot, as text
        except ValueError:
            pass
    if hint in (bool, int, float, str) and type(value) is not hint:
        raise InputError(f"{where}: expected {hint.__name__}, got {value!r}")
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: expected a list, got {value!r}")
        return tuple(_typed(inner, part, where) for part in value)
    return tuple(value) if isinstance(value, list) else value


def _run(path: Path) -> dict[str, Any]:
    """Execute a recipe and return its public names, dicts as nodes.

    Its relative imports run other recipes, each import afresh, as in Detectron2.
    """
    if not path.is_file():
        raise ImportError(f"{path} does not exist")

    def import_(name: str, globals_: Any = None, locals_: Any = None, names: Any = (), level: int = 0) -> Any:
        if level == 0:
            return builtins.__import__(name, globals_, locals_, names, level)
        return SimpleNamespace(**_run(path.parents[level - 1].joinpath(*name.split(".")).with_suffix(".py")))

    code: CodeType = compile(path.read_text(), str(path), "exec")
    values: dict[str, Any] = {"__file__": str(path), "__builtins__": {**vars(builtins), "__import__": import_}}
    exec(code, values)
    public = {name: value for name, value in values.items() if not name.startswith("_")}
    return {name: _node(value) if isinstance(value, dict) else value for name, value in public.items()}
