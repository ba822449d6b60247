import pytest

from segloc.common.errors import InputError
from segloc.settings import text_lists
from segloc.settings.experiments import Experiment
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load

# What YAML would read as something else.
LITERAL = (
    *(
        "null",
        "2024",
        "1e3",
        "a #2",
        "#",
        "{x}",
        "%x",
        "@x",
        "*x",
        "&x",
        "!x",
        "a: b",
        "on",
        "~x",
        "${HOME}",
        "a=b",
        "-x",
    ),
    *("?", "`x`", "a|b", "> b", "1.5", "0x10", "2024-01-01", "it's", 'say "x"', "a/", "äö ü", "."),
)


@pytest.mark.parametrize("name", LITERAL)
def test_texts_in_a_list_are_literal(name):
    assert load(FinetuneConfig, None, [f"data.train=[{name}/t.json, {name}]"]).data.train == (f"{name}/t.json", name)
    tests = load(FinetuneConfig, None, [f"data.tests=[[t, {name}, {name}],[u,{name},x]]"]).data.tests
    assert tests == (("t", name, name), ("u", name, "x"))
    assert load(FinetuneConfig, None, [f"data.root={name}"]).data.root == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", []),
        ("[ ]", []),
        ("[a]", ["a"]),
        (" [ a b ,c,] ", ["a b", "c"]),
        ('["a, b", \'[c] d\', " e "]', ["a, b", "[c] d", " e "]),
        (r'["a\"b\\", "ä"]', ['a"b\\', "ä"]),
        ("['it''s', '']", ["it's", ""]),
        ('["a" b]', ['"a" b']),  # quotes that do not enclose the text are part of it
        ("[[a, b]", ["[a", "b"]),
    ],
)
def test_lists_by_hand(text, expected):
    assert text_lists.read(text, 1) == expected


@pytest.mark.parametrize("text", ["[a, b", "[a]b", "[a,,b]", "[,a]", '["\\q"]', "[", "[a], [b]"])
def test_broken_lists_are_refused_in_one_line(text):
    with pytest.raises(ValueError):  # noqa: PT011
        text_lists.read(text, 1)
    with pytest.raises(InputError, match=r"the value of 'data\.train': cannot be read") as error:
        load(FinetuneConfig, None, [f"data.train={text}"])
    assert "\n" not in str(error.value)


def test_nested_lists():
    assert text_lists.read('[[a, "b, c"] , [d]]', 2) == [["a", "b, c"], ["d"]]
    with pytest.raises(ValueError, match="ends with"):
        text_lists.read("[[a, b]", 2)


def test_lists_of_numbers_are_yaml():
    recipe = "detectron_configs/experiment/demo.yaml"
    assert load(Experiment, recipe, ["seeds=[0, 0x10]"]).seeds == (0, 16)


def test_a_number_as_path_in_a_recipe_asks_for_quotes(tmp_path):
    (tmp_path / "r.yaml").write_text("data: {root: 2024}")
    with pytest.raises(InputError, match=r"data\.root: expected str, got 2024; put it in quotes"):
        load(FinetuneConfig, tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("data: {root: '2024', train: ['a #2', 'null']}")
    assert load(FinetuneConfig, tmp_path / "r.yaml").data.train == ("a #2", "null")
