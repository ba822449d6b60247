"""What every stage-1 command shares: how it ends, and the options for parallel work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pipeline.executors import WorkerLostError
from pipeline.files import describe
from segloc.contract import InputError


def run(
    command: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: list[str] | None
) -> int:
    """Parse `argv`, run `command`, and turn bad input into one line on stderr.

    Returns:
        The exit code: 0 done, 1 the command ran and found something wrong, 2 bad arguments or input, 130 stopped by
        Ctrl-C.
    """
    args = parser.parse_args(argv)
    try:
        return command(args) or 0
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{parser.prog}: {describe(error)}", file=sys.stderr)
        return 2
    except WorkerLostError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an option in one line, and where to read on."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def parser(module: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Build the parser of ``python -m module`` with worked examples at the end of its help."""
    return Parser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_executor_options(options: argparse.ArgumentParser) -> None:
    """Add ``--workers`` and ``--executor``; the output never depends on either."""
    options.add_argument("--workers", type=int, default=0, metavar="N", help="parallel processes (default: all cores)")
    options.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="where they run: here, or on a Ray cluster"
    )


def path(value: str) -> Path:
    """Read a path option; an empty one, such as a variable that is not set, would be the current folder."""
    if not value:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(value)


def optional_path(value: str) -> Path | None:
    """Read a path option that may be empty, as a value in params.yaml can be."""
    return Path(value) if value else None
