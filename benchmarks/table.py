"""Makes docs/speed.md of the result files: ``python -m benchmarks.table``. Its test fails when the two differ."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.common import RESULTS
from segloc.reporting.results_table import table_row

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
HEAD = """# Measurements

Made by `python -m benchmarks.table` from the files in `benchmarks/results/`, whose names say the machine. A ratio is of
two times taken in the same run, the median over rounds where there are rounds; the script's `--help` and its first
lines say what is timed against what. Absolute times differ from machine to machine, ratios less. Repeat a table with
the command above it.
"""


def lay_out(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """Lay out a Markdown table; `align` has ``l`` or ``r`` for the first columns, its last letter goes for the rest."""
    marks = align.ljust(len(header), align[-1:] or "l")
    rule = [{"l": "---", "r": "---:"}[mark] for mark in marks]
    return "".join(f"{table_row(cells)}\n" for cells in (header, rule, *rows))


def render(results: Path = RESULTS) -> str:
    """Lay out every result file as a table, in the order of their names."""
    parts = [HEAD]
    for path in sorted(results.glob("*.csv")):
        benchmark, _, machine = path.stem.partition("-")
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        title = f"## {benchmark}\n\nMachine: {machine}. `python -m benchmarks.{benchmark}`"
        parts.append(f"{title}\n\n{lay_out(header, rows)}")
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    PAGE.write_text(render())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
