"""What fuzzing reads: for each kind of file, a valid one, a mutation of it, and the reader under test."""

import sys

from tests.faults.readers import scans, shards, tables, training  # noqa: F401 (they register their kinds)
from tests.faults.readers.registry import DOCUMENTED, TARGETS, prepare

__all__ = ["DOCUMENTED", "TARGETS", "prepare"]

if sys.flags.optimize:  # pragma: no cover
    raise RuntimeError("the checks here are assertions")
