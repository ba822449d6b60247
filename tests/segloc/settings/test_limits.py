"""Every number has a bound, declared with the setting and refused in one sentence."""

import dataclasses
import math
import typing

import pytest

from segloc import pretrain
from segloc.common.errors import InputError
from segloc.settings.experiments import Experiment, Pretraining, Probe
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load
from segloc.settings.pretraining import PretrainConfig
from tests.segloc.test_pretrain import TINY

HUGE = 10**12
LISTS = ("keep_epochs",)


def whole_numbers(schema, prefix=""):
    """Dotted keys of settings that are whole numbers, or lists of them, with their limits."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from whole_numbers(hint, f"{prefix}{field.name}.")
        elif int in (hint, *typing.get_args(hint)):
            yield prefix + field.name, field.metadata["limits"]


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig, Experiment, Pretraining, Probe])
def test_every_whole_number_has_two_bounds(schema):
    found = dict(whole_numbers(schema))
    assert found
    assert [key for key, limits in found.items() if limits.least is None or limits.most == math.inf] == []


@pytest.mark.parametrize(
    ("schema", "key"),
    [
        (schema, key)
        for schema in (PretrainConfig, FinetuneConfig)
        for key, _ in whole_numbers(schema)
        if "seed" not in key
    ],
)
def test_a_huge_number_is_refused_in_one_sentence_with_key_and_bound(schema, key):
    with pytest.raises(
        InputError, match=rf"^override: {key} is {HUGE}, (it must be|not a multiple of 16) from \d+ to \d+$"
    ):
        load(schema, None, [f"{key}={[HUGE] if key in LISTS else HUGE}"])


@pytest.mark.parametrize("value", [2**64, -(2**64), 10**60])
def test_a_number_of_more_than_64_bits_is_refused_with_the_bounds_of_its_setting(value):
    with pytest.raises(InputError, match=r"^override: queue\.size is -?\d+\S*, it must be from 1 to 67108864$"):
        load(PretrainConfig, None, [f"queue.size={value}"])


@pytest.mark.parametrize("value", ["[0.5, .inf]", "[-1.0]", "[.nan]"])
def test_each_value_of_a_list_is_checked(value):
    with pytest.raises(InputError, match=r"optim\.milestones is .*, it must be from 0 to 1"):
        load(FinetuneConfig, None, [f"optim.milestones={value}"])


def test_epochs_that_mean_too_many_steps_are_refused():
    with pytest.raises(InputError, match=r"train\.epochs 1000000\.0 means 1000000000 steps, at most 50000000"):
        load(FinetuneConfig, None, ["train.epochs=1000000"]).train.steps(1000, 1)
    with pytest.raises(InputError, match=r"optim\.epochs 1000000 means 1000000000 steps, at most 50000000"):
        load(PretrainConfig, None, ["optim.epochs=1000000"]).num_steps(64_000)


def test_queues_that_cannot_fit_are_refused_with_their_bytes(shards, tmp_path, capsys):
    settings = [*TINY, "queue.size=67108864", "head.dim=8192"]
    assert pretrain.main(["--shards", str(shards), "--out", str(tmp_path / "run"), *settings]) == 2
    line = capsys.readouterr().err
    assert f"queue.size 67108864 with head.dim 8192 needs {5 * 67108864 * 8192 * 4} bytes, this " in line
    assert line.count("\n") == 1
    assert not (tmp_path / "run" / "run.json").exists()
