"""Fixtures that tests of both packages use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.imports import ROOT

# Four pairs that format 1 wrote, 64 pixels wide, from simulated scans.
FORMAT_1 = ROOT / "tests" / "data" / "shards_format1"


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """URL of a bucket on an S3 server in this process; child processes find it by the environment."""
    pytest.importorskip("s3fs", reason="needs s3fs")
    server = pytest.importorskip("moto.server", reason="needs moto[server]").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "none")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="session")
def real_scans() -> Path:
    """Real scans beside the repository, where there are some."""
    folder = Path(os.environ.get("SEGLOC_XRAY_SAMPLE", ROOT.parent / "shared" / "xray_sample"))
    if not folder.is_dir():
        pytest.skip("no real scans here (set SEGLOC_XRAY_SAMPLE to a folder with sixray/ and pidray/)")
    return folder
