import os
import subprocess
import sys
from pathlib import Path

import pytest

from segloc.common.errors import InputError
from segloc.detection import recipe
from segloc.settings import lazy

RECIPES = Path(__file__).parents[3] / "detectron_configs" / "finetune"
DEMO = RECIPES / "demo_r18.py"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("optim.btach=2", "optim.batch"),
        ("model.backbone.archs=resnet18", "model.backbone.arch"),
        ("optmi.batch=2", "optim.batch"),
        ("train.epochs.x=1", "train.epochs"),
    ],
)
def test_an_unknown_override_names_the_nearest_key(override, hint):
    with pytest.raises(InputError, match=f"unknown key '{override.split('=')[0]}'; did you mean '{hint}'"):
        recipe.read(DEMO, [override])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model.backbon = 1", "unknown key 'model.backbon'; did you mean 'model.backbone'"),
        ("model.heads.fcdim = 1", "unknown key 'model.heads.fcdim'; did you mean 'model.heads.fc_dim'"),
        ("optmi = dict(batch=1)", "unknown key 'optmi'; did you mean 'optim'"),
        ("del train", "section 'train' is missing"),
        ("import nothing_like_this", "ModuleNotFoundError"),
        ("model = (", "SyntaxError"),
        ("from .nowhere import model", "nowhere"),
    ],
)
def test_a_faulty_recipe_is_refused(tmp_path, line, message):
    (tmp_path / "base.py").write_text((RECIPES / "base.py").read_text())
    faulty = tmp_path / "faulty.py"
    faulty.write_text(f"from .base import data, model, optim, train\n{line}\n")
    with pytest.raises(InputError, match=message):
        recipe.read(faulty)


def test_overrides_are_yaml_and_reach_settings_left_at_their_default():
    config = recipe.read(DEMO, ["optim.lr_per_16=1e-3", "optim.gamma=0.5", "data.train=[a.json, b]", "train.epochs=3"])
    data, optim, train = recipe.settings(config)
    assert (optim.lr_per_16, optim.gamma, data.train, train.epochs) == (1e-3, 0.5, ("a.json", "b"), 3.0)


@pytest.mark.parametrize("override", ["optim.batch=many", "data.train_empty=3", "train.iterations=1.5"])
def test_a_value_of_the_wrong_type_is_refused(override):
    key = override.split("=")[0]
    with pytest.raises(InputError, match=f"{key}: expected"):
        recipe.settings(recipe.read(DEMO, [override]))


def test_a_section_cannot_be_overridden_as_a_whole():
    with pytest.raises(InputError, match="is a section"):
        recipe.read(DEMO, ["model.backbone=resnet18"])


def test_a_recipe_does_not_change_the_base_for_others():
    before = lazy.to_yaml(recipe.read(RECIPES / "sdanet_r101_fair.py"))
    recipe.read(DEMO)
    assert lazy.to_yaml(recipe.read(RECIPES / "sdanet_r101_fair.py")) == before
    assert "resnet101" in before
    assert "resnet18" not in before


def test_yaml_reads_back_to_the_same_recipe():
    text = lazy.to_yaml(recipe.read(DEMO, ["optim.batch=3"]))
    assert lazy.to_yaml(recipe.parse(text, [], "here")) == text
    assert recipe.parse(text, ["optim.batch=5"], "here").optim.batch == 5


@pytest.mark.parametrize(
    "target", ["os.system", "segloc.training.run_folder.subprocess.run", "segloc.training.checkpoint.save"]
)
def test_yaml_may_not_call_anything_else(target):
    text = lazy.to_yaml(recipe.read(DEMO)).replace("segloc.settings.finetuning.TrainSettings", target)
    with pytest.raises(InputError, match="refused"):
        recipe.parse(text, [], "here")


def test_recipes_load_the_same_without_detectron2():
    script = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from segloc.settings import lazy; from segloc.detection import recipe\n"
        "assert lazy.LazyCall.__module__ == 'segloc.settings.lazy'\n"
        "for path in sys.argv[1:]: print(lazy.to_yaml(recipe.read(path)))\n"
    )
    paths = sorted(RECIPES.glob("*.py"))
    command = [sys.executable, "-c", script, *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": str(RECIPES.parents[1]), "OMP_NUM_THREADS": "1"}
    without = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert len(paths) >= 3
    assert without == "".join(lazy.to_yaml(recipe.read(path)) + "\n" for path in paths)
