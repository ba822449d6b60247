"""The study's page: stored results of an experiment and the numbers on the page, against hand computation."""

import json
import math
import os
import statistics

import numpy as np
import pytest
import yaml

from benchmarks import common
from benchmarks.study import __main__ as study
from benchmarks.study import study_page
from segloc.detection.coco_eval import METRICS
from segloc.experiments.jobs import plan, with_needs
from segloc.settings.experiments import Experiment
from segloc.settings.loader import load

APS = {"random": [10.0, 12.0, 11.0], "ours": [13.0, 14.0, 15.0], "bn": [1.0, 2.0, 4.0], "random_bn": [1.0, 1.0, 1.0]}
ABOVE = {"easy": 20, "hard": 10, "hidden": -30}  # of the box AP in the mean of the test sets
BN = ["model.backbone.norm=bn"]
PROBED = {"random": (0.2, 0.2, 0.3), "one_positive": (0.3, 0.4, 0.4), "ours": (0.2, 0.3, 0.5)}


class Study:
    """A synthetic experiment: a recipe and those files of a finished experiment that the study reads."""

    def __init__(self, folder, aps):
        pretrain = "detectron_configs/pretrain/study_r18.yaml"
        starts = {
            name: {
                **({"weights": "random"} if name.startswith("random") else {"pretraining": "ours"}),
                "overrides": BN if name in ("bn", "random_bn") else [],
            }
            for name in aps
        }
        content = {
            "title": "A study",
            "pretrainings": {"ours": {"shards": "shards", "config": pretrain}},
            "starts": starts,
            "protocols": {"fair": {"config": "detectron_configs/finetune/demo_r18.yaml"}},
        }
        self.recipe, self.folder, self.kept = folder / "toy.yaml", folder / "experiment", folder / "kept"
        self.recipe.write_text(yaml.safe_dump(content, sort_keys=False))
        for job in self.jobs():
            job.folder.mkdir(parents=True, exist_ok=True)
            job.write()
            job.steps[-1].makes.touch()
            start, _, seed = job.folder.name.rpartition("-seed")
            if job.steps[0].name == "pretrain":
                self.pretrained(job, int(seed))
            else:
                start = start.removesuffix("-fair")
                self.tuned(job, start, int(seed), aps[start][int(seed)])
        rows = [f"{start},{i},4,all levels,0.1,{x},0.1\n" for start, xs in PROBED.items() for i, x in enumerate(xs)]
        header = "start,seed,iteration,features,knn,linear,chance\n"
        (self.folder / "probe.csv").write_text("".join([header, *rows, "one_positive,0,4,embedding,0.1,0.5,0.1\n"]))
        (self.folder / "probe.md").write_text("| start |\n| --- |\n| ours |\n")

    def jobs(self):
        return with_needs(plan(load(Experiment, self.recipe), self.folder))

    def job(self, name):
        return next(job for job in self.jobs() if job.name == name)

    def pretrained(self, job, seed):
        about = {"kind": "pretrain", "steps": 4, "chance_loss": 24.3, "chance_class_accuracy": 1 / 12}
        (job.folder / "run.json").write_text(json.dumps(about))
        accuracy = (0.2, 0.3, 0.4)[seed]
        metrics = [{"iteration": i, "loss": 20 + i, "class_accuracy": accuracy, "top1": 0.5} for i in range(8)]
        (job.folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in metrics))

    def tuned(self, job, start, seed, ap):
        def figures(above):
            boxes = {**dict.fromkeys(METRICS, 30.0 + above), "AP": ap + above, "AR100": 2 * ap + above}
            return {"bbox": boxes, "segm": {metric: value / 2 for metric, value in boxes.items()}}

        sets = {name: {"images": 120, "digest": name, **figures(above)} for name, above in ABOVE.items()}
        evaluation = {"engine": "detectron2", "iteration": 2, "steps": 2, "subsets": sets, "mean": figures(0)}
        (job.folder / "evaluation.json").write_text(json.dumps(evaluation))
        random = start.startswith("random")
        weights = "random" if random else f"pretrain/ours-seed{seed}/backbone.pth"
        about = {"kind": "finetune", "engine": "detectron2", "torch": "2.9", "git_revision": "abc", "device": "cpu"}
        (job.folder / "run.json").write_text(json.dumps({**about, "command": "x", "weights": weights}))
        origin = {"origin": "random" if random else start, "pretraining_seed": None}
        (job.folder / "start.json").write_text(json.dumps(origin))
        norm = "bn" if start in ("bn", "random_bn") else "none"
        (job.folder / "config.yaml").write_text(f"model: {{backbone: {{norm: {norm}}}}}\ntrain: {{seed: {seed}}}\n")
        (job.folder / "metrics.json").write_text('{"iteration": 1, "loss": 1.0}\n')

    def keep(self):
        study.keep(self.recipe, self.folder, self.kept)
        return study_page.chapter(self.kept)

    def fail(self, name, failure):
        job = self.job(name)
        job.steps[-1].makes.unlink()
        job.write(failure)


@pytest.fixture
def experiment(tmp_path):
    return Study(tmp_path, APS)


def test_the_page_is_made_of_what_the_experiment_measured(experiment):
    page = experiment.keep()
    half = 4.303 * statistics.stdev([3, 2, 4]) / math.sqrt(3)
    gain = f"+3.0 [{3 - half:+.1f}, {3 + half:+.1f}]"
    assert page.startswith("## A study\n")
    assert f"| `ours-fair` | `random-fair` | {' | '.join([gain] * 5)} |" in page
    assert f"| **ours-fair** | 3 | AP, boxes | 34.0 ± 1.0 ({gain})" in page
    assert "| **random-fair** | 3 | AP, boxes | 31.0 ± 1.0 | 21.0 ± 1.0 | -19.0 ± 1.0 | 11.0 ± 1.0 |" in page
    assert "|  |  | AR100, boxes | 42.0 ± 2.0 | 32.0 ± 2.0 | -8.0 ± 2.0 | 22.0 ± 2.0 |" in page
    assert "|  |  | AP, masks | 15.5 ± 0.5 | 10.5 ± 0.5 | -9.5 ± 0.5 | 5.5 ± 0.5 |" in page
    assert "\n| `random" not in page  # random initialisation has no gain over itself
    assert "| ours | 4 | 3 | 26.50 | 24.30 | 0.500 | 0.300 | 0.083 |" in page  # the last two of eight lines
    assert "| start |\n| --- |\n| ours |" in page
    assert "Test scans: easy 120, hard 120, hidden 120." in page
    assert "No run failed." in page


def test_the_time_of_all_jobs_is_added_up(experiment):
    for job in experiment.jobs():
        os.utime(job.record, (1000, 1000))
        os.utime(job.steps[-1].makes, (1120, 1120))
    assert f"All jobs together took about {2 * len(experiment.jobs())} minutes" in experiment.keep()


def test_the_commands_are_those_of_the_first_seed_in_the_order_they_run(experiment):
    page = experiment.keep()
    lines = page.splitlines()[page.splitlines().index("```") + 1 : -1]
    ran = [line.split()[2].removeprefix("segloc.") for line in lines]
    assert ran[:5] == ["finetune", "evaluate", "pretrain", "finetune", "evaluate"]
    assert not any("seed=1" in line or "-seed1" in line for line in lines)
    assert ran.count("pretrain") == 1  # two starts share it


def test_starts_that_differ_in_one_setting_are_compared(tmp_path):
    page = Study(tmp_path, APS | {"ours_backbone": [12.0, 12.5, 13.0]}).keep()
    less = study_page.interval([-1, -1.5, -2])
    assert f"| `ours_backbone-fair` | `ours-fair` | {less} | – | – | – | – |" in page
    many = study_page.interval([-10, -10, 10])
    assert f"| `ours` | `one_positive` | – | {many} | +0.0 [+0.0, +0.0] | – | – |" in page
    one = study_page.interval([10, 20, 10])
    assert f"| `one_positive` | {one} | +0.0 [+0.0, +0.0] | – | – |" in page  # over random, which has no embedding
    assert "`ours_alpha`" not in page


def test_starts_of_three_lengths_or_more_are_shown_by_their_steps(tmp_path, experiment):
    assert "Against pretraining steps" not in experiment.keep()
    (tmp_path / "more").mkdir()
    shorter = Study(tmp_path / "more", APS | {"ours_100": [10.5, 12.5, 11.5]})
    study.keep(shorter.recipe, shorter.folder, shorter.kept)
    runs, known, probes = (common.read_rows(shorter.kept / f"{n}.csv") for n in ("runs", "pretrainings", "probe"))
    pretrainings = [*known, {"pretraining": "ours_100", "steps": "2"}]
    (section,) = study_page.lengths(runs, pretrainings, probes)
    assert [line for line in section.splitlines() if line.startswith("| ")][2:] == [
        "| 0 | `random-fair` | 31.0 ± 1.0 | 21.0 ± 1.0 | -19.0 ± 1.0 | 11.0 ± 1.0 | 22.0 ± 2.0 | 23.3 ± 5.8 | – |",
        "| 2 | `ours_100-fair` | 31.5 ± 1.0 | 21.5 ± 1.0 | -18.5 ± 1.0 | 11.5 ± 1.0 | 23.0 ± 2.0 | – | – |",
        "| 4 | `ours-fair` | 34.0 ± 1.0 | 24.0 ± 1.0 | -16.0 ± 1.0 | 14.0 ± 1.0 | 28.0 ± 2.0 | 33.3 ± 15.3 | – |",
    ]
    others = [{**row, "run": row["run"].replace("-fair", "-tenth")} for row in runs]
    (section,) = study_page.lengths([*runs, *others], pretrainings, probes)
    assert "| 2 | `ours_100-tenth` | 31.5 ± 1.0 |" in section
    assert study_page.lengths([row for row in runs if row["run"] != "random-fair"], pretrainings, probes) == []
    common.write_rows(shorter.kept / "pretrainings.csv", [{**known[0], **row} for row in pretrainings])
    page = study_page.chapter(shorter.kept)
    assert section.splitlines()[0] in page
    assert "| `ours_100-fair` | `ours-fair` |" in page


def test_studies_with_other_seeds_are_shown_together(tmp_path, experiment):
    experiment.keep()
    rows = [{**row, "seed": str(int(row["seed"]) + 3)} for row in common.read_rows(experiment.kept / "runs.csv")]
    more = tmp_path / "more"
    common.write_rows(more / "runs.csv", [row for row in rows if row["run"] in ("random-fair", "ours-fair")])
    probed = {"features": "all levels", "knn": 0.3, "linear": 0.5, "chance": 0.1, "seed": 3}
    common.write_rows(more / "probe.csv", [{"start": start, **probed} for start in ("ours", "one_positive")])
    assert study_page.together([experiment.kept, more]) == ""  # being written
    (more / "about.json").write_text('{"title": "More seeds"}')
    page = study_page.together([experiment.kept, more])
    gain = study_page.interval([3, 2, 4, 3, 2, 4])
    assert "both of *A study* and *More seeds*,\n" in page
    assert f"| `ours-fair` | `random-fair` | {' | '.join([gain] * 5)} |" in page
    assert "- `ours-fair` against `random-fair`: better (+3.0" in page
    assert "bn-fair" not in page
    assert "`one_positive`" not in page  # no detector of it in either
    more_rows = [{**row, "run": "one_positive-fair"} for row in rows if row["run"] == "random-fair"]
    common.write_rows(more / "runs.csv", [*common.read_rows(more / "runs.csv"), *more_rows])
    kept = common.read_rows(experiment.kept / "runs.csv")
    theirs = [{**row, "run": "one_positive-fair"} for row in kept if row["run"] == "random-fair"]
    common.write_rows(experiment.kept / "runs.csv", [*kept, *theirs])
    known = study_page.interval([-10, -10, 10, 0])
    assert f"| `ours-fair` | `one_positive-fair` | {gain} | {known} |" in study_page.together([experiment.kept, more])
    assert study_page.together([experiment.kept, tmp_path / "nothing"]) == ""
    with pytest.raises(ValueError, match="a seed in common"):
        study_page.together([experiment.kept, experiment.kept])


def test_in_short_says_better_worse_or_neither(tmp_path):
    nothing = [10.02, 12.02, 11.01]
    page = Study(tmp_path, APS | {"worse": [9.0, 11.1, 9.9], "unsure": [20.0, 1.0, 14.0], "same": nothing}).keep()
    short = page[page.index("### In short") : page.index("### Gains")]
    assert "- `ours-fair` against `random-fair`: better (+3.0" in short
    assert "- `worse-fair` against `random-fair`: worse (-1.0" in short
    assert "- `unsure-fair` against `random-fair`: no difference shown (+0.7" in short
    assert "- `same-fair` against `random-fair`: better (+0.0 [+0.0, +0.0])" in short  # by the exact bounds
    assert "`random-fair` against" not in short


def test_the_gain_is_over_random_initialisation_of_the_same_network(experiment):
    experiment.keep()
    rows = common.read_rows(experiment.kept / "runs.csv")
    assert {row["run"]: row["base"] for row in rows} == {
        "random-fair": "", "ours-fair": "random-fair", "bn-fair": "random_bn-fair", "random_bn-fair": "",
    }  # fmt: skip
    assert study_page.differences(rows, "bn-fair", "bbox", "AP", "easy") == [0, 1, 3]


def test_what_rounds_to_zero_has_no_minus():
    assert study_page.interval([-0.04, -0.03, -0.05]) == "+0.0 [-0.1, +0.0]"


def test_what_failed_is_named_and_the_others_are_paired_by_seed(experiment):
    experiment.fail("ours-fair-seed1", "loss is not finite")
    page = experiment.keep()
    rows = common.read_rows(experiment.kept / "runs.csv")
    assert study_page.differences(rows, "ours-fair", "bbox", "AP", "easy") == [3, 4]
    assert "- ours-fair-seed1: loss is not finite\n" in page
    assert "| **ours-fair** | 2 |" in page


def test_what_could_not_run_without_a_failed_pretraining_is_named_too(experiment):
    experiment.fail("pretrain/ours-seed2", "killed")
    for name in ("ours-fair-seed2", "bn-fair-seed2"):
        for file in experiment.job(name).folder.iterdir():
            file.unlink()
    page = experiment.keep()
    assert "- pretrain/ours-seed2: killed\n" in page
    assert "- ours-fair-seed2: not run without pretrain/ours-seed2\n" in page
    assert "| **bn-fair** | 2 |" in page
    assert "| ours | 4 | 2 |" in page


def test_an_unfinished_study_is_refused(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study_page, "RESULTS", tmp_path / "results")
    assert study.main([]) == 2
    assert "no results are stored yet" in capsys.readouterr().err
    assert study.main(["--from", str(experiment.folder)]) == 2
    assert "give both or neither" in capsys.readouterr().err
    command = ["--recipe", str(experiment.recipe), "--from", str(experiment.folder)]
    job = experiment.job("ours-fair-seed1")
    job.record.write_text("{")
    assert study.main(command) == 2
    assert "not the record of a job" in capsys.readouterr().err
    job.write()
    (job.folder / "evaluation.json").unlink()
    assert study.main(command) == 2
    assert "ours-fair-seed1 is not finished" in capsys.readouterr().err
    for file in job.folder.iterdir():
        file.unlink()
    assert study.main(command) == 2
    assert "ours-fair-seed1 is not finished" in capsys.readouterr().err
    assert study.main(["--recipe", str(experiment.recipe), "--from", str(tmp_path / "nothing")]) == 2
    assert "is not finished" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_folder_made_by_another_recipe_is_refused(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study_page, "RESULTS", tmp_path / "results")
    experiment.recipe.write_text(experiment.recipe.read_text().replace("demo_r18", "mask_rcnn_r101"))
    assert study.main(["--recipe", str(experiment.recipe), "--from", str(experiment.folder)]) == 2
    assert "was made with" in capsys.readouterr().err


def test_the_page_is_that_of_the_result_files():
    assert study_page.kept()
    assert study_page.PAGE.read_text() == study_page.render_study(), "run python -m benchmarks.study"


@pytest.mark.parametrize("freedom", sorted(study_page.T_95))
def test_quantiles_of_students_t(freedom):
    """The density integrates to 95 % between the quantiles."""
    x = np.linspace(-study_page.T_95[freedom], study_page.T_95[freedom], 200_001)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    area = ((density[1:] + density[:-1]) / 2 * np.diff(x)).sum()
    assert area == pytest.approx(0.95, abs=1e-4)  # they have three digits
