import csv
import io
import re

import pytest

from segloc.common.text import csv_text, markdown, markdown_table, printable, shortened

# Names of classes and files that people, or attackers, really have.
HOSTILE = {
    "line break": "Knife\nlong",
    "return": "Knife\r\nlong",
    "bar": "a|b\\|c",
    "quotes": "\"a\" 'b' `c`",
    "markup": "<script>alert(1)</script> *b* _i_ [l](x) &amp; $x$ ~~s~~",
    "escape": "\x1b[2J\x1b]0;title\x07",
    "control": "\x00\x07\x7f\x85",
    "separators": "a\u2028b\u2029c",
    "right to left": "gun\u202eknp.exe\u2066",
    "surrogate": "\udce4",
    "formula": "=HYPERLINK(A1)",
    "plus": "+cmd",
    "minus": "-2+3+cmd|' /C calc'!A0",
    "at": "@SUM(1)",
    "blanks": "  Gun ",
    "long": "n" * 5000,
}
# Names that are shown as they are.
PLAIN = ("Gun", "Schlüssel", "枪", "می‌خواهم", "👩‍🔬", "-", "-5", "+1.5e3", "a=b", "Power bank", "x_y")


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_name_from_data_is_one_line_of_harmless_text(name):
    for text in (printable(name), markdown(name)):
        assert text.splitlines() == [text]
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", text)
        text.encode()
    assert len(shortened(name, 60)) <= 60


@pytest.mark.parametrize("name", PLAIN)
def test_a_usual_name_is_shown_as_it_is(name):
    assert printable(name) == shortened(name) == markdown(name) == name
    assert csv_text(("a",), [[name]]) == f"a\n{name}\n"


def test_escapes_by_hand():
    assert printable("a\nb\t\x1b\u202e\udce4") == r"a\nb\t\x1b\u202e\xe4"
    assert markdown("a|b <i> x_y _z_ &lt; & *") == r"a\|b \<i\> x_y \_z\_ \&lt; & \*"
    assert shortened("abcdef", 5) == "ab..."


def test_tables_have_one_line_and_one_cell_per_name():
    rows = [[markdown(name), "1.0"] for name in HOSTILE.values()]
    lines = markdown_table(["class", "AP"], rows).splitlines()
    assert len(lines) == len(HOSTILE) + 2
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {4}
    text = csv_text(("class", "AP"), [[name, "-1.0"] for name in HOSTILE.values()])
    cells = list(csv.reader(text.splitlines()))  # also for readers that split lines first
    assert len(cells) == len(HOSTILE) + 1
    assert all(len(row) == 2 and row[0][0] not in "=+-@" for row in cells)
    assert {row[1] for row in cells[1:]} == {"-1.0"}  # a negative number is no formula


def test_raw_names_in_a_markdown_table_cannot_break_it():
    lines = markdown_table(["class"], [[name] for name in HOSTILE.values()]).splitlines()
    assert len(lines) == len(HOSTILE) + 2


def test_csv_can_be_read_back():
    rows = [["a, b", 1.5, None], ['say "c"', 2, "two lines"]]
    text = csv_text(("name", "value", "note"), rows)
    assert text.startswith("name,value,note\n")
    assert "\r" not in text
    assert list(csv.reader(io.StringIO(text)))[1:] == [["a, b", "1.5", ""], ['say "c"', "2", "two lines"]]


def test_markdown_columns_are_aligned_and_bars_escaped():
    table = markdown_table(["run", "AP", "AR"], [["a|b", "1.0", "2.0"]], "lr")
    assert table == "| run | AP | AR |\n| --- | ---: | ---: |\n| a\\|b | 1.0 | 2.0 |\n"
    assert markdown_table(["a", "b"], []) == "| a | b |\n| --- | --- |\n"
