"""The short form of every script finds nothing. ``python -m tests.faults.NAME`` runs the long form."""

import importlib

import pytest

from tests.faults import common, page
from tests.faults.common import RESULTS, SCRIPTS, Count


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_short_form_finds_nothing(name):
    script = importlib.import_module(f"tests.faults.{name}")
    for kind, cases in common.shares(script.SHORT, getattr(script, "SHORT_KINDS", script.KINDS)).items():
        count = script.KINDS[kind](cases, 0)
        assert count.kind == kind
        assert count.cases == count.as_expected > 0, count.findings


def test_every_script_has_its_table_on_the_page():
    text = page.PAGE.read_text()
    assert [name for name in SCRIPTS if f"<!-- counted: {name} -->" not in text] == []
    assert {path.stem for path in RESULTS.glob("*.json")} <= {*SCRIPTS}


def test_cases_are_divided_over_all_kinds():
    assert common.shares(7, ("a", "b", "c")) == {"a": 3, "b": 2, "c": 2}
    assert common.shares(1, ("a", "b")) == {"a": 1, "b": 1}


def test_findings_and_what_was_not_measured_are_shown(tmp_path):
    count = Count("torn")
    count.add("seed 3", None)
    count.add("seed 4", "a traceback")
    assert count.findings == ["seed 4: a traceback"]
    common.write_result(tmp_path / "kill.json", "python -m x", [count], ["torn", "late"])
    text = "<!-- counted: kill -->\nold\n<!-- end -->\n<!-- counted: disk -->\n<!-- end -->"
    shown = page.render(text, tmp_path)
    assert "| torn | 2 | 1 | 1 |" in shown
    assert "| late | not measured |" in shown
    assert "old" not in shown
    assert "<!-- counted: disk -->\n\nNot measured.\n\n<!-- end -->" in shown


def test_an_unfinished_result_is_continued_only_by_the_same_command(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "commit", lambda: "abc")
    path = tmp_path / "kill.json"
    common.write_result(path, "command", [Count("a", 1, 1)], ["a", "b"])
    assert common._earlier(path, "command") == [Count("a", 1, 1)]
    assert common._earlier(path, "other") == []
    monkeypatch.setattr(common, "commit", lambda: "def")
    assert common._earlier(path, "command") == []
    monkeypatch.setattr(common, "commit", lambda: "abc")
    common.write_result(path, "command", [Count("a", 1, 1)], ["a"])
    assert common._earlier(path, "command") == []  # it is finished, so it starts again
