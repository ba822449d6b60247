"""Writes docs/speed.md from the result files: ``python -m benchmarks.table``. A test fails when the two differ."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import RESULTS, read_rows
from segloc.common.files import write_atomic
from segloc.common.text import markdown_table

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
HEAD = """# Measurements

Written by `python -m benchmarks.table` from the files in `benchmarks/results/`, which are named after the machine. A
ratio compares two times of the same run; with several rounds it is the median. The docstring of each script says what
it measures. Ratios depend less on the machine than times. To repeat a measurement, run the command above its table.
"""


def render_speed(results: Path = RESULTS) -> str:
    """Format every result file as a table, in the order of file names."""
    parts = [HEAD]
    for path in sorted(results.glob("*.csv")):
        benchmark, _, machine = path.stem.partition("-")
        rows = read_rows(path)
        title = f"## {benchmark}\n\nMachine: {machine}. `python -m benchmarks.{benchmark}`"
        parts.append(f"{title}\n\n{markdown_table(list(rows[0]), [list(row.values()) for row in rows])}")
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    write_atomic(PAGE, render_speed().encode())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
