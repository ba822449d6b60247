"""Statistics over pairs, for the audit's report."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from segloc.contract import Pair


class Statistics:
    """Counts over all pairs, for the report."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.pairs = 0
        self._classes, self._backgrounds, self._segments = Counter[str](), Counter[str](), Counter[str]()
        self._alphas: list[float] = []
        self._sides: list[tuple[int, int]] = []
        self._fills: list[float] = []

    def add(self, pair: Pair) -> None:
        """Count a pair."""
        self.pairs += 1
        self._classes[pair.class_name] += 1
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
        alphas = np.array(self._alphas)[np.isfinite(self._alphas)]
        counts, edges = np.histogram(alphas, bins=10)
        widths, heights = np.array(self._sides).T
        return {
            "pairs": self.pairs,
            "classes": dict(sorted(self._classes.items())),
            "backgrounds_used": len(self._backgrounds),
            "segments_used": len(self._segments),
            "most_used_background": max(self._backgrounds.values()),
            "most_used_segment": max(self._segments.values()),
            "box_width_px": _percentiles(widths),
            "box_height_px": _percentiles(heights),
            "box_share_of_image": _percentiles(np.array(self._fills)),
            "alpha_histogram": {"edges": [round(float(edge), 4) for edge in edges], "counts": counts.tolist()},
        }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (0, 5, 25, 50, 75, 95, 100)}
