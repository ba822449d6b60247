import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.common.executors import IN_FLIGHT_PER_WORKER, WorkerLostError, run_tasks
from pipeline.common.workers import WorkerPool
from segloc.common.errors import InputError
from segloc.common.stops import Stopped, handled
from tests.pipeline.conftest import listen_to_ctrl_c

ROOT = Path(__file__).resolve().parents[3]


def slow_square(number: int) -> int:
    time.sleep(0.02 if number % 3 == 0 else 0)  # so that later tasks end earlier
    return number * number


def fail_on_three(number: int) -> int:
    if number == 3:
        raise InputError("three")
    return number


def die_on_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize(("workers", "chunk"), [(1, 1), (1, 4), (2, 1), (2, 4)])
def test_results_are_in_task_order(workers: int, chunk: int) -> None:
    assert list(run_tasks(slow_square, range(21), workers=workers, chunk=chunk)) == [n * n for n in range(21)]


def test_a_bounded_number_of_tasks_is_read_ahead() -> None:
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    results = run_tasks(slow_square, endless(), workers=2, chunk=3)
    assert [next(results) for _ in range(6)] == [1, 4, 9, 16, 25, 36]
    results.close()
    assert drawn <= 6 + 3 * 2 * IN_FLIGHT_PER_WORKER


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_arrives_unchanged_after_earlier_results(workers: int) -> None:
    results = run_tasks(fail_on_three, range(9), workers=workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match=r"^three$"):
        next(results)


def test_a_killed_worker_is_one_clear_error() -> None:
    with pytest.raises(WorkerLostError, match="worker process died") as caught:
        list(run_tasks(die_on_three, range(9), workers=2))
    assert "\n" not in str(caught.value)


def test_there_are_never_more_workers_than_chunks() -> None:
    results = run_tasks(slow_square, range(6), workers=50, chunk=3)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    assert list(results) == [n * n for n in range(1, 6)]


def test_an_absurd_number_of_workers_is_refused_before_any_starts() -> None:
    with pytest.raises(InputError, match=r"--workers is 100000, but this machine has \d+ cores; give at most \d+"):
        run_tasks(slow_square, range(6), workers=100_000)
    assert multiprocessing.active_children() == []
    with pytest.raises(InputError, match=r"--workers is 100000, more than a Ray cluster is given; give at most \d+$"):
        run_tasks(slow_square, range(6), workers=100_000, executor="ray")


def test_a_stop_comes_between_the_starts_of_two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    start = WorkerPool._start

    def stopped_after(pool: WorkerPool) -> None:
        start(pool)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(WorkerPool, "_start", stopped_after)
    with pytest.raises(Stopped), handled():
        list(run_tasks(slow_square, range(20), workers=10))
    assert multiprocessing.active_children() == []


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="'slurm'"):
        run_tasks(slow_square, [], executor="slurm")
    with pytest.raises(InputError, match="-1"):
        run_tasks(slow_square, [], workers=-1)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install ray"):
        list(run_tasks(slow_square, [1], executor="ray"))


@pytest.mark.slow
def test_ray_gives_the_same_results_as_local() -> None:
    pytest.importorskip("ray")
    assert list(run_tasks(slow_square, range(21), workers=2, executor="ray", chunk=2)) == [n * n for n in range(21)]
    with pytest.raises(InputError, match=r"^three$"):
        list(run_tasks(fail_on_three, range(9), workers=2, executor="ray"))


SLEEPERS = """
import os, sys, time
from pipeline.common.executors import run_tasks
def work(n):
    os.write(1, f"{os.getpid()}\\n".encode())  # in one write, because both workers write here
    time.sleep(60)
if __name__ == "__main__":
    from segloc.common import cli
    options = cli.parser("sleepers", "", "")
    sys.exit(cli.run(lambda args: list(run_tasks(work, range(2), workers=2)) and 0, options, []))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    parent = subprocess.Popen(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=listen_to_ctrl_c,
    )
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(how)
    _, errors = parent.communicate(timeout=20)
    if how != signal.SIGKILL:
        name = "Ctrl-C" if how == signal.SIGINT else "SIGTERM"
        line = f"python -m sleepers: stopped by {name}; run the same command again to start over\n"
        assert (parent.returncode, errors) == (128 + how, line)
    deadline = time.monotonic() + 10
    while any(map(_alive, workers)):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


SENDERS = """
import sys, time
from pipeline.common.executors import run_tasks
def work(n):
    return bytes(40_000_000)  # far more than a pipe holds, so that the worker is sending nearly all the time
if __name__ == "__main__":
    from segloc.common import cli
    def command(args):
        for number, _ in enumerate(run_tasks(work, range(1000), workers=3)):
            if not number:
                print(flush=True)
            if sys.argv[1] == "fail" and number == 3:
                raise OSError(28, "full", "table")
            time.sleep(0.05)
    options = cli.parser("senders", "", "")
    sys.exit(cli.run(command, options, []))
"""


@pytest.mark.parametrize("how", ["fail", signal.SIGINT, signal.SIGTERM])
def test_workers_that_are_sending_do_not_hold_up_the_end(how: signal.Signals | str, tmp_path: Path) -> None:
    script = tmp_path / "senders.py"
    script.write_text(SENDERS)
    parent = subprocess.Popen(
        [sys.executable, script, str(how)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=listen_to_ctrl_c,
        start_new_session=True,
    )
    parent.stdout.readline()
    time.sleep(0.1)
    if how != "fail":
        os.killpg(parent.pid, how)  # as a terminal does
    began = time.monotonic()
    _, errors = parent.communicate(timeout=30)
    assert parent.returncode == (2 if how == "fail" else 128 + how), errors
    assert errors.count("\n") == 1, errors
    assert time.monotonic() - began < 10


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raise_unpicklable(number: int) -> int:
    raise Unpicklable(number, 2)


def give_back_a_lambda(number: int) -> object:
    return lambda: number


def test_what_cannot_be_sent_is_an_error_and_no_hang() -> None:
    with pytest.raises(RuntimeError, match="Unpicklable: 1 and 2"):
        list(run_tasks(raise_unpicklable, [1], workers=2))
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        list(run_tasks(give_back_a_lambda, [1, 2], workers=2))
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        list(run_tasks(slow_square, [lambda: 1], workers=2))


def test_the_cause_of_an_exception_shows_where_the_worker_raised_it() -> None:
    with pytest.raises(InputError, match=r"^three$") as caught:
        list(run_tasks(fail_on_three, range(9), workers=2))
    assert "in fail_on_three" in str(caught.value.__cause__)
