"""What is sampled of an image depends on (seed, iteration, slot), not on the images beside it."""

import numpy as np
import pytest
import torch

from segloc.common.datasets import Split
from segloc.detection.data import TrainingData
from segloc.detection.splits import read_split
from segloc.detection.trainer import FinetuneTrainer
from segloc.settings.finetuning import ENGINES, DataSettings, OptimSettings
from tests.segloc.detection.test_engines import build
from tests.segloc.toy_coco import write_split


@pytest.fixture
def training(tmp_path):
    write_split(tmp_path / "a.json", tmp_path / "images", 6, seed=0)
    split = read_split(Split("train", tmp_path / "a.json", tmp_path / "images"))
    return lambda seed=0: TrainingData(split, DataSettings(image_size=64, flip=0.0, threads=1), 4, seed)


def draws(engine, data, micro_batch, monkeypatch):
    """Return all permutations that a step without learning draws: two of anchors, two of proposals for each image."""
    permutation, found = torch.randperm, []

    def noted(*arguments, **options):
        drawn = permutation(*arguments, **options)
        found.append(drawn.tolist())
        return drawn

    torch.manual_seed(np.random.SeedSequence().entropy % 2**60)  # it does not matter
    model = build(engine)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randperm", noted)
        FinetuneTrainer(model, data, OptimSettings(batch=4, micro_batch=micro_batch), np.zeros(1)).fit(0)
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_samples_do_not_depend_on_micro_batches(engine, training, monkeypatch):
    whole, parts = (draws(engine, training(), micro_batch, monkeypatch) for micro_batch in (4, 1))
    assert len(whole) == 16
    assert sorted(whole) == sorted(parts)
    assert whole != parts, "all anchors come before all proposals"
    assert sorted(draws(engine, training(1), 4, monkeypatch)) != sorted(whole)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_slot_has_its_own_samples(engine, training, monkeypatch):
    data = training()
    data.indices = lambda iteration: [0, 0, 0, 0]
    anchors = draws(engine, data, 4, monkeypatch)[1:8:2]  # the negatives
    assert len({len(drawn) for drawn in anchors}) == 1, "the same image"
    assert len(set(map(tuple, anchors))) == 4


def test_an_image_has_other_seeds_in_every_slot_and_step(training):
    data = training()
    seeds = [data.example(iteration, slot).seeds for iteration in (0, 1) for slot in range(4)]
    assert len({*seeds}) == 8
    assert len({seed for pair in seeds for seed in pair}) == 16


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_the_slots_of_each_step(training, world):
    whole = list(training().batches(0, 3))
    parts = [list(training().batches(0, 3, rank, world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        joined = [example for part in parts for example in part[step]]
        assert [(one.image_id, one.seeds) for one in joined] == [(one.image_id, one.seeds) for one in batch]
