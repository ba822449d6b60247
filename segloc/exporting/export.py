"""Export backbone weights for other libraries, with a report of every tensor."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from segloc.common.files import write_atomic, write_json
from segloc.common.output_kinds import Kind, starting
from segloc.exporting import batch_norm
from segloc.exporting.batch_norm import Measuring
from segloc.exporting.formats import convert, usage_notes, with_head, wrapped
from segloc.models.initial_weights import read_backbone


def summary(report: Mapping[str, Any]) -> str:
    """Summarise the report in a few lines of text."""
    lines = [
        f"{report['arch']}, norm {report['norm']} -> {report['format']}: {len(report['matched'])} tensors matched, "
        f"{len(report['renamed'])} renamed, {len(report['left_out'])} left out"
    ]
    if inserted := report["inserted"]:
        lines.append(
            f"  inserted {len(inserted['layers'])} batch norm layers, measured on {inserted['measured_views']} views; "
            f"on {inserted['compared_views']} other views the outputs change by at most "
            f"{inserted['largest_relative_difference']:.1e} of the largest value"
        )
    for reason in dict.fromkeys(report["left_out"].values()):
        count = sum(other == reason for other in report["left_out"].values())
        lines.append(f"  left out {count}: {reason}")
    return "\n".join([*lines, *(f"  note: {note}" for note in report["notes"])])


def report_beside(out: Path) -> dict[Path, Kind]:
    """Return the path of the report beside the file `out`, and what it may replace."""
    return {out.with_name(f"{out.stem}.report.json"): _REPORT}


def _is_exported(path: Path) -> bool:
    return _TORCH.is_one(path) and all(
        report.is_file() and kind.is_one(report) for report, kind in report_beside(path).items()
    )


_TORCH = starting("a file of torch.save", rb"PK\x03\x04")
_REPORT = starting("a report of segloc.export", rb'\{\s*"format":\s*"[^\n]*",\s*"weights":')
# Other libraries' weights have no mark; the report has.
WEIGHTS = Kind("a file that segloc.export wrote, with its report beside it", _is_exported)


def export(weights: str, format: str, out: Path, measuring: Measuring | None = None) -> tuple[dict[str, Any], Path]:
    """Write a backbone for another library, and a report of every tensor next to it.

    Args:
        weights: run or checkpoint.
        format: a name in `segloc.exporting.formats.FORMATS`.
        out: file to write.
        measuring: how to measure batch norm before inserting it; None inserts none.

    Returns:
        The report and its path.

    Raises:
        InputError: the weights are invalid, or the files cannot be written.
    """
    [report_path] = report_beside(out)
    stored, inserted = read_backbone(weights), None
    if measuring:
        stored, inserted = batch_norm.insert_batch_norm(stored, measuring)
    norm, about = stored.settings["norm"], {**stored.settings, "iteration": stored.iteration}
    # segloc.finetune can initialise its box heads from the pretrained RoI head; other libraries do not use it.
    converted = with_head(convert(stored.tensors, format, norm), stored.head, format)
    report = {
        "format": format,
        "weights": str(weights),
        **about,
        "inserted": inserted,
        "notes": usage_notes(format, norm, stored.settings["fpn_channels"]),
        **{name: getattr(converted, name) for name in ("matched", "renamed", "left_out")},
    }
    buffer = io.BytesIO()
    torch.save(wrapped(converted, format, about), buffer)
    write_json(report_path, report)
    write_atomic(out, buffer.getvalue())  # last: once it exists, both exist
    return report, report_path
