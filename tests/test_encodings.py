"""Files are written and read as UTF-8, whatever the locale: every text mode names its encoding."""

import ast

import pytest

from tests.imports import ROOT

FILES = [path for folder in ("segloc", "pipeline", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def without_encoding(tree):
    """Lines of calls that open a file as text without an encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        given = [
            part.value for part in (*node.args, *(k.value for k in node.keywords)) if isinstance(part, ast.Constant)
        ]
        modes = [value for value in given if value and isinstance(value, str) and set(value) <= set("rwaxbt+")]
        binary = any("b" in mode for mode in modes)
        function = node.func
        if isinstance(function, ast.Name):
            text = function.id == "open" and not binary
        elif isinstance(function, ast.Attribute) and function.attr == "open":
            is_path = not (isinstance(function.value, ast.Name) and function.value.id == "tarfile")
            newline = any(keyword.arg == "newline" for keyword in node.keywords)
            text = is_path and (newline or (bool(modes) and not binary))
        else:
            text = isinstance(function, ast.Attribute) and function.attr in ("read_text", "write_text")
        if text:
            yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_name_their_encoding(path):
    assert not list(without_encoding(ast.parse(path.read_text(encoding="utf-8"))))


def test_the_check_finds_what_it_should():
    bad = ["open('a')", "open('a', 'w')", "p.read_text()", "p.write_text(x)", "p.open('a')", "p.open(newline='')"]
    good = ["open('a', 'rb')", "open(a, mode='wb')", "p.open('rb')", "p.read_text(encoding='utf-8')", "tarfile.open(x)"]
    assert all(list(without_encoding(ast.parse(code))) for code in bad)
    assert not any(list(without_encoding(ast.parse(code))) for code in good)
