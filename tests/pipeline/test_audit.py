import dataclasses
import hashlib
import json
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import audit
from pipeline.checks.pair_checks import balance_problems, chained_bags
from pipeline.common.gallery import BLUE, RED
from pipeline.storage.shards import TarWriter
from pipeline.tables import sources_table
from pipeline.tables.segment_table import SegmentTable
from segloc.common.contract import Index, Pair, Shard, Sources, read_index
from segloc.common.images import encode_jpeg, read_image
from segloc.common.masks import decode_rle, encode_rle, tight_box
from tests.conftest import FORMAT_1

Members = list[tuple[str, bytes]]


def read_members(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def replace_shard(folder: Path, members: Members, **changes: object) -> None:
    """Write shard 1 with `members` and make the index match, so that only the content is wrong."""
    path = folder / "pairs-000001.tar"
    with path.open("wb") as file:
        tar = TarWriter(file)
        for name, data in members:
            tar.add(name, data)
        tar.close()
    data = path.read_bytes()
    fields = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} | changes
    edit_shard(folder, 1, **fields)


def edit_shard(folder: Path, number: int, **changes: object) -> None:
    index = read_index(folder)
    entries = list(index.shards)
    entries[number] = dataclasses.replace(entries[number], **changes)
    write_index(folder, dataclasses.replace(index, shards=tuple(entries)))


def one_more(folder: Path, number: int) -> None:
    """Make the index list a pair that the shard does not have."""
    entry = read_index(folder).shards[number]
    edit_shard(folder, number, pairs=entry.pairs + 1, classes=(entry.classes[0] + 1, *entry.classes[1:]))


def write_index(folder: Path, index: Index) -> None:
    (folder / "index.json").write_bytes(index.to_json())


def edit_pair(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change the description of pair 5, the second of shard 1."""

    def damage(folder: Path) -> None:
        members = read_members(folder / "pairs-000001.tar")
        raw = json.loads(members[5][1])
        change(raw)
        members[5] = (members[5][0], json.dumps(raw).encode())
        replace_shard(folder, members)

    return damage


def edit_members(change: Callable[[Members], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        members = read_members(folder / "pairs-000001.tar")
        change(members)
        replace_shard(folder, members)

    return damage


def edit_index(**parameters: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = read_index(folder)
        write_index(folder, dataclasses.replace(index, parameters=index.parameters | parameters))

    return damage


def append(data: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with (folder / "pairs-000001.tar").open("ab") as file:
            file.write(data)

    return damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3000] ^= 255
    path.write_bytes(data)


def repeat_pair(folder: Path) -> None:
    """Make pair 5 a copy of pair 4 under its own number."""
    members = read_members(folder / "pairs-000001.tar")
    first = json.loads(members[2][1])
    copies = [members[0][1], members[1][1], json.dumps(first | {"pair": 5}).encode()]
    members[3:6] = [(name, data) for (name, _), data in zip(members[3:6], copies, strict=True)]
    replace_shard(folder, members)


OTHER = encode_jpeg(np.zeros((50, 70, 3), np.uint8), 90)

DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (lambda f: flip(f / "pairs-000001.tar"), "pairs-000001.tar: sha256 differs"),
    "appended": (append(b"\0" * 512), "bytes, but the index lists"),
    "cut": (lambda f: replace_shard_by_cut(f), "pairs-000001.tar: (broken tar|3 good pairs)"),
    "missing": (lambda f: (f / "pairs-000001.tar").unlink(), "pairs-000001.tar: missing"),
    "not a tar": (lambda f: not_a_tar(f), "broken tar"),
    "extra shard": (
        lambda f: shutil.copy(f / "pairs-000001.tar", f / "pairs-000099.tar"),
        "pairs-000099.tar: not in the index",
    ),
    "histogram": (lambda f: edit_shard(f, 1, classes=(4, 0, 0, 0)), "class histogram differs"),
    "pair count": (lambda f: one_more(f, 5), "4 good pairs, but the index lists 5"),
    "total": (lambda f: one_more(f, 5), "shards hold 25 pairs, but counts lists 24"),
    "swapped members": (edit_members(lambda m: m.insert(3, m.pop(4))), "pair 5: members"),
    "missing member": (edit_members(lambda m: m.pop(4)), "pair 5: members"),
    "missing pair": (edit_members(lambda m: m.__delitem__(slice(3, 6))), "pair 5: members .*000000006"),
    "not JSON": (edit_members(lambda m: m.__setitem__(5, (m[5][0], b"{"))), "pair 5: not a pair description"),
    "missing field": (edit_pair(lambda p: p["key"].pop("coefficient")), "pair 5: not a pair description.*coefficient"),
    "other number": (edit_pair(lambda p: p.update(pair=6)), "pair 5: its number is 6"),
    "unknown class": (edit_pair(lambda p: p.update(class_id=9)), "pair 5: class id 9 is not in the index"),
    "wrong class name": (edit_pair(lambda p: p.update(class_name="Baton")), "pair 5: class 'Baton' is"),
    "same background": (
        edit_pair(lambda p: p["key"].update(background=p["query"]["background"])),
        "both views have background",
    ),
    "same segment": (edit_pair(lambda p: p["key"].update(segment=p["query"]["segment"])), "both views have segment"),
    "same scan": (
        edit_pair(lambda p: p["key"].update(segment=p["query"]["segment"].rpartition("#")[0] + "#99999")),
        "both items come from scan",
    ),
    "repeated pair": (repeat_pair, "pair 5: the same as pair 4"),
    "box outside region": (
        edit_pair(lambda p: p["query"].update(box=[0, 0, 9, 9])),
        r"query box \(0, 0, 9, 9\) is not inside",
    ),
    "empty box": (edit_pair(lambda p: p["query"]["box"].__setitem__(2, p["query"]["box"][0])), "is not inside"),
    "region outside image": (
        edit_pair(lambda p: p["key"].update(region=[0, 0, 999, 999])),
        "key box .* is not inside region .0, 0, 999, 999.",
    ),
    "coefficient too large": (
        edit_pair(lambda p: p["key"].update(coefficient=0.66)),
        r"key coefficient 0.66 is not in 0.25..0.65",
    ),
    "other range": (edit_index(coefficient_range=[0.1, 0.2]), r"coefficient 0.\d+ is not in 0.1..0.2"),
    "no range": (edit_index(coefficient_range="wide"), "coefficient_range is 'wide', not two numbers"),
    "box of three numbers": (edit_pair(lambda p: p["key"]["box"].pop()), "box has 3 numbers"),
    "coefficient of letters": (
        edit_pair(lambda p: p["key"].update(coefficient="half")),
        "pair 5: not a pair description",
    ),
    "coefficient not a number": (edit_pair(lambda p: p["key"].update(coefficient=float("nan"))), "key coefficient nan"),
    "no mask": (edit_pair(lambda p: p["key"].pop("mask")), "pair 5: not a pair description.*mask"),
    "unsound mask": (edit_pair(lambda p: p["key"].update(mask=p["key"]["mask"][:-1])), "pair 5: key mask: broken RLE"),
    "mask of another size": (edit_pair(lambda p: p["key"].update(mask="0")), "pair 5: key mask: broken RLE"),
    "mask elsewhere": (
        edit_pair(lambda p: p["query"].update(mask=filled(p["query"], (0, 0, 5, 5)))),
        r"query mask has tight box \(0, 0, 5, 5\), not box",
    ),
    "empty mask": (
        edit_pair(lambda p: p["query"].update(mask=filled(p["query"], (0, 0, 0, 0)))),
        "query mask has tight box None, not box",
    ),
    "wider box": (
        edit_pair(lambda p: p["query"]["box"].__setitem__(2, p["query"]["box"][2] - 1)),
        "query mask has tight box",
    ),
    "too much on matter": (edit_pair(lambda p: p["key"].update(on_matter=1.01)), "key on_matter 1.01 is not in 0..1"),
    "no share on matter": (edit_pair(lambda p: p["key"].update(on_matter=float("nan"))), "key on_matter nan is not"),
    "changed sources": (
        lambda f: damage_sources(f, lambda uses: uses.update([next(iter(uses))]), update_index=False),
        "sources.parquet: sha256 differs",
    ),
    "missing sources": (lambda f: (f / "sources.parquet").unlink(), "sources.parquet: missing"),
    "sources of no kind": (lambda f: (f / "sources.parquet").write_bytes(b"PAR1"), "sources.parquet: .*not a Parquet"),
    "other count": (
        lambda f: damage_sources(f, lambda uses: uses.update([("background", "JPEGImage/N0000003.jpg")])),
        r"1 counts differ from the pairs: background 'JPEGImage/N0000003.jpg' has \d+, but the pairs use it \d+ times",
    ),
    "unused source": (
        lambda f: damage_sources(f, lambda uses: uses.update([("segment", "x#1")])),
        "1 counts differ from the pairs: segment 'x#1' has 1, but the pairs use it 0 times",
    ),
    "unnamed source": (
        lambda f: damage_sources(f, lambda uses: uses.pop(min(uses))),
        "1 counts differ from the pairs: background '.*' has 0, but the pairs use it",
    ),
    "rows of sources": (
        lambda f: write_index(f, with_sources(f, rows=99)),
        r"sources.parquet: \d+ rows, but the index lists 99",
    ),
    "other blend": (
        edit_pair(lambda p: p["key"].update(blend="ratio")),
        "key blend 'ratio' differs from the index's 'alpha'",
    ),
    "no scale": (edit_pair(lambda p: p["key"].update(scale=0)), "key scale 0.0 is not positive"),
    "occluder of nobody": (
        edit_pair(lambda p: p["key"].update(occluder={"background": "x.jpg", "box": [0, 0, 9, 9], "corner": [0, 0]})),
        "key has an occluder, but the index's parameters allow none",
    ),
    "impossible occluder": (
        edit_pair(
            lambda p: p["key"].update(
                occluder={"background": p["key"]["background"], "box": [-5, 900, -9, 7], "corner": [5000, -3]}
            )
        ),
        "key occluder's box .* is empty or outside its scan",
    ),
    "occluder elsewhere": (
        edit_pair(lambda p: p["key"].update(occluder={"background": "x", "box": [0, 0, 1, 1], "corner": [0, 0]})),
        "key occluder at .* is not inside region",
    ),
    "excluded classes of no kind": (edit_index(excluded_classes=7), "excluded_classes is 7"),
    "other image": (edit_members(lambda m: m.__setitem__(3, (m[3][0], OTHER))), "query image is 70x50"),
    "broken image": (edit_members(lambda m: m.__setitem__(4, (m[4][0], m[4][1][:-50]))), "key image: truncated file"),
}


def filled(view: dict, box: tuple[int, int, int, int]) -> str:
    """The mask of all pixels of a box."""
    mask = np.zeros(view["size"][::-1], bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return encode_rle(mask)


def with_sources(folder: Path, **changes: object) -> Index:
    index = read_index(folder)
    return dataclasses.replace(index, sources=dataclasses.replace(index.sources, **changes))


def damage_sources(folder: Path, change: Callable[[Counter], object], update_index: bool = True) -> None:
    """Change the table of sources, and with `update_index` the index too."""
    path = folder / "sources.parquet"
    uses = sources_table.read(path)
    change(uses)
    sources_table.write_sources(path, uses)
    if update_index:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        write_index(folder, with_sources(folder, sha256=digest, rows=len(uses)))


def replace_shard_by_cut(folder: Path) -> None:
    path = folder / "pairs-000001.tar"
    data = path.read_bytes()[: path.stat().st_size * 4 // 5]
    path.write_bytes(data)
    edit_shard(folder, 1, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def not_a_tar(folder: Path) -> None:
    data = bytes(range(256)) * 80
    (folder / "pairs-000001.tar").write_bytes(data)
    edit_shard(folder, 1, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


ODD = [None, True, 7, -1, 10**30, 1e308, float("nan"), float("-inf"), "", "x", "\ud800", [], [1], {}, {"box": 1}]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_the_audit_ends_for_any_value_of_a_field(
    value: object, shards: Path, segment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each field of pair 5 gets the odd value in turn, in a separate folder."""
    fields = [("class_id",), ("class_name",), ("pair",), *((side,) for side in ("query", "key"))]
    raw = json.loads(read_members(shards / "pairs-000001.tar")[5][1])
    fields += [("key", name) for name in raw["key"]]
    options = ["--workers", "1", "--segments", str(segment_file), "--gallery", str(tmp_path / "g.png")]
    for number, field in enumerate(fields):
        folder = shutil.copytree(shards, tmp_path / str(number))

        def change(pair: dict, field: tuple[str, ...] = field) -> None:
            for name in field[:-1]:
                pair = pair[name]
            pair[field[-1]] = value

        edit_pair(change)(folder)
        report = tmp_path / f"{number}.json"
        code = audit.main(["--shards", str(folder), *options, "--report", str(report)])
        found = json.loads(report.read_text())["violations"]
        assert code == (1 if found else 0), field
        assert found or field[-1] not in ("box", "region", "size", "segment", "class_id", "coefficient", "mask"), field
    capsys.readouterr()


@pytest.mark.parametrize("name", DAMAGED)
def test_every_violation_is_found(name: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = DAMAGED[name]
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    damage(folder)
    assert audit.main(["--shards", str(folder), "--workers", "1"]) == 1
    assert re.search(message, capsys.readouterr().out)


@pytest.fixture
def recipes(shards: Path, tmp_path: Path) -> Path:
    """A copy of the good folder."""
    return shutil.copytree(shards, tmp_path / "shards")


# Faults that are detected only by rendering the items again. The index allows the changes of pair 5.
FALSE_RECIPES: dict[str, tuple[Callable[[dict], object], str]] = {
    "narrower box": (lambda p: cut_columns(p["query"]), r"query box is \d+x\d+, but the recipe gives"),
    "other mask": (lambda p: turn_mask(p["query"]), r"query mask, of (\d+) pixels, .*, of \1 pixels"),
    "fuller mask": (
        lambda p: p["key"].update(mask=filled(p["key"], p["key"]["box"])),
        r"key mask, of \d+ pixels, differs",
    ),
    "other rotation": (lambda p: p["key"].update(rotation_deg=p["key"]["rotation_deg"] + 20), "key box is"),
    "other scale": (lambda p: p["key"].update(scale=p["key"]["scale"] * 1.1), "key box is"),
    "beyond all images": (lambda p: p["key"].update(scale=1e300), "key box is"),
    "endless": (lambda p: p["key"].update(scale=float("inf")), "key box is"),
    "no rotation at all": (lambda p: p["key"].update(rotation_deg=float("nan")), "key box is"),
    "unknown segment": (lambda p: p["key"].update(segment="train/x.png#7"), "key segment 'train/x.png#7' is not in"),
}


def recount(folder: Path, uses: Counter) -> None:
    """Count the sources of all stored pairs."""
    uses.clear()
    for path in folder.glob("*.tar"):
        for _, data in read_members(path)[2::3]:
            uses.update(sources_table.of_pair(Pair.from_json(data)))


def cut_columns(view: dict) -> None:
    """Cut the mask's first column off, and make the box fit."""
    mask = decode_rle(view["mask"], *view["size"])
    mask[:, : view["box"][0] + 1] = False
    view.update(mask=encode_rle(mask), box=list(tight_box(mask)))


def turn_mask(view: dict) -> None:
    """Rotate the mask by 180 degrees within its box: the same number of pixels, elsewhere."""
    mask, (x0, y0, x1, y1) = decode_rle(view["mask"], *view["size"]), view["box"]
    mask[y0:y1, x0:x1] = mask[y0:y1, x0:x1][::-1, ::-1]
    view.update(mask=encode_rle(mask))


def whole_region(pair: dict) -> None:
    """Set the regions to the images, so that no box is outside."""
    for side in ("query", "key"):
        pair[side]["region"] = [0, 0, *pair[side]["size"]]


@pytest.mark.parametrize("name", FALSE_RECIPES)
def test_boxes_are_checked_against_the_recipe(
    name: str, recipes: Path, segment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = FALSE_RECIPES[name]
    arguments = ["--shards", str(recipes), "--workers", "1"]
    edit_pair(whole_region)(recipes)
    assert audit.main([*arguments, "--segments", str(segment_file)]) == 0
    edit_pair(change)(recipes)
    damage_sources(recipes, lambda uses: recount(recipes, uses))
    assert audit.main(arguments) == 0, "another check finds it"
    capsys.readouterr()
    assert audit.main([*arguments, "--segments", str(segment_file)]) == 1
    assert re.search(f"pair 5: {message}", capsys.readouterr().out)


def test_an_item_of_another_class_is_found(
    recipes: Path, segment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = read_index(recipes)
    other = {2: 3, 3: 2}[json.loads(read_members(recipes / "pairs-000001.tar")[5][1])["class_id"]]
    edit_pair(lambda p: p.update(class_id=other, class_name=index.classes[other]))(recipes)
    arguments = ["--shards", str(recipes), "--workers", "1", "--segments", str(segment_file)]
    assert audit.main(arguments) == 1
    assert re.search("pair 5: query segment '.*' is of class", capsys.readouterr().out)


def test_items_of_one_bag_scanned_twice_are_found(
    recipes: Path, segment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(segment_file)
    place = table.schema.get_field_index("scan_group")
    one_bag = tmp_path / "one bag.parquet"
    pq.write_table(table.set_column(place, "scan_group", pa.array([0] * len(table), pa.int32())), one_bag)
    index = read_index(recipes)
    digest = hashlib.sha256(one_bag.read_bytes()).hexdigest()
    write_index(recipes, dataclasses.replace(index, parameters=index.parameters | {"segments_sha256": digest}))
    assert audit.main(["--shards", str(recipes), "--workers", "1", "--segments", str(one_bag)]) == 1
    said = capsys.readouterr().out
    assert said.count("both items come from scans of one bag") == index.num_pairs
    assert (
        "class 'Gun': 6 of 6 items, on 6 scans, count as one bag, which is more than 10%; make the table of segments "
        "again with a lower --same-bag-bits (it was 48) or segments.same_bag_bits in params.yaml" in said
    )


@pytest.mark.parametrize(("chained", "faulty"), [(2, False), (3, True), (5, True)])
def test_a_chain_of_scans_with_more_than_a_tenth_of_a_class_is_a_violation(
    chained: int, faulty: bool, segment_file: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(segment_file)
    groups = [
        0 if image < f"xray_{chained:05d}" else 1 + number for number, image in enumerate(rows["image"].to_pylist())
    ]
    place = rows.schema.get_field_index("scan_group")
    pq.write_table(rows.set_column(place, "scan_group", pa.array(groups, pa.int32())), tmp_path / "s.parquet")
    found = list(chained_bags(SegmentTable(tmp_path / "s.parquet")))
    assert [problem.split(":")[0] for problem in found] == (["class 'Gun'"] if faulty else [])
    assert not faulty or f"{chained} of 6 items, on {chained} scans" in found[0]


def test_one_bag_with_less_than_a_tenth_of_a_class_is_none(segment_file: Path) -> None:
    table = SegmentTable(segment_file)
    gun = table.classes.index("Gun")
    table.rows[gun] = [table.rows[gun][0] + table.rows[gun][1] + table.rows[gun][2], *[[row] for row in range(28)]]
    assert not list(chained_bags(table))  # 3 of 31
    table.rows[gun] = [table.rows[gun][0], *[[row] for row in range(26)]]
    assert len(list(chained_bags(table))) == 1  # 3 of 29


def test_another_table_is_refused(shards: Path, region_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["--shards", str(shards), "--workers", "1", "--segments", str(region_file)]) == 2
    assert "not the segment table of these shards" in capsys.readouterr().err


INDEX = Index(("Gun", "Knife", "Baton"), 0, {"excluded_classes": ["Baton"]}, {}, ())


@pytest.mark.parametrize(
    ("pairs", "problems"),
    [
        ({"Gun": 500, "Knife": 500}, []),
        ({"Gun": 590, "Knife": 410}, []),  # 5.7 standard deviations
        ({"Gun": 600, "Knife": 400}, ["class 'Gun' has 600 of 1000", "class 'Knife' has 400 of 1000"]),
        ({"Gun": 1000}, ["class 'Gun'", "class 'Knife' has 0 of 1000"]),
        ({"Gun": 500, "Knife": 499, "Baton": 1}, ["class 'Baton' is excluded by the index, but has 1 pairs"]),
        ({}, []),
    ],
)
def test_classes_must_be_in_balance(pairs: dict[str, int], problems: list[str]) -> None:
    found = list(balance_problems(Counter(pairs), INDEX))
    assert len(found) == len(problems)
    assert all(text.startswith(start) for text, start in zip(found, problems, strict=True))


def test_a_good_folder_passes_and_is_counted(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, picture = tmp_path / "report.json", tmp_path / "pairs.png"
    arguments = ["--shards", shards, "--report", report, "--gallery", picture, "--workers", "2"]
    arguments += ["--tables", tmp_path / "tables"]
    for _ in range(2):  # a rerun replaces its own files
        assert audit.main(list(map(str, arguments))) == 0
    line = f"{shards}: 24 pairs in 6 shards, 0 violations, 0.0% of the items below on_matter 0.5"
    assert line in capsys.readouterr().out.splitlines()
    content = json.loads(report.read_text())
    histogram = np.sum([shard.classes for shard in read_index(shards).shards], axis=0)
    assert (content["violation_count"], content["violations"]) == (0, [])
    assert content["classes"] == {"Gun": histogram[2], "Knife": histogram[3]}
    assert sum(content["coefficient_histogram"]["counts"]) == 48
    assert 0.25 <= content["coefficient_histogram"]["edges"][0] < content["coefficient_histogram"]["edges"][-1] <= 0.65
    assert (content["on_matter_wanted"], content["off_matter_share"]) == (0.5, 0)
    assert 0.5 <= content["on_matter"]["p0"] <= content["on_matter"]["p50"] <= 1
    for name, values in (("classes", 24), ("coefficients", 48), ("boxes", 48), ("on_matter", 48)):
        rows = (tmp_path / "tables" / f"{name}.csv").read_text().splitlines()[1:]
        assert sum(int(row.rpartition(",")[2]) for row in rows) == values
    drawn = read_image(picture)
    assert (drawn == RED).all(2).any()
    assert (drawn == BLUE).all(2).any()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder of shards"),
        (lambda folder: (folder / "index.json").unlink(), "has not finished"),
        (lambda folder: (folder / "index.json").write_text("[]"), "not a shard index"),
        (lambda folder: edit_shard(folder, 1, name="pipe:rm -rf"), "expected 'pairs-000001.tar'"),
        (lambda folder: version(folder, 3), "shard format 3, but this version reads 1 and 2"),
    ],
)
def test_a_folder_without_a_valid_index_is_refused(
    damage, message: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    damage(folder)
    assert audit.main(["--shards", str(folder), "--workers", "1"]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def version(folder: Path, number: int) -> None:
    write_index(folder, dataclasses.replace(read_index(folder), format_version=number))


def test_a_shard_too_small_for_its_pairs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs-000000.tar").write_bytes(b"")
    entry = Shard("pairs-000000.tar", 1, 0, hashlib.sha256(b"").hexdigest(), (1,))
    write_index(
        tmp_path, Index(("Gun",), 0, {"blend": "alpha"}, {"pairs": 1}, (entry,), Sources("sources.parquet", "", 0))
    )
    assert audit.main(["--shards", str(tmp_path), "--workers", "1", "--gallery", str(tmp_path / "g.png")]) == 2
    assert "shard 0 has 1 pairs in 0 bytes, but a pair takes at least 3072" in capsys.readouterr().err


def lay_off_matter(folder: Path, items: int) -> None:
    """Let the index say that the first items of shard 1 lie mostly on empty belt."""
    members = read_members(folder / "pairs-000001.tar")
    for item in range(items):
        at = 3 * (item // 2) + 2
        raw = json.loads(members[at][1])
        raw["key" if item % 2 else "query"]["on_matter"] = 0.49
        members[at] = (members[at][0], json.dumps(raw).encode())
    replace_shard(folder, members)


# Of 48 items, 1 is 2.1 % and 3 are 6.3 %.
@pytest.mark.parametrize(
    ("items", "options", "status"),
    [
        (0, [], 0),
        (1, [], 1),
        (1, ["--max-off-matter", "0.021"], 0),
        (3, ["--max-off-matter", "0.05"], 1),
        (3, ["--max-off-matter", "0.0625"], 0),
        (3, ["--max-off-matter", "0"], 1),
        (0, ["--max-off-matter", "0"], 0),
    ],
)
def test_too_many_items_on_empty_belt_fail(
    items: int, options: list[str], status: int, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, report = shutil.copytree(shards, tmp_path / "shards"), tmp_path / "report.json"
    lay_off_matter(folder, items)
    arguments = ["--shards", str(folder), "--workers", "1", "--report", str(report), "--tables", str(tmp_path / "t")]
    assert audit.main([*arguments, *options]) == status
    lines, content = capsys.readouterr().out.splitlines(), json.loads(report.read_text())
    assert lines[-1].endswith(f", {items / 48:.1%} of the items below on_matter 0.5")
    assert content["off_matter_share"] == round(items / 48, 4)
    assert content["violation_count"] == status
    rows = dict(line.split(",") for line in (tmp_path / "t" / "on_matter.csv").read_text().splitlines()[1:])
    assert int(rows["0.475"]) == items
    if status:
        assert lines[0].startswith(f"{items / 48:.1%} of the items have less than 0.5 of their pixels on a bag")
        assert all(hint in lines[0] for hint in ("--max-off-matter", "pipeline.regions --gallery", "--scale"))


@pytest.mark.parametrize("old", [True, False])
def test_shards_of_the_papers_rule_are_not_checked_for_matter(
    old: bool, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Old shards have no `on_matter` in their index."""
    folder = shutil.copytree(shards, tmp_path / "shards")
    lay_off_matter(folder, 8)
    index = read_index(folder)
    kept = {name: value for name, value in index.parameters.items() if name != "on_matter"}
    write_index(folder, dataclasses.replace(index, parameters=kept if old else kept | {"on_matter": 0.0}))
    report = tmp_path / "report.json"
    assert audit.main(["--shards", str(folder), "--workers", "1", "--report", str(report)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("6 shards, 0 violations")
    content = json.loads(report.read_text())
    assert (content["on_matter_wanted"], content["off_matter_share"]) == (None if old else 0.0, 0.0)
    assert content["on_matter"]["p0"] == 0.49


@pytest.mark.parametrize("value", ["0.5", None, True, 1.5, -1, [0.5]])
def test_an_impossible_share_in_the_index_is_named(
    value: object, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    edit_index(on_matter=value)(folder)
    assert audit.main(["--shards", str(folder), "--workers", "1"]) == 1
    assert f"index: on_matter is {value!r}, not a share from 0 to 1" in capsys.readouterr().out


def test_a_folder_of_format_1_is_checked_and_its_missing_parts_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, report = shutil.copytree(FORMAT_1, tmp_path / "shards"), tmp_path / "report.json"
    arguments = [
        "--shards",
        str(folder),
        "--workers",
        "1",
        "--report",
        str(report),
        "--gallery",
        str(tmp_path / "g.png"),
    ]
    assert audit.main(arguments) == 0
    assert f"{folder}: format 1, without mask, on_matter, sources.parquet" in capsys.readouterr().out.splitlines()
    content = json.loads(report.read_text())
    assert (content["format_version"], content["lacks"]) == (1, ["mask", "on_matter", "sources.parquet"])
    assert sum(content["coefficient_histogram"]["counts"]) == 8
    flip(folder / "pairs-000000.tar")
    assert audit.main(arguments) == 1
