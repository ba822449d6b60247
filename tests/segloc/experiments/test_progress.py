"""How many jobs are done, and the estimate of the rest."""

import pytest

from segloc.experiments.jobs import Job, Step
from segloc.experiments.progress import summary


@pytest.fixture
def job(tmp_path):
    def make(name, kind="protocol fair", seconds=None, finished=False, processes=1, needs=()):
        folder = tmp_path / name
        folder.mkdir()
        made = Job(name, folder, (Step("s", ("m",), folder / "made"),), {}, lambda: None, kind, needs, processes)
        if seconds is not None:
            made.write({"s": seconds})
        if finished:
            made.steps[0].makes.touch()
        return made

    return make


def test_the_rest_is_estimated_from_finished_jobs_of_the_same_kind(job):
    cells = [
        job("a", seconds=3600, finished=True),
        job("b", seconds=7200, finished=True),
        job("c"),
        job("d", seconds=1800),  # stopped after half an hour
        job("p", kind="probe", seconds=60, finished=True),
    ]
    lines = ["3 of 5 jobs are done"]
    assert summary(cells, 1) == [
        *lines,
        "the rest takes about 2 h 30 min, one at a time: the mean time of finished jobs of the same kind",
    ]
    # 1.5 and 1 hours on two GPUs.
    assert "about 1 h 15 min, 2 at a time" in summary(cells, 2)[1]


def test_a_job_of_several_gpus_counts_for_as_many(job):
    cells = [job("a", seconds=3600, finished=True, processes=4), *(job(name, processes=4) for name in "bc")]
    assert "about 2 h 00 min, 4 at a time" in summary(cells, 4)[1]
    assert "about 1 h 00 min, 8 at a time" in summary(cells, 8)[1]
    assert "about 2 h 00 min, one at a time" in summary(cells, 1)[1]  # on a CPU


def test_kinds_without_a_finished_job_are_named(job):
    need = job("need", kind="pretraining paper")
    cells = [job("a", seconds=None, finished=True), job("b"), job("c", needs=(need,))]
    assert summary(cells, 1) == [
        "1 of 4 jobs are done",
        "no estimate for protocol fair, 2 to run: no finished job of this kind has its time",
        "no estimate for pretraining paper, 1 to run: no finished job of this kind has its time",
    ]
    (need.folder / "made").touch()
    need.write({"s": 60})
    others = [*cells, job("d", kind="pretraining paper")]
    assert summary(others, 1)[1].startswith("1 of the other 3 take about 0 h 01 min")


def test_what_only_finished_cells_needed_is_not_left(job):
    need = job("need", kind="pretraining paper")
    assert summary([job("a", seconds=9, finished=True, needs=(need,))], 1) == ["1 of 1 jobs are done"]
