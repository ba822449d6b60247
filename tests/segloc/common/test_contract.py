"""The shard contract: round trips, and formats that readers accept or refuse."""

import dataclasses
import hashlib
import json
import re
import tarfile

import pytest

from segloc.common.contract import SOURCES_NAME, Index, Occluder, Pair, Shard, Sources, View, read_index
from segloc.common.errors import InputError
from segloc.common.masks import decode_rle, tight_box
from tests.conftest import FORMAT_1
from tests.imports import ROOT

OCCLUDER = Occluder("c.jpg", (0, 1, 5, 6), (2, 3))
VIEW = View(
    (2, 3, 5, 6), (10, 8), "a.jpg", "s#1", (1, 1, 9, 8), "ratio", 0.75, 12.5, 1.25, True, False, OCCLUDER, "03", 0.5
)
PAIR = Pair(7, 1, "Gün", VIEW, dataclasses.replace(VIEW, background="b.jpg", segment="t#2", occluder=None))
SOURCES = Sources("sources.parquet", "ab" * 32, 6)
INDEX = Index(("Baton", "Gun"), 3, {"blend": "ratio"}, {"pairs": 0}, (), SOURCES)


def stored_pairs(folder):
    """The descriptions of all pairs, as JSON values."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            yield from (json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json"))


def test_written_descriptions_are_read_back():
    assert Pair.from_json(PAIR.to_json()) == PAIR
    assert Index.from_json(INDEX.to_json()) == INDEX


@pytest.mark.parametrize("name", ["coefficient", "mask", "on_matter"])
@pytest.mark.parametrize("change", ["missing", "null", "a list"])
def test_format_2_needs_its_fields(name, change):
    raw = json.loads(PAIR.to_json())
    raw["key"] |= {name: {"null": None, "a list": []}.get(change)}
    if change == "missing":
        del raw["key"][name]
    with pytest.raises(InputError, match="not a pair description"):
        Pair.from_json(json.dumps(raw))


def test_format_1_is_read_and_lists_its_missing_parts():
    index = read_index(FORMAT_1)
    assert (index.format_version, index.sources) == (1, None)
    assert index.lacks == ("mask", "on_matter", "sources.parquet")
    assert INDEX.lacks == ()
    stored = list(stored_pairs(FORMAT_1))
    assert len(stored) == index.num_pairs == 4
    for raw in stored:
        pair = Pair.from_json(json.dumps(raw), index.format_version)
        for side, view in (("query", pair.query), ("key", pair.key)):
            assert view.coefficient == raw[side]["alpha"]
            assert (view.mask, view.on_matter) == (None, None)
            assert list(view.box) == raw[side]["box"]
        with pytest.raises(InputError, match="not a pair description"):
            Pair.from_json(json.dumps(raw))
    assert any(raw["query"]["occluder"] or raw["key"]["occluder"] for raw in stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, "its digest differs from its content"),
        ({"classes": ["Gun", "\ud800"]}, "not JSON"),
        ({"classes": ["Gun", 3]}, "3 is not text"),
        ({"seed": 2**64}, "18446744073709551616 is not a whole number"),
        ({"parameters": [[[]]]}, "not a shard index"),
    ],
)
def test_a_changed_index_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        Index.from_json(json.dumps(json.loads(INDEX.to_json()) | change))


def test_an_index_without_digest_or_with_more_fields_is_read():
    raw = json.loads(INDEX.to_json())
    digest = raw.pop("digest")
    assert digest == INDEX.digest
    assert Index.from_json(json.dumps(raw)) == INDEX
    more = raw | {"note": "of a later version"}
    text = (json.dumps(more, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
    assert Index.from_json(json.dumps(more | {"digest": hashlib.sha256(text).hexdigest()})) == INDEX


@pytest.mark.parametrize(("pairs", "size"), [(10**10, 10**14), (10**10, 10**6)])
def test_an_index_of_ten_billion_pairs_is_refused(pairs, size):
    shard = Shard("pairs-000000.tar", pairs, size, "", (pairs, 0))
    index = Index(("Gun", "Knife"), 0, {}, {}, (shard,), Sources(SOURCES_NAME, "", 0))
    with pytest.raises(InputError, match=r"at most 1000000000|a pair takes at least 3072"):
        Index.from_json(index.to_json())


@pytest.mark.parametrize("version", [0, 3, 17, "2", None, [2]])
def test_other_formats_are_refused_in_one_sentence(version):
    raw = json.loads(INDEX.to_json()) | {"format_version": version}
    with pytest.raises(InputError) as caught:
        Index.from_json(json.dumps(raw), "s3://bucket/index.json")
    assert str(caught.value) == f"s3://bucket/index.json: shard format {version!r}, but this version reads 1 and 2"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"name": "../sources.parquet", "sha256": "", "rows": 1}, "sources are named '../sources.parquet'"),
        ({"name": "sources.parquet", "rows": 1}, "not a shard index"),
        (None, "not a shard index"),
    ],
)
def test_an_index_without_valid_sources_is_refused(sources, message):
    raw = json.loads(INDEX.to_json()) | {"sources": sources}
    with pytest.raises(InputError, match=message):
        Index.from_json(json.dumps(raw))


def test_the_pages_example_is_a_view():
    page = (ROOT / "docs" / "shards.md").read_text()
    example = json.loads(re.search(r"```json\n(.*?)```", page, re.DOTALL)[1])
    assert example.keys() == {field.name for field in dataclasses.fields(View)}
    raw = json.loads(PAIR.to_json()) | {"query": example}
    view = Pair.from_json(json.dumps(raw)).query
    assert tight_box(decode_rle(view.mask, *view.size)) == view.box
