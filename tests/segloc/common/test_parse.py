"""JSON and YAML that somebody made to take long or to end a reader in a traceback."""

import time

import pytest

from segloc.common.errors import InputError
from segloc.common.parse import MOST_DIGITS, MOST_LEVELS, MOST_YAML_CHARACTERS, once, parse_yaml

DEEP = "nested too deeply"
LONG = f"at most {MOST_DIGITS} are read"


@pytest.mark.parametrize(("text", "said"), [
    ("[" * 20_000, DEEP),
    ("{" * 20_000, DEEP),
    ("- " * 40_000 + "a", DEEP),
    ("1" + ":59" * 33_000, LONG),
    ("a: [1" + ":59" * 33_000 + ".5]", LONG),
    ("!!int '" + "1:" * 40_000 + "1'", LONG),
    ("!!timestamp x", "not YAML"),
    ("!!int ''", "not YAML"),
], ids=["lists", "dicts", "block lists", "base 60", "its fraction", "tagged", "no time", "no digits"])  # fmt: skip
def test_hostile_yaml_is_one_sentence_at_once(text, said):
    assert len(text) <= MOST_YAML_CHARACTERS
    start = time.process_time()
    with pytest.raises(InputError, match=said):
        parse_yaml(text, "here")
    assert time.process_time() - start < 2


def test_reading_stops_at_the_level_that_is_too_deep():
    assert parse_yaml("[" * (MOST_LEVELS - 1) + "1" + "]" * (MOST_LEVELS - 1), "here")
    # The text after it is no YAML, and is not looked at.
    with pytest.raises(InputError, match=DEEP):
        parse_yaml("- " * MOST_LEVELS + "a\n}", "here")


def test_numbers_of_a_setting_are_read():
    text = "[1:30:00, 1_000, " + "7" * MOST_DIGITS + ", " + "'" + "7" * 200 + "']"
    assert parse_yaml(text, "here") == [5400, 1000, int("7" * MOST_DIGITS), "7" * 200]


def test_a_repeated_key_among_many_is_found_in_linear_time():
    start = time.process_time()
    with pytest.raises(ValueError, match="the key '29999' occurs twice"):
        once([*((str(number), 0) for number in range(30_000)), ("29999", 1)])
    assert time.process_time() - start < 2
