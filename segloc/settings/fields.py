"""How a setting is declared: its default, what it means, and which values it may have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from segloc.common.errors import InputError

MAX_SEED = 2**63 - 1  # torch takes no larger one


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which values a setting may have.

    Attributes:
        choices: the texts it may be.
        least: the smallest number it may be.
        most: the largest number it may be.
        above: a number that it must exceed.
        multiple_of: a number that must divide it; needs `least`.
    """

    choices: Sequence[str] = ()
    least: float | None = None
    most: float = math.inf
    above: float | None = None
    multiple_of: int = 0

    def allow(self, value: Any) -> bool:
        """Whether a setting may have this value."""
        if self.choices:
            return value in self.choices
        if self.above is not None:
            return bool(self.above < value < math.inf)
        if self.least is None:
            return True
        fits = self.least <= value <= self.most and value < math.inf
        return bool(fits and not (self.multiple_of and value % self.multiple_of))

    def words(self, quote: str = "") -> str:
        """Say what the value is, with this around each choice; empty where everything goes."""
        if self.choices:
            return f"one of {', '.join(f'{quote}{choice}{quote}' for choice in self.choices)}"
        if self.above is not None:
            return f"more than {self.above}"
        if self.multiple_of:
            return f"a multiple of {self.multiple_of} from {self.least} on"
        if self.most < math.inf:
            return f"within {self.least} and {self.most}"
        return "" if self.least is None else f"at least {self.least}"


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """Declare a field of a settings dataclass.

    Args:
        default: its default.
        meaning: one sentence or two, with the unit; docs/settings.md shows it.
        limits: attributes of `Limits`.
    """
    metadata = {"meaning": meaning, "limits": Limits(**limits)}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_limits(settings: Any, prefix: str = "") -> None:
    """Check every setting of a dataclass, and of the dataclasses in it, against its declaration.

    The prefix is the dotted key of the dataclass, with a dot at the end.

    Raises:
        InputError: a value is not one that its setting may have.
    """
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            check_limits(value, f"{name}.")
        elif not (limits := field.metadata["limits"]).allow(value):
            verb = "not" if limits.choices or limits.multiple_of else "it must be"
            raise InputError(f"{name} is {value!r}, {verb} {limits.words()}")
