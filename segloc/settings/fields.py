"""Declare a setting: its default, its meaning and its allowed values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from segloc.common.errors import InputError
from segloc.common.parse import shown

MAX_SEED = 2**63 - 1  # largest seed that torch accepts
# Upper bounds: far beyond what anybody trains with, and small enough that no setting alone fills the memory.
MAX_STEPS = 50_000_000  # the schedule is an array of this length
MAX_EPOCHS = 1_000_000
MAX_IMAGE_SIZE_PX = 8192
MAX_BATCH = 65_536
MAX_CHANNELS, MAX_WIDTH, MAX_LAYERS = 2048, 8192, 32
MAX_PER_IMAGE = 100_000  # anchors, proposals, detections
MAX_CLASSES = 65_536
MAX_THREADS = 1024


@dataclasses.dataclass(frozen=True)
class Limits:
    """Allowed values of a setting.

    Attributes:
        choices: allowed texts.
        least: inclusive lower bound.
        most: inclusive upper bound; needs `least`.
        above: exclusive lower bound.
        multiple_of: required divisor; needs `least` and `most`.
    """

    choices: Sequence[str] = ()
    least: float | None = None
    most: float = math.inf
    above: float | None = None
    multiple_of: int = 0

    def allow(self, value: Any) -> bool:
        """Return whether the value is allowed."""
        if self.choices:
            return value in self.choices
        if self.above is not None:
            return bool(self.above < value < math.inf)
        if self.least is None:
            return True
        fits = self.least <= value <= self.most and value < math.inf
        return bool(fits and not (self.multiple_of and value % self.multiple_of))

    def words(self, quote: str = "") -> str:
        """Describe the allowed values, with `quote` around each choice; empty when all values are allowed."""
        if self.choices:
            return f"one of {', '.join(f'{quote}{choice}{quote}' for choice in self.choices)}"
        if self.above is not None:
            return f"more than {self.above}"
        if self.multiple_of:
            return f"a multiple of {self.multiple_of} from {self.least} to {self.most}"
        if self.most < math.inf:
            return f"from {self.least} to {self.most}"
        return "" if self.least is None else f"at least {self.least}"


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """Declare a field of a settings dataclass.

    Args:
        default: default value.
        meaning: one or two sentences, with the unit; copied to docs/settings.md.
        limits: attributes of `Limits`.
    """
    metadata = {"meaning": meaning, "limits": Limits(**limits)}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_limits(settings: Any, prefix: str = "") -> None:
    """Check the settings of a dataclass and of its nested dataclasses; of a list, each value.

    `prefix` is the dotted key of the dataclass with a dot at the end.

    Raises:
        InputError: a value is not allowed.
    """
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            check_limits(value, f"{name}.")
            continue
        limits = field.metadata["limits"]
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and not limits.allow(one):
                verb = "not" if limits.choices or limits.multiple_of else "it must be"
                raise InputError(f"{name} is {shown(one)}, {verb} {limits.words()}")
