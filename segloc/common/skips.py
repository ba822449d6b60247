"""Inputs that a command skipped: counted by reason, and one rule for how many are too many (``--max-skipped``).

Unreadable, missing and invalid inputs count. Inputs that are valid but unused do not: empty or small scans, crowds,
annotations marked ``ignore``, and links without a target among backgrounds.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from segloc.common.errors import RunError
from segloc.common.images import BROKEN_LINK
from segloc.common.text import shortened, utf8_text

MAX_SKIPPED = 0.05  # default of --max-skipped
NAMED = 3  # names that a message shows for each reason
OPTION = "--max-skipped"
# Reasons of inputs that are not used, though nothing is wrong: links without a target are how DVC and git-annex keep
# scans that were not fetched.
UNUSED = frozenset({"crowd", "marked ignore", BROKEN_LINK})


class SkippedError(RunError):
    """The work is done and written, but more inputs were skipped than allowed."""


@dataclasses.dataclass
class Skips:
    """Counts of the inputs that were looked at and skipped. Only counts and names are shown, so it is small.

    Attributes:
        what: the inputs, as a plural: ``scans``.
        total: number of inputs looked at.
        counts: number of skipped and `UNUSED` inputs by reason.
        names: their first `NAMED` names by reason.
    """

    what: str
    total: int = 0
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    names: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def skipped(self) -> int:
        """Number of skipped inputs, without `UNUSED` ones."""
        return sum(self._counted().values())

    def _counted(self, unused: bool = False) -> dict[str, int]:
        return {reason: self.counts[reason] for reason in sorted(self.counts) if (reason in UNUSED) == unused}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count skipped inputs, for example all annotations of the scan `name`."""
        self.counts[reason] += count
        name = shortened(utf8_text(name))
        named = self.names.setdefault(reason, [])
        if len(named) < NAMED and name not in named:
            named.append(name)

    def more_than(self, share: float) -> bool:
        """Whether a larger share than `share` was skipped. A share that is equal is allowed."""
        # The quotient is rounded like the decimal text of the option; a product is not (0.29 * 100 < 29).
        return bool(self.skipped) and self.skipped / max(self.total, self.skipped) > share

    def reasons(self) -> str:
        """List the reasons, the most frequent first: ``120 image missing (a.png, b.png, c.png), 2 ...``."""
        ordered = sorted(self._counted().items(), key=lambda one: (-one[1], one[0]))
        return ", ".join(f"{count} {reason} ({self._shown(reason, count)})" for reason, count in ordered)

    def _shown(self, reason: str, count: int) -> str:
        names = [" ".join(name.split()) for name in self.names.get(reason, [])]
        return ", ".join([*names, "..."] if count > len(names) else names)

    def summary(self) -> str:
        """Say in one line what was skipped: ``skipped 2 of 144 annotations: 2 image missing (a.png, b.png)``."""
        unused = ", ".join(f"{count} {reason}" for reason, count in self._counted(unused=True).items())
        text = f"skipped {self.skipped} of {self.total} {self.what}" + (f": {self.reasons()}" if self.skipped else "")
        return text + (f"; not used: {unused}" if unused else "")

    def without(self, reason: str) -> Skips:
        """Return the counts without those of one reason."""
        counts = Counter({key: count for key, count in self.counts.items() if key != reason})
        return Skips(self.what, self.total, counts, {key: self.names[key] for key in counts})

    def merged(self, other: Skips) -> Skips:
        """Return the counts of this and of another kind of fault of the same inputs."""
        both = Skips(
            self.what, self.total, Counter(self.counts), {key: list(named) for key, named in self.names.items()}
        )
        for reason, count in other.counts.items():
            both.counts[reason] += count
            both.names[reason] = [*both.names.get(reason, []), *other.names.get(reason, [])][:NAMED]
        return both

    def to_json(self) -> dict[str, Any]:
        """Return the counts and names as JSON values."""
        by_reason = {
            reason: {"count": self.counts[reason], "first": self.names.get(reason, [])}
            for reason in sorted(self.counts)
        }
        return {"what": self.what, "of": self.total, "skipped": self.skipped, "reasons": by_reason}

    def table_parameters(self) -> dict[str, Any]:
        """Return the counts for the parameters of a Parquet table."""
        return {"looked_at": self.total, "skipped": dict(sorted(self.counts.items()))}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Skips:
        """Read what `to_json` returned."""
        reasons = content["reasons"]
        counts = Counter({reason: int(one["count"]) for reason, one in reasons.items()})
        return cls(
            content["what"], int(content["of"]), counts, {key: list(one["first"]) for key, one in reasons.items()}
        )


def require(parts: Sequence[Skips], share: float, advice: str, written: str) -> None:
    """Refuse to call the work done if more than `share` of any kind of input was skipped.

    Args:
        parts: counts of each kind of input.
        share: largest share that may be skipped, 0 to 1.
        advice: what the user can do.
        written: the output, which exists.

    Raises:
        SkippedError: more was skipped.
    """
    if over := [part for part in parts if part.more_than(share)]:
        what = "; ".join(f"{part.skipped} of {part.total} {part.what} skipped: {part.reasons()}" for part in over)
        raise SkippedError(f"more than {OPTION} {share:g}: {what}; {written} is written; {advice}, or raise {OPTION}")
