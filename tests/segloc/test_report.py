import json
import re

import cv2
import numpy as np
import pytest
import yaml

from segloc import report
from segloc.detection.coco_eval import METRICS
from segloc.models.backbone import LEVELS
from segloc.training.run_folder import closing


def metrics_of(values):
    return dict(zip(METRICS, values, strict=True))


def evaluation(easy, hidden, engine="detectron2"):
    subsets = {"easy": {"images": 3, "bbox": metrics_of(easy)}, "hidden": {"images": 3, "bbox": metrics_of(hidden)}}
    mean = {
        "bbox": metrics_of([None if a is None or b is None else (a + b) / 2 for a, b in zip(easy, hidden, strict=True)])
    }
    return {"engine": engine, "classes": ["Gun"], "subsets": subsets, "mean": mean}


def write_run(folder, kind, weights=None, lines=(), result=None, seed=0, **settings):
    folder.mkdir()
    about = {
        "kind": kind, "engine": "stand-in", "device": "cpu", "git_revision": "abc", "command": "x --out <b>",
        "steps": 40, "weights": weights, "chance_loss": 30.0, "chance_class_accuracy": 0.1,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(about))
    config = {"train": {"seed": seed}, **settings} if kind == "finetune" else {"seed": seed, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result:
        (folder / "evaluation.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def runs(tmp_path):
    line = {"iteration": 9, "loss": 12.5, "class_accuracy": 0.62, "top1": 0.5}
    for level in LEVELS:
        line |= {f"{name}/{level}": 0.5 for name in ("loss", "top1", "class_accuracy", "embedding_std")}
    tuned = [{"iteration": i, "loss": 3.0 - i} for i in range(2)]
    return [
        write_run(tmp_path / "pretrain", "pretrain", lines=[{**line, "iteration": 4}, line]),
        write_run(tmp_path / "segloc", "finetune", "w", tuned, evaluation([41.25] * 6, [20.0] * 6)),
        write_run(tmp_path / "random", "finetune", "random", tuned, evaluation([40.0] * 6, [21.0] * 5 + [None])),
    ]


def test_the_end_of_a_run_is_its_last_quarter():
    rows = [
        {"iteration": i, "loss": float(i), "only_here": 1.0} if i == 7 else {"iteration": i, "loss": float(i)}
        for i in range(8)
    ]
    assert closing(rows) == {"iteration": 6.5, "loss": 6.5}
    assert closing(rows[:1]) == {"iteration": 0.0, "loss": 0.0}


def test_page_is_self_contained_and_shows_the_metrics(runs, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "p.png"), np.zeros((20, 2000, 3), np.uint8))
    out = tmp_path / "report.html"
    arguments = [*map(str, runs), "--out", str(out), "--picture", f"A <pair>={tmp_path / 'p.png'}"]
    assert report.main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(out)
    tables = [tmp_path / "t.md", tmp_path / "t.csv"]
    for _ in range(2):  # a rerun replaces its own files
        assert report.main([*arguments, *(part for table in tables for part in ("--table", str(table)))]) == 0
    assert "published" not in out.read_text().split("</style>")[1]  # no run has a test set named hard
    page = out.read_text()
    assert "41.2" in page
    assert "+1.2" in page
    assert "-1.0" in page
    assert "62 %" in page
    assert "A &lt;pair&gt;" in page
    assert "x --out &lt;b&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_ap_on_held_out_scans_is_drawn_where_it_was_measured(runs, tmp_path):
    out, title = tmp_path / "report.html", "Box AP on held-out training scans"
    assert report.main([*map(str, runs), "--out", str(out)]) == 0
    assert title not in out.read_text()
    rows = [{"iteration": i, "loss": 3.0, **({"validation_bbox_AP": 7.5 * i} if i % 2 else {})} for i in range(4)]
    validated = write_run(tmp_path / "validated", "finetune", "w", rows)
    assert report.main([*map(str, runs), str(validated), "--out", str(out)]) == 0
    page = out.read_text()
    assert title in page
    assert page.index("Fine-tuning loss") < page.index(title)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_random_alone_and_unevaluated_runs_are_fine(runs, tmp_path):
    assert report.main([str(runs[2]), "--out", str(tmp_path / "one.html")]) == 0
    assert report.main([str(runs[0]), "--out", str(tmp_path / "two.html")]) == 0
    (runs[0] / "metrics.json").unlink()
    assert report.main([str(runs[0]), "--out", str(tmp_path / "three.html")]) == 0
    assert "No metrics yet" in (tmp_path / "three.html").read_text()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", "[]", "not a JSON object that describes a run"),
        ("run.json", "{}", "has a run of kind 'None'"),
        ("run.json", '{"kind": "pretrain", "engine": "e", "device": "d", "command": "c"}', "git_revision is None"),
        ("metrics.json", "5", "iteration is None"),
        ("metrics.json", '{"iteration": 1, "loss": "low"}', "loss is 'low'"),
        ("config.yaml", "{", "not YAML"),
        ("config.yaml", "5", "not a mapping of settings"),
        ("evaluation.json", "{}", "engine is None"),
        ("evaluation.json", '{"engine": "x", "mean": {}, "pooled": 3, "subsets": {}}', "the metrics of pooled"),
        ("evaluation.json", '{"engine": ["x"], "mean": {}, "subsets": {}}', "engine is"),
        ("evaluation.json", '{"engine": "x", "mean": {}, "subsets": {"easy": {"bbox": 5}}}', "the metrics of easy"),
        ("evaluation.json", '{"engine": "x", "mean": {"bbox": {"AP": "1"}}, "subsets": {}}', "the metrics of mean"),
    ],
)
def test_a_folder_with_a_foreign_or_broken_file_is_refused(runs, tmp_path, capsys, file, content, message):
    (runs[1] / file).write_text(content)
    assert report.main([str(runs[1]), "--out", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_folders_without_a_run_are_named_and_left_out(runs, tmp_path, capsys):
    (tmp_path / "failed").mkdir()
    pages = []
    for more in ([], [str(tmp_path / "failed")]):
        assert report.main([*more, *map(str, runs), "--out", str(tmp_path / "r.html")]) == 0
        pages.append((tmp_path / "r.html").read_text())
    assert pages[0] == pages[1]
    assert capsys.readouterr().err == f"left out: {tmp_path / 'failed'} (no run.json)\n"


def test_results_of_another_program_are_in_the_table(runs, tmp_path):
    other, table = tmp_path / "theirs.json", tmp_path / "t.md"
    other.write_text(json.dumps(evaluation([38.5] * 6, [12.0] * 6, "results file")))
    arguments = [*map(str, runs), str(other), "--out", str(tmp_path / "r.html"), "--table", str(table)]
    assert report.main(arguments) == 0
    theirs = next(line for line in table.read_text().splitlines() if "theirs" in line)
    assert theirs == "| **theirs**<br>results file; 1 run | AP | 38.5 | 12.0 | 25.2 |"
    assert '<td class="text">theirs</td><td class="text">results</td>' in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such run folder"),
        (["."], "not a run folder"),
        ([__file__], "not JSON"),
        (["RUN", "--picture", "x=nowhere.png"], "no such picture"),
        (["RUN", "--picture", f"x={__file__}"], "not a picture (not a JPEG, PNG, BMP or TIFF file)"),
        (["RUN", "--picture", "nowhere.png"], "not key=value"),
        (["RUN", "--table", "table.tex"], "--table writes .md and .csv files"),
    ],
)
def test_bad_arguments(runs, tmp_path, capsys, arguments, message):
    arguments = [str(runs[0]) if value == "RUN" else value for value in arguments]
    assert report.main([*arguments, "--out", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
