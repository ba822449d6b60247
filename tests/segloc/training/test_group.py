"""What the processes of a group do together: exchange objects, and end together."""

import contextlib
from pathlib import Path

import pytest

from segloc.common.errors import FailedElsewhere, InputError, RunError, exit_code_of
from segloc.training.processes import ALONE, launch


def exchange(folder, group):
    mine = {"rank": group.rank, "list": [0] * group.rank}
    every, in_main = group.gather_objects(mine), group.gather_in_main(mine)
    called = []
    chosen = group.of_main(lambda: called.append(1) or f"of {group.rank}")
    group.say(f"said by {group.rank}")
    Path(folder, str(group.rank)).write_text(repr((every, in_main, chosen, called)))
    return 0


def test_objects_are_gathered_in_rank_order_and_shared(tmp_path, capfd):
    assert launch(exchange, 2, str(tmp_path)) == 0
    every = [{"rank": 0, "list": []}, {"rank": 1, "list": [0]}]
    assert (tmp_path / "0").read_text() == repr((every, every, "of 0", [1]))
    assert (tmp_path / "1").read_text() == repr((every, None, "of 0", []))
    assert capfd.readouterr().out == "said by 0\n"


@contextlib.contextmanager
def locked():
    raise InputError("the lock is taken")
    yield


def fail(how, group):
    if how == "lock":
        with group.in_main(locked()):
            return 0
    if how == "main":
        group.of_main(lambda: 1 / 0)
    with group.together():
        if how == "all":
            raise InputError("the same in all")
        if group.rank == 1:
            raise RunError("only here") if how == "second" else OSError(28, "No space left on device", "/x")
    return 0


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("lock", 2, "process 0: the lock is taken"),
        ("main", 1, "ZeroDivisionError"),
        ("all", 2, "process 0: the same in all"),
        ("second", 1, "process 1: only here"),
        ("disk", 2, "process 1: /x: the disk is full"),
    ],
)
def test_a_failure_ends_all_and_only_one_process_says_why(how, code, said, capfd):
    assert launch(fail, 2, how) == code
    errors = capfd.readouterr().err
    assert errors.count(said) == 1
    assert how == "main" or len(errors.splitlines()) == 1


def test_a_single_process_raises_its_own_error():
    with pytest.raises(InputError, match="mine"), ALONE.together():
        raise InputError("mine")
    with pytest.raises(ZeroDivisionError):
        ALONE.of_main(lambda: 1 / 0)
    assert ALONE.of_main(lambda: 5) == 5


def test_exit_codes():
    assert exit_code_of(OSError("x")) == exit_code_of(InputError("x")) == 2
    assert exit_code_of(FailedElsewhere(7)) == 7
    assert exit_code_of(ZeroDivisionError()) == exit_code_of(RunError("x")) == 1
