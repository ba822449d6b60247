"""Names of the files in a run folder, and which files an output may not replace."""

from __future__ import annotations

import os
import re

from segloc.common.contract import INDEX_NAME, SOURCES_NAME

RUN, CONFIG, START, SKIPPED = "run.json", "config.yaml", "start.json", "skipped.json"
VALIDATION = "validation.json"
METRICS_FILE, NOT_FINITE, LOCK = "metrics.json", "not_finite.json", ".lock"
LAST, BACKBONE, MODEL = "checkpoint.pth", "backbone.pth", "model.pth"
TENSORBOARD = "tensorboard"
KEPT = "backbone-epoch-{:03d}.pth"  # after a chosen epoch
_OF_RUN = (RUN, CONFIG, START, SKIPPED, VALIDATION, METRICS_FILE, NOT_FINITE, LOCK, LAST, BACKBONE, MODEL)
_KEPT = re.compile(r"backbone-epoch-\d{3,}\.pth")
_OF_SHARDS = re.compile(rf"{re.escape(INDEX_NAME)}|{re.escape(SOURCES_NAME)}|pairs-\d+\.tar")


def owner(path: str | os.PathLike[str]) -> str:
    """Return ``run`` or ``shards`` if `path` is a file that belongs to a finished run or shard folder, else nothing."""
    folder, name = os.path.split(os.path.realpath(path))
    if (name in _OF_RUN or _KEPT.fullmatch(name)) and os.path.isfile(os.path.join(folder, RUN)):
        return "run"
    if os.path.basename(folder) == TENSORBOARD and os.path.isfile(os.path.join(os.path.dirname(folder), RUN)):
        return "run"
    if _OF_SHARDS.fullmatch(name) and os.path.isfile(os.path.join(folder, INDEX_NAME)):
        return "shards"
    return ""
