"""Compare simulated with real scans by statistics and by two small classifiers that separate them.

All scans are scaled to one width, smaller than that of any scan, and JPEG-coded in the same way, so neither resampling
nor file format separates them. They are compared within groups (with or without prohibited items, white or grey belt).
The command writes numbers to ``benchmarks/study/results/realism`` and from these ``docs/simulator.md`` with charts and
a sheet of simulated scans. The output shows no real scan.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from tqdm import tqdm

from benchmarks.common import write_rows
from benchmarks.study import real_or_simulated, scan_statistics, simulator_page
from benchmarks.study.scan_statistics import HISTOGRAMS, STATISTICS, ScanStatistics
from pipeline.simulate.__main__ import main as simulate
from segloc.common import cli, white_level
from segloc.common.datasets import folder
from segloc.common.errors import InputError
from segloc.common.files import check_output_folder, existing_folder
from segloc.common.images import ImageError, read_image

EXAMPLES = """  python -m benchmarks.study.realism --real data/raw/sixray data/raw/pidray
  python -m benchmarks.study.realism --real /data/sixray /data/pidray --simulated data/raw"""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GREY_BELT_BELOW = 230  # white belts have 255, grey ones 190 to 200
HALVINGS = 50
VIEWS = ("colour", "grey", "coarse")
# Repetitions with new draws of scans and folds; a network takes as long as hundreds of logistic regressions.
REPEATS, NETWORK_REPEATS = 10, 1
_NEGATIVE = re.compile(r"N\d{5,7}\.\w+", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Scan:
    """Measurements of a scan.

    Attributes:
        group: for example ``negatives, white belt``.
        statistics: of the prepared scan.
        patches: uint8 [patches, 64, 64, 3].
    """

    group: str
    statistics: ScanStatistics
    patches: np.ndarray


Groups = dict[str, tuple[list[Scan], list[Scan]]]


def read_scans(roots: Sequence[Path], width: int, most: int, rng: Generator) -> list[Scan]:
    """Read and measure at most `most` scans in some folders, chosen at random.

    Raises:
        InputError: a folder is missing or has no scan, or a scan is too narrow or damaged.
    """
    paths = [root / name for root in roots for name in folder.scans(existing_folder(root, "scans"))]
    white, text = white_level.choose(paths)
    if text:
        print(text)
    chosen = [paths[index] for index in sorted(rng.permutation(len(paths))[:most])]
    scans = []
    for path in tqdm(chosen, desc="measure", unit="scan"):
        try:
            image = read_image(path, white=white)
        except ImageError as error:
            raise InputError(f"{path}: {error}") from error
        if image.shape[1] <= width:
            raise InputError(f"{path}: is {image.shape[1]} px wide; give --width less than that, not {width}")
        prepared = scan_statistics.prepare(image, width)
        statistics = scan_statistics.measure(prepared)
        patches = real_or_simulated.patches(prepared, rng)
        if statistics is not None and len(patches):
            content = "negatives" if _NEGATIVE.fullmatch(path.name) else "with items"
            belt = "grey belt" if statistics.values["belt_level"] < GREY_BELT_BELOW else "white belt"
            scans.append(Scan(f"{content}, {belt}", statistics, patches))
    return scans


def by_group(real: Sequence[Scan], simulated: Sequence[Scan]) -> Groups:
    """Group both sources; print and leave out groups with fewer than `FOLDS` scans of either source."""
    groups: Groups = {}
    for name in sorted({scan.group for scan in (*real, *simulated)}):
        pair = [scan for scan in real if scan.group == name], [scan for scan in simulated if scan.group == name]
        if min(map(len, pair)) >= real_or_simulated.FOLDS:
            groups[name] = pair
        else:
            print(f"{name}: left out, {len(pair[0])} real and {len(pair[1])} simulated scans are too few")
    if not groups:
        least = real_or_simulated.FOLDS
        raise InputError(f"no group has {least} real and {least} simulated scans; give more scans")
    return groups


def statistics_rows(groups: Groups, rng: Generator) -> list[dict[str, Any]]:
    """Return quantiles of every statistic and the distance of the samples, a row per group and statistic."""
    rows = []
    for group, pair in groups.items():
        columns = [{name: [scan.statistics.values[name] for scan in scans] for name in STATISTICS} for scans in pair]
        for name in STATISTICS:
            measured = [np.array(column[name]) for column in columns]
            row: dict[str, Any] = {"group": group, "statistic": name}
            for label, values in zip(("real", "simulated"), measured, strict=True):
                known = values[~np.isnan(values)]
                quantiles = np.quantile(known, QUANTILES) if len(known) else np.full(len(QUANTILES), np.nan)
                row |= {f"{label}_scans": len(known)}
                row |= {f"{label}_q{100 * q:02.0f}": _short(v) for q, v in zip(QUANTILES, quantiles, strict=True)}
            row |= _distances(scan_statistics.earth_movers_distance, measured[0], measured[1], rng)
            rows.append(row)
    return rows


def histogram_rows(groups: Groups, rng: Generator) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return mean histograms (a row per group, histogram and bin) and distances (a row per group and histogram)."""
    bins, distances = [], []
    for group, pair in groups.items():
        for name, (count, low, high) in HISTOGRAMS.items():
            stacks = [np.array([scan.statistics.histograms[name] for scan in scans]) for scans in pair]
            real, simulated = (stack.mean(0) for stack in stacks)
            starts = low + (high - low) / count * np.arange(count)
            bins += [
                {"group": group, "histogram": name, "from": _short(start), "real": f"{a:.6f}", "simulated": f"{b:.6f}"}
                for start, a, b in zip(starts, real, simulated, strict=True)
            ]

            def distance(a: np.ndarray, b: np.ndarray, name: str = name) -> float:
                return scan_statistics.histogram_distance(name, a.mean(0), b.mean(0))

            distances.append({"group": group, "histogram": name, **_distances(distance, stacks[0], stacks[1], rng)})
    return bins, distances


def _distances(
    distance: Callable[[np.ndarray, np.ndarray], float], real: np.ndarray, simulated: np.ndarray, rng: Generator
) -> dict[str, str]:
    """Compute the distance of half the real sample from as many simulated scans, and from its other half (chance).

    Both are means over the same random halves, so they are equal in expectation for samples of one distribution.
    """
    apart, chance = [], []
    for _ in range(HALVINGS):
        order = rng.permutation(len(real))
        half, other = real[order[::2]], real[order[1::2]]
        drawn = rng.permutation(len(simulated))[: len(other)]
        apart.append(distance(half, simulated[drawn]))
        chance.append(distance(half, other))
    return {"distance": _short(float(np.mean(apart))), "real_halves": _short(float(np.mean(chance)))}


def _short(number: float) -> str:
    return f"{number:.4g}"


def matched(groups: Groups, rng: Generator) -> tuple[list[Scan], np.ndarray]:
    """Draw equally many real and simulated scans of each group; return scans and labels (1 real, 0 simulated)."""
    scans: list[Scan] = []
    labels: list[int] = []
    for real, simulated in groups.values():
        count = min(len(real), len(simulated))
        for label, source in ((1, real), (0, simulated)):
            scans += [source[index] for index in rng.permutation(len(source))[:count]]
            labels += [label] * count
    return scans, np.array(labels)


def halves(groups: Groups, which: int, rng: Generator) -> Groups:
    """Split one source of every group into random halves, the control that no classifier should separate."""
    split: Groups = {}
    for name, pair in groups.items():
        order = rng.permutation(len(pair[which]))
        first, second = ([pair[which][index] for index in order[start::2]] for start in (0, 1))
        split[name] = first, second
    return split


def classifier_scores(scans: Sequence[Scan], labels: np.ndarray, view: str | None, rng: Generator) -> list[np.ndarray]:
    """Compute cross-validated scores of every scan from its statistics, or from its patches in one of `VIEWS`."""
    fold = real_or_simulated.folds([f"{scan.group} {label}" for scan, label in zip(scans, labels, strict=True)], rng)
    if view is None:
        inputs = real_or_simulated.features([scan.statistics for scan in scans])
        score = functools.partial(real_or_simulated.logistic_scores, inputs, labels)
    else:
        seen = [real_or_simulated.as_seen(scan.patches, view) for scan in scans]
        score = functools.partial(real_or_simulated.patch_scores, seen, labels, seed=int(rng.integers(2**31)))
    return real_or_simulated.cross_validated(score, fold)


def classifier_rows(groups: Groups, rng: Generator) -> list[dict[str, Any]]:
    """Return the accuracy of the classifiers over all scans and per group, and on the controls."""
    rows = []
    sources: dict[str, Callable[[], Groups]] = {
        "real or simulated": lambda: groups,
        "control: real or real": functools.partial(halves, groups, 0, rng),
        "control: simulated or simulated": functools.partial(halves, groups, 1, rng),
    }
    for task, source in sources.items():
        for view in (None, *VIEWS) if task == "real or simulated" else (None, "colour"):
            right: dict[str, list[np.ndarray]] = {}
            repeats = NETWORK_REPEATS if view else REPEATS
            for _ in tqdm(range(repeats), desc=f"{task}, {view or 'statistics'}"):
                scans, labels = matched(source(), rng)
                scored = classifier_scores(scans, labels, view, rng)
                for scan, label, scores in zip(scans, labels, scored, strict=True):
                    hit = (scores.mean() > 0) == label, ((scores > 0) == label).mean()
                    for name in ("all", scan.group):
                        right.setdefault(name, []).append(np.array(hit, float))
            rows += [_accuracy(task, view, name, np.array(hits), repeats) for name, hits in right.items()]
    return rows


def _accuracy(task: str, view: str | None, group: str, hits: np.ndarray, repeats: int) -> dict[str, Any]:
    """Make a row from hits [scans of all repeats, 2 (scan, its patches)]; the interval is for one repeat's scans."""
    count = len(hits) // repeats
    low, high = real_or_simulated.wilson(float(hits[:, 0].mean()) * count, count)
    return {
        "task": task,
        "classifier": "network on patches" if view else "logistic regression",
        "inputs": view or "statistics",
        "group": group,
        "scans": count,
        "accuracy": f"{hits[:, 0].mean():.3f}",
        "low": f"{low:.3f}",
        "high": f"{high:.3f}",
        "patch_accuracy": f"{hits[:, 1].mean():.3f}" if view else "",
    }


def compare(args: argparse.Namespace) -> None:
    """Measure both sources, write the results and the page."""
    simulator_page.check_page(simulator_page.DOCS)
    check_output_folder(simulator_page.RESULTS)
    rng = np.random.default_rng(args.seed)
    real = read_scans(args.real, args.width, args.most, rng)
    with tempfile.TemporaryDirectory() as temporary:
        root = args.simulated or Path(temporary) / "scans"
        if args.simulated is None and simulate(["--out", str(root), "--scans", str(args.scans)]):
            raise InputError("the simulation failed")
        simulated = read_scans([root], args.width, args.most, rng)
        simulator_page.draw_sheet(root, simulator_page.DOCS / simulator_page.SHEET)
    groups = by_group(real, simulated)
    bins, distances = histogram_rows(groups, rng)
    tables = {
        "statistics": statistics_rows(groups, rng),
        "histograms": bins,
        "histogram_distances": distances,
        "classifiers": classifier_rows(groups, rng),
    }
    for name, rows in tables.items():
        write_rows(simulator_page.RESULTS / f"{name}.csv", rows)
    simulator_page.write_page(simulator_page.RESULTS, simulator_page.DOCS)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = cli.parser("benchmarks.study.realism", str(__doc__), EXAMPLES)
    add = parser.add_argument
    add("--real", type=cli.path, nargs="+", required=True, metavar="DIR", help="folders of real scans")
    add("--simulated", type=cli.path, metavar="DIR", help="output of pipeline.simulate (default: simulate --scans)")
    add("--scans", type=int, default=500, metavar="N", help="scans to simulate (default: %(default)s)")
    add("--width", type=int, default=400, metavar="PX", help="common width (default: %(default)s)")
    add("--most", type=int, default=1000, metavar="N", help="maximum scans per source (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    return cli.run(compare, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
