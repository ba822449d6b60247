"""Fixtures of both packages' tests, for the tests of the benchmarks."""

from tests.pipeline.conftest import sixray
from tests.segloc.conftest import shards

__all__ = ["shards", "sixray"]
