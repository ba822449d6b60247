"""The small data of both packages' tests, for the benchmarks' own."""

from tests.pipeline.conftest import sixray
from tests.segloc.conftest import shards

__all__ = ["shards", "sixray"]
