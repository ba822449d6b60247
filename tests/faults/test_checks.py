"""The checks of the scripts find what they are there to find."""

import subprocess

from segloc.training import checkpoint
from tests.faults import kill, partial, stops
from tests.faults.stops import Stop

WHOLE = {"a.png": [{"image": "a.png", "status": "ok", "x0": 1}], "b.png": [{"image": "b.png", "status": "ok", "x0": 2}]}
LOST = {"image": "b.png", "status": "unreadable", "message": "no such file"}


def test_a_partial_table_lacks_exactly_the_rows_that_were_told():
    without = {"a.png": WHOLE["a.png"]}
    assert partial.wrong_rows(WHOLE, without, 1, marked=False) is None
    assert "told of 2 skipped, but 1" in partial.wrong_rows(WHOLE, without, 2, marked=False)
    twice = {**WHOLE, "b.png": WHOLE["b.png"] * 2}
    assert partial.wrong_rows(twice, without, 1, marked=False, scans=True) is None
    assert "but 2 rows" in partial.wrong_rows(twice, without, 1, marked=False)
    other = {**WHOLE, "b.png": [{**WHOLE["b.png"][0], "x0": 3}]}
    assert "other rows" in partial.wrong_rows(WHOLE, other, 1, marked=False)
    assert "more scans" in partial.wrong_rows(without, WHOLE, 0, marked=False)


def test_a_partial_table_of_regions_marks_what_it_lacks():
    assert partial.wrong_rows(WHOLE, {**WHOLE, "b.png": [LOST]}, 1, marked=True) is None
    for row in ({**LOST, "message": ""}, {**LOST, "status": "empty"}):
        assert "not marked" in partial.wrong_rows(WHOLE, {**WHOLE, "b.png": [row]}, 1, marked=True)


def test_the_last_count_that_was_told_of_each_kind_of_input_counts():
    text = "skipped 1 of 9 scans: x\nskipped 2 of 30 annotations: y\nskipped 3 of 9 scans: z; not used: 4 crowd\n"
    assert partial.told(subprocess.CompletedProcess([], 0, text, "")) == 5


def test_a_training_that_was_stopped_has_saved_its_last_step(tmp_path):
    run, stop = tmp_path / "run", Stop(15, False, 1.0)
    assert stops.not_saved(tmp_path, stop) is None  # no step was done
    run.mkdir()
    (run / "metrics.json").write_text('{"iteration": 0, "loss": 1.0}\n{"iteration": 1, "loss": 1.0}\n')
    assert stops.not_saved(tmp_path, stop) == "2 steps were done, and 0 were saved"
    checkpoint.save(run / checkpoint.LAST, {"iteration": 2})
    assert stops.not_saved(tmp_path, stop) is None


def test_kills_after_the_work_are_counted_apart(monkeypatch):
    monkeypatch.setattr(kill, "kill", lambda *_: "at some moment")
    for name in ("half_written", "wrong_rerun"):
        monkeypatch.setattr(kill, name, lambda *_: None)
    seen = iter([True, False] * 10)
    monkeypatch.setattr(kill, "is_complete", lambda *_: next(seen))
    measured = kill.count("regions", 6, 0).measured
    assert measured["kills after the work"] > 0
    assert abs(measured["kills"] - measured["kills after the work"]) <= 1
