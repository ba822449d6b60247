"""Fills the tables of docs/reliability.md from the result files: ``python -m tests.faults.page``.

A table stands between ``<!-- counted: NAME -->`` and ``<!-- end -->``. A test fails when page and files differ.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from segloc.common.text import markdown_table
from tests.faults.common import RESULTS
from tests.imports import ROOT

PAGE = ROOT / "docs" / "reliability.md"
_TABLE = re.compile(r"(<!-- counted: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(text: str, results: Path = RESULTS) -> str:
    """Replace the content of every table in a page."""
    return _TABLE.sub(lambda match: f"{match[1]}\n{table(results / f'{match[2]}.json')}\n{match[3]}", text)


def table(path: Path) -> str:
    """Format a result file; kinds that are missing from it, and a missing file, are not measured."""
    if not path.is_file():
        return "Not measured.\n"
    content = json.loads(path.read_text())
    counts = {count["kind"]: count for count in content["counts"]}
    names = [name for name in _measured(content) if name != "seconds"]
    rows = []
    for kind in content["kinds"]:
        if (count := counts.get(kind)) is None:
            rows.append([kind, "not measured", "", "", *("" for _ in names)])
        else:
            numbers = [f"{count['cases']:,}", f"{count['as_expected']:,}", f"{len(count['findings']):,}"]
            rows.append([kind, *numbers, *(_shown(count["measured"].get(name, "")) for name in names)])
    if len(rows) > 1:
        sums = (sum(c[name] for c in counts.values()) for name in ("cases", "as_expected"))
        findings = sum(len(count["findings"]) for count in counts.values())
        rows.append(["all", *(f"{value:,}" for value in (*sums, findings)), *("" for _ in names)])
    seconds = sum(float(count["measured"].get("seconds", 0)) for count in counts.values())
    made = f"{content['commit']}, {content['date']}, {seconds / 60:.0f} min"
    source = f"`{content['command']}` at {made}: {content['machine']}."
    return markdown_table(["kind", "cases", "as expected", "findings", *names], rows) + f"\n{source}\n"


def _measured(content: dict) -> list[str]:
    return list(dict.fromkeys(name for count in content["counts"] for name in count["measured"]))


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,g}" if abs(value) < 1000 else f"{value:,.0f}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(PAGE.read_text()))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
