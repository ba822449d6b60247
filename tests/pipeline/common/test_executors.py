import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.common.executors import IN_FLIGHT_PER_WORKER, WorkerLostError, run_tasks
from segloc.common.errors import InputError
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
    if how == signal.SIGINT:
        assert (parent.returncode, errors) == (130, "python -m sleepers: stopped\n")
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
