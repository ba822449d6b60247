"""JSON and YAML from files that somebody else may have written: data only, within bounds, with one kind of error."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from segloc.common.errors import InputError, one_line

# A description that this project writes is at most five levels deep. Python's own limit depends on the caller's depth.
MOST_LEVELS = 100
# The longest recipe here has 3,000 characters. The parser reads some 100,000 per second.
MOST_YAML_CHARACTERS = 100_000
# Values after each alias is replaced by what it stands for: nine aliases of nine aliases, and so on, fit in 300 bytes.
MOST_YAML_VALUES = 100_000
# Longer numbers are no setting. YAML's form 1:30:00 takes time in the square of its length.
MOST_DIGITS = 100
INSIDE_ITSELF = float("inf")
SHOWN_CHARACTERS = 60
# All that parsers and conversions raise for wrong content. A bug in a reader would look the same, so `parsing` blocks
# are short and hold nothing else.
WRONG = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, EOFError, yaml.YAMLError)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@contextlib.contextmanager
def parsing(where: object, what: str) -> Iterator[None]:
    """Turn whatever wrong content raises into an `InputError`: ``where: what (reason)``. Other `InputError`s pass.

    An empty `where` is left out, for callers that add the place.
    """
    try:
        yield
    except InputError:
        raise
    except WRONG as error:
        raise InputError(f"{f'{where}: ' if where else ''}{what} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """Return the message of an exception in one line; for a missing key or a message that says little, its kind too."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text = one_line(error)
    return f"{type(error).__name__} {text}" if isinstance(error, LookupError) else text


def shown(value: Any) -> str:
    """Return the `repr` of a value from a file for a message, shortened to part of a line. Any value can be shown."""
    try:
        text = repr(value).replace("\n", " ")  # tensors are shown in several lines
    except (ValueError, RecursionError):  # a number of more than 4,300 digits; nested too deeply
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def check_text(text: str, where: object) -> None:
    """Check that a file, a path or a terminal can hold a text.

    Raises:
        InputError: it has a null character or half of a surrogate pair.
    """
    with parsing(where, "not text"):
        if "\0" in text:
            raise ValueError("it has a null character")
        text.encode()


def parse_json(data: bytes | str, where: object) -> Any:
    """Parse JSON, which may begin with a byte order mark.

    Raises:
        InputError: not JSON, nested more than `MOST_LEVELS` deep, with a key twice, or with text that no file can hold.
    """
    with parsing(where, "not JSON"):
        content = json.loads(data, object_pairs_hook=once)
        check_levels(content)
        if isinstance(data, str) or _SURROGATE.search(data):
            json.dumps(content, ensure_ascii=False).encode()  # raises for half a pair
    return content


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build the dict of an object; a key that occurs twice is refused, because all but its last value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {shown(name)} occurs twice")
            seen.add(name)
    return found


def check_levels(content: Any) -> None:
    """Check that lists and dicts are at most `MOST_LEVELS` deep.

    Raises:
        RecursionError: they are deeper.
    """
    level = [content]
    for _ in range(MOST_LEVELS):
        level = [
            part
            for value in level
            if isinstance(value, (dict, list))
            for part in (value.values() if isinstance(value, dict) else value)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return
    raise RecursionError


def parse_yaml(text: str | bytes, where: object) -> Any:
    """Parse YAML of plain values, of bytes in UTF-8: no tag runs code, and every key occurs once.

    Raises:
        InputError: not YAML; too long, also after its aliases are replaced; too deep; or a key repeats.
    """
    with parsing(where, "not YAML"):
        text = text.decode() if isinstance(text, bytes) else text
        if len(text) > MOST_YAML_CHARACTERS:
            raise ValueError(f"{len(text)} characters, at most {MOST_YAML_CHARACTERS} are read")
        content = _read_yaml(text)
    return content  # noqa: RET504 (inside the block, mypy would ask for another return)


class _Loader(yaml.SafeLoader):
    """Stops at once at a value that is nested too deeply; reading on would take time in the square of the depth."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MOST_LEVELS:
            raise RecursionError
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _read_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (values := _values(node, {})) == INSIDE_ITSELF:
            raise ValueError("an alias stands inside what it names")
        if values > MOST_YAML_VALUES:
            raise ValueError(f"more than {MOST_YAML_VALUES} values after its aliases are replaced")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """Count the values of a node with its aliases replaced; `INSIDE_ITSELF` for a node inside itself."""
    if node not in known:
        known[node] = INSIDE_ITSELF  # while its own parts are counted
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated(node)
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif node.tag in _NUMBERS and len(node.value) > MOST_DIGITS:
            raise ValueError(f"a number of {len(node.value)} characters, at most {MOST_DIGITS} are read")
        known[node] = 1 + sum(_values(part, known) for part in parts)
    return known[node]


def _refuse_repeated(node: yaml.MappingNode) -> None:
    """Refuse a mapping that has a key twice; YAML would keep only the last value."""
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and (name := (key.tag, key.value)) in seen:
            raise ValueError(f"the key {shown(key.value)} occurs twice")
        if isinstance(key, yaml.ScalarNode):
            seen.add(name)
