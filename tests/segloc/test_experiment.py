import csv
import importlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from segloc import experiment, probe, report
from segloc.common.errors import InputError
from segloc.common.locks import locked
from segloc.common.stops import SIGNALS, Stopped
from segloc.detection.coco_eval import METRICS
from segloc.experiments import devices, jobs, run
from segloc.experiments.commands import Commands
from segloc.experiments.devices import Devices
from segloc.experiments.schedule import run_cells
from segloc.settings.experiments import Experiment
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load, to_yaml
from segloc.training import checkpoint
from tests.imports import ROOT
from tests.segloc.settings.recipes import DEMO
from tests.segloc.toy_coco import write_pidray

PRETRAIN = ROOT / "detectron_configs" / "pretrain" / "demo_r18.yaml"
TINY_PRETRAIN = ["optim.steps=2", "optim.batch=2", "optim.micro_batch=2", "queue.size=4", "data.image_size=32"]
TINY_FINETUNE = ["data.image_size=64", "train.iterations=2", "optim.batch=2", "model.engine=torchvision"]


@pytest.fixture(scope="module")
def pidray(tmp_path_factory):
    return write_pidray(tmp_path_factory.mktemp("pidray"))


@pytest.fixture
def grid(pidray, shards):
    """A recipe with random weights and two starts from one pretraining, one of them with batch norm inserted."""
    return {
        "title": "A grid",
        "data": str(pidray),
        "seeds": [0, 1],
        "pretrainings": {"keys": {"shards": str(shards), "config": str(PRETRAIN), "overrides": [*TINY_PRETRAIN]}},
        "starts": {
            "random": {"weights": "random"},
            "segloc": {"pretraining": "keys"},
            "bn": {"pretraining": "keys", "insert_bn": True, "overrides": ["model.backbone.norm=bn"]},
        },
        "protocols": {"fair": {"config": str(DEMO), "overrides": [*TINY_FINETUNE]}},
    }


@pytest.fixture
def probed(grid, shards):
    """The grid with probing."""
    return grid | {"probe": {"shards": str(shards), "config": str(PRETRAIN), "train": 20, "test": 10, "image_size": 48}}


def write(tmp_path, content):
    path = tmp_path / "grid.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def options(arguments):
    """Return the options of a command line by name; other arguments are under ''."""
    found, rest = {}, list(arguments)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and word != "--insert-bn":
            found[word] = rest.pop(0)
        else:
            found.setdefault("", []).append(word)
    return found


class Fake:
    """Replaces the commands: writes their files, or fails."""

    def __init__(self):
        self.ran = []
        self.fails = []
        self.flawed = []  # commands that write their output, but skipped too many inputs

    def __call__(self, step, log, descriptors=(), devices=()):
        module, *rest = step.arguments
        given = options(rest)
        self.ran.append((module, Path(given["--out"])))
        log.write_text(f"$ {step}\n")
        if any(re.search(pattern, str(step)) for pattern in self.fails):
            log.write_text(log.read_text() + "working\rit broke\n")
            return 3
        if module == "segloc.report":
            return report.main(rest)
        out = Path(given["--out"])
        if module == "segloc.pretrain":
            about = {"kind": "pretrain", "steps": 2, "chance_loss": 1.0, "chance_class_accuracy": 0.5, "shards": "s"}
            self.describe(out, about, yaml.safe_dump({"seed": int(given[""][-1].removeprefix("seed="))}))
            checkpoint.save(out / "backbone.pth", {"kind": "backbone"})
        elif module == "segloc.export":
            assert Path(given["--weights"], "backbone.pth").exists()
            checkpoint.save(out, {"kind": "backbone"})
        elif module == "segloc.finetune":
            assert given["--weights"] == "random" or Path(given["--weights"]).is_file()
            config = load(FinetuneConfig, given["--config"], given[""])
            self.describe(out, {"kind": "finetune", "weights": given["--weights"], "data_digest": "d"}, to_yaml(config))
            checkpoint.save(out / "model.pth", {"kind": "detector"})
        elif module == "segloc.probe":
            assert given["--weights"] == "random" or Path(given["--weights"]).is_file()
            accuracy = {"all levels": {"size": 2, "knn": 0.5 + 0.1 * int(out.parent.name[-1]), "linear": 0.25}}
            views = {"views": 20}
            result = {"iteration": 0, "shards": "s", "train": views, "test": views, "chance": 0.2, "accuracy": accuracy}
            out.write_text(json.dumps(result))
        else:
            assert (Path(given["--weights"]) / "model.pth").exists()
            seed = int(out.parent.name[-1])
            part = {"images": 3, "bbox": dict.fromkeys(METRICS, 10.0 + seed)}
            result = {"engine": "torchvision (stand-in)", "mean": part, "subsets": {"easy": part}}
            out.write_text(json.dumps(result))
        if any(re.search(pattern, str(step)) for pattern in self.flawed):
            log.write_text("more than --max-skipped\n")
            return 1
        return 0

    def describe(self, folder, about, config):
        common = {"engine": "e", "device": "cpu", "git_revision": "r", "command": "c"}
        (folder / "run.json").write_text(json.dumps(common | about))
        (folder / "config.yaml").write_text(config)


def replace_commands(monkeypatch, function):
    monkeypatch.setattr(Commands, "execute", lambda self, *args: function(*args))


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    replace_commands(monkeypatch, fake)
    return fake


def test_the_whole_grid_runs_once_and_ends_in_the_report(grid, tmp_path, fake, capsys):
    path, out = write(tmp_path, grid), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out)]) == 0
    counts = {module: sum(m == module for m, _ in fake.ran) for module, _ in fake.ran}
    # Both starts use the same two pretrainings, one per seed.
    assert counts == {
        "segloc.pretrain": 2, "segloc.export": 2, "segloc.finetune": 6, "segloc.evaluate": 6, "segloc.report": 1,
    }  # fmt: skip
    table = (out / "table.md").read_text()
    assert [name in table for name in ("**random-fair**", "**segloc-fair**", "**bn-fair**")] == [True] * 3
    assert table.count("10.5 ± 0.7") == 3 * 2 * len(METRICS)
    assert "torchvision (stand-in); 2 seeds" in table
    assert "A grid" in (out / "report.html").read_text()
    assert (out / "table.csv").read_text().startswith("name,")
    capsys.readouterr()
    fake.ran.clear()
    assert experiment.main([str(path), "--out", str(out)]) == 0
    assert [module for module, _ in fake.ran] == ["segloc.report"]


def test_a_job_that_skipped_too_much_is_used_but_told_until_the_share_is_raised(grid, tmp_path, fake, capsys):
    path, out = write(tmp_path, grid | {"seeds": [0]}), tmp_path / "out"
    fake.flawed = ["segloc.pretrain", "segloc.evaluate.*random-fair-seed0"]
    for again in (False, True):
        fake.ran.clear()
        assert experiment.main([str(path), "--out", str(out)]) == 1
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
        assert [line.split(":")[1].strip() for line in told] == ["random-fair-seed0", "pretrain/keys-seed0"]
        assert all("exit code 1: more than --max-skipped" in line for line in told)
        assert [module for module, _ in fake.ran] == (
            ["segloc.report"] if again else [module for module, _ in fake.ran]
        )
        assert all((out / f"{name}-fair-seed0" / "evaluation.json").is_file() for name in ("random", "segloc", "bn"))
    fake.flawed = []
    fake.ran.clear()
    assert experiment.main([str(path), "--out", str(out), "--max-skipped", "0.5"]) == 0
    redone = ["segloc.finetune", "segloc.evaluate", "segloc.pretrain", "segloc.report"]
    assert [module for module, _ in fake.ran] == redone
    assert not any(line.startswith("failed: ") for line in capsys.readouterr().err.splitlines())


def test_every_command_that_may_skip_inputs_gets_the_share(grid, tmp_path, fake, capsys):
    where = [str(write(tmp_path, grid)), "--out", str(tmp_path / "out"), "--list"]
    assert experiment.main([*where, "--max-skipped", "0.5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "-m segloc." in line]
    assert {line.split("-m ")[1].split()[0] for line in lines} >= {
        "segloc.export",
        "segloc.pretrain",
        "segloc.finetune",
    }
    assert all("--max-skipped 0.5" in line for line in lines)


def test_processes_of_pretrainings_and_protocols_reach_their_commands(grid, tmp_path, capsys):
    grid["pretrainings"]["keys"]["processes"] = 2
    grid["pretrainings"]["keys"]["overrides"] += ["optim.batch=4"]  # two pairs each, for batch norm
    grid["protocols"]["fair"]["processes"] = 2
    assert experiment.main([str(write(tmp_path, grid)), "--out", str(tmp_path / "out"), "--list"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "-m segloc." in line]
    given = {(line.split()[2], options(line.split()[3:]).get("--processes")) for line in lines}
    assert given == {
        ("segloc.pretrain", "2"), ("segloc.export", None), ("segloc.finetune", "2"), ("segloc.evaluate", "2"),
    }  # fmt: skip


def test_jobs_run_on_the_devices_of_the_option(grid, tmp_path, fake, monkeypatch):
    seen, lock = [], threading.Lock()

    def seeing(step, log, descriptors=(), devices=()):
        with lock:
            seen.append((step.name, devices))
            return fake(step, log)

    replace_commands(monkeypatch, seeing)
    monkeypatch.setattr(devices, "LOCKS", tmp_path / "locks")
    grid["protocols"]["fair"]["processes"] = 2
    assert experiment.main([str(write(tmp_path, grid)), "--out", str(tmp_path / "out"), "--devices", "3,4"]) == 0
    assert {names for name, names in seen if name in ("finetune", "evaluate")} == {("3", "4")}
    assert {len(names) for name, names in seen if name == "pretrain"} == {1}
    arguments = [str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "other"), "--devices", "3"]
    assert experiment.main(arguments) == 2
    assert not (tmp_path / "other").exists()


def test_list_shows_states_and_commands_and_runs_nothing(grid, tmp_path, fake, capsys):
    path, out = write(tmp_path, grid), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not fake.ran
    assert not out.exists()
    assert sum(line.startswith("waiting") for line in lines) == 6 + 4
    command = next(line for line in lines if "segloc.finetune" in line and "segloc-fair-seed1" in line).strip()
    assert command.startswith(f"python -m segloc.finetune --weights {out}/pretrain/keys-seed1/backbone.pth --config ")
    assert command.endswith("train.seed=1")
    fake.fails = ["segloc.evaluate.*random-fair-seed0"]
    assert experiment.main([str(path), "--out", str(out), "--cell", "random-fair-seed0"]) == 1
    assert experiment.main([str(path), "--out", str(out), "--cell", "segloc-fair-seed1"]) == 0
    assert not (out / "report.html").exists()
    capsys.readouterr()
    assert experiment.main([str(path), "--out", str(out), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 of 10 jobs are done" in lines
    assert any(line.startswith("no estimate for insert_bn of pretraining keys, 2 to run") for line in lines)
    states = dict(line.split()[::-1] for line in lines if re.fullmatch(r"\w+ +\S+", line))
    assert states["random-fair-seed0"] == "failed"
    assert states["segloc-fair-seed1"] == states["pretrain/keys-seed1"] == "finished"
    assert states["bn-fair-seed1"] == states["pretrain/keys-seed0"] == "waiting"


def test_a_pretraining_can_be_run_alone(grid, tmp_path, fake, capsys):
    path, out = write(tmp_path, grid), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out), "--cell", "pretrain-keys-seed1"]) == 0
    assert fake.ran == [("segloc.pretrain", out / "pretrain" / "keys-seed1")]
    assert experiment.main([str(path), "--out", str(out), "--cell", "pretrain-key-seed1"]) == 2
    assert "did you mean 'pretrain-keys-seed1'?" in capsys.readouterr().err


def test_a_failed_cell_does_not_stop_the_others_and_is_tried_again(grid, tmp_path, fake, capsys):
    path, out = write(tmp_path, grid), tmp_path / "out"
    fake.fails = ["segloc.pretrain.*keys-seed0", "segloc.finetune.*random-fair-seed1"]
    assert experiment.main([str(path), "--out", str(out)]) == 1
    failures = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert [line.split(":")[1].strip() for line in failures] == [
        "pretrain/keys-seed0", "segloc-fair-seed0", "bn-fair-seed0", "random-fair-seed1",
    ]  # fmt: skip
    assert "exit code 3" in failures[0]
    assert "it broke" in failures[0]
    assert str(out / "pretrain" / "keys-seed0" / "pretrain.log") in failures[0]
    assert "**segloc-fair-seed1**" in (out / "table.md").read_text()
    fake.fails, fake.ran = [], []
    assert experiment.main([str(path), "--out", str(out)]) == 0
    assert {out.name for module, out in fake.ran if module == "segloc.finetune"} == {
        "segloc-fair-seed0", "bn-fair-seed0", "random-fair-seed1",
    }  # fmt: skip


def test_a_command_that_leaves_no_file_has_failed(grid, tmp_path, fake, capsys, monkeypatch):
    replace_commands(monkeypatch, lambda step, log, *others: log.write_text("stopped early\n") * 0)
    path = write(tmp_path, grid)
    assert experiment.main([str(path), "--out", str(tmp_path / "out"), "--cell", "random-fair-seed0"]) == 1
    assert "exit code 0 and no model.pth: stopped early" in capsys.readouterr().err


def test_a_protocol_can_be_for_some_starts_only(grid, tmp_path, fake):
    grid["protocols"]["other"] = {**grid["protocols"]["fair"], "starts": ["segloc"]}
    cells = jobs.plan(load(Experiment, write(tmp_path, grid)), tmp_path)
    assert [cell.name for cell in cells if "other" in cell.name] == ["segloc-other-seed0", "segloc-other-seed1"]
    assert len(cells) == 6 + 2


def test_seeds_can_share_a_pretraining(grid, tmp_path, fake):
    grid["pretrainings"]["keys"]["seed"] = 7
    assert experiment.main([str(write(tmp_path, grid)), "--out", str(tmp_path / "out")]) == 0
    assert [out.name for module, out in fake.ran if module == "segloc.pretrain"] == ["keys-seed7"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "protocols.fair.overrides=[train.epochs=3.0]",
            "made with model.engine 'torchvision', the recipe now has 'auto' (and",
        ),
        (
            f"pretrainings.keys.overrides=[optim.steps=3, {', '.join(TINY_PRETRAIN[1:])}]",
            "pretrain/keys-seed0 was made with optim.steps 2,",
        ),
        ("pretrainings.keys.shards=elsewhere", "pretrain/keys-seed0 was made with shards "),
    ],
)
def test_a_changed_recipe_is_refused_for_finished_cells(grid, tmp_path, fake, capsys, override, message):
    path, out = write(tmp_path, grid), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out), "--cell", "segloc-fair-seed0"]) == 0
    capsys.readouterr()
    assert experiment.main([str(path), "--out", str(out), override]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert experiment.main([str(path), "--out", str(out), "--list", override]) == 0
    assert "changed   segloc-fair-seed0" in capsys.readouterr().out


def test_cells_of_a_pretraining_that_was_changed_and_repeated_are_refused(grid, tmp_path, fake, capsys):
    path, out = write(tmp_path, grid), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out), "--cell", "segloc-fair-seed0"]) == 0
    for file in (out / "pretrain" / "keys-seed0").iterdir():
        file.unlink()
    grid["pretrainings"]["keys"]["overrides"] += ["optim.ema=0.5"]
    assert experiment.main([str(write(tmp_path, grid)), "--out", str(out)]) == 2
    assert (
        "segloc-fair-seed0 was made with pretraining.optim.ema 0.9, the recipe now has 0.5" in capsys.readouterr().err
    )


def test_a_pretraining_may_be_removed_once_its_cells_are_finished(grid, tmp_path, fake):
    path, out = write(tmp_path, grid), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out)]) == 0
    shutil.rmtree(out / "pretrain")
    assert experiment.main([str(path), "--out", str(out)]) == 0


def test_more_seeds_and_starts_only_add_cells(grid, tmp_path, fake):
    out = tmp_path / "out"
    assert experiment.main([str(write(tmp_path, grid)), "--out", str(out)]) == 0
    fake.ran.clear()
    grid["starts"]["again"] = {"weights": "random"}
    assert experiment.main([str(write(tmp_path, grid)), "--out", str(out), "seeds=[0, 1, 2]"]) == 0
    assert {o.name for module, o in fake.ran if module == "segloc.finetune"} == {
        *(f"again-fair-seed{seed}" for seed in range(3)),
        *(f"{start}-fair-seed2" for start in ("random", "segloc", "bn")),
    }


def test_folders_that_no_experiment_made_are_refused(grid, tmp_path, fake, capsys):
    out = tmp_path / "out"
    (out / "random-fair-seed0").mkdir(parents=True)
    (out / "random-fair-seed0" / "evaluation.json").write_text("{}")
    assert experiment.main([str(write(tmp_path, grid)), "--out", str(out)]) == 2
    assert "evaluation.json has no record of an experiment" in capsys.readouterr().err


def test_the_folder_may_be_written_in_any_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ways = ("runs/x", "./runs/../runs/x/", str(tmp_path / "runs" / "x"))
    assert {str(run.experiment_folder(way)) for way in ways} == {"runs/x"}
    assert run.experiment_folder("/somewhere/x") == Path("/somewhere/x")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        run.experiment_folder("file")


BAD = [
    ("5", "not a mapping"),
    ("{", "not YAML"),
    ("start: {}", "unknown key 'start'; did you mean 'starts'?"),
    ("seeds: [0, 0]", "seeds: expected one or more different numbers"),
    ("seeds: []", "seeds: expected one or more"),
    ("seeds: [-1]", "seeds is -1, it must be from 0 to"),
    ("seeds: 3", "seeds: expected a list, got 3"),
    ("starts: {}", "starts is empty; add"),
    ("starts: {a: {weights: random}}", "protocols is empty and there is no probe"),
    ("starts: {}\nprobe: {shards: s}", "starts is empty; add"),
    ("starts: {a: {weights: w}}\nprobe: {}", "probe.shards is not set"),
    ("starts: {a: {weights: w}}\nprobe: 5", "probe: expected a mapping"),
    ("starts: {a: {weights: w}}\nprobe: {shard: s}", "unknown key 'probe.shard'; did you mean 'probe.shards'?"),
    ("starts: {a: {weights: w}}\nprobe: {shards: s, test: 0}", "probe.test is 0, it must be from 1 to 10000000"),
    (
        "starts: {ab: {weights: w}}\nprobe: {shards: s, starts: [a]}",
        "probe.starts: unknown key 'a'; did you mean 'ab'",
    ),
    ("starts: {a: {weights: w}}\nprobe: {shards: s, starts: [[a]]}", "probe.starts: expected str"),
    (
        "starts: {a: {weights: w}}\nprobe: {shards: s, overrides: [seed=3]}",
        "sets the seed; remove it, the experiment's seeds set it",
    ),
    (
        "starts: {a: {weights: w}}\nprotocols: {probe: {config: x}}",
        "protocols: the name 'probe' is reserved for the probe",
    ),
    ("starts: {a: random}", "starts.a: expected a mapping"),
    ("starts: {../a: {weights: random}}", "'../a' is not a valid folder name"),
    ("starts: {a: {weight: random}}", "unknown key 'starts.a.weight'; did you mean 'starts.a.weights'?"),
    ("starts: {a: {}}\nprotocols: {p: {config: x}}", "starts.a: set either weights"),
    ("starts: {a: {weights: w, insert_bn: true}}\nprotocols: {p: {config: x}}", "insert_bn needs a pretraining"),
    (
        "starts: {a: {pretraining: kes}}\npretrainings: {keys: {shards: s}}\nprotocols: {p: {config: x}}",
        "unknown key 'kes'; did you mean 'keys'?",
    ),
    ("starts: {ab: {weights: w}}\nprotocols: {p: {config: x, starts: [a]}}", "unknown key 'a'; did you mean 'ab'?"),
    ("starts: {a: {weights: w, overrides: [3]}}", "starts.a.overrides: expected str, got 3"),
    ("starts: {a: {weights: w, overrides: [train.seed=3]}}", "sets the seed; remove it, the experiment's seeds set it"),
    ("starts: {a: {weights: w}}\nprotocols: {p: {}}", "protocols.p.config is not set"),
    ("starts: {a: {weights: w}}\npretrainings: {p: {processes: 0, shards: s}}", "processes is 0, it must be"),
    (
        "starts: {a: {weights: w}}\npretrainings: {p: {seed: x, shards: s}}\nprotocols: {p: {config: x}}",
        "pretrainings.p.seed: expected int",
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_bad_recipe_gives_one_sentence(tmp_path, capsys, content, message):
    assert experiment.main([str(write(tmp_path, content)), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--cell", "random-fair-sed0"], "--cell: unknown key 'random-fair-sed0'; did you mean 'random-fair-seed0'?"),
        (["data=nowhere"], "nowhere: no such folder"),
        (["pretrainings.keys.shards=nowhere"], "nowhere"),
        (["starts.random.weights=nowhere.pth"], "nowhere.pth: no such checkpoint"),
        (["starts.radnom.weights=x"], "unknown key 'radnom'; did you mean 'random'?"),
        (["protocols.fair.config=nowhere.py"], "nowhere.py: no such recipe"),
        (
            ["protocols.fair.overrides=[train.epoch=3]"],
            "start random, protocol fair: override: unknown key 'train.epoch'; did you mean 'train.epochs'?",
        ),
        (["pretrainings.keys.overrides=[optim.step=3]"], "unknown key 'optim.step'; did you mean 'optim.steps'?"),
        (["seeds=[0"], "the value of 'seeds': not YAML"),
        (["--out", "grid.yaml"], "is a file, not a folder"),
    ],
)
def test_bad_settings_are_refused_before_work_starts(grid, tmp_path, fake, capsys, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    assert experiment.main([str(write(tmp_path, grid)), "--out", "out", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not fake.ran
    assert not (tmp_path / "out").exists()


def test_two_cells_of_one_name_are_refused(grid, tmp_path, capsys):
    grid["starts"]["random-fair"] = {"weights": "random"}
    grid["protocols"]["fair-fair"] = grid["protocols"]["fair"]
    assert experiment.main([str(write(tmp_path, grid)), "--out", str(tmp_path / "out")]) == 2
    assert "two cells have the name random-fair-fair-seed0" in capsys.readouterr().err


def test_probes_run_first_and_get_their_own_table(probed, tmp_path, fake, capsys):
    path, out = write(tmp_path, probed), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out)]) == 0
    cells = [out.parent.name for module, out in fake.ran if module in ("segloc.probe", "segloc.evaluate")]
    by_seed = [[f"{s}-{p}-seed{seed}" for p in ("probe", "fair") for s in probed["starts"]] for seed in (0, 1)]
    assert cells == [*by_seed[0], *by_seed[1]]
    made = [out / name for name in ("report.html", "table.md", "table.csv", "probe.md", "probe.csv")]
    assert capsys.readouterr().out.splitlines()[-5:] == list(map(str, made))
    # 50 and 60 per cent: mean 55, sample standard deviation 10 / sqrt 2.
    rows = [line for line in (out / "probe.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert rows == [f"| {start} | 0 | 2 | 55.0 ± 7.1 | 25.0 ± 0.0 | 20.0 |" for start in probed["starts"]]
    assert "probe" not in (out / "table.md").read_text()
    assert "-probe-" not in (out / "report.log").read_text()
    record = json.loads((out / "random-probe-seed1" / "probe.job.json").read_text())["settings"]
    assert (record["model.arch"], record["seed"], record["train"]) == ("resnet18", 1, 20)
    fake.ran.clear()
    assert experiment.main([str(path), "--out", str(out)]) == 0
    assert [module for module, _ in fake.ran] == ["segloc.report"]


def test_starts_may_be_probed_without_any_protocol(probed, tmp_path, fake, capsys):
    del probed["protocols"], probed["data"]
    probed["probe"] |= {"starts": ["bn", "random"], "overrides": ["model.sda_norm=gn"]}
    path, out = write(tmp_path, probed), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out), "--list"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    views = "--train 20 --test 10 --image-size 48"
    shards, folder = probed["probe"]["shards"], out / "random-probe-seed1"
    assert (
        f"python -m segloc.probe --weights random --shards {shards} --out {folder}/probe.json {views} "
        f"--config {PRETRAIN} model.sda_norm=gn seed=1"
    ) in lines
    # A checkpoint has its own network. Probing uses the same weights as fine-tuning.
    weights = out / "pretrain" / "keys-seed0" / "with_bn.pth"
    command = (
        f"python -m segloc.probe --weights {weights} --shards {shards} --out {out}/bn-probe-seed0/probe.json {views}"
    )
    assert command in lines
    assert experiment.main([str(path), "--out", str(out)]) == 0
    assert [module for module, _ in fake.ran].count("segloc.probe") == 4
    assert not {"segloc.finetune", "segloc.report"} & {module for module, _ in fake.ran}
    assert not (out / "report.html").exists()
    # In the order of the recipe's starts.
    assert re.findall(r"^\| (\w+) ", (out / "probe.md").read_text(), re.M)[1:] == ["random", "bn"]


def test_a_single_probe_can_be_run_and_a_failed_one_is_tried_again(probed, tmp_path, fake, capsys):
    path, out = write(tmp_path, probed), tmp_path / "out"
    fake.fails = ["segloc.probe.*segloc-probe-seed0"]
    assert experiment.main([str(path), "--out", str(out), "--cell", "segloc-probe-seed0"]) == 1
    assert "failed: segloc-probe-seed0: probe ended with exit code 3" in capsys.readouterr().err
    assert not (out / "probe.md").exists()
    fake.fails = []
    fake.ran.clear()
    assert experiment.main([str(path), "--out", str(out), "--cell", "segloc-probe-seed0"]) == 0
    assert [module for module, _ in fake.ran] == ["segloc.probe"]
    assert experiment.main([str(path), "--out", str(out), "probe.test=11"]) == 2
    assert "segloc-probe-seed0 was made with test 10, the recipe now has 11" in capsys.readouterr().err
    fake.fails = ["segloc.finetune", "segloc.probe.*random"]
    assert experiment.main([str(path), "--out", str(out)]) == 1
    assert "| segloc | 0 | 2 |" in (out / "probe.md").read_text()
    assert "| random" not in (out / "probe.md").read_text()
    assert not (out / "report.html").exists()


def test_weights_that_are_the_same_for_all_seeds_are_probed_once(probed, tmp_path):
    probed["pretrainings"]["shared"] = {**probed["pretrainings"]["keys"], "seed": 7}
    probed["starts"] |= {
        "given": {"weights": "some.pth"},
        "image": {"weights": "imagenet"},
        "shared": {"pretraining": "shared"},
    }
    probed["probe"] |= {"overrides": ["model.norm=bn"]}
    del probed["protocols"]
    cells = [cell.name for cell in jobs.plan(load(Experiment, write(tmp_path, probed)), tmp_path)]
    both = ["random-probe-seed", "segloc-probe-seed", "bn-probe-seed", "image-probe-seed"]
    assert sorted(cells) == sorted(
        [*(f"{name}{seed}" for name in both for seed in (0, 1)), "given-probe-seed0", "shared-probe-seed0"]
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probe.shards=nowhere"], "nowhere"),
        (["starts.random.weights=nowhere.pth", "protocols.fair.starts=[segloc]"], "nowhere.pth: no such checkpoint"),
        (
            ["starts.random.weights=imagenet", "protocols.fair.starts=[segloc]"],
            "has batch norm and needs model.norm=bn",
        ),
        (["probe.config=nowhere.yaml"], "start random, probe: nowhere.yaml: no such recipe"),
        (["probe.overrides=[model.arhc=resnet50]"], "start random, probe: override: unknown key 'model.arhc'"),
        (
            ["--cell", "random-prob-seed0"],
            "--cell: unknown key 'random-prob-seed0'; did you mean 'random-probe-seed0'?",
        ),
    ],
)
def test_a_bad_probe_is_refused_before_work_starts(probed, tmp_path, fake, capsys, overrides, message):
    assert experiment.main([str(write(tmp_path, probed)), "--out", str(tmp_path / "out"), *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not fake.ran


def test_a_damaged_probe_is_named_and_the_report_is_still_written(probed, tmp_path, fake, capsys):
    path, out = write(tmp_path, probed), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out)]) == 0
    (out / "report.html").unlink()
    (out / "bn-probe-seed0" / "probe.json").write_text("{")
    assert experiment.main([str(path), "--out", str(out)]) == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert f"{out / 'bn-probe-seed0' / 'probe.json'}: not a file of segloc.probe" in failed[0]
    assert (out / "report.html").is_file()


def job_of(grid, tmp_path, name):
    cells = jobs.plan(load(Experiment, write(tmp_path, grid)), tmp_path / "out")
    return {job.name: job for cell in cells for job in cell.chain}[name]


def test_jobs_of_another_process_come_last_and_are_waited_for(grid, tmp_path, fake, capsys):
    job = job_of(grid, tmp_path, "pretrain/keys-seed0")
    held, order = threading.Event(), []

    def other():
        with locked(job.lock, job.name, wait=False) as descriptor:
            assert descriptor is not None
            held.set()
            while not any(out.name == "random-fair-seed1" for _, out in fake.ran):
                time.sleep(0.01)
            order.append(len(fake.ran))

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    assert jobs.state(job) == "running"
    assert experiment.main([str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]) == 0
    thread.join()
    # The cells that need it ran last, once each.
    names = [out.name for module, out in fake.ran if module == "segloc.finetune"]
    assert names[-2:] == ["segloc-fair-seed0", "bn-fair-seed0"]
    assert len(names) == 6


def test_two_experiments_at_once_do_everything_once(grid, tmp_path, fake, monkeypatch):
    path = write(tmp_path, grid)

    def slow(step, log, *others):
        time.sleep(0.05)
        return fake(step, log)

    replace_commands(monkeypatch, slow)
    monkeypatch.setattr(run, "write_reports", lambda cells, out, title: [])
    arguments = (load(Experiment, path), tmp_path / "out")
    threads = [threading.Thread(target=run_cells, args=[jobs.plan(*arguments), Devices()]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake.ran) == len(set(fake.ran)) == 2 + 2 + 6 + 6


def test_a_failure_while_several_run_is_tried_again_only_by_the_next_command(grid, tmp_path, fake, monkeypatch):
    path = write(tmp_path, grid)
    fake.fails = ["segloc.finetune.*random-fair-seed0", "segloc.pretrain.*keys-seed1"]

    def slow(step, log, *others):
        time.sleep(0.1)
        return fake(step, log)

    replace_commands(monkeypatch, slow)
    cells = jobs.plan(load(Experiment, path), tmp_path / "out")
    failures = []
    for _ in range(2):
        fake.ran.clear()
        failures.clear()
        threads = [threading.Thread(target=lambda: failures.append(run_cells(cells, Devices()))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = [out.name for _, out in fake.ran]
        assert names.count("random-fair-seed0") == names.count("keys-seed1") == 1
        assert [len(of_one) for of_one in failures] == [4, 4]  # the two, and the two cells that need the pretraining
        assert sum("(in another process)" in line for of_one in failures for line in of_one) == 2


def test_initial_weights_that_do_not_fit_are_refused_before_work_starts(grid, tmp_path, fake, capsys):
    settings = {"arch": "resnet50", "norm": "gn", "sda_norm": "gn", "attention": True, "fpn_channels": 256}
    checkpoint.save(tmp_path / "b.pth", {"kind": "backbone", **settings, "backbone": {}})
    grid["starts"]["other"] = {"weights": str(tmp_path / "b.pth")}
    path, out = write(tmp_path, grid), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out)]) == 2
    assert "b.pth: was pretrained with arch=resnet50, the recipe has resnet18" in capsys.readouterr().err
    assert not fake.ran
    grid["starts"]["other"]["overrides"] = ["train.unmatched=start_anew"]
    assert experiment.main([str(write(tmp_path, grid)), "--out", str(out), "--cell", "other-fair-seed0"]) == 0
    assert fake.ran


def test_a_lock_is_held_until_its_command_ends(grid, tmp_path):
    """After SIGKILL of the experiment, its command continues and holds the lock; the lock is free when it ends."""
    job = job_of(grid, tmp_path, "random-fair-seed0")
    go = tmp_path / "go"
    sleep = f"import time, pathlib\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.02)"
    code = f"""
import subprocess, sys
sys.path[:0] = {[str(ROOT)]!r}
from pathlib import Path
from segloc.common.locks import locked
with locked(Path({str(job.lock)!r}), "j", wait=False) as descriptor:
    child = subprocess.Popen([sys.executable, "-c", {sleep!r}], pass_fds=[descriptor])
    print(child.pid, flush=True)
    child.wait()
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline().strip().isdigit()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert jobs.state(job) == "running"
    go.touch()
    with locked(job.lock, job.name, wait=True) as descriptor:
        assert descriptor is not None
    assert jobs.state(job) == "waiting"


SLEEP = ("timeit", "-n1", "-r1", "import time; time.sleep(60)")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stop_is_passed_on_to_the_command(number, tmp_path):
    threading.Timer(1.0, os.kill, (os.getpid(), number)).start()
    began = time.monotonic()
    commands = Commands()
    with pytest.raises(Stopped) as caught, commands.stoppable():
        commands.execute(jobs.Step("sleep", SLEEP, tmp_path / "x"), tmp_path / "log")
    assert caught.value.number == number
    assert time.monotonic() - began < 30
    assert (tmp_path / "log").read_text().startswith("$ python -m timeit")


def test_a_stopped_step_is_not_a_failed_one(grid, tmp_path, monkeypatch, capsys):
    """A step that somebody stops ends the experiment alike; the same command goes on with it."""
    path, execute, made = write(tmp_path, grid), Commands.execute, []

    def stopped(self, step, log, *others):
        end = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)" if not made else "pass"
        made.append(step.name)
        return execute(self, jobs.Step(step.name, ("timeit", "-n1", "-r1", end), step.makes), log, *others)

    monkeypatch.setattr(Commands, "execute", stopped)
    arguments = [str(path), "--out", str(tmp_path / "out"), "--cell", "random-fair-seed0"]
    assert experiment.main(arguments) == 143
    assert capsys.readouterr().err.endswith("stopped by SIGTERM; run the same command again to continue\n")
    assert jobs.state(job_of(grid, tmp_path, "random-fair-seed0")) == "stopped"
    assert experiment.main(arguments) == 1  # it is tried again, and makes no file
    assert made == ["finetune", "finetune"]


@pytest.mark.parametrize("name", ["ablations", "demo", "study_cpu", "study_cpu_parts", "study_gpu", "table1"])
def test_the_recipes_can_be_planned(name, pidray, shards, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = ROOT / "detectron_configs" / "experiment" / f"{name}.yaml"
    cells = jobs.plan(load(Experiment, path, [f"data={pidray}"]), Path("out"))
    recipe = yaml.safe_load(path.read_text())
    grids = [protocol.get("starts", recipe["starts"]) for protocol in recipe["protocols"].values()]
    if "probe" in recipe:
        grids.append(recipe["probe"].get("starts", recipe["starts"]))
    assert len(cells) == sum(map(len, grids)) * len(recipe["seeds"])


@pytest.mark.slow
def test_two_real_cells(grid, tmp_path, capsys):
    del grid["starts"]["bn"]
    grid["seeds"] = [3]
    path, out = write(tmp_path, grid), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out)]) == 0, capsys.readouterr().err
    table = (out / "table.md").read_text()
    assert "**random-fair-seed3**" in table
    assert "**segloc-fair-seed3**" in table
    assert "torchvision (stand-in)" in table
    commands = json.loads((out / "segloc-fair-seed3" / "finetune.job.json").read_text())["commands"]
    assert (
        json.loads((out / "segloc-fair-seed3" / "run.json").read_text())["command"].split()[1:]
        == commands[0].split()[3:]
    )
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*.pth")}
    assert experiment.main([str(path), "--out", str(out)]) == 0
    assert times == {file: file.stat().st_mtime_ns for file in out.rglob("*.pth")}


def test_real_probes(probed, tmp_path, capsys, monkeypatch):
    """Probe two random networks and one pretraining for all seeds, with batch norm inserted."""

    def in_this_process(step, log, *others):
        log.touch()
        return importlib.import_module(step.arguments[0]).main(list(step.arguments[1:]))

    replace_commands(monkeypatch, in_this_process)
    del probed["protocols"]
    probed["pretrainings"]["keys"]["seed"] = 0
    probed["probe"]["starts"] = ["bn", "random"]
    path, out = write(tmp_path, probed), tmp_path / "out"
    assert experiment.main([str(path), "--out", str(out)]) == 0, capsys.readouterr().err
    names = ["random-probe-seed0", "random-probe-seed1", "bn-probe-seed0"]
    found = {name: json.loads((out / name / "probe.json").read_text()) for name in names}
    alone = tmp_path / "alone.json"
    views = ["--train", "20", "--test", "10", "--image-size", "48"]
    what = ["--weights", "random", "--shards", probed["probe"]["shards"], "--config", str(PRETRAIN), "seed=1"]
    assert probe.main([*what, *views, "--out", str(alone)]) == 0
    assert json.loads(alone.read_text()) == found["random-probe-seed1"]
    rows = list(csv.DictReader((out / "probe.csv").open()))
    kinds = [len(report["accuracy"]) for report in found.values()]
    assert [(row["start"], row["seed"]) for row in rows] == [
        *[("random", "0")] * kinds[0], *[("random", "1")] * kinds[1], *[("bn", "0")] * kinds[2],
    ]  # fmt: skip
    assert {row["iteration"] for row in rows if row["start"] == "bn"} == {"2"}
    linear = [100 * found[f"random-probe-seed{seed}"]["accuracy"]["embedding"]["linear"] for seed in (0, 1)]
    line = next(line for line in (out / "probe.md").read_text().splitlines() if line.startswith("| random |"))
    assert f"| {statistics.mean(linear):.1f} ± {statistics.stdev(linear):.1f} |" in line
    times = {file: file.stat().st_mtime_ns for file in out.rglob("probe.json")}
    assert experiment.main([str(path), "--out", str(out)]) == 0
    assert times == {file: file.stat().st_mtime_ns for file in out.rglob("probe.json")}
