"""What every stage-2 command shares: how it ends, its help, and ``key=value`` overrides."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import NoReturn

from segloc.contract import InputError


def run(
    command: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: list[str] | None
) -> int:
    """Parse `argv`, run `command`, and turn bad input into one line on stderr.

    Returns:
        The exit code: 0 done, 1 the command ran and found something wrong, 2 bad arguments or input.
    """
    args = parser.parse_intermixed_args(argv)  # key=value may stand anywhere
    try:
        return command(args) or 0
    except (InputError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
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


def unknown_key(key: str, valid: Iterable[str], where: str) -> InputError:
    """Make the error for a key that does not exist, naming the nearest one that does."""
    valid = list(valid)
    near = [k for k in valid if k.startswith(key)] or get_close_matches(key, valid, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"{where}: unknown key {key!r}{hint}")
