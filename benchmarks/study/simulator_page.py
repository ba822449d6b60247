"""``python -m benchmarks.study.simulator_page``: write docs/simulator.md from results of ``benchmarks.study.realism``.

A test fails when the page differs from the result files.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from benchmarks import common
from benchmarks.study.scan_statistics import STATISTICS
from pipeline.simulate.dataset import SUBSETS
from segloc.common.files import atomic_file, check_output, write_atomic
from segloc.common.images import encode_jpeg, read_image
from segloc.common.text import markdown_table

RESULTS = Path(__file__).with_name("results") / "realism"
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "simulator.md"
SHEET, HISTOGRAM_CHART, STATISTICS_CHART = "simulator.jpg", "simulator_histograms.png", "simulator_statistics.png"
# Folders of a simulation, one per row of the sheet.
ROWS = {name: subset.images for name, subset in SUBSETS.items()}
COLOURS = {"real": "#222222", "simulated": "#d1495b"}
_CELL_PX, _COLUMNS, _LABEL_PX = (190, 200), 5, 22
_TELLING = 6

Rows = common.Rows

TEMPLATE = Path(__file__).with_name("simulator_template.md")


def read(name: str, results: Path) -> Rows:
    """Read one result file."""
    return common.read_rows(results / f"{name}.csv")


def render_simulator(results: Path = RESULTS) -> str:
    """Return the page as Markdown."""
    statistics = read("statistics", results)
    groups = list(dict.fromkeys(row["group"] for row in statistics))
    firsts = [next(row for row in statistics if row["group"] == group) for group in groups]
    counts = [[row["group"], row["real_scans"], row["simulated_scans"]] for row in firsts]
    titles = {"grey": "grey (levels)", "hue": "hue (degrees)", "saturation": "saturation (0 to 1)"}
    distances = [[r["group"], titles[r["histogram"]], *_distance(r)] for r in read("histogram_distances", results)]
    classifiers = [
        [row["task"], row["inputs"], row["group"], row["scans"],
         f"{row['accuracy']} [{row['low']}, {row['high']}]", row["patch_accuracy"]]
        for row in read("classifiers", results) if row["group"] == "all" or not row["task"].startswith("control")
    ]  # fmt: skip
    of_classifiers = ["task", "inputs", "group", "scans", "accuracy", "of single patches"]
    return common.fill(
        TEMPLATE,
        counts=markdown_table(["group", "real scans", "simulated scans"], counts),
        histogram_distances=markdown_table(["group", "histogram", "distance", "chance", "ratio"], distances),
        statistics="\n".join(_statistics(statistics, group) for group in groups),
        classifiers=markdown_table(of_classifiers, classifiers),
        telling=_telling(statistics, groups),
    )


def times_chance(row: dict[str, str]) -> float:
    """Divide the distance by the chance distance; infinite if only the real sample has no variation."""
    distance, chance = float(row["distance"]), float(row["real_halves"])
    return distance / chance if chance > 0 else (float("inf") if distance > 0 else 1.0)


def _distance(row: dict[str, str]) -> list[str]:
    """Return distance, chance distance and their ratio."""
    value = times_chance(row)
    return [row["distance"], row["real_halves"], f"{value:.1f}" if np.isfinite(value) else "-"]


def _spread(row: dict[str, str], source: str) -> str:
    """Format median and quartiles."""
    return f"{row[f'{source}_q50']} [{row[f'{source}_q25']}, {row[f'{source}_q75']}]"


def _statistics(rows: Rows, group: str) -> str:
    lines = []
    for row in (row for row in rows if row["group"] == group):
        name, spreads = row["statistic"], [_spread(row, source) for source in COLOURS]
        lines.append([name, STATISTICS[name], *spreads, *_distance(row)])
    header = ["statistic", "of", "real", "simulated", "distance", "chance", "ratio"]
    return f"### {group.capitalize()}: median [quartiles]\n\n{markdown_table(header, lines)}"


def _telling(statistics: Rows, groups: list[str]) -> str:
    """List the statistics with the largest ratio to chance, without those that do not vary in real scans."""
    parts = [f"## What gives it away\n\nThe {_TELLING} statistics of each group that differ most from chance.\n"]
    for group in groups:
        rows = [row for row in statistics if row["group"] == group and np.isfinite(times_chance(row))]
        parts.append(f"**{group.capitalize()}**\n")
        for row in sorted(rows, key=times_chance, reverse=True)[:_TELLING]:
            spreads = f"real {_spread(row, 'real')}, simulated {_spread(row, 'simulated')}"
            parts.append(f"* {row['statistic']} ({STATISTICS[row['statistic']]}): {spreads}")
        parts.append("")
    return "\n".join(parts)


def draw_histograms(rows: Rows, path: Path) -> None:
    """Chart the mean histograms: a row per group, a column per histogram."""
    groups, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("group", "histogram"))
    figure = Figure((3.3 * len(names), 2.1 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), len(names), squeeze=False)
    for group, line in zip(groups, axes, strict=True):
        for name, axis in zip(names, line, strict=True):
            bins = [row for row in rows if row["group"] == group and row["histogram"] == name]
            starts = [float(row["from"]) for row in bins]
            for source, colour in COLOURS.items():
                shares = [float(row[source]) for row in bins]
                axis.step(starts, shares, where="post", color=colour, linewidth=1.2, label=source)
            highest = sorted(float(row[source]) for row in bins for source in COLOURS)
            axis.set_ylim(0, 1.15 * highest[-3])  # the peak of the belt's grey level would flatten the rest
            axis.set_title(f"{group}: {name}", fontsize=8)
            axis.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=7, frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def draw_statistics(rows: Rows, path: Path) -> None:
    """Chart medians and quantiles: a panel per statistic, a pair of lines per group."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    figure = Figure((11, 1.25 * -(-len(STATISTICS) // 4) * max(1.0, len(groups) / 2.5)), layout="constrained")
    axes = figure.subplots(-(-len(STATISTICS) // 4), 4).ravel()
    for axis in axes[len(STATISTICS) :]:
        axis.axis("off")
    for number, (name, axis) in enumerate(zip(STATISTICS, axes, strict=False)):
        for place, group in enumerate(groups):
            row = next(row for row in rows if row["group"] == group and row["statistic"] == name)
            for shift, (source, colour) in zip((0.17, -0.17), COLOURS.items(), strict=True):
                low, first, middle, third, high = (float(row[f"{source}_q{q}"]) for q in ("05", "25", "50", "75", "95"))
                y = -place + shift
                axis.plot([low, high], [y, y], color=colour, linewidth=1)
                axis.plot([first, third], [y, y], color=colour, linewidth=4, solid_capstyle="butt")
                axis.plot(middle, y, "o", color=colour, markersize=4, label=source if not place else None)
        axis.set_title(name, fontsize=8)
        axis.set_yticks([-place for place in range(len(groups))], groups if number % 4 == 0 else [])
        axis.set_ylim(0.5 - len(groups), 0.5)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7, frameon=False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=100)


def draw_sheet(root: Path, path: Path) -> None:
    """Draw a sheet with the first scans of every folder of a simulation in `root`.

    Raises:
        OSError: a folder is missing.
    """
    bands = []
    for name, place in ROWS.items():
        files = sorted((root / place).iterdir())[:_COLUMNS]
        bands.append(np.hstack([_fitted(read_image(file)) for file in files]))
        cv2.putText(bands[-1], name, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (60, 60, 60), 1, cv2.LINE_AA)
    write_atomic(path, encode_jpeg(np.vstack(bands), 85))


def _fitted(scan: np.ndarray) -> np.ndarray:
    """Scale a scan into a white cell of the sheet, below a strip for the row's name."""
    width, height = _CELL_PX
    cell = np.full((height + _LABEL_PX, width, 3), 255, np.uint8)
    factor = min((width - 8) / scan.shape[1], height / scan.shape[0])
    size = round(scan.shape[1] * factor), round(scan.shape[0] * factor)
    x = (width - size[0]) // 2
    cell[_LABEL_PX : _LABEL_PX + size[1], x : x + size[0]] = cv2.resize(scan, size, interpolation=cv2.INTER_AREA)
    return cell


def check_page(docs: Path) -> None:
    """Check, before the measurements, that the page and its pictures can be written into `docs`."""
    for name in (PAGE.name, SHEET, HISTOGRAM_CHART, STATISTICS_CHART):
        check_output(docs / name)


def write_page(results: Path, docs: Path) -> None:
    """Write the page and its charts into `docs`."""
    draw_histograms(read("histograms", results), docs / HISTOGRAM_CHART)
    draw_statistics(read("statistics", results), docs / STATISTICS_CHART)
    write_atomic(docs / PAGE.name, render_simulator(results).encode())
    print(f"wrote {docs / PAGE.name}")


if __name__ == "__main__":
    write_page(RESULTS, DOCS)
