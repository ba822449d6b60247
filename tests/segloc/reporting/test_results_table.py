import csv
import io
import json
import statistics

import pytest

from segloc import report
from segloc.common.skips import Skips
from segloc.detection.coco_eval import METRICS
from segloc.reporting.results_table import (
    Figure,
    group_by_seed,
    group_names,
    notes,
    published,
    results_csv,
    results_markdown,
    results_table,
    signed,
)
from segloc.reporting.run_results import load_run
from segloc.training.run_folder import write_skips
from tests.segloc.test_report import evaluation, metrics_of, runs, write_run  # noqa: F401


def tuned(folder, weights, ap, seed=0, engine="detectron2", digest="d", **settings):
    """Write a fine-tuned run whose metrics are all `ap` on easy, hard and hidden."""
    result = evaluation([ap] * 6, [ap] * 6, engine)
    result["subsets"]["hard"] = result["subsets"]["easy"]
    write_run(folder, "finetune", str(weights), (), result, seed, **settings)
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"data_digest": digest}))
    return folder


def table_of(*folders):
    return results_table([load_run(folder) for folder in folders])


def test_table_has_the_layout_of_the_paper_and_differences_to_random(runs):  # noqa: F811
    table = table_of(*runs)
    assert table.columns == [("bbox", "easy"), ("bbox", "hidden"), ("bbox", "mean")]
    assert [(block.name, block.base) for block in table.blocks] == [("segloc", "random"), ("random", "")]
    segloc, random = (block.figures for block in table.blocks)
    assert list(segloc) == list(METRICS)
    assert segloc["AP"] == [Figure(41.25, None, 1.25), Figure(20.0, None, -1.0), Figure(30.625, None, 0.125)]
    # AR100 of random on hidden is undefined
    assert [figure.difference for figure in segloc["AR100"]] == [1.25, None, None]
    assert all(figure.difference is None for row in random.values() for figure in row)


def test_runs_that_differ_only_in_seed_share_a_block(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"pre{seed}", "pretrain", seed=seed, queue={"size": 8})
        tuned(tmp_path / f"segloc-seed{seed}", tmp_path / f"pre{seed}", (4.0, 6.0, 11.0)[seed], seed)
        tuned(tmp_path / f"random-seed{seed}", "random", (3.0, 4.0, 5.0)[seed], seed)
    table = table_of(*sorted(tmp_path.glob("*-seed*"))[::-1])
    ours = [block for block in table.blocks if not block.source]
    assert [(block.name, block.runs) for block in ours] == [("segloc", 3), ("random", 3)]
    figure = ours[0].figures["AP50"][0]
    assert figure.value == pytest.approx(7.0)
    assert figure.spread == pytest.approx(statistics.stdev([4.0, 6.0, 11.0])) == pytest.approx(13**0.5)
    assert figure.difference == pytest.approx(3.0)
    assert any("sample standard deviation" in note for note in notes(table))


def test_another_setting_start_training_set_or_engine_is_another_block(tmp_path):
    write_run(tmp_path / "pre", "pretrain", seed=1, queue={"size": 8})
    write_run(tmp_path / "pre-other", "pretrain", seed=2, queue={"size": 9})
    folders = [
        tuned(tmp_path / "a0", "random", 1.0, 0),
        tuned(tmp_path / "a1", "random", 1.0, 1),
        tuned(tmp_path / "b", "random", 1.0, 2, engine="torchvision (stand-in)"),
        tuned(tmp_path / "c", "random", 1.0, 3, digest="e"),
        tuned(tmp_path / "d", "random", 1.0, 4, optim={"batch": 2}),
        tuned(tmp_path / "e", tmp_path / "pre", 1.0, 5),
        tuned(tmp_path / "f", tmp_path / "pre-other", 1.0, 6),
        tuned(tmp_path / "g", "imagenet", 1.0, 7),
        tuned(tmp_path / "h", "random", 1.0, 1),  # repeats the seed of a1, so it is not another sample
    ]
    groups = group_by_seed([load_run(folder) for folder in folders])
    names = [[run.name for run in members] for members in groups]
    assert names == [["a0", "a1"], *([name] for name in "bcdefgh")]


def test_unfinished_trainings_and_other_test_settings_are_not_averaged(tmp_path):
    def edit(folder, **changes):
        path = folder / "evaluation.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    folders = [tuned(tmp_path / f"random-seed{seed}", "random", 10.0, seed) for seed in range(4)]
    edit(folders[0], iteration=6, steps=6, changed={})
    edit(folders[1], iteration=4, steps=6, changed={})
    edit(folders[2], iteration=6, steps=6, changed={"data.image_size": "32"})
    edit(folders[3], iteration=6, steps=6, changed={})
    read_runs = [load_run(folder) for folder in folders]
    assert read_runs[1].evaluation is None
    measured = [block for block in results_table(read_runs).blocks if not block.source]
    assert [(block.name, block.runs) for block in measured] == [("random", 2), ("random-seed2", 1)]
    subsets = {name: {**part, "digest": "b"} for name, part in read_runs[3].evaluation["subsets"].items()}
    edit(folders[3], subsets=subsets)
    assert [block.runs for block in table_of(*folders).blocks if not block.source] == [1, 1, 1]
    page = tmp_path / "r.html"
    assert report.main([*map(str, folders), "--out", str(page)]) == 0
    assert "Runs without an evaluation of their final checkpoint: random-seed1." in page.read_text()
    assert report.main([str(folders[1] / "evaluation.json"), "--out", str(page)]) == 2


def test_runs_on_other_test_sets_are_not_averaged(tmp_path):
    def measured(name, seed, edit):
        folder = tuned(tmp_path / name, "random", 1.0, seed)
        content = json.loads((folder / "evaluation.json").read_text())
        edit(content["subsets"])
        (folder / "evaluation.json").write_text(json.dumps(content))
        return load_run(folder)

    found = [
        measured("a0", 0, lambda subsets: None),
        measured("a1", 1, lambda subsets: None),
        measured("fewer sets", 2, lambda subsets: subsets.pop("hard")),
        measured("another name", 3, lambda subsets: subsets.update(other=subsets.pop("hard"))),
        measured("more images", 4, lambda subsets: subsets.update(hard={**subsets["hard"], "images": 4})),
    ]
    names = [[run.name for run in members] for members in group_by_seed(found)]
    assert names == [["a0", "a1"], ["fewer sets"], ["another name"], ["more images"]]


def test_differences_are_to_the_random_start_of_the_same_protocol(tmp_path):
    model = {"backbone": {"norm": "bn"}}
    bare = {"backbone": {"norm": "none"}}
    table = table_of(
        tuned(tmp_path / "random-short", "random", 10.0, optim={"batch": 2}, model=model),
        tuned(tmp_path / "random-long", "random", 20.0, optim={"batch": 4}, model=model),
        tuned(tmp_path / "w-long", "w", 25.0, optim={"batch": 4}, model=model),
        tuned(tmp_path / "bare-long", "v", 26.0, optim={"batch": 4}, model=bare),
        tuned(tmp_path / "other", "w", 25.0, optim={"batch": 8}, model=model),
        tuned(tmp_path / "stand-in", "w", 25.0, optim={"batch": 4}, model=model, engine="torchvision (stand-in)"),
    )
    found = {block.name: (block.base, block.figures["AP"][0].difference) for block in table.blocks if not block.source}
    assert found["w-long"] == ("random-long", 5.0)
    assert found["bare-long"] == ("random-long", 6.0)  # its weights have no batch norm, the protocol is the same
    assert found["other"] == found["stand-in"] == ("", None)
    # Random initialisation with exactly the same settings is preferred.
    table = table_of(
        tmp_path / "random-long",
        tuned(tmp_path / "random-bare", "random", 21.0, optim={"batch": 4}, model=bare),
        tmp_path / "bare-long",
    )
    assert table.blocks[2].base == "random-bare"


def test_settings_of_weight_loading_do_not_make_another_network(tmp_path):
    """Of two random initialisations the one with the same norms is the base; loading settings do not matter."""
    model = {"backbone": {"norm": "bn", "sda_norm": "bn"}}
    layers = {"backbone": {"norm": "bn", "sda_norm": "ln"}}
    table = table_of(
        tuned(tmp_path / "random", "random", 10.0, model=model),
        tuned(tmp_path / "random_ln", "random", 20.0, model=layers),
        tuned(tmp_path / "anew", "w", 21.0, model=layers, train={"unmatched": "start_anew", "box_heads": "random"}),
    )
    assert table.blocks[2].base == "random_ln"


def test_published_figures_are_those_of_the_paper_and_marked(tmp_path):
    table = table_of(tuned(tmp_path / "random", "random", 10.0))
    blocks = {block.name: block for block in table.blocks if block.source}
    assert len(blocks) == len(table.blocks) - 1 == 6
    columns = {subset: place for place, (kind, subset) in enumerate(table.columns) if kind == "bbox"}
    segloc = blocks["SegLoc initialisation"].figures
    assert segloc["AP"][columns["easy"]].value == 53.7
    assert segloc["AP"][columns["easy"]].difference == pytest.approx(4.6)
    assert segloc["AP50"][columns["hidden"]].difference == pytest.approx(37.1 - 39.3)
    # PIDray's "overall" is the mean of the three.
    overall = {name: round(block.figures["AP"][columns["mean"]].value, 1) for name, block in blocks.items()}
    assert overall["SDANet"] == 61.6
    assert overall["Mask R-CNN R101-FPN"] == 55.8
    assert list(blocks["SDANet"].figures) == ["AP"]
    assert blocks["SDANet"].base == ""
    text = results_markdown(table)
    assert text.count("published: ") == 6
    assert "cannot be compared" in text
    assert "Halat et al. 2023: SegLoc, arXiv 2310.08421" in text


# As printed: table 1 of the paper in shares, and the main results of SDANet's in per cent, its "overall" last.
# Columns are boxes easy, hard, hidden (overall), then masks.
TABLE_1 = {
    "SegLoc initialisation": """
        AP     0.537 0.528 0.238  0.470 0.432 0.192
        AP50   0.698 0.736 0.371  0.684 0.695 0.341
        AP75   0.611 0.599 0.256  0.551 0.476 0.201
        AR1    0.631 0.558 0.380  0.546 0.468 0.304
        AR10   0.650 0.626 0.422  0.560 0.515 0.332
        AR100  0.650 0.626 0.422  0.560 0.515 0.332""",
    "random initialisation": """
        AP     0.491 0.467 0.255  0.428 0.375 0.199
        AP50   0.652 0.674 0.393  0.639 0.630 0.352
        AP75   0.556 0.525 0.279  0.501 0.400 0.200
        AR1    0.601 0.510 0.390  0.516 0.419 0.303
        AR10   0.623 0.583 0.435  0.533 0.469 0.331
        AR100  0.623 0.583 0.435  0.533 0.469 0.331""",
    "supervised (ImageNet) initialisation": """
        AP     0.709 0.641 0.482  0.595 0.520 0.361
        AP50   0.826 0.814 0.632  0.818 0.778 0.592
        AP75   0.782 0.716 0.542  0.707 0.590 0.408
        AR1    0.773 0.636 0.565  0.653 0.528 0.433
        AR10   0.789 0.707 0.591  0.663 0.575 0.450
        AR100  0.789 0.707 0.591  0.663 0.575 0.450""",
}
SDANET = {
    "Mask R-CNN R101-FPN": (64.7, 59.0, 43.8, 55.8, 57.6, 50.2, 35.2, 47.7),
    "Cascade Mask R-CNN R101-FPN": (70.9, 64.0, 48.0, 61.0, 59.2, 51.5, 36.1, 48.9),
    "SDANet": (71.2, 64.2, 49.5, 61.6, 59.9, 52.0, 37.4, 49.8),
}


def test_every_published_figure_is_the_printed_one():
    places = [(kind, subset) for kind in ("bbox", "segm") for subset in ("easy", "hard", "hidden")]
    found = {
        block.name: {metric: [figure.value for figure in row] for metric, row in block.figures.items()}
        for block in published(places)
    }
    expected = {name: {"AP": [*row[:3], *row[4:7]]} for name, row in SDANET.items()}
    for name, text in TABLE_1.items():
        rows = [line.split() for line in text.strip().splitlines()]
        expected[name] = {metric: [round(100 * float(value), 1) for value in values] for metric, *values in rows}
    assert found == expected
    means = {block.name: block.figures["AP"] for block in published([("bbox", "mean"), ("segm", "mean")])}
    for name, row in SDANET.items():
        assert [figure.value for figure in means[name]] == pytest.approx([row[3], row[7]], abs=0.051)


def test_published_figures_agree_with_themselves():
    kinds = [(kind, subset) for kind in ("bbox", "segm") for subset in ("easy", "hard", "hidden", "mean", "pooled")]
    for block in published(kinds):
        for place, (_, subset) in enumerate(kinds):
            column = {metric: row[place].value for metric, row in block.figures.items()}
            assert (subset == "pooled") == (column["AP"] is None)
            if subset != "pooled" and "AP50" in column:
                assert column["AP50"] > column["AP75"] > column["AP"]
                assert column["AR1"] <= column["AR10"] == column["AR100"]


def test_pooled_stands_last_and_is_explained(tmp_path):
    folder = tuned(tmp_path / "random", "random", 10.0)
    content = json.loads((folder / "evaluation.json").read_text())
    content["pooled"] = {"bbox": metrics_of([9.0] * 6)}
    (folder / "evaluation.json").write_text(json.dumps(content))
    table = table_of(folder)
    assert [subset for _, subset in table.columns] == ["easy", "hidden", "hard", "mean", "pooled"]
    assert table.blocks[0].figures["AP"][-1].value == 9.0
    assert any(note.startswith("Pooled") for note in notes(table))


def test_a_figure_that_one_seed_lacks_has_no_mean(tmp_path):
    first, second = (tuned(tmp_path / f"r{seed}", "random", 10.0, seed) for seed in range(2))
    content = json.loads((second / "evaluation.json").read_text())
    content["subsets"]["hidden"]["bbox"]["AP75"] = None
    (second / "evaluation.json").write_text(json.dumps(content))
    block = table_of(first, second).blocks[0]
    assert block.runs == 2
    assert block.figures["AP75"][1] == Figure(None)
    assert block.figures["AP50"][1] == Figure(10.0, 0.0)


def test_csv_counts_the_inputs_that_the_runs_skipped(tmp_path):
    first, second = (tuned(tmp_path / f"r{seed}", "random", 10.0, seed) for seed in range(2))
    skips = Skips("annotations", 100)
    skips.add("broken RLE", "annotation 1", 3)
    write_skips(first, [skips])
    content = json.loads((second / "evaluation.json").read_text())
    content["skipped"] = {"easy": [skips.to_json()], "hard": [skips.to_json()]}
    (second / "evaluation.json").write_text(json.dumps(content))
    for runs_, expected in (((first, second), "9"), ((tuned(tmp_path / "w", "random", 9.0),), "0")):
        rows = list(csv.DictReader(io.StringIO(results_csv(table_of(*runs_)))))
        assert {row["skipped"] for row in rows if row["origin"] == "measured"} == {expected}
        assert {row["skipped"] for row in rows if row["origin"] != "measured"} <= {""}


def test_csv_and_markdown_hold_the_same_figures(tmp_path):
    table = table_of(
        tuned(tmp_path / "a|b", "w", 12.5, engine="torchvision (stand-in)"),
        tuned(tmp_path / "random", "random", 10.0, engine="torchvision (stand-in)"),
    )
    rows = list(csv.DictReader(io.StringIO(results_csv(table))))
    ours = [row for row in rows if row["name"] == "a|b"]
    assert len(ours) == len(table.columns) * len(METRICS)
    assert {row["engine"] for row in ours} == {"torchvision (stand-in)"}
    assert {(row["value"], row["difference"], row["difference_to"]) for row in ours} == {("12.5", "2.5", "random")}
    assert {row["origin"] for row in ours} == {"measured"}
    assert all(row["origin"] in ("Halat et al. 2023", "Wang et al. 2021") for row in rows if not row["engine"])
    lines = results_markdown(table).splitlines()
    widths = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert widths == {len(table.columns) + 3}
    assert "12.5 (+2.5)" in lines[2]
    assert "torchvision (stand-in)" in lines[2]
    assert any(line.startswith("The stand-in replaces") for line in lines)


def test_names_leave_the_seed_out(tmp_path):
    folders = [
        tuned(tmp_path / "segloc-fair-seed0", "w", 1.0, 0),
        tuned(tmp_path / "segloc-fair-seed10", "w", 1.0, 10),
        tuned(tmp_path / "x", "v", 1.0, 0),
        tuned(tmp_path / "y", "v", 1.0, 1),
    ]
    assert group_names(group_by_seed([load_run(folder) for folder in folders])) == ["segloc-fair", "x and 1 more"]


def test_what_rounds_to_nothing_has_no_minus():
    assert [signed(value) for value in (-0.04, 0.0, -0.06, 1.24)] == ["+0.0", "+0.0", "-0.1", "+1.2"]


def test_a_run_older_than_an_optional_setting_has_the_same_protocol(tmp_path):
    table = table_of(
        tuned(tmp_path / "random", "random", 20.0, data={"image_size": 64}),
        tuned(tmp_path / "eight-bit", "w", 25.0, data={"image_size": 64, "white": None}),
        tuned(tmp_path / "sixteen-bit", "v", 26.0, data={"image_size": 64, "white": 4095}),
    )
    assert {block.name: block.base for block in table.blocks if not block.source} == {
        "random": "",
        "eight-bit": "random",
        "sixteen-bit": "",
    }


def test_names_of_skipped_scans_are_text_in_markdown(tmp_path):
    folder = tuned(tmp_path / "run", "random", 20.0)
    skips = Skips("scans", 9)
    skips.add("image missing", "<script>x.png")
    write_skips(folder, [skips])
    shown = results_markdown(table_of(folder))
    assert r"skipped 1 of 9 scans: 1 image missing (\<script\>x.png)" in shown
    assert "<script>" not in shown
