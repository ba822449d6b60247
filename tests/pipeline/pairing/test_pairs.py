import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.bags.belt import LEAST_CONTRAST
from pipeline.pairing.blends import BLENDS
from pipeline.pairing.composition import paste
from pipeline.pairing.geometry import fit, frame
from pipeline.pairing.pairs import Recipe, make_pair, read_background, tables
from pipeline.tables import segment_table
from pipeline.tables.segment_table import SegmentTable
from segloc.common.contract import Box, Occluder
from segloc.common.errors import InputError
from segloc.common.images import encode_jpeg, encode_rgba
from segloc.common.masks import decode_rle, tight_box


@pytest.fixture(scope="module")
def recipe(sixray: Path, region_file: Path, segment_file: Path) -> Recipe:
    return Recipe(sixray, region_file, segment_file, seed=3, width=160)


def test_pairs_are_positive(recipe: Recipe) -> None:
    regions, items = tables(recipe.regions, recipe.segments)
    bags = [bag for of_class in items.rows for bag in of_class]
    sources = {items.segment(row).segment_id: number for number, bag in enumerate(bags) for row in bag}
    for number in range(60):
        pair, query, key = make_pair(recipe, number)
        assert pair.pair == number
        assert pair.class_name in ("Gun", "Knife")
        assert pair.query.background != pair.key.background
        assert sources[pair.query.segment] != sources[pair.key.segment]
        for view, image in ((pair.query, query), (pair.key, key)):
            assert (image.shape[1], image.shape[0]) == view.size
            assert view.background in regions.images.to_pylist()
            assert view.region[0] <= view.box[0] < view.box[2] <= view.region[2] <= view.size[0]
            assert view.region[1] <= view.box[1] < view.box[3] <= view.region[3] <= view.size[1]
            assert 0.6 <= view.coefficient <= 1.4


def with_bags(region_file: Path, out: Path, bags: Callable[[dict], list]) -> None:
    """Copy a table of regions with different bags."""
    table = pq.read_table(region_file)
    column = pa.array([bags(row) if row["bags"] is not None else None for row in table.to_pylist()], table["bags"].type)
    pq.write_table(table.set_column(table.schema.get_field_index("bags"), "bags", column), out)


@pytest.mark.parametrize("occluded", [0.0, 1.0])
def test_views_record_their_mask_and_its_share_on_matter(
    recipe: Recipe, region_file: Path, tmp_path: Path, occluded: float
) -> None:
    whole = tmp_path / "whole scans.parquet"
    with_bags(region_file, whole, lambda row: [[0, 0, row["width"], row["height"]]])
    recipe = dataclasses.replace(recipe, regions=whole, blend="paste", occluded=occluded, on_matter=0.0)
    regions, _ = tables(recipe.regions, recipe.segments)
    numbers = {name: number for number, name in enumerate(regions.images.to_pylist())}
    shares = []
    for number in range(30):
        pair, *pictures = make_pair(recipe, number)
        for view, picture in zip((pair.query, pair.key), pictures, strict=True):
            mask = decode_rle(view.mask, *view.size)
            assert tight_box(mask) == view.box
            background = fit(read_background(recipe, regions, numbers[view.background]), view.size)
            if not occluded:
                changed = (picture != background).any(2)
                assert not (changed & ~mask).any()
                assert changed.sum() > 0.9 * mask.sum()
            level = int(regions.levels[numbers[view.background]])
            dark = cv2.cvtColor(background, cv2.COLOR_RGB2GRAY)[mask] < level - LEAST_CONTRAST
            assert view.on_matter == pytest.approx(dark.mean(), abs=5e-5)
            shares.append(view.on_matter)
    assert (min(shares), max(shares)) == (0, 1)
    assert any(0.1 < share < 0.9 for share in shares)


def test_classes_and_scans_are_drawn_uniformly(recipe: Recipe) -> None:
    pairs = [make_pair(recipe, number)[0] for number in range(300)]
    classes = Counter(pair.class_name for pair in pairs)
    assert set(classes) == {"Gun", "Knife"}  # Pliers occur in one scan only, Baton in none
    assert classes["Gun"] == pytest.approx(150, abs=40)
    guns = Counter(view.segment for pair in pairs if pair.class_name == "Gun" for view in (pair.query, pair.key))
    assert len(guns) == 6
    assert max(guns.values()) < 2 * min(guns.values())


def test_a_pair_depends_on_its_number_and_the_seed_only(recipe: Recipe) -> None:
    def made(seed: int, number: int) -> tuple[bytes, bytes, bytes]:
        pair, query, key = make_pair(
            Recipe(recipe.backgrounds, recipe.regions, recipe.segments, seed, width=160), number
        )
        return pair.to_json(), query.tobytes(), key.tobytes()

    first = made(3, 7)
    tables.cache_clear()
    made(3, 2)
    assert made(3, 7) == first
    pictures = [made(3, 7)[1:], made(3, 6)[1:], made(3, 8)[1:], made(4, 7)[1:]]
    assert len(set(pictures)) == 4


@pytest.mark.parametrize("blend", BLENDS)
def test_the_description_reproduces_the_picture(recipe: Recipe, blend: str) -> None:
    recipe = Recipe(recipe.backgrounds, recipe.regions, recipe.segments, 5, blend, 160)
    regions, items = tables(recipe.regions, recipe.segments)
    by_id = {items.segment(row).segment_id: items.segment(row) for row in range(len(items))}
    for number in range(8):
        pair, query, key = make_pair(recipe, number)
        again = type(pair).from_json(json.dumps(json.loads(pair.to_json())))
        assert again == pair
        for view, image in ((again.query, query), (again.key, key)):
            background = read_background(recipe, regions, regions.images.to_pylist().index(view.background))
            assert (paste(background, by_id[view.segment], view) == image).all()


def test_occluders_lie_over_the_item_and_are_in_the_description(recipe: Recipe) -> None:
    plain, occluded = (dataclasses.replace(recipe, seed=5, occluded=share) for share in (0.0, 1.0))
    regions, items = tables(recipe.regions, recipe.segments)
    numbers = {name: number for number, name in enumerate(regions.images.to_pylist())}
    by_id = {items.segment(row).segment_id: items.segment(row) for row in range(len(items))}

    def scan(name: str) -> np.ndarray:
        return read_background(recipe, regions, numbers[name])

    darker = 0
    for number in range(12):
        assert make_pair(plain, number)[0].query.occluder is None
        pair, query, _ = make_pair(occluded, number)
        view = type(pair).from_json(pair.to_json()).query
        assert view == pair.query
        assert view.occluder is not None
        assert view.occluder.background != view.background
        assert _overlap(view.box, view.occluder) > 0
        at = numbers[view.occluder.background]
        size, room = frame(tuple(regions.sizes[at]), tuple(regions.bags[at].as_py()[0]), recipe.width)
        assert room[0] <= view.occluder.box[0] < view.occluder.box[2] <= room[2]
        clutter = fit(scan(view.occluder.background), size), int(regions.levels[at])
        assert (paste(scan(view.background), by_id[view.segment], view, clutter) == query).all()
        x = view.occluder.corner[0]
        assert view.region[0] <= x
        assert x + view.occluder.box[2] - view.occluder.box[0] <= view.region[2]
        with pytest.raises(ValueError, match="needs the scan of its occluder"):
            paste(scan(view.background), by_id[view.segment], view)
        bare = paste(scan(view.background), by_id[view.segment], dataclasses.replace(view, occluder=None))
        assert (query <= bare).all()  # matter only darkens
        darker += (query < bare).any()
    assert darker >= 10


def _overlap(box: Box, occluder: Occluder) -> int:
    x, y = occluder.corner
    width = min(box[2], x + occluder.box[2] - occluder.box[0]) - max(box[0], x)
    height = min(box[3], y + occluder.box[3] - occluder.box[1]) - max(box[1], y)
    return max(0, width) * max(0, height)


def test_segments_are_read_from_any_row_group(segment_file: Path) -> None:
    table = SegmentTable(segment_file)
    ids = [table.segment(row).segment_id for row in range(len(table))]
    assert len(set(ids)) == len(table) == 10
    assert [table.segment(row).segment_id for row in reversed(range(10))] == ids[::-1]


def test_a_changed_background_is_named(recipe: Recipe, tmp_path: Path) -> None:
    def attempt() -> None:
        for number in range(20):
            make_pair(Recipe(tmp_path, recipe.regions, recipe.segments, 0, width=160), number)

    with pytest.raises(InputError, match=r"JPEGImage/N\d+.jpg': no such file; run pipeline.regions again"):
        attempt()
    (tmp_path / "JPEGImage").mkdir()
    for path in (recipe.backgrounds / "JPEGImage").iterdir():
        (tmp_path / "JPEGImage" / path.name).write_bytes(encode_jpeg(np.zeros((50, 50, 3), np.uint8), 90))
    with pytest.raises(InputError, match="changed since its region was measured"):
        attempt()


def rewritten(segment_file: Path, out: Path, change) -> Path:
    """Copy a table of segments after applying `change` to its rows in place."""
    table = pq.read_table(segment_file)
    rows = table.to_pylist()
    for row in rows:
        change(row)
    with segment_table.writer(out) as writer:
        writer.parameters |= json.loads(table.schema.metadata[b"segloc.parameters"])
        for row in rows:
            writer.write(row)
    return out


def test_items_lie_in_a_bag_not_between_bags(recipe: Recipe, region_file: Path, tmp_path: Path) -> None:
    """Every scan has two bags, the second three times as large."""
    bags = [[20, 30, 80, 110], [100, 20, 200, 164]]
    out = tmp_path / "two bags.parquet"
    with_bags(region_file, out, lambda row: bags)
    two = dataclasses.replace(recipe, regions=out, scales=(0.5, 0.6))
    regions = tables(out, recipe.segments)[0]
    sizes = dict(zip(regions.images.to_pylist(), regions.sizes.tolist(), strict=True))
    counts = [0, 0]
    for number in range(80):
        pair = make_pair(two, number)[0]
        for view in (pair.query, pair.key):
            expected = [frame(tuple(sizes[view.background]), tuple(bag), recipe.width)[1] for bag in bags]
            assert view.region in expected
            counts[expected.index(view.region)] += 1
    assert counts[1] / sum(counts) == pytest.approx(0.75, abs=0.12)


def test_an_item_that_fits_nowhere_is_replaced_by_another(recipe: Recipe, segment_file: Path, tmp_path: Path) -> None:
    line = encode_rgba(np.full((300, 1, 4), 255, np.uint8))

    def stretch(every: bool):
        def change(row: dict) -> None:
            if row["class_name"] == "Gun" and (every or "00000" in row["image"]):
                row["png"] = line

        return change

    some = dataclasses.replace(recipe, segments=rewritten(segment_file, tmp_path / "some.parquet", stretch(False)))
    made = [make_pair(some, number)[0] for number in range(60)]
    used = {view.segment for pair in made if pair.class_name == "Gun" for view in (pair.query, pair.key)}
    assert len(used) == 5
    every = dataclasses.replace(recipe, segments=rewritten(segment_file, tmp_path / "every.parquet", stretch(True)))
    with pytest.raises(
        InputError, match=r"none of 100 drawn backgrounds can hold an item like .*; choose a larger --width"
    ):
        [make_pair(every, number) for number in range(20)]


def test_a_damaged_table_is_named(recipe: Recipe, segment_file: Path, tmp_path: Path) -> None:
    def damage(row: dict) -> None:
        row["png"] = row["png"][:40]

    damaged = rewritten(segment_file, tmp_path / "pictures.parquet", damage)
    with pytest.raises(InputError, match=r"pictures.parquet: segment '.*': not an RGBA picture; make the table again"):
        make_pair(dataclasses.replace(recipe, segments=damaged), 0)
    data = bytearray(segment_file.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    (tmp_path / "pages.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"pages.parquet: damaged .*; make it again"):
        [make_pair(dataclasses.replace(recipe, segments=tmp_path / "pages.parquet"), number) for number in range(20)]


def test_both_items_never_come_from_one_bag(recipe: Recipe, tmp_path: Path) -> None:
    def change(row: dict) -> None:
        row["scan_group"] = {"xray_00003.png": 1, "xray_00005.png": 9}.get(row["image"], 0)

    file = rewritten(recipe.segments, tmp_path / "s.parquet", change)
    again = dataclasses.replace(recipe, segments=file)
    bag_of = {row["segment_id"]: row["scan_group"] for row in pq.read_table(file).to_pylist()}
    seen = set()
    for number in range(60):
        pair = make_pair(again, number)[0]
        bags = bag_of[pair.query.segment], bag_of[pair.key.segment]
        assert bags[0] != bags[1]
        seen |= set(bags)
    assert seen == {0, 1, 9}


def test_a_class_from_a_single_bag_makes_no_pairs(recipe: Recipe, tmp_path: Path) -> None:
    file = rewritten(recipe.segments, tmp_path / "s.parquet", lambda row: row.update(scan_group=0))
    assert SegmentTable(file).usable == []


def test_cut_items_are_drawn_only_for_classes_that_need_them(recipe: Recipe, tmp_path: Path) -> None:
    def change(row: dict) -> None:
        row["cut_by_frame"] = row["class_name"] == "Knife" or row["image"] == "xray_00000.png"

    file = rewritten(recipe.segments, tmp_path / "s.parquet", change)
    table, rows = SegmentTable(file), pq.read_table(file).to_pylist()
    drawn = [{rows[row]["image"] for bag in bags for row in bag} for bags in table.rows]
    everywhere = {row["image"] for row in rows}
    assert drawn[2] == everywhere - {"xray_00000.png"}  # Gun: five others are left
    assert drawn[3] == {row["image"] for row in rows if row["class_name"] == "Knife"}  # every Knife is cut
    assert len(table) == len(rows)
