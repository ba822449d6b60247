"""Jobs on fake devices: stub commands write what they see."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from segloc.common.errors import InputError
from segloc.common.locks import locked
from segloc.common.stops import Stopped
from segloc.experiments import devices
from segloc.experiments.devices import Devices, find_devices
from segloc.experiments.jobs import Job, Step
from segloc.experiments.run import check
from segloc.experiments.schedule import run_cells

STUB = """
import json, os, pathlib, signal, time
def end(number, frame):
    pathlib.Path({told!r}).touch()
    os._exit(143)  # timeit catches SystemExit
signal.signal(signal.SIGTERM, end)
pathlib.Path({pid!r}).write_text(str(os.getpid()))
began = time.monotonic()
time.sleep({seconds})
seen = os.environ.get("CUDA_VISIBLE_DEVICES")
pathlib.Path({makes!r}).write_text(json.dumps([seen, began, time.monotonic()]))
"""


@pytest.fixture
def gpus(tmp_path):
    def named(*names):
        return Devices(names, tuple(tmp_path / f"{name}.lock" for name in names))

    return named


def stub(tmp_path, name, seconds=0.3, processes=1, needs=()):
    """A job that sleeps and writes the devices that it sees, and when."""
    folder = tmp_path / name
    files = {"told": str(folder / "told"), "makes": str(folder / "made"), "pid": str(folder / "pid")}
    code = STUB.format(seconds=seconds, **files)
    step = Step("stub", ("timeit", "-n1", "-r1", code), folder / "made")
    return Job(name, folder, (step,), {}, lambda: None, "stub", needs, processes)


def ran(*jobs):
    """Devices, begin and end of each job."""
    read = [json.loads((job.folder / "made").read_text()) for job in jobs]
    return [(seen.split(","), began, ended) for seen, began, ended in read]


def overlapping(spans):
    """Pairs of jobs that ran at the same time: whether they shared a device."""
    pairs = [(one, other) for place, one in enumerate(spans) for other in spans[:place]]
    return [{*one[0]} & {*other[0]} != set() for one, other in pairs if one[1] < other[2] and other[1] < one[2]]


def test_jobs_run_side_by_side_each_on_one_device(gpus, tmp_path, capsys):
    jobs = [stub(tmp_path, f"j{number}") for number in range(6)]
    assert run_cells(jobs, gpus("4", "5", "7")) == []
    spans = ran(*jobs)
    assert {tuple(seen) for seen, *_ in spans} == {("4",), ("5",), ("7",)}
    assert overlapping(spans)
    assert not any(overlapping(spans))
    said = capsys.readouterr().err.splitlines()
    for job in jobs:
        lines = [line for line in said if line.startswith(f"{job.name}: ")]
        assert len(lines) == 2
        assert lines[0].startswith(f"{job.name}: stub on GPU ")
        assert lines[1].startswith(f"{job.name}: stub done after ")
        assert 0 < json.loads(job.record.read_text())["seconds"]["stub"] < 60


def test_a_job_of_several_processes_takes_as_many_devices_and_is_not_passed_over(gpus, tmp_path):
    first, many, last = stub(tmp_path, "first"), stub(tmp_path, "many", processes=2), stub(tmp_path, "last")
    assert run_cells([first, many, last], gpus("0", "1")) == []
    spans = ran(first, many, last)
    assert spans[1][0] == ["0", "1"]
    assert overlapping(spans) == []
    assert spans[0][2] < spans[1][1] < spans[2][1]


def test_a_job_waits_for_those_it_needs(gpus, tmp_path):
    need = stub(tmp_path, "need")
    cells = [stub(tmp_path, f"j{number}", needs=(need,)) for number in range(2)]
    assert run_cells(cells, gpus("0", "1", "2")) == []
    (_, _, ended), *others = ran(need, *cells)
    assert all(began > ended for _, began, _ in others)
    assert overlapping(others) == [False]


def test_without_devices_one_job_runs_at_a_time_and_sees_what_its_parent_sees(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as,before")
    jobs = [stub(tmp_path, f"j{number}", processes=2) for number in range(2)]
    assert run_cells(jobs, Devices()) == []
    spans = ran(*jobs)
    assert overlapping(spans) == []
    assert spans[0][0] == ["as", "before"]


def test_two_commands_never_use_one_device_at_the_same_time(gpus, tmp_path):
    jobs = [stub(tmp_path, f"j{number}") for number in range(6)]
    threads = [threading.Thread(target=run_cells, args=(half, gpus("0", "1"))) for half in (jobs[:3], jobs[3:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = ran(*jobs)
    assert overlapping(spans)
    assert not any(overlapping(spans))


def test_the_command_of_a_killed_experiment_keeps_its_device(gpus, tmp_path):
    job, here = stub(tmp_path, "j", seconds=3), gpus("0")
    process = multiprocessing.get_context("fork").Process(target=run_cells, args=([job], here))
    process.start()
    while not (job.folder / "pid").exists():
        time.sleep(0.02)
    process.kill()
    process.join()
    with here.taken(1, "other") as taken:
        assert taken is None
    with locked(here.locks[0], "other", wait=True) as descriptor:
        assert descriptor is not None
    assert (job.folder / "made").exists()


@pytest.mark.parametrize("by_terminal", [True, False])
def test_a_stop_reaches_all_jobs(gpus, tmp_path, by_terminal):
    """Of this process, or of one job: all save and end."""
    jobs = [stub(tmp_path, f"j{number}", seconds=20) for number in range(3)]

    def stop():
        while not all((job.folder / "pid").is_file() and (job.folder / "pid").read_text() for job in jobs[:2]):
            time.sleep(0.02)
        os.kill(os.getpid() if by_terminal else int((jobs[1].folder / "pid").read_text()), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped) as caught:
        run_cells(jobs, gpus("0", "1"))
    thread.join()
    assert caught.value.number == signal.SIGTERM
    assert [(job.folder / "told").exists() for job in jobs] == [True, True, False]
    assert json.loads(jobs[0].record.read_text())["seconds"]["stub"] > 0


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "LOCKS", tmp_path / "locks")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "locks"


@pytest.mark.parametrize(
    ("wanted", "visible", "count", "names"),
    [
        (None, None, 0, []),
        (None, None, 3, ["0", "1", "2"]),
        (None, "2,5", 2, ["2", "5"]),
        (None, "", 0, []),
        ("0,1", None, 0, ["0", "1"]),
        ("5", "2,5", 2, ["5"]),
        ("GPU-8932f937-d72c,0", None, 2, ["GPU-8932f937-d72c", "0"]),
    ],
)
def test_the_devices_are_those_named_or_visible(places, monkeypatch, wanted, visible, count, names):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_devices(wanted)
    assert list(found.names) == names
    assert [path.parent for path in found.locks] == [places] * len(names)


def test_locks_are_of_the_card_not_of_its_name(places, monkeypatch):
    """Schedulers number the cards of every job from 0."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    ask = "import os; print(*('u' + name for name in os.environ['CUDA_VISIBLE_DEVICES'].split(',')))"
    monkeypatch.setattr(devices, "_ASK", ask)
    assert find_devices("1,3").locks == (places / "u1.lock", places / "u3.lock")
    monkeypatch.setattr(devices, "_ASK", "print('u0', 'u0')")
    with pytest.raises(InputError, match="--devices: 1,3: two of these names mean the same GPU"):
        find_devices("1,3")
    monkeypatch.setattr(devices, "_ASK", "print('u0')")
    with pytest.raises(InputError, match="--devices: 1,3: CUDA finds 1 of these GPUs"):
        find_devices("1,3")


@pytest.mark.parametrize(
    ("wanted", "visible", "message"),
    [
        ("", None, "--devices: '' is not a GPU"),
        ("0,,1", None, "--devices: '' is not a GPU"),
        ("cuda:0", None, "'cuda:0' is not a GPU; give numbers or UUIDs"),
        ("0,0", None, "0 is named twice"),
        ("0,3", "0,1", "3 is not in CUDA_VISIBLE_DEVICES (0,1)"),
        ("0", "", "0 is not in CUDA_VISIBLE_DEVICES ()"),
    ],
)
def test_wrong_devices_are_refused(places, monkeypatch, wanted, visible, message):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(InputError) as caught:
        find_devices(wanted)
    assert message in str(caught.value)


def test_a_folder_of_locks_of_another_user_is_refused(places, tmp_path):
    (tmp_path / "theirs").mkdir()
    places.symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="belongs to another user"):
        find_devices("0")


def test_more_processes_than_devices_are_refused_before_work_starts(gpus, tmp_path):
    job = stub(tmp_path, "j", processes=3)
    with pytest.raises(InputError, match=r"j has processes: 3, but there are 2 GPUs to use \(0,1\)"):
        check([job], gpus("0", "1"))
    check([job], Devices())
