"""The study's page: what is kept of an experiment, and the figures made of it, against hand computation."""

import csv
import json
import math
import statistics

import numpy as np
import pytest

from benchmarks import study, study_page
from segloc.run_results import METRICS

APS = {"random": [10.0, 12.0, 11.0], "ours": [13.0, 14.0, 15.0]}
METRICS_OF_AP = dict.fromkeys(METRICS, 1.0)


@pytest.fixture
def experiment(tmp_path):
    """The files of a finished experiment that the study reads."""
    for start, values in APS.items():
        for seed, ap in enumerate(values):
            cell = tmp_path / f"{start}-fair-seed{seed}"
            cell.mkdir()
            figures = {task: {**METRICS_OF_AP, "AP": ap} for task in ("bbox", "segm")}
            sets = {name: {"images": 120, **figures} for name in ("easy", "hard", "hidden")}
            (cell / "evaluation.json").write_text(json.dumps({"subsets": sets, "mean": figures}))
            about = {"kind": "finetune", "engine": "detectron2", "torch": "2.9", "git_revision": "abc"}
            (cell / "run.json").write_text(json.dumps(about))
            (cell / "finetune.job.json").write_text(json.dumps({"commands": [f"python -m {start} {seed}"]}))
    for seed, accuracy in enumerate((0.2, 0.3, 0.4)):
        run = tmp_path / "pretrain" / f"ours-seed{seed}"
        run.mkdir(parents=True)
        (run / "backbone.pth").touch()
        about = {"kind": "pretrain", "steps": 4, "chance_loss": 24.3, "chance_class_accuracy": 1 / 12}
        (run / "run.json").write_text(json.dumps(about))
        gauges = [{"loss": 20 + i, "class_accuracy": accuracy, "embedding_std/p4": 0.9} for i in range(8)]
        lines = [json.dumps({"iteration": i, **row}) + "\n" for i, row in enumerate(gauges)]
        (run / "metrics.json").write_text("".join(lines))
    rows = ["start,seed,iteration,features,knn,linear,chance"]
    rows += [f"ours,{seed},4,all levels,0.3,{0.4 + seed / 10},0.1" for seed in range(3)]
    rows += [f"random,{seed},0,all levels,0.2,0.2,0.1" for seed in range(3)]
    (tmp_path / "probe.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_the_page_is_made_of_what_the_experiment_measured(experiment, tmp_path):
    out = tmp_path / "kept"
    study.keep(experiment, out)
    page = study_page.render(out)
    half = 4.303 * statistics.stdev([3, 2, 4]) / math.sqrt(3)
    gain = f"+3.0 [{3 - half:+.1f}, {3 + half:+.1f}]"
    assert f"14.0 ± 1.0 ({gain})" in page
    assert f"easy {gain}, hard {gain}, hidden {gain}" in page
    assert "| **random** | AP, boxes | 11.0 ± 1.0 |" in page
    assert "+3.0 points, at least the paper's 3 to 6" in page
    assert "| ours | 4 | 3 | 30.0 ± 0.0 | 50.0 ± 10.0 | – | – | 10.0 |" in page
    assert "| ours | 4 | 26.50 | 24.30 | 0.300 | 0.083 | 0.90 |" in page  # the last two of eight lines
    assert "`ours` 50.0, `random` 20.0" in page
    assert "python -m ours 0" in page
    assert "python -m ours 1" not in page
    assert "Test scans: easy 120, hard 120, hidden 120. Seeds: 3." in page


def test_a_cell_that_was_not_evaluated_is_left_out(experiment, tmp_path):
    (experiment / "ours-fair-seed1" / "evaluation.json").unlink()
    out = tmp_path / "kept"
    study.keep(experiment, out)
    with (out / "runs.csv").open() as file:
        seeds = {row["seed"] for row in csv.DictReader(file) if row["start"] == "ours"}
    assert seeds == {"0", "2"}
    # Paired with the random starts of the same seeds.
    assert study_page._differences(study_page._read(out / "runs.csv"), "ours", "random", "bbox", "AP", "easy") == [3, 4]


@pytest.mark.parametrize("freedom", sorted(study_page.T_95))
def test_quantiles_of_students_t(freedom):
    """Between them lies 95 % of the density, added up from its definition."""
    x = np.linspace(-study_page.T_95[freedom], study_page.T_95[freedom], 200_001)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    area = ((density[1:] + density[:-1]) / 2 * np.diff(x)).sum()
    assert area == pytest.approx(0.95, abs=1e-4)  # they have three digits


def test_an_unfinished_study_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="not the folder of a finished study"):
        study.main(["--from", str(tmp_path)])
