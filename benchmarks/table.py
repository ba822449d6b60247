"""Makes docs/speed.md of the result files: ``python -m benchmarks.table``. Its test fails when the two differ."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import RESULTS, read_rows
from segloc.common.text import markdown_table

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
HEAD = """# Measurements

Made by `python -m benchmarks.table` from the files in `benchmarks/results/`, whose names say the machine. A ratio is of
two times taken in the same run, the median over rounds where there are rounds; the script's `--help` and its first
lines say what is timed against what. Absolute times differ from machine to machine, ratios less. Repeat a table with
the command above it.
"""


def render_speed(results: Path = RESULTS) -> str:
    """Lay out every result file as a table, in the order of their names."""
    parts = [HEAD]
    for path in sorted(results.glob("*.csv")):
        benchmark, _, machine = path.stem.partition("-")
        rows = read_rows(path)
        title = f"## {benchmark}\n\nMachine: {machine}. `python -m benchmarks.{benchmark}`"
        parts.append(f"{title}\n\n{markdown_table(list(rows[0]), [list(row.values()) for row in rows])}")
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    PAGE.write_text(render_speed())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
