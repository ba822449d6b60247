"""Locks between real processes, and what a killed one leaves."""

import errno
import fcntl
import signal
import subprocess
import sys
import threading

import pytest

from segloc.common import locks
from segloc.common.errors import InputError
from segloc.common.stores import LocalStore
from tests.imports import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from segloc.common.locks import owned
with owned(Path(sys.argv[1]), "x"):
    print(flush=True)
    time.sleep(60)
"""


def test_a_second_owner_is_refused_and_told_who_is_first(tmp_path):
    lock = tmp_path / "new" / ".lock"
    first = subprocess.Popen([sys.executable, "-c", HOLDER, lock], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    first.stdout.readline()
    for shared in (False, True):
        with (
            pytest.raises(InputError, match=rf"^runs/x: in use \(process {first.pid} on \S+\); wait until it ends$"),
            locks.owned(lock, "runs/x: in use", shared),
        ):
            pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert lock.exists()  # stale, and harmless
    with locks.owned(lock, "runs/x: in use"):
        pass
    assert not lock.exists()


def test_shared_owners_keep_an_exclusive_one_out(tmp_path):
    lock = tmp_path / ".lock"
    with locks.owned(lock, "x", shared=True):
        with locks.owned(lock, "x", shared=True):
            pass
        with pytest.raises(InputError), locks.owned(lock, "x"):
            pass
        assert lock.exists()
    with locks.owned(lock, "x"):
        pass


def test_removing_the_file_lets_no_second_owner_in(tmp_path):
    """Owners come and go at once; a lock on a file that its last owner has removed counts for nothing."""
    lock, inside, most, refused = tmp_path / ".lock", [], [], []

    def work():
        for _ in range(300):
            try:
                with locks.owned(lock, "x"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except InputError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refused) == 1200


def test_without_locks_a_run_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def unsupported(descriptor, mode):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locks.owned(tmp_path / ".lock", "x"):
        pass
    assert capsys.readouterr().out == (
        f"{tmp_path}: no locks on this file system; make sure that no second run works here\n"
    )


SETTLERS = """
import sys
from segloc.common.stores import open_store
store = open_store(sys.argv[1])
print(flush=True)
for name in sys.stdin:
    try:
        print(store.write_once("f/" + name.strip(), sys.argv[2].encode() * 1000).decode()[:1], flush=True)
    except ValueError as error:
        print("refused", flush=True)
"""


def write_together(place, rounds):
    """Let three processes write the same files at the same time; two of them want the same. Returns their answers."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SETTLERS, place, wanted], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT,
        )
        for wanted in "aab"
    ]  # fmt: skip
    for process in processes:
        process.stdout.readline()
    answers = []
    for number in range(rounds):
        for process in processes:
            process.stdin.write(f"{number}.json\n")
            process.stdin.flush()
        answers.append([process.stdout.readline().strip() for process in processes])
    for process in processes:
        process.communicate()
    return answers


@pytest.mark.parametrize("links", [True, False], ids=["", "without hard links"])
def test_processes_that_write_a_file_once_get_the_same_content(links, tmp_path, monkeypatch):
    if not links:
        store = LocalStore(tmp_path)
        monkeypatch.setattr("os.link", lambda *names: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
        assert [store.write_once("f/x.json", text) for text in (b"one", b"two")] == [b"one", b"one"]
        return
    answers = write_together(str(tmp_path), 200)
    for number, answer in enumerate(answers):
        assert len(set(answer)) == 1, answer
        assert (tmp_path / "f" / f"{number}.json").read_text() == answer[0] * 1000
    assert len(list((tmp_path / "f").iterdir())) == 200  # no temporary file is left


@pytest.mark.slow
def test_on_a_bucket_processes_that_write_once_never_go_on_with_different_content(bucket):
    """Without locks, all who come at the same moment may be refused; nobody gets what another one did not."""
    answers = write_together(f"{bucket}/once", 20)
    for answer in answers:
        assert len({one for one in answer if one != "refused"}) <= 1, answer
