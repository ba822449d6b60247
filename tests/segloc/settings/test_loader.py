import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segloc.common.errors import InputError
from segloc.settings.experiments import Experiment
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import keys, load, parse, to_yaml
from segloc.settings.pretraining import PretrainConfig
from tests.segloc.settings.recipes import DEMO, RECIPES

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnop"))


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("optim.btach=2", "optim.batch"),
        ("model.backbone.archs=resnet18", "model.backbone.arch"),
        ("optmi.batch=2", "optim.batch"),
        ("train.epochs.x=1", "train.epochs"),
        ("model._target_=os.system", "model"),
    ],
)
def test_an_unknown_override_names_the_nearest_key(override, hint):
    with pytest.raises(InputError, match=f"unknown key '{override.split('=')[0]}'; did you mean '{hint}"):
        load(FinetuneConfig, DEMO, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {backbon: 1}", "unknown key 'model.backbon'; did you mean 'model.backbone'"),
        ("model: {heads: {fcdim: 1}}", "unknown key 'model.heads.fcdim'; did you mean 'model.heads.fc_dim'"),
        ("optmi: {batch: 1}", "unknown key 'optmi'; did you mean 'optim'"),
        ("_target_: os.system", "unknown key '_target_'"),
        ("model: {_target_: os.system}", "unknown key 'model._target_'"),
        ("model: 3", "model: expected a mapping, got 3"),
        ("model: !!python/object/apply:os.system [ls]", "not YAML"),
        ("model: (", "expected a mapping"),
        ("model: {", "not YAML"),
        ("base: nowhere.yaml", "nowhere.yaml: no such recipe"),
        ("base: [a]", "base: expected the path of a recipe"),
        ("base: faulty.yaml", "is its own base"),
        ("", "is empty; a recipe without changes is {}"),
        ("# optim: {batch: 2}\n", "is empty"),
        ("optim: {batch: null}", "optim.batch: expected int, got None"),
        ("optim: {batch: 2.5}", "optim.batch: expected int, got 2.5"),
        ("optim: {batch: true}", "optim.batch: expected int, got True"),
        ("optim: {clip: true}", "optim.clip: expected float, got True"),
        ("data: {root: 7}", "data.root: expected str, got 7"),
        ("data: {root: 2020-13-45}", "not YAML (month must be in 1..12)"),
        ("data: {tests: [3]}", "data.tests: expected a list, got 3"),
        ("data: {tests: &a [*a]}", "not YAML (an alias stands inside what it names)"),
        ("optim: {batch: 2, batch: 4}", "not YAML (the key 'batch' occurs twice)"),
        ('data: {root: "a\\0b"}', "data.root: not text (it has a null character)"),
        ('data: {root: "\\ud800"}', "data.root: not text"),
        ("optim: {batch: 0x" + "f" * 5000 + ".}", "expected int"),
        ("optim: {batch: 0x" + "f" * 5000 + "}", "not YAML (a number of 5002 characters, at most 100 are read)"),
        ("optim: {batch: 0x" + "f" * 98 + "}", "it must be from"),
        ("optim: {batch: !!int ''}", "not YAML (IndexError"),
        ("optim: {batch: !!bool x}", "not YAML (KeyError"),
        ("optim: {batch: !!timestamp x}", "not YAML"),
        ("optim: {? [1] : 2}", "not YAML"),
        ("x: " + "[" * 2000, "not YAML (nested too deeply)"),
        ("x: " + "a" * 100_000, "not YAML (100003 characters"),
        (BOMB, "not YAML (more than 100000 values after its aliases are replaced)"),
        (BOMB.replace("[", "{<<: [").replace("]", "]}"), "not YAML (more than 100000 values"),
    ],
)
def test_an_invalid_recipe_gives_a_one_line_error_with_its_path(tmp_path, text, message):
    faulty = tmp_path / "faulty.yaml"
    faulty.write_text(text)
    with pytest.raises(InputError) as error:
        load(FinetuneConfig, faulty)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_overrides_reach_settings_left_at_their_default():
    config = load(
        FinetuneConfig, DEMO, ["optim.lr_per_16=1e-3", "optim.gamma=0.5", "data.train=[a.json, b]", "train.epochs=3"]
    )
    found = config.optim.lr_per_16, config.optim.gamma, config.data.train, config.train.epochs
    assert found == (1e-3, 0.5, ("a.json", "b"), 3.0)


@pytest.mark.parametrize("override", ["optim.batch=many", "data.train_empty=3", "train.iterations=1.5"])
def test_a_value_of_the_wrong_type_is_refused(override):
    with pytest.raises(InputError, match=f"{override.split('=')[0]}: expected"):
        load(FinetuneConfig, DEMO, [override])


@pytest.mark.parametrize("value", ["[", "2020-13-45", "1" + "0" * 5000])
def test_a_value_that_yaml_cannot_read_is_refused(value):
    with pytest.raises(InputError, match=r"the value of 'optim\.clip': not YAML"):
        load(FinetuneConfig, DEMO, [f"optim.clip={value}"])


def test_an_optional_section_can_be_set_to_null(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("starts: {a: {weights: random}}\nprotocols: {p: {config: c}}\nprobe: {shards: s}\n")
    assert load(Experiment, recipe).probe.shards == "s"
    assert load(Experiment, recipe, ["probe=null"]).probe is None
    with pytest.raises(InputError, match="probe: expected a mapping, got 3"):
        load(Experiment, recipe, ["probe=3"])


def test_a_section_cannot_be_overridden_as_a_whole():
    with pytest.raises(InputError, match="is a section"):
        load(FinetuneConfig, DEMO, ["model.backbone=resnet18"])


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_text_is_used_literally_and_survives_the_resolved_recipe(text):
    config = load(FinetuneConfig, None, [f"data.root={text}"])
    assert config.data.root == text
    assert parse(FinetuneConfig, to_yaml(config), "here") == config


@pytest.mark.parametrize("root", ["null", "007", "#1 [a]{b}", "${optim.batch}", "~", "a: b", "true"])
def test_a_folder_given_by_an_option_is_never_read_as_yaml(root):
    config = load(FinetuneConfig, DEMO, ["data.train=[a.json, b]"]).with_data(root)
    assert (config.data.root, config.data.train, config.data.tests) == (root, (), ())


def test_nothing_is_interpolated(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {root: '${oc.env:HOME}'}\n")
    assert load(FinetuneConfig, recipe).data.root == "${oc.env:HOME}"
    with pytest.raises(InputError, match=r"optim\.batch: expected int"):
        load(FinetuneConfig, None, ["optim.batch=${train.seed}"])


def test_a_base_comes_first_and_is_part_of_the_resolved_recipe(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.yaml").write_text("optim: {batch: 4, momentum: 0.5}\ndata: {image_size: 99}\n")
    (tmp_path / "below" / "b.yaml").write_text("base: ../a.yaml\noptim: {batch: 6}\n")
    config = load(FinetuneConfig, tmp_path / "below" / "b.yaml", ["optim.clip=1"])
    assert (config.optim.batch, config.optim.momentum, config.optim.clip, config.data.image_size) == (6, 0.5, 1.0, 99)
    assert "base" not in yaml.safe_load(to_yaml(config))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_reads_back_from_what_a_run_writes(path):
    config = load(FinetuneConfig, path)
    assert parse(FinetuneConfig, to_yaml(config), "here") == config
    assert {*keys(FinetuneConfig)} == {*_flat(yaml.safe_load(to_yaml(config)))}


@pytest.mark.parametrize("schema", [FinetuneConfig, PretrainConfig])
def test_every_setting_says_what_it_means(schema):
    def sections(cls: Any):
        yield cls
        for field in dataclasses.fields(cls):
            if dataclasses.is_dataclass(field.default):
                yield from sections(type(field.default))

    for section in sections(schema):
        for field in dataclasses.fields(section):
            assert dataclasses.is_dataclass(field.default) or field.metadata["meaning"].endswith("."), field.name


def _flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key
