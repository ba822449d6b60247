"""Statistics over pairs, for the audit's report."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from segloc.common.contract import Pair

_BINS = 20


class Statistics:
    """Counts over all pairs.

    Attributes:
        pairs: how many were counted.
        classes: pairs by class name.
    """

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.pairs = 0
        self.classes, self._backgrounds, self._segments = Counter[str](), Counter[str](), Counter[str]()
        self._alphas: list[float] = []
        self._sides: list[tuple[int, int]] = []
        self._fills: list[float] = []

    def add(self, pair: Pair) -> None:
        """Count a pair."""
        self.pairs += 1
        self.classes[pair.class_name] += 1
        for view in (pair.query, pair.key):
            x0, y0, x1, y1 = view.box
            self._backgrounds[view.background] += 1
            self._segments[view.segment] += 1
            self._alphas.append(view.alpha)
            self._sides.append((x1 - x0, y1 - y0))
            self._fills.append((x1 - x0) * (y1 - y0) / max(1, view.size[0] * view.size[1]))

    def summary(self) -> dict[str, Any]:
        """Everything counted, as JSON values."""
        if not self.pairs:
            return {"pairs": 0}
        # The audit describes broken pairs too, so a value may be anything.
        counts, edges = np.histogram(self._finite_alphas(), bins=10)
        widths, heights = np.array(self._sides).T
        return {
            "pairs": self.pairs,
            "classes": dict(sorted(self.classes.items())),
            "backgrounds_used": len(self._backgrounds),
            "segments_used": len(self._segments),
            "most_used_background": max(self._backgrounds.values()),
            "most_used_segment": max(self._segments.values()),
            "box_width_px": _percentiles(widths),
            "box_height_px": _percentiles(heights),
            "box_share_of_image": _percentiles(np.array(self._fills)),
            "alpha_histogram": {"edges": [round(float(edge), 4) for edge in edges], "counts": counts.tolist()},
        }

    def tables(self) -> dict[str, str]:
        """Distributions as CSV, by name: pairs per class, and views per coefficient and per size of box."""
        sides = np.sqrt(np.prod(np.array(self._sides, float).reshape(-1, 2), axis=1))
        return {
            "classes": _csv(("class_name", "pairs"), sorted(self.classes.items())),
            "coefficients": _csv(("coefficient", "views"), _histogram(self._finite_alphas())),
            "boxes": _csv(("box_side_px", "views"), _histogram(sides)),
        }

    def _finite_alphas(self) -> npt.NDArray[np.float64]:
        alphas = np.array(self._alphas, float)
        return alphas[np.isfinite(alphas)]


def _histogram(values: npt.NDArray[np.float64]) -> list[tuple[float, int]]:
    """Count values in bins named by their middle."""
    counts, edges = np.histogram(values, bins=_BINS)
    return [
        (round(float(middle), 4), int(count))
        for middle, count in zip((edges[1:] + edges[:-1]) / 2, counts, strict=True)
    ]


def _csv(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (0, 5, 25, 50, 75, 95, 100)}
