import pytest
import torch

from segloc.common.errors import InputError
from segloc.contrast import fitting
from segloc.contrast.choices import Choices, choose, micro_batches
from segloc.contrast.fitting import try_pass
from segloc.contrast.pretrainer import Pretrainer
from segloc.data.stream import ShardFolder
from segloc.settings.pretraining import load_config
from segloc.training.processes import ALONE
from tests.segloc.test_pretrain import tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("settings", "world", "expected"),
    [
        ([], 1, [64, 32, 16, 8]),
        ([], 4, [16, 8]),
        ([], 8, [8]),
        (["optim.micro_batch=32"], 1, [32]),
        (["optim.micro_batch=32"], 4, [16]),
        (["optim.batch=96", "model.bn_images=12"], 1, [96, 48, 24, 12]),
        (["model.norm=none", "model.sda_norm=ln"], 16, [4]),
        (["model.norm=none", "model.sda_norm=ln", "model.bn_images=0"], 2, [32, 16, 8]),
    ],
)
def test_forward_passes_share_the_batch_in_whole_parts(settings, world, expected):
    assert micro_batches(load_config(None, settings), world) == expected


@pytest.mark.parametrize(
    ("settings", "world", "message"),
    [
        ([], 16, "optim.batch 64 gives each of 16 processes 4 pairs, which is not a multiple of model.bn_images 8"),
        ([], 7, "optim.batch 64 cannot be shared by 7 processes in micro-batches of 9"),
        (["optim.micro_batch=12"], 1, "optim.batch 64 is not a multiple of micro_batch 12"),
        (["optim.micro_batch=4"], 1, "optim.micro_batch 4 is not a multiple of model.bn_images 8"),
        (["optim.batch=20"], 1, "optim.batch 20 is not a multiple of model.bn_images 8"),
        (["model.bn_images=0"], 1, "optim.micro_batch=0 would let the result depend on the GPU's memory"),
    ],
)
def test_a_batch_without_whole_parts_is_refused(settings, world, message):
    with pytest.raises(InputError, match=message):
        micro_batches(load_config(None, settings), world)


def test_the_largest_that_fits_is_taken_after_one_try_of_each():
    tried = []

    def fits(choices):
        tried.append(choices)
        return choices.micro_batch <= 16

    found = choose(load_config(None), CPU, ALONE, None, fits)
    assert found == Choices(16, "float32")
    assert [choices.micro_batch for choices in tried] == [64, 32, 16]


@pytest.mark.parametrize(
    ("settings", "message"),
    [([], "set optim.recompute=stages or a smaller data"), (["optim.recompute=stages"], "; set a smaller data")],
)
def test_a_model_that_does_not_fit_says_what_to_set(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        choose(load_config(None, settings), CPU, ALONE, None, lambda choices: False)
    assert "not even 8 pairs of 500 px fit" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "record", "expected"),
    [
        ([], {"micro_batch": 32, "precision": "bfloat16"}, Choices(32, "bfloat16")),
        ([], {"micro_batch": 24, "precision": "float32"}, Choices(16, "float32")),
        (["optim.micro_batch=8"], {"micro_batch": 32, "precision": "float32"}, Choices(8, "float32")),
        ([], None, Choices(8, "float32")),  # a CPU takes the smallest
        (["optim.precision=bfloat16"], None, Choices(8, "bfloat16")),
    ],
)
def test_a_resumed_run_keeps_its_record(settings, record, expected):
    assert choose(load_config(None, settings), CPU, ALONE, record) == expected


def test_the_trial_does_what_a_step_does(shards, tmp_path):
    trainer = Pretrainer(tiny("optim.batch=4", "optim.micro_batch=2"), ShardFolder.open(str(shards)), tmp_path, CPU)
    sizes = []
    for network in (trainer.model.query, trainer.model.key):
        network.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape)))
    before = trainer.model.query.backbone.body["conv1"].weight.detach().clone()
    try_pass(trainer)
    assert sizes == [(2, 3, 64, 64)] * 3, "two of keys, one of queries"
    assert not torch.equal(trainer.model.query.backbone.body["conv1"].weight, before)


def test_a_gpu_without_memory_does_not_fit(shards, tmp_path, monkeypatch):
    def full(trainer):
        raise torch.cuda.OutOfMemoryError

    class Properties:
        total_memory = 100

    monkeypatch.setattr(fitting, "try_pass", full)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    folder, config = ShardFolder.open(str(shards)), tiny()
    assert not fitting._passes(config, folder, tmp_path, CPU, ALONE, Choices(4, "float32"))
    monkeypatch.setattr(fitting, "try_pass", lambda trainer: None)
    assert fitting._passes(config, folder, tmp_path, CPU, ALONE, Choices(4, "float32"))
