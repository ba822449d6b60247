"""Fine-tuning and evaluation on several processes give what one process gives."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from segloc import evaluate, finetune
from segloc.common.errors import DivergedError, InputError
from segloc.detection import finetuning
from segloc.detection.trainer import FinetuneTrainer
from segloc.settings.finetuning import FinetuneConfig, OptimSettings
from segloc.settings.loader import load
from segloc.training import checkpoint
from segloc.training.processes import ALONE, launch
from segloc.training.run_folder import read_metrics, read_run, read_skips
from tests.imports import ROOT
from tests.segloc.detection.test_engines import ENGINES, need
from tests.segloc.settings.recipes import DEMO
from tests.segloc.test_finetune import SMALL
from tests.segloc.test_pretrain import ONE_THREAD
from tests.segloc.toy_coco import write_pidray

# Four scans per step: two processes take two each, one process takes them in two micro-batches.
FOUR = [
    *SMALL,
    "optim.batch=4",
    "optim.micro_batch=2",
    "model.heads.fc_dim=32",
    "model.heads.mask_dim=16",
    "model.backbone.fpn_channels=64",
    "train.log_every=1",
]
STEPS, STOPPED_AFTER = 11, 10


@pytest.fixture(scope="module")
def pidray(tmp_path_factory):
    return write_pidray(tmp_path_factory.mktemp("pidray"), train=9)


def arguments(data, out, *more, engine="torchvision"):
    where = ["--weights", "random", "--config", str(DEMO), "--data", str(data), "--out", str(out)]
    return [*where, f"model.engine={engine}", *FOUR, *more]


def config_of(data, *more, engine="torchvision"):
    return load(FinetuneConfig, DEMO, [f"model.engine={engine}", *FOUR, *more]).with_data(str(data))


def rows(out):
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in read_metrics(out)]


def stop_second(config, out, group):
    """Train, and send SIGTERM to the second process alone; note the iteration of each process when it ends."""
    step = FinetuneTrainer.run_step

    def interrupted(self):
        step(self)
        if group.rank == 1 and self.iter == STOPPED_AFTER - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneTrainer, "run_step", interrupted)
        return finetuning.train(config, "random", Path(out), 0.05, group)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_ten_steps_of_two_processes_equal_one_process_that_resumes_after_a_stop(engine, pidray, tmp_path):
    need(engine)
    steps = f"train.iterations={STEPS}"
    assert finetune.main(arguments(pidray, tmp_path / "one", steps, engine=engine)) == 0
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        launch(stop_second, 2, config_of(pidray, steps, engine=engine), str(tmp_path / "two"))
    assert checkpoint.load(tmp_path / "two" / checkpoint.LAST)["iteration"] == STOPPED_AFTER
    assert read_run(tmp_path / "two")["processes"] == 2
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(two) == STOPPED_AFTER
    assert len({row["loss"] for row in two}) == STOPPED_AFTER
    for mine, other in zip(one, two, strict=False):
        assert mine == pytest.approx(other, rel=1e-5)
    assert finetune.main(arguments(pidray, tmp_path / "two", steps, engine=engine)) == 0
    assert rows(tmp_path / "two")[-1] == pytest.approx(one[-1], rel=1e-5)
    models = [checkpoint.load(tmp_path / name / finetuning.MODEL)["model"] for name in ("one", "two")]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=1e-4, atol=1e-6)


def lose_scans(config, out, group):
    """Train, but remove two scans before the first step, once all processes have looked at them."""
    fit = FinetuneTrainer.fit

    def vanish(self, start):
        if group.is_main:
            for number in (3, 4):
                self.data.listed[number].path.unlink()
        group.most(0, group.device())
        fit(self, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneTrainer, "fit", vanish)
        return finetuning.train(config, "random", Path(out), 1.0, group)


@pytest.mark.slow
def test_scans_that_some_process_cannot_read_are_counted_as_by_one(pidray, tmp_path, capfd):
    said = {}
    for processes in (1, 2):
        root = shutil.copytree(pidray, tmp_path / f"pidray{processes}")
        config = config_of(root, "train.iterations=3", "train.checkpoint_every=1")
        out = tmp_path / str(processes)
        ended = launch(lose_scans, 2, config, str(out)) if processes == 2 else lose_scans(config, str(out), ALONE)
        assert ended == 0
        said[processes] = sorted(
            line.split("pidray")[-1][1:] for line in capfd.readouterr().out.splitlines() if "replaced" in line
        )
    assert said[1] == said[2]
    assert len(said[1]) == 2
    skips = [read_skips(tmp_path / name) for name in "12"]
    assert skips[0] == skips[1]
    assert skips[0][0].counts == {finetuning.UNREADABLE: 2}
    assert [rows(tmp_path / name)[-1]["unreadable"] for name in "12"] == [2, 2]
    kept = [checkpoint.load(tmp_path / name / finetuning.MODEL)["unreadable"] for name in "12"]
    assert kept == [[3, 4], [3, 4]]


def poison_second(config, out, group):
    """Train; the second process has a loss that is not finite in the third step."""
    losses = FinetuneTrainer._losses

    def poisoned(self, batch):
        bad = group.rank == 1 and self.iter == 2
        return {name: value * (float("nan") if bad else 1) for name, value in losses(self, batch).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneTrainer, "_losses", poisoned)
        return finetuning.train(config, "random", Path(out), 0.05, group)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_ends_all_with_one_sentence(pidray, tmp_path, capfd):
    code = launch(poison_second, 2, config_of(pidray, "train.checkpoint_every=2"), str(tmp_path))
    assert code == DivergedError.exit_code
    errors = capfd.readouterr().err
    assert errors.count("process 1: the loss of iteration 2 is not finite (images ") == 1
    assert "process 0" not in errors
    assert "Traceback" not in errors
    assert checkpoint.load(tmp_path / checkpoint.LAST)["iteration"] == 2


def kill_second(config, out, group):
    """Train; the second process is killed in the third step."""
    step = FinetuneTrainer.run_step

    def killed(self):
        if group.rank == 1 and self.iter == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneTrainer, "run_step", killed)
        return finetuning.train(config, "random", Path(out), 0.05, group)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on(pidray, tmp_path, capfd):
    settings = ("train.checkpoint_every=2", "train.iterations=3")
    began = time.monotonic()
    assert launch(kill_second, 2, config_of(pidray, *settings), str(tmp_path / "run")) == 1
    assert time.monotonic() - began < 60 + 60  # the start and the two steps take seconds
    errors = capfd.readouterr().err
    assert errors.count("run the same command again to continue") == 1
    assert "process 1 was ended by SIGKILL" in errors
    assert "Traceback" not in errors
    assert finetune.main(arguments(pidray, tmp_path / "run", *settings)) == 0
    assert finetune.main(arguments(pidray, tmp_path / "whole", *settings)) == 0
    for mine, other in zip(rows(tmp_path / "run"), rows(tmp_path / "whole"), strict=True):
        assert mine == pytest.approx(other, rel=1e-5)


def torchrun(*command):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    everything = [*launcher, *map(str, command)]
    environment = os.environ | ONE_THREAD
    return subprocess.run(everything, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_evaluation_on_two_processes_writes_the_same_bytes(pidray, tmp_path, capfd):
    done = torchrun("segloc.finetune", *arguments(pidray, tmp_path / "run", "train.iterations=1"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == done.stdout.count("engine ") == 1
    root = shutil.copytree(pidray, tmp_path / "pidray")
    for number in (0, 1):
        (root / "hard" / f"scan 00{number}.png").unlink()
    command = ["--weights", str(tmp_path / "run"), "--data", str(root), "--max-skipped=1"]
    more = ["model.heads.score_threshold=0.0"]
    for name, processes in (("one", []), ("two", ["--processes", "2"])):
        (tmp_path / name).mkdir()
        assert evaluate.main([*command, "--out", str(tmp_path / name / "e.json"), *processes, *more]) == 0
    assert "skipped 2 of 3 scans of hard" in capfd.readouterr().out
    (tmp_path / "three").mkdir()
    done = torchrun("segloc.evaluate", *command, "--out", tmp_path / "three" / "e.json", *more)
    assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 6
    assert len((tmp_path / "one" / "e.hard.results.json").read_bytes()) > 1000
    for name in ("two", "three"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == files
        for file in files:
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--processes", "0"], "--processes is 0, it must be at least 1"),
        (["--processes", "2", "optim.batch=5", "optim.micro_batch=0"], "optim.batch 5 cannot be shared by 2 processes"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_sentence(command, message, pidray, tmp_path, capfd):
    assert finetune.main(arguments(pidray, tmp_path / "run", *command)) == 2
    errors = capfd.readouterr().err.strip()
    assert message in errors
    assert "\n" not in errors
    assert not (tmp_path / "run").exists()


def test_results_files_are_evaluated_by_one_process(pidray, tmp_path, capfd):
    truth = str(pidray / "annotations" / "xray_test_easy.json")
    command = ["--results", truth, "--annotations", truth, "--out", str(tmp_path / "e.json"), "--processes", "2"]
    assert evaluate.main(command) == 2
    assert "--processes is for --weights" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("batch", "micro_batch", "processes", "scans"), [(16, 0, 1, 16), (16, 0, 4, 4), (16, 4, 2, 4), (16, 8, 4, 4)]
)
def test_scans_per_pass(batch, micro_batch, processes, scans):
    assert OptimSettings(batch=batch, micro_batch=micro_batch).per_pass(processes) == scans


@pytest.mark.parametrize(("batch", "micro_batch", "processes"), [(16, 0, 3), (2, 0, 4), (12, 4, 2)])
def test_uneven_shares_are_refused(batch, micro_batch, processes):
    with pytest.raises(InputError, match=f"optim.batch {batch} cannot be shared by {processes} processes"):
        OptimSettings(batch=batch, micro_batch=micro_batch).per_pass(processes)
