import pytest

from segloc.common.errors import InputError
from segloc.settings.finetuning import TrainSettings
from segloc.settings.pretraining import PretrainConfig, load_config
from tests.imports import ROOT

RECIPES = sorted((ROOT / "detectron_configs" / "pretrain").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load(path):
    load_config(path, [])


def test_recommended_recipe_is_the_default():
    assert load_config(ROOT / "detectron_configs" / "pretrain" / "segloc_r101.yaml") == PretrainConfig()


def test_papers_numbers():
    config = load_config(ROOT / "detectron_configs" / "pretrain" / "paper_r101.yaml", [])
    assert (config.model.arch, config.model.norm) == ("resnet101", "none")
    assert (config.queue.size, config.queue.init) == (2**14, "keys")
    assert (config.optim.batch, config.optim.epochs, config.data.image_size) == (64, 30, 500)
    assert (config.optim.temperature, config.optim.ema) == (0.2, 0.999)


def test_numbers_without_a_dot_are_numbers():
    assert load_config(None, ["optim.weight_decay=1e-3"]).optim.weight_decay == 1e-3
    assert load_config(None, ["optim.ema=1"]).optim.ema == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["head.kind=fc"], "head.kind is 'fc', not one of insloc, box2fc"),
        (["queue.kind=one"], "queue.kind is 'one', not one of class, single"),
        (["queue.positives=all"], "queue.positives is 'all', not one of key, class"),
        (["queue.positives=class", "queue.kind=single"], "queue.positives=class needs queue.kind=class"),
        (["model.fpn_channels=72"], "model.fpn_channels is 72, not a multiple of 16 from 64 to 2048"),
        (["model.fpn_channels=48"], "model.fpn_channels is 48, not a multiple"),
        (["data.box_augment=yes"], "data.box_augment is 'yes', not one of none, insloc"),
        (["data.box_augment=random"], "data.box_augment is 'random', not one of none, insloc"),
        (["model.frozen=5", "model.init=imagenet"], "model.frozen is 5, it must be from 0 to 4"),
        (["model.frozen=1"], "model.frozen=1 would freeze random weights"),
        (["model.init=imagenet", "model.norm=gn"], "model.init=imagenet needs model.norm=bn, not gn"),
    ],
)
def test_invalid_settings_give_a_one_line_error(settings, message):
    with pytest.raises(InputError) as error:
        load_config(None, settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_setting_that_gives_the_number_of_steps_is_named():
    assert load_config(None, ["optim.epochs=2"]).length == "optim.epochs 2"
    assert load_config(None, ["optim.epochs=2", "optim.steps=9"]).length == "optim.steps; optim.epochs is not used"
    assert TrainSettings(epochs=0.5).length == "train.epochs 0.5"
    assert TrainSettings(epochs=2, iterations=9).length == "train.iterations; train.epochs is not used"


def test_box2fc_has_no_convolutions_to_normalise():
    assert load_config(None, ["head.kind=box2fc", "model.norm=gn", "head.conv_dim=40"]).head.kind == "box2fc"


def test_inslocs_numbers():
    config = load_config(ROOT / "detectron_configs" / "pretrain" / "insloc_r50.yaml", [])
    assert (config.model.arch, config.model.norm, config.model.attention) == ("resnet50", "bn", False)
    assert (config.queue.kind, config.queue.size, config.data.box_augment) == ("single", 2**16, "insloc")
    assert (config.optim.batch, config.optim.lr_per_256, config.optim.epochs) == (256, 0.03, 200)
    assert (config.optim.temperature, config.optim.ema, config.head.dim) == (0.2, 0.999, 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: 1}", "unknown key 'optim.lr'; did you mean 'optim.lr_per_256'"),
        ("optm: {}", "unknown key 'optm'; did you mean 'optim'"),
        ("optim: 3", "expected a mapping"),
        ("optim: {batch: many}", "expected int"),
        ("optim: {compile: 1}", "expected bool"),
        ("[1, 2]", "not a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_errors_name_the_recipe_and_the_key(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"recipe\.yaml") as error:
        load_config(path, [])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
