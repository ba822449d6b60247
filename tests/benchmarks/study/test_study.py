"""The study's page: what is kept of an experiment, and the figures made of it, against hand computation."""

import json
import math
import os
import statistics

import pytest
import yaml

from benchmarks import common
from benchmarks.study import __main__ as study
from benchmarks.study import study_page
from segloc.common.errors import InputError
from segloc.detection.coco_eval import METRICS
from segloc.experiments.jobs import plan, with_needs
from segloc.settings.experiments import Experiment
from segloc.settings.loader import load

APS = {"random": [10.0, 12.0, 11.0], "ours": [13.0, 14.0, 15.0], "bn": [1.0, 2.0, 4.0], "random_bn": [1.0, 1.0, 1.0]}
ABOVE = {"easy": 20, "hard": 10, "hidden": -30}  # of the box AP in the mean of the test sets
ANEW = ["train.unmatched=start_anew"]  # its weights are made up
BN = ["model.backbone.norm=bn"]
EASY = ("ours-fair", "0", "easy", "bbox")
LENGTHS = ("random", "ours_100", "ours")
COMPARED = {"ours": "one_positive", "ours_backbone": "ours", "ours_100": "ours"}
PROBED = {"random": (0.2, 0.2, 0.3), "one_positive": (0.3, 0.4, 0.4), "ours": (0.2, 0.3, 0.5)}


class Study:
    """A made-up experiment: its recipe and the files a finished one leaves, as far as the study reads them."""

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
            "protocols": {"fair": {"config": "detectron_configs/finetune/demo_r18.yaml", "overrides": ANEW}},
            "compare": {
                "pairs": {a: b for a, b in COMPARED.items() if a in aps and b in aps},
                "lengths": [name for name in ("ours_100", "ours") if "ours_100" in aps],
            },
        }
        self.recipe, self.folder, self.kept = folder / "toy.yaml", folder / "experiment", folder / "kept"
        self.recipe.write_text(yaml.safe_dump(content, sort_keys=False))
        for job in self.jobs():
            job.folder.mkdir(parents=True, exist_ok=True)
            job.write({})
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
        gauges = [{"iteration": i, "loss": 20 + i, "class_accuracy": accuracy, "top1": 0.5} for i in range(8)]
        (job.folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in gauges))

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
        job.write({}, failure)


@pytest.fixture
def experiment(tmp_path):
    return Study(tmp_path, APS)


def test_the_page_is_made_of_what_the_experiment_measured(experiment):
    page = experiment.keep()
    half = 4.303 * statistics.stdev([3, 2, 4]) / math.sqrt(3)
    gain = f"+3.0 [{3 - half:+.1f}, {3 + half:+.1f}]"
    assert page.startswith("## A study\n")
    assert f"| `ours-fair` | `random-fair` | 3 | better | {' | '.join([gain] * 5)} |" in page
    assert "\n| `random" not in page  # random initialisation gains nothing over itself
    assert "No run failed." in page
    runs, pretrainings = (common.read_rows(experiment.kept / f"{name}.csv") for name in ("runs", "pretrainings"))
    (easy,) = [row for row in runs if (row["run"], row["seed"], row["test_set"], row["task"]) == EASY]
    assert (easy["AP"], easy["AR100"], easy["images"]) == ("33", "46", "120")
    shown = [[row[key] for key in ("steps", "loss", "top1", "accuracy")] for row in pretrainings]
    assert shown == [["4", "26.5", "0.5", f"0.{n}"] for n in (2, 3, 4)]  # the last two of eight lines
    assert (experiment.kept / "probe.md").read_text() == "| start |\n| --- |\n| ours |\n"


def test_the_time_of_all_jobs_is_added_up(experiment):
    for job in experiment.jobs():
        os.utime(job.record, (1000, 1000))
        os.utime(job.steps[-1].makes, (1120, 1120))
    assert f"All jobs together took {2 * len(experiment.jobs())} minutes" in experiment.keep()


def test_the_commands_are_those_of_the_first_seed_in_the_order_they_run(experiment):
    experiment.keep()
    lines = [row["command"] for row in common.read_rows(experiment.kept / "commands.csv")]
    ran = [line.split()[2].removeprefix("segloc.") for line in lines]
    assert ran[:5] == ["finetune", "evaluate", "pretrain", "finetune", "evaluate"]
    assert not any("seed=1" in line or "-seed1" in line for line in lines)
    assert ran.count("pretrain") == 1  # two initialisations share it


def test_initialisations_that_differ_in_one_setting_are_compared(tmp_path):
    aps = APS | {"ours_backbone": [12.0, 12.5, 13.0], "one_positive": [13.0, 13.0, 13.0]}
    page = Study(tmp_path, aps).keep()
    less = study_page.interval([-1, -1.5, -2])
    assert f"| `ours_backbone-fair` | `ours-fair` | {less} | – | – | – | – |" in page
    gain, probed = study_page.interval([0, 1, 2]), study_page.interval([-10, -10, 10])
    assert f"| `ours-fair` | `one_positive-fair` | {gain} | {probed} | +0.0 [+0.0, +0.0] | – | – |" in page


def test_a_comparison_of_what_the_recipe_does_not_have_is_refused(experiment):
    content = yaml.safe_load(experiment.recipe.read_text())
    for compare in ({"pairs": {"ours": "theirs"}}, {"lengths": ["theirs"]}, {"pairs": {"theirs": "ours"}}):
        experiment.recipe.write_text(yaml.safe_dump(content | {"compare": compare}))
        with pytest.raises(InputError, match="theirs"):
            load(Experiment, experiment.recipe)


def test_starts_of_three_lengths_or_more_are_shown_by_their_steps(tmp_path, experiment):
    assert "Against the number of pretraining steps" not in experiment.keep()
    (tmp_path / "more").mkdir()
    shorter = Study(tmp_path / "more", APS | {"ours_100": [10.5, 12.5, 11.5]})
    study.keep(shorter.recipe, shorter.folder, shorter.kept)
    runs, known, probes = (common.read_rows(shorter.kept / f"{n}.csv") for n in ("runs", "pretrainings", "probe"))
    pretrainings = [*known, {"pretraining": "ours_100", "steps": "2"}]
    (section,) = study_page.lengths(runs, pretrainings, probes, LENGTHS)
    assert [line for line in section.splitlines() if line.startswith("| ")][2:] == [
        "| 0 | `random-fair` | 31.0 ± 1.0 | 21.0 ± 1.0 | -19.0 ± 1.0 | 11.0 ± 1.0 | 22.0 ± 2.0 | 23.3 ± 5.8 | – |",
        "| 2 | `ours_100-fair` | 31.5 ± 1.0 | 21.5 ± 1.0 | -18.5 ± 1.0 | 11.5 ± 1.0 | 23.0 ± 2.0 | – | – |",
        "| 4 | `ours-fair` | 34.0 ± 1.0 | 24.0 ± 1.0 | -16.0 ± 1.0 | 14.0 ± 1.0 | 28.0 ± 2.0 | 33.3 ± 15.3 | – |",
    ]
    others = [{**row, "run": row["run"].replace("-fair", "-tenth")} for row in runs]
    (section,) = study_page.lengths([*runs, *others], pretrainings, probes, LENGTHS)
    assert "| 2 | `ours_100-tenth` | 31.5 ± 1.0 |" in section
    assert study_page.lengths([r for r in runs if r["run"] != "random-fair"], pretrainings, probes, LENGTHS) == []
    common.write_rows(shorter.kept / "pretrainings.csv", [{**known[0], **row} for row in pretrainings])
    page = study_page.chapter(shorter.kept)
    assert section.splitlines()[0] in page
    assert "| `ours_100-fair` | `ours-fair` |" in page


def test_studies_with_other_seeds_are_shown_together(tmp_path, monkeypatch):
    aps = APS | {"one_positive": APS["random"]}
    (tmp_path / "results").mkdir()
    one, more = Study(tmp_path, aps), tmp_path / "results" / "more"
    one.kept = tmp_path / "results" / "one"
    one.keep()
    about = json.loads((one.kept / "about.json").read_text())
    about["compare"]["pool"] = "toy"
    for folder, title in ((one.kept, "A study"), (more, "More seeds")):
        for name in ("runs", "probe", "pretrainings"):
            rows = common.read_rows(one.kept / f"{name}.csv")
            if folder is more:
                rows = [{**row, "seed": str(int(row["seed"]) + 3)} for row in rows if "bn-fair" not in row.values()]
            common.write_rows(folder / f"{name}.csv", rows)
        (folder / "about.json").write_text(json.dumps(about | {"title": title}))
    page = study_page.together([one.kept, more])
    gain, probed = study_page.interval([3, 2, 4, 3, 2, 4]), study_page.interval([-10, -10, 10] * 2)
    assert "*A study* and *More seeds*" in page
    assert "6 seeds" in page
    assert f"| `ours-fair` | `random-fair` | 6 | better | {' | '.join([gain] * 5)} |" in page
    assert f"| `ours-fair` | `one_positive-fair` | {gain} | {probed} |" in page
    assert "bn-fair" not in page
    assert study_page.together([one.kept]) == ""
    with pytest.raises(ValueError, match="a seed in common"):
        study_page.together([one.kept, one.kept])
    monkeypatch.setattr(study_page, "RESULTS", tmp_path / "results")
    assert study_page.together([more, one.kept]) in study_page.render_study()
    about["compare"] |= {"pool": "", "superseded": True}
    (more / "about.json").write_text(json.dumps(about | {"title": "Replaced"}))
    page = study_page.render_study()
    assert "All seeds together" not in page
    assert page.index("## A study") < page.index("# Appendix") < page.index("## Replaced")


def test_an_interval_that_contains_0_is_inconclusive():
    assert study_page.verdict([3, 2, 4]) == "better"
    assert study_page.verdict([-1.0, -0.9, -1.1]) == "worse"
    assert study_page.verdict([10.0, -11.0, 3.0]) == "inconclusive"
    assert study_page.verdict([0.02, 0.02, 0.01]) == "better"  # by the exact bounds
    assert study_page.verdict([3]) == "one seed"


def test_the_gain_is_over_the_random_start_of_the_same_network(experiment):
    experiment.keep()
    rows = common.read_rows(experiment.kept / "runs.csv")
    assert {row["run"]: row["base"] for row in rows} == {
        "random-fair": "", "ours-fair": "random-fair", "bn-fair": "random_bn-fair", "random_bn-fair": "",
    }  # fmt: skip
    assert study_page.differences(rows, "bn-fair", "bbox", "AP", "easy") == [0, 1, 3]


def test_what_rounds_to_nothing_has_no_minus():
    assert study_page.interval([-0.04, -0.03, -0.05]) == "+0.0 [-0.1, +0.0]"


def test_what_failed_is_named_and_the_others_are_paired_by_seed(experiment):
    experiment.fail("ours-fair-seed1", "loss is not finite")
    page = experiment.keep()
    rows = common.read_rows(experiment.kept / "runs.csv")
    assert study_page.differences(rows, "ours-fair", "bbox", "AP", "easy") == [3, 4]
    assert "- ours-fair-seed1: loss is not finite\n" in page
    assert "| `ours-fair` | `random-fair` | 2 |" in page


def test_what_could_not_run_without_a_failed_pretraining_is_named_too(experiment):
    experiment.fail("pretrain/ours-seed2", "killed")
    for name in ("ours-fair-seed2", "bn-fair-seed2"):
        for file in experiment.job(name).folder.iterdir():
            file.unlink()
    page = experiment.keep()
    assert "- pretrain/ours-seed2: killed\n" in page
    assert "- ours-fair-seed2: not run without pretrain/ours-seed2\n" in page
    assert "| `bn-fair` | `random_bn-fair` | 2 |" in page
    assert len(common.read_rows(experiment.kept / "pretrainings.csv")) == 2


def test_an_unfinished_study_is_refused(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study_page, "RESULTS", tmp_path / "results")
    assert study.main([]) == 2
    assert "no results are kept yet" in capsys.readouterr().err
    assert study.main(["--from", str(experiment.folder)]) == 2
    assert "give both or neither" in capsys.readouterr().err
    command = ["--recipe", str(experiment.recipe), "--from", str(experiment.folder)]
    job = experiment.job("ours-fair-seed1")
    job.record.write_text("{")
    assert study.main(command) == 2
    assert "not the record of a job" in capsys.readouterr().err
    job.write({})
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


@pytest.mark.parametrize(("gains", "half"), [([3, 2, 4], 4.3027), ([1, 2, 4, 0], 3.1824), ([5, 9], 12.7062)])
def test_the_interval_is_students_t(gains, half):
    """Half-widths from printed tables of Student's t, in standard errors."""
    low, high = study_page._bounds(gains)
    assert (low + high) / 2 == pytest.approx(statistics.fmean(gains))
    assert (high - low) / 2 == pytest.approx(half * statistics.stdev(gains) / math.sqrt(len(gains)), rel=1e-4)
