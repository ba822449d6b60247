import csv
import io

from segloc.common.text import csv_text, markdown_table


def test_csv_can_be_read_back():
    rows = [["a, b", 1.5, None], ['say "c"', 2, "two\nlines"]]
    text = csv_text(("name", "value", "note"), rows)
    assert text.startswith("name,value,note\n")
    assert "\r" not in text
    assert list(csv.reader(io.StringIO(text)))[1:] == [["a, b", "1.5", ""], ['say "c"', "2", "two\nlines"]]


def test_markdown_columns_are_aligned_and_bars_escaped():
    table = markdown_table(["run", "AP", "AR"], [["a|b", "1.0", "2.0"]], "lr")
    assert table == "| run | AP | AR |\n| --- | ---: | ---: |\n| a\\|b | 1.0 | 2.0 |\n"
    assert markdown_table(["a", "b"], []) == "| a | b |\n| --- | --- |\n"
