"""The public API: the examples of docs/api.md run and print what the page says, and the page lists every name."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import pipeline
import segloc
from segloc.common.images import encode_jpeg
from tests.imports import ROOT
from tests.pipeline.conftest import pidray, region_file, segment_file, shards, sixray, synthesis  # noqa: F401

PAGE = (ROOT / "docs" / "api.md").read_text()
EXAMPLES = re.findall(r"^## (.+?)$.*?```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sixray, pidray, region_file, segment_file, shards):  # noqa: F811
    """A folder with everything that the page's examples name."""
    torch = pytest.importorskip("torch", reason="needs torch")
    from segloc.training import checkpoint

    folder = tmp_path_factory.mktemp("api")
    settings = {"arch": "resnet18", "norm": "bn", "sda_norm": "bn", "attention": True}
    torch.manual_seed(0)
    backbone = segloc.SegLocBackbone(**settings)
    (folder / "runs" / "pretrain").mkdir(parents=True)
    content = {"kind": "backbone", **settings, "backbone": backbone.state_dict()}
    checkpoint.save(folder / "runs" / "pretrain" / "backbone.pth", content)
    noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    (folder / "scan.jpg").write_bytes(encode_jpeg(noise, 90))
    (folder / "data" / "raw").mkdir(parents=True)
    (folder / "data" / "raw" / "sixray").symlink_to(sixray)
    shutil.copy(region_file, folder / "data" / "regions.parquet")
    shutil.copy(segment_file, folder / "data" / "segments.parquet")
    (folder / "data" / "shards").symlink_to(shards)
    truth = json.loads((pidray / "annotations" / "xray_train.json").read_text())
    results = [{name: item[name] for name in ("image_id", "category_id", "bbox")} for item in truth["annotations"]]
    (folder / "xray_test_hidden.json").write_text(json.dumps(truth))
    (folder / "hidden.results.json").write_text(json.dumps([{**result, "score": 0.9} for result in results]))
    return folder


@pytest.mark.parametrize(("code", "printed"), [pytest.param(code, text, id=title) for title, code, text in EXAMPLES])
def test_example_prints_what_the_page_says(code, printed, folder, monkeypatch):
    monkeypatch.chdir(folder)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "docs/api.md", "exec"), {})
    assert output.getvalue() == printed


def test_every_example_is_run():
    assert len(EXAMPLES) == PAGE.count("```python") == 4
    features = next(code for title, code, _ in EXAMPLES if title.startswith("Features"))
    assert len(features.strip().splitlines()) - features.count("\n\n") <= 5


@pytest.mark.parametrize("package", [segloc, pipeline])
def test_the_page_lists_every_public_name(package):
    listed = set(re.findall(rf"`{package.__name__}\.(\w+)`", PAGE.split("\n## ")[0]))
    assert listed == set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__doc__


def test_a_name_that_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="nothing"):
        segloc.nothing  # noqa: B018


def test_importing_a_package_imports_none_of_its_modules():
    code = "import segloc, pipeline, sys\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name for name in result.stdout.split() if name.startswith(("segloc", "pipeline", "torch"))}
    assert loaded == {"segloc", "pipeline"}


def test_pairs_name_the_damaged_one(folder, tmp_path):
    """Shards that hold a pair whose image is no image: the rest of the sentence says which."""
    from tests.segloc.conftest import write_shards

    def spoil(files, number):
        return files | {"key.jpg": b"no image"} if number == 5 else files

    pairs = segloc.ShardFolder.open(str(write_shards(tmp_path / "shards", spoil=spoil))).pairs()
    with pytest.raises(segloc.InputError, match=r"pairs-000000.tar: pair 000000005: "):
        list(pairs)
