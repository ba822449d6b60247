"""The study's page: what is kept of an experiment, and the figures made of it, against hand computation."""

import json
import math
import os
import statistics

import numpy as np
import pytest

from benchmarks import common, study, study_page
from segloc.run_results import METRICS

APS = {"random": [10.0, 12.0, 11.0], "ours": [13.0, 14.0, 15.0], "bn": [1.0, 2.0, 4.0], "random_bn": [1.0, 1.0, 1.0]}


def cell(folder, start, seed, ap, norm="none"):
    """A finished fine-tuning cell."""
    run = folder / f"{start}-fair-seed{seed}"
    run.mkdir()
    figures = {task: {**dict.fromkeys(METRICS, 1.0), "AP": ap} for task in ("bbox", "segm")}
    sets = {name: {"images": 120, "digest": name, **figures} for name in ("easy", "hard", "hidden")}
    evaluation = {"engine": "detectron2", "iteration": 2, "steps": 2, "subsets": sets, "mean": figures}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    weights = "random" if start.startswith("random") else f"pretrain/ours-seed{seed}/backbone.pth"
    about = {
        "kind": "finetune",
        "engine": "detectron2",
        "torch": "2.9",
        "git_revision": "abc",
        "device": "cpu, 2 cores",
    }
    (run / "run.json").write_text(json.dumps({**about, "command": "x", "weights": weights}))
    (run / "start.json").write_text(json.dumps({"origin": weights.partition("-seed")[0], "pretraining_seed": None}))
    (run / "config.yaml").write_text(f"model: {{backbone: {{norm: {norm}}}}}\ntrain: {{seed: {seed}}}\n")
    (run / "metrics.json").write_text('{"iteration": 1, "loss": 1.0}\n')
    record(run / "finetune.job.json", [f"python -m {start} {seed}"])
    return run


def record(path, commands, failure=""):
    path.write_text(json.dumps({"settings": {}, "commands": commands, "failure": failure}))


@pytest.fixture
def experiment(tmp_path):
    """The files of a finished experiment that the study reads."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    for start, values in APS.items():
        for seed, ap in enumerate(values):
            cell(folder, start, seed, ap, norm="bn" if start in ("bn", "random_bn") else "none")
    for seed, accuracy in enumerate((0.2, 0.3, 0.4)):
        run = folder / "pretrain" / f"ours-seed{seed}"
        run.mkdir(parents=True)
        (run / "backbone.pth").touch()
        about = {"kind": "pretrain", "steps": 4, "chance_loss": 24.3, "chance_class_accuracy": 1 / 12}
        (run / "run.json").write_text(json.dumps(about))
        gauges = [{"loss": 20 + i, "class_accuracy": accuracy, "top1": 0.5} for i in range(8)]
        (run / "metrics.json").write_text(
            "".join(json.dumps({"iteration": i, **g}) + "\n" for i, g in enumerate(gauges))
        )
        record(run / "pretrain.job.json", [f"python -m pretrain {seed}"])
        os.utime(run / "pretrain.job.json", (0, 0))
    header = "start,seed,iteration,features,knn,linear,chance\n"
    known = {"random": (0.2, 0.2, 0.3), "ours_short": (0.3, 0.4, 0.4), "alpha_short": (0.2, 0.3, 0.5)}
    rows = [f"{start},{seed},4,all levels,0.1,{x},0.1\n" for start, xs in known.items() for seed, x in enumerate(xs)]
    (folder / "probe.csv").write_text("".join([header, *rows, "ours_short,0,4,embedding,0.1,0.5,0.1\n"]))
    (folder / "probe.md").write_text("| start |\n| --- |\n| ours |\n")
    return folder


def test_the_page_is_made_of_what_the_experiment_measured(experiment, tmp_path):
    study.keep(experiment, tmp_path / "kept")
    page = study_page.render(tmp_path / "kept")
    half = 4.303 * statistics.stdev([3, 2, 4]) / math.sqrt(3)
    gain = f"+3.0 [{3 - half:+.1f}, {3 + half:+.1f}]"
    assert f"| `ours-fair` | `random-fair` | {' | '.join([gain] * 5)} |" in page
    assert f"| **ours-fair** | 3 | AP, boxes | 14.0 ± 1.0 ({gain})" in page
    assert "| **random-fair** | 3 | AP, boxes | 11.0 ± 1.0 | 11.0 ± 1.0 |" in page
    assert "\n| `random" not in page  # a random start gains nothing over itself
    assert "| ours | 4 | 3 | 26.50 | 24.30 | 0.500 | 0.300 | 0.083 |" in page  # the last two of eight lines
    assert "| start |\n| --- |\n| ours |" in page
    lines = page.splitlines()
    assert lines[lines.index("```") + 1] == "python -m pretrain 0"
    assert "python -m ours 0" in page
    assert "python -m ours 1" not in page
    assert "Test scans: easy 120, hard 120, hidden 120." in page
    assert "No run failed." in page


def test_starts_that_differ_in_one_thing_are_compared(experiment, tmp_path):
    for seed, ap in enumerate((12.0, 12.5, 13.0)):
        cell(experiment, "ours_bn_anew", seed, ap)
    study.keep(experiment, tmp_path / "kept")
    page = study_page.render(tmp_path / "kept")
    anew = study_page.interval([-1, -1.5, -2])
    assert f"| `ours_bn_anew-fair` | `ours-fair` | {anew} | – | – | – |" in page
    alpha = study_page.interval([-10, -10, 10])
    assert f"| `alpha_short` | `ours_short` | – | {alpha} | +0.0 [+0.0, +0.0] | – |" in page
    short = study_page.interval([10, 20, 10])
    assert f"| `ours_short` | {short} | +0.0 [+0.0, +0.0] | – |" in page  # over random, which has no embedding
    assert "`ours_ratio`" not in page


def test_in_short_says_better_worse_or_neither(experiment, tmp_path):
    for start, values in {"paper": [9.0, 11.1, 9.9], "imagenet": [20.0, 1.0, 14.0]}.items():
        for seed, ap in enumerate(values):
            cell(experiment, start, seed, ap)
    study.keep(experiment, tmp_path / "kept")
    page = study_page.render(tmp_path / "kept")
    short = page[page.index("## In short") : page.index("## Gains")]
    assert "- `ours-fair` against `random-fair`: better (+3.0" in short
    assert "- `paper-fair` against `random-fair`: worse (-1.0" in short
    assert "- `imagenet-fair` against `random-fair`: no difference shown (+0.7" in short
    assert "`random-fair` against" not in short


def test_the_gain_is_over_the_random_start_of_the_same_network(experiment, tmp_path):
    study.keep(experiment, tmp_path / "kept")
    rows = common.read_rows(tmp_path / "kept" / "runs.csv")
    assert {row["run"]: row["base"] for row in rows} == {
        "random-fair": "", "ours-fair": "random-fair", "bn-fair": "random_bn-fair", "random_bn-fair": "",
    }  # fmt: skip
    assert study_page.differences(rows, "bn-fair", "bbox", "AP", "easy") == [0, 1, 3]


def test_what_failed_is_named_and_the_others_are_paired_by_seed(experiment, tmp_path):
    (experiment / "ours-fair-seed1" / "evaluation.json").unlink()
    record(experiment / "ours-fair-seed1" / "finetune.job.json", [], failure="loss is not finite")
    study.keep(experiment, tmp_path / "kept")
    rows = common.read_rows(tmp_path / "kept" / "runs.csv")
    assert study_page.differences(rows, "ours-fair", "bbox", "AP", "easy") == [3, 4]
    page = study_page.render(tmp_path / "kept")
    assert "- ours-fair-seed1: loss is not finite\n" in page
    assert "| **ours-fair** | 2 |" in page


def test_an_unfinished_study_is_refused(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study_page, "RESULTS", tmp_path / "kept")
    assert study.main([]) == 2
    assert "no results are kept yet" in capsys.readouterr().err
    (experiment / "ours-fair-seed1" / "evaluation.json").unlink()
    assert study.main(["--from", str(experiment)]) == 2
    assert "ours-fair-seed1: not finished" in capsys.readouterr().err
    for file in (experiment / "ours-fair-seed1").iterdir():
        file.unlink()
    assert study.main(["--from", str(experiment)]) == 2
    assert "ours-fair was run for 2 seeds, others for 3" in capsys.readouterr().err
    assert study.main(["--from", str(tmp_path / "nothing")]) == 2
    assert "not the folder of a finished study" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


@pytest.mark.skipif(not study_page.RESULTS.exists(), reason="the study's results are not there yet")
def test_the_page_is_that_of_the_result_files():
    assert study_page.PAGE.read_text() == study_page.render(), "run python -m benchmarks.study"


@pytest.mark.parametrize("freedom", sorted(study_page.T_95))
def test_quantiles_of_students_t(freedom):
    """Between them lies 95 % of the density, added up from its definition."""
    x = np.linspace(-study_page.T_95[freedom], study_page.T_95[freedom], 200_001)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    area = ((density[1:] + density[:-1]) / 2 * np.diff(x)).sum()
    assert area == pytest.approx(0.95, abs=1e-4)  # they have three digits
