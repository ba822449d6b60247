"""An out-of-memory error ends in one sentence with what to set."""

import pytest
import torch

from segloc import finetune, pretrain
from segloc.common.errors import RunError
from segloc.contrast.pretrainer import Pretrainer
from segloc.detection.trainer import FinetuneTrainer
from segloc.training import memory, processes
from tests.segloc.test_finetune import DEMO, SMALL
from tests.segloc.test_pretrain import TINY
from tests.segloc.toy_coco import write_pidray


def too_much(*_):
    torch.empty(2**50)  # 4 PiB


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"),
            " (tried to allocate 20.00 GiB)",
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), ""),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), ""),
        (MemoryError(), ""),
    ],
)
def test_every_kind_of_full_memory_is_one_sentence(error, message):
    with pytest.raises(RunError) as raised, memory.advice("a smaller batch"):
        raise error
    assert str(raised.value) == f"out of memory{message}; set a smaller batch, and run the command again"


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), RunError("a worker died, out of memory"), OSError(28)]
)
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as raised, memory.advice("a smaller batch"):
        raise error
    assert raised.value is error


def test_pretraining_says_what_to_set(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Pretrainer, "run_step", too_much)
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path / "run"), *TINY]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory (tried to allocate" in said
    assert "; set a smaller optim.micro_batch, optim.recompute=stages or a smaller data.image_size, and run" in said


def test_fine_tuning_says_what_to_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(FinetuneTrainer, "run_step", too_much)
    data = write_pidray(tmp_path / "pidray")
    options = ["--weights", "random", "--config", str(DEMO), "--data", str(data), "--out", str(tmp_path / "run")]
    assert finetune.main([*options, "model.engine=torchvision", *SMALL]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory (tried to allocate" in said
    assert "; set a smaller optim.micro_batch or data.image_size, and run the command again" in said


@memory.advice("a smaller batch")
def fill_second(group):
    if group.rank == 1:
        too_much()
    group.gather(torch.zeros(1))  # waits for the other
    return 0


def test_one_process_without_memory_ends_all(capfd):
    assert processes.launch(fill_second, 2) == 1
    errors = capfd.readouterr().err
    assert "process 1: out of memory (tried to allocate" in errors
    assert "Traceback" not in errors
