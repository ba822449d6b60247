"""Stops: the first signal raises, a held one waits for the block's end, the second ends the process at once."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from segloc.common import stops
from segloc.common.stops import Stopped, handled, held
from tests.imports import ROOT


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python runs the handler between two instructions


@pytest.fixture
def heard():
    """A shell lets background jobs ignore Ctrl-C."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("number", stops.SIGNALS)
def test_a_signal_raises_in_the_block_and_handlers_come_back(number, heard):
    before = [signal.getsignal(each) for each in (*stops.SIGNALS, signal.SIGALRM)], sys.unraisablehook
    with pytest.raises(Stopped) as caught, handled():
        send(number)
    assert (caught.value.number, caught.value.exit_code) == (number, 128 + number)
    assert ([signal.getsignal(each) for each in (*stops.SIGNALS, signal.SIGALRM)], sys.unraisablehook) == before


def test_a_held_stop_is_raised_when_the_outermost_block_ends():
    done = []

    def work():
        with held() as stop, held():
            done.append(stop())
            send(signal.SIGTERM)
            done.append(stop())
        done.append("never")

    with pytest.raises(Stopped), handled():
        work()
    assert done == [0, signal.SIGTERM]


def test_an_error_in_a_held_block_is_not_replaced_by_the_stop():
    def work():
        send(signal.SIGTERM)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"), held():
        work()


def test_cleaning_up_after_a_stop_is_not_stopped_by_it():
    done = []

    def work():
        try:
            send(signal.SIGTERM)
        finally:
            with held():
                done.append("inside")
            done.append("after")

    with pytest.raises(Stopped), handled():
        work()
    assert done == ["inside", "after"]


def test_signals_so_close_that_they_are_one_stop_do_not_end_the_process():
    def work():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            send(number)

    with pytest.raises(Stopped), held():
        work()


def test_a_stop_that_comes_in_a_finaliser_is_not_lost():
    class Finalised:
        def __del__(self):
            send(signal.SIGTERM)

    def work():
        one = Finalised()
        del one
        time.sleep(5)

    with pytest.raises(Stopped), handled():
        work()


def test_nothing_is_handled_outside_the_main_thread():
    found = []

    def work():
        with handled(), held() as stop:
            found.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


def test_exit_codes_of_processes_tell_a_stop():
    assert [stops.signal_of(code) for code in (130, 143, -15, 129, 0, 1, 2, -9, 137)] == [2, 15, 15, 1, 0, 0, 0, 0, 0]


def run(code, *signals, before=""):
    """Run code with `command`; each time it prints, send it the next signal. Returns exit code, stderr and seconds."""
    text = f"import signal, sys, time\n{before}\nfrom segloc.common import cli, stops\ndef say(): print(flush=True)\n"
    text += f"def command(args):\n{textwrap.indent(textwrap.dedent(code), '    ')}\n"
    text += "if __name__ == '__main__':\n    sys.exit(cli.run(command, cli.parser('x', '', ''), []))"
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for number in signals:
        process.stdout.readline()
        process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, time.monotonic() - began


LINE = "python -m x: stopped by {}; run the same command again to start over\n"


@pytest.mark.parametrize(
    ("number", "code", "named"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")],
)
def test_a_command_ends_with_one_line_and_128_plus_the_signal(number, code, named):
    assert run("say(); time.sleep(60)", number)[:2] == (code, LINE.format(named))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_process_at_once(number):
    wait = "with stops.held():\n    say()\n    time.sleep(2.2)\n    say()\n    time.sleep(60)"
    code, errors, took = run(wait, number, number)
    said = f"\npython -m x: stopped at once by {stops.name(number)}; what was saved before stays\n"
    assert (code, errors) == (128 + number, said)
    assert took < 10


def test_nohup_still_works():
    ignore = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert run("say(); time.sleep(0.3)", signal.SIGHUP, before=ignore)[:2] == (0, "")


def test_an_error_that_the_stop_caused_is_no_traceback():
    breaks = "try:\n    say()\n    time.sleep(60)\nexcept BaseException as stop:\n    raise KeyError('pool') from stop"
    assert run(breaks, signal.SIGTERM)[:2] == (143, LINE.format("SIGTERM"))


def test_what_could_not_be_saved_after_a_stop_is_reported():
    full = "with stops.held():\n    say()\n    time.sleep(0.5)\n    raise OSError(28, 'No space left', 'last.pth')"
    code, errors, _ = run(full, signal.SIGTERM)
    assert code == 2
    assert errors.startswith("python -m x: last.pth: the disk is full")


@pytest.mark.parametrize("number", stops.SIGNALS)
def test_a_stop_while_a_command_is_imported_is_one_line(number, tmp_path):
    """A module that takes long to import stands for torch."""
    (tmp_path / "fsspec.py").write_text("import time\nprint(flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.synthesize", "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    said = (
        f"python -m pipeline.synthesize: stopped by {stops.name(number)} before it began; run the same command again\n"
    )
    assert (process.returncode, errors) == (128 + number, said)


@pytest.mark.parametrize("arguments", [["-m", "theirs"], ["-mtheirs"], ["-X", "utf8", "-m", "theirs"]])
def test_the_process_of_another_module_that_imports_ours_is_left_alone(arguments, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("import pipeline\n")
    code = "import time\nfrom segloc.common import stops\nstops.finish(0, 0.01)\ntime.sleep(0.5)\nprint('still here')\n"
    (tmp_path / "theirs" / "__main__.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "still here\n", done.stderr
