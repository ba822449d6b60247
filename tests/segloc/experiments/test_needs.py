"""Shards that were made otherwise than an experiment needs them are refused before any job runs."""

import json

import pytest

from segloc.common.contract import read_index
from segloc.common.errors import InputError
from segloc.experiments.needs import check_shards
from segloc.settings.experiments import Experiment, Needs
from segloc.settings.loader import load
from tests.segloc.conftest import write_shards

KEY = "pretrainings.paper.needs"


@pytest.fixture
def made(tmp_path):
    """Shards whose index records how they were made."""

    def make(**parameters):
        folder = write_shards(tmp_path / "shards")
        index = json.loads((folder / "index.json").read_text())
        index["parameters"] = {"blend": "alpha", "scale_range": [0.75, 1.33], "region_mode": "paper", **parameters}
        del index["digest"]
        (folder / "index.json").write_text(json.dumps(index))
        return str(folder)

    return make


def test_shards_that_fit_are_accepted(made):
    shards = made(on_matter=0.0)
    pairs = read_index(shards).num_pairs
    needs = Needs(blend="alpha", region_mode="paper", positives="class", on_matter=0, pairs=pairs, occluded=0)
    check_shards(shards, needs, KEY)
    check_shards(shards, Needs(scale_range=(0.75, 1.33)), KEY)
    check_shards(shards, Needs(), KEY)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"blend": "ratio"}, f"was made with blend 'alpha', but {KEY}.blend is 'ratio'"),
        ({"on_matter": 0.5}, "was made with on_matter 0.0, but"),
        ({"region_mode": "adaptive"}, "was made with region_mode 'paper', but"),
        ({"positives": "instance"}, "was made with positives 'class', but"),
        ({"pairs": 200_000}, "was made with pairs 24, but"),
        ({"scale_range": (0.5, 1.0)}, "was made with scale_range [0.75, 1.33], but"),
        ({"coefficient_range": (0.5, 1.0)}, "its index does not say coefficient_range, but"),
    ],
)
def test_shards_that_were_made_otherwise_are_refused(made, needs, message):
    with pytest.raises(InputError) as caught:
        check_shards(made(), Needs(**needs, make="dvc repro such"), KEY)
    assert message in str(caught.value)
    assert "; make such shards with: dvc repro such" in str(caught.value)


def test_missing_shards_are_named_with_how_to_make_them(tmp_path):
    with pytest.raises(InputError, match="no such folder of shards; make such shards with: dvc repro such"):
        check_shards(str(tmp_path / "none"), Needs(make="dvc repro such"), KEY)


def test_a_region_mode_that_is_not_recorded_is_asked_for(made):
    """Indexes of earlier versions lack it."""
    with pytest.raises(InputError, match=r"its index does not say region_mode, but .* or set the latter to nothing"):
        check_shards(made(region_mode=None), Needs(region_mode="paper"), KEY)


def test_needs_can_be_overridden(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "pretrainings: {paper: {shards: s, needs: {region_mode: paper, pairs: 5}}}\n"
        "starts: {a: {pretraining: paper}}\nprotocols: {p: {config: x}}"
    )
    changes = [f"{KEY}.region_mode=", f"{KEY}.pairs=7"]
    assert load(Experiment, recipe, changes).pretrainings["paper"].needs == Needs(pairs=7)
