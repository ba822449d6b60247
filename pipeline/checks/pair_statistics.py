"""Statistics over pairs, for the audit's report."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.tables.sources_table import Source, of_pair
from segloc.common.contract import Pair
from segloc.common.output_kinds import lines_under
from segloc.common.text import csv_text

_BINS = 20
_COLUMNS = {
    "classes": ("class_name", "pairs"),
    "coefficients": ("coefficient", "views"),
    "boxes": ("box_side_px", "views"),
    "on_matter": ("on_matter", "views"),
}
# What the tables of `Statistics.tables` may replace.
TABLES = {name: lines_under(f"a table of {name} of pipeline.audit", *columns) for name, columns in _COLUMNS.items()}


class Statistics:
    """Counts over all pairs.

    Attributes:
        pairs: number of pairs counted.
        classes: pairs by class name.
        uses: number of uses by source.
        on_matter: share of each item on matter, in order of the pairs; format 1 has none.
    """

    def __init__(self) -> None:
        """Start with empty counts."""
        self.pairs = 0
        self.classes, self.uses = Counter[str](), Counter[Source]()
        self.on_matter: list[float] = []
        self._coefficients: list[float] = []
        self._sides: list[tuple[int, int]] = []
        self._fills: list[float] = []

    def add(self, pair: Pair) -> None:
        """Count a pair."""
        self.pairs += 1
        self.classes[pair.class_name] += 1
        self.uses.update(of_pair(pair))
        for view in (pair.query, pair.key):
            if view.on_matter is not None:
                self.on_matter.append(view.on_matter)
            x0, y0, x1, y1 = view.box
            self._coefficients.append(view.coefficient)
            self._sides.append((x1 - x0, y1 - y0))
            self._fills.append((x1 - x0) * (y1 - y0) / max(1, view.size[0] * view.size[1]))

    def summary(self) -> dict[str, Any]:
        """All counts, as JSON values."""
        if not self.pairs:
            return {"pairs": 0}
        # The audit also counts broken pairs, so values may be arbitrary.
        counts, edges = np.histogram(self._finite_coefficients(), bins=10)
        widths, heights = np.array(self._sides).T
        backgrounds, segments = (
            [count for (kind, _), count in self.uses.items() if kind == wanted] for wanted in ("background", "segment")
        )
        return {
            "pairs": self.pairs,
            "classes": dict(sorted(self.classes.items())),
            "backgrounds_used": len(backgrounds),
            "segments_used": len(segments),
            "most_used_background": max(backgrounds),
            "most_used_segment": max(segments),
            "box_width_px": _percentiles(widths),
            "box_height_px": _percentiles(heights),
            "box_share_of_image": _percentiles(np.array(self._fills)),
            **({"on_matter": _percentiles(np.array(self.on_matter))} if self.on_matter else {}),
            "coefficient_histogram": {"edges": [round(float(edge), 4) for edge in edges], "counts": counts.tolist()},
        }

    def tables(self) -> dict[str, str]:
        """Distributions as CSV, by name: pairs per class; views per coefficient, box size and share on matter."""
        sides = np.sqrt(np.prod(np.array(self._sides, float).reshape(-1, 2), axis=1))
        rows: dict[str, list[tuple[Any, int]]] = {
            "classes": sorted(self.classes.items()),
            "coefficients": _histogram(self._finite_coefficients()),
            "boxes": _histogram(sides),
            "on_matter": _histogram(np.array(self.on_matter, float), (0.0, 1.0)),
        }
        return {name: csv_text(columns, rows[name]) for name, columns in _COLUMNS.items()}

    def _finite_coefficients(self) -> npt.NDArray[np.float64]:
        coefficients = np.array(self._coefficients, float)
        return coefficients[np.isfinite(coefficients)]


def _histogram(values: npt.NDArray[np.float64], span: tuple[float, float] | None = None) -> list[tuple[float, int]]:
    """Count values in bins over `span`, by default that of the values. Return the centre and count of each bin."""
    counts, edges = np.histogram(values, bins=_BINS, range=span)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    return [(round(middle, 4), count) for middle, count in zip(middles, counts.tolist(), strict=True)]


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (0, 5, 25, 50, 75, 95, 100)}
