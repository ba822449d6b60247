"""How a setting is declared: its default, what it means, and which values it may have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from segloc.common.errors import InputError

MAX_SEED = 2**63 - 1  # torch takes no larger one


def setting(
    default: Any,
    meaning: str,
    *,
    choices: Sequence[str] = (),
    least: float | None = None,
    most: float = math.inf,
    above: float | None = None,
) -> Any:
    """Declare a field of a settings dataclass.

    Args:
        default: its default.
        meaning: one sentence or two, with the unit; docs/settings.md shows it.
        choices: the texts it may be.
        least: the smallest number it may be.
        most: the largest number it may be.
        above: a number that it must exceed.
    """
    limits = {"choices": tuple(choices), "least": least, "most": most, "above": above}
    metadata = {"meaning": meaning, **limits}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_limits(settings: Any, prefix: str = "") -> None:
    """Check every setting of a dataclass, and of the dataclasses in it, against its declaration.

    Args:
        settings: the dataclass.
        prefix: dotted key of it, with a dot at the end.

    Raises:
        InputError: a value is not one that its setting may have.
    """
    for field in dataclasses.fields(settings):
        value, name, limits = getattr(settings, field.name), prefix + field.name, field.metadata
        if dataclasses.is_dataclass(value):
            check_limits(value, f"{name}.")
        elif limits.get("choices"):
            if value not in limits["choices"]:
                raise InputError(f"{name} is {value!r}, not one of {', '.join(limits['choices'])}")
        elif limits.get("above") is not None:
            if not limits["above"] < value < math.inf:
                raise InputError(f"{name} is {value}, it must be more than {limits['above']}")
        elif limits.get("least") is not None and not (limits["least"] <= value <= limits["most"] and value < math.inf):
            raise InputError(f"{name} is {value}, it must be {_range(limits['least'], limits['most'])}")


def _range(least: float, most: float) -> str:
    return f"within {least} and {most}" if most < math.inf else f"at least {least}"
