"""Backbone weights for other libraries, with a report of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def summary(report: Mapping[str, Any]) -> str:
    """Put the report into a few lines."""
    lines = [
        f"{report['arch']}, norm {report['norm']} -> {report['format']}: {len(report['matched'])} tensors matched, "
        f"{len(report['renamed'])} renamed, {len(report['left_out'])} left out"
    ]
    if inserted := report["inserted"]:
        lines.append(
            f"  inserted {len(inserted['layers'])} batch norm layers, measured on {inserted['measured_views']} views; "
            f"on {inserted['compared_views']} others the outputs differ by at most "
            f"{inserted['largest_relative_difference']:.1e} of the largest value"
        )
    for reason in dict.fromkeys(report["left_out"].values()):
        count = sum(other == reason for other in report["left_out"].values())
        lines.append(f"  left out {count}: {reason}")
    return "\n".join([*lines, *(f"  note: {note}" for note in report["notes"])])
