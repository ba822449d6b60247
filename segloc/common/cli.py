"""The command line of all commands: parsing, exit codes, and shared options."""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from segloc.common import run_files, stops, terminal
from segloc.common.errors import FailedElsewhere, InputError, RunError, describe_os_error, exit_code_of
from segloc.common.files import check_output, check_output_folder, expanded, was_removed
from segloc.common.output_kinds import Kind, check_replaces
from segloc.common.skips import MAX_SKIPPED, OPTION
from segloc.common.text import printable

# Names of `pipeline.common.executors.EXECUTORS`.
EXECUTORS = ("local", "ray")
_WHOLE = re.compile(r"[+-]?[0-9]{1,100}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# Errors that a user can mend or has to know of; any other is a bug and shows its traceback.
EXPECTED = (InputError, RunError, OSError)
# How to go on after a stop.
CONTINUES, STARTS_OVER = "run the same command again to continue", "run the same command again to start over"
EXIT_CODES = "0 done, 1 failed or too much skipped, 2 wrong input or usage, 128 + signal after a stop (130: Ctrl-C)"


def run(
    command: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: list[str] | None
) -> int:
    """Parse `argv`, run `command`, and turn bad input and stops into one line on stderr.

    Returns:
        The exit code: 0 done, 1 the work failed or too much was skipped, 2 wrong input or usage
        (`segloc.common.errors`), 128 + signal after a stop (`segloc.common.stops`).
    """
    if argv is None:
        terminal.in_utf8(parser.prog.removeprefix("python -m "))
    terminal.prepare()
    args = parser.parse_intermixed_args(argv)  # key=value arguments may be anywhere
    line = f"{parser.prog}: stopped by {{}}; {getattr(parser, 'after_stop', STARTS_OVER)}"
    with stops.handled(line):
        try:
            check_outputs(parser, args)
            code = command(args) or 0
            require_outputs(parser, args)
            return stops.finish(code)
        except EXPECTED as error:
            return stops.finish(report(error, parser.prog))
        except KeyboardInterrupt as stop:
            number = stop.number if isinstance(stop, stops.Stopped) else signal.SIGINT
        except Exception:
            if not (number := stops.came()):
                raise
        # Not in the except clause: its traceback would keep progress bars open, on the line of the message.
        if stops.speaks():
            print(line.format(stops.name(number)), file=sys.stderr)
        return stops.finish(stops.exit_code(number), stops.END_STOPPED_S)


def report(error: InputError | RunError | OSError, program: str) -> int:
    """Print what an expected error says, in one line on stderr; returns its exit code."""
    if not isinstance(error, FailedElsewhere):
        message = describe_os_error(error) if isinstance(error, OSError) else str(error)
        print(f"{program}: {printable(message)}", file=sys.stderr)
    return exit_code_of(error)


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line that refers to ``--help``.

    Attributes:
        after_stop: how to go on after a stop.
    """

    after_stop = STARTS_OVER

    def error(self, message: str) -> NoReturn:
        """Exit with the code of bad input."""
        self.exit(InputError.exit_code, f"{self.prog}: {message} (see --help)\n")


def parser(module: str, description: str, examples: str, after_stop: str = STARTS_OVER) -> argparse.ArgumentParser:
    """Build the parser of ``python -m module``, with examples and exit codes at the end of its help.

    Args:
        module: the command.
        description: what it does.
        examples: lines with examples.
        after_stop: how to go on after a stop.
    """
    options = Parser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"examples:\n{examples.rstrip()}\n\nexit codes: {EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.after_stop = after_stop
    return options


def add_executor_options(options: argparse.ArgumentParser) -> None:
    """Add ``--workers`` and ``--executor``. The output never depends on them."""
    options.add_argument("--workers", type=whole, default=0, metavar="N", help="processes (default: all cores)")
    options.add_argument(
        "--executor", choices=EXECUTORS, default="local", help="run on this machine (default) or a Ray cluster"
    )


def add_processes(options: argparse.ArgumentParser) -> None:
    """Add ``--processes``."""
    options.add_argument(
        "--processes",
        type=whole,
        default=1,
        metavar="N",
        help="number of processes on this machine, at most one per GPU (default: 1)",
    )


def add_max_skipped(options: argparse.ArgumentParser) -> None:
    """Add ``--max-skipped``; see `segloc.common.skips`."""
    options.add_argument(
        OPTION,
        type=share,
        default=MAX_SKIPPED,
        metavar="SHARE",
        help="largest share of unreadable, missing or invalid inputs, 0 to 1; with more, the output is written but the "
        "exit code is 1 (default: %(default)s)",
    )


def add_white(options: argparse.ArgumentParser) -> None:
    """Add ``--white``; see `segloc.common.white_level`."""
    options.add_argument(
        "--white",
        type=white,
        metavar="LEVEL",
        help="value of the empty belt in 16-bit scans, 1 to 65535 (default: measured over the scans; 8-bit scans are "
        "not changed)",
    )


def white(text: str) -> int | None:
    """Read an option that is a white level; an empty text, like a value in params.yaml, is None."""
    if not text:
        return None
    try:
        value = whole(text)
    except argparse.ArgumentTypeError:
        value = 0
    if not 1 <= value <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 65535")
    return value


def whole(text: str) -> int:
    """Read an option that is a whole number, in digits 0 to 9 only."""
    if not _WHOLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def number(text: str) -> float:
    """Read an option that is a finite number, in digits 0 to 9 only."""
    if not _NUMBER.fullmatch(text) or math.isinf(float(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return float(text)


def share(text: str) -> float:
    """Read an option that is a share from 0 to 1."""
    try:
        value = number(text)
    except argparse.ArgumentTypeError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def add_if_changed(options: argparse.ArgumentParser) -> None:
    """Add ``--if-changed``: what to do with an output folder that was made with other parameters."""
    what = "action when the folder was made with other parameters (default: refuse)"
    options.add_argument("--if-changed", choices=("refuse", "rebuild"), default="refuse", help=what)


def add_overrides(options: argparse.ArgumentParser) -> None:
    """Accept ``key=value`` arguments that change the recipe."""
    options.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the recipe")


def split_override(override: str) -> tuple[str, str]:
    """Split ``key=value``.

    Raises:
        InputError: there is no ``=``.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r} is not key=value")
    return key, value


def path(value: str) -> Path:
    """Read a path option: literally, except that ``~`` is expanded.

    An empty path (for example from an unset variable) would mean the current folder.
    """
    if not value:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(expanded(value))


def optional_path(value: str) -> Path | None:
    """Read a path option that may be empty, like a value in params.yaml."""
    return path(value) if value else None


def place(value: str) -> str:
    """Read a path or URL, or a word that stands for one, such as ``random``; see `path`."""
    return expanded(value) if path(value) else value


class OutputFile:
    """Reads the path of a file to write; `check_outputs` checks it.

    Args:
        kinds: what the file may replace: files that the command itself writes there.
        beside: returns the files that the command writes beside an output file, and their kinds.
    """

    def __init__(self, *kinds: Kind, beside: Callable[[Path], Mapping[Path, Kind]] | None = None) -> None:
        self.kinds, self.beside = kinds, beside

    def __call__(self, value: str) -> Path:
        """Read an option."""
        return path(value)

    def files(self, out: Path) -> list[tuple[Path, tuple[Kind, ...]]]:
        """Return the files to write, `out` first, and what each may replace."""
        beside = self.beside(out) if self.beside else {}
        return [(out, self.kinds), *((file, (kind,)) for file, kind in beside.items())]


def output_folder(value: str) -> Path:
    """Read the path of a folder to write files in; `check_outputs` checks it."""
    return path(value)


def output_store(value: str) -> str:
    """Read the path or URL of a folder to write shards in; `check_outputs` checks a local one."""
    return expanded(value)


def require_outputs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check, after the work, that the files that the options name are still there.

    Raises:
        RunError: one was removed while the command ran.
    """
    for action in parser._actions:
        value = getattr(args, action.dest, None) if isinstance(action.type, OutputFile) else None
        for given in value if isinstance(value, list) else [value]:
            if given is not None and was_removed(given):
                raise RunError(f"{given}: was removed while the command ran; run the same command again")


def check_outputs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check, before work starts, that all outputs that the options name can be written and replace nothing else.

    Raises:
        InputError: one cannot be written, or would replace an input or another file that this command did not write.
    """
    types = (path, optional_path, place, output_folder, output_store)
    named = [
        (action, given)
        for action in parser._actions
        for value in [getattr(args, action.dest, None)]
        for given in (value if isinstance(value, list) else [value])
        if given is not None and (isinstance(action.type, OutputFile) or action.type in types)
    ]
    for action, given in named:
        if isinstance(action.type, OutputFile):
            others = [(other, place) for other, place in named if other is not action]
            for file, kinds in action.type.files(Path(given)):
                check_output(file)
                if whose := run_files.owner(file):
                    raise InputError(f"{file}: belongs to the {whose} in its folder; choose another file")
                _refuse_inputs(file, others)
                check_replaces(file, *kinds)
        elif action.type is output_folder or (action.type is output_store and "://" not in str(given)):
            check_output_folder(given)


def _refuse_inputs(output: Path, others: list[tuple[argparse.Action, str | Path]]) -> None:
    """Refuse an output file that another option names too."""
    for action, given in others:
        if os.path.realpath(output) == os.path.realpath(given):
            option = (action.option_strings or [action.dest])[0]
            raise InputError(f"{output}: {option} names the same file, which would be lost; choose another file")
