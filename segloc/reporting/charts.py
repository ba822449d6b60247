"""Line charts of the report as inline SVG."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt

from segloc.common.text import shortened

# Okabe-Ito palette, safe for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")

LONGEST_LABEL = 60

Series = tuple[str, Sequence[float], Sequence[float]]


def plain(text: str) -> str:
    """Prepare text from data for matplotlib: one short line, in which a dollar sign starts no formula."""
    return shortened(text, LONGEST_LABEL).replace("$", r"\$")


def legend(name: str) -> str:
    """Prepare the name of a line; matplotlib leaves names that start with an underscore out of the legend."""
    return f" {plain(name)}" if name.startswith("_") else plain(name)


@contextlib.contextmanager
def known_letters() -> Iterator[None]:
    """Silence matplotlib's warning about letters that its font lacks; it draws boxes for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def line_chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], reference: Series | None = None
) -> str:
    """Draw lines over a shared x axis.

    Args:
        title: above the chart.
        x_label: of the x axis.
        y_label: of the y axis, with unit.
        series: (name, x, y) per line; lines with the same name share a colour and a legend entry.
        reference: a line to compare with, dashed and grey.

    Returns:
        An ``<svg>`` element.
    """
    figure, axes = plt.subplots(figsize=(5.4, 3.2))
    names = list(dict.fromkeys(name for name, _, _ in series))
    labelled: set[str] = set()
    for name, x, y in series:
        label = "_" if name in labelled else legend(name)  # matplotlib leaves "_" out of the legend
        axes.plot(x, y, label=label, color=COLOURS[names.index(name) % len(COLOURS)], linewidth=1.6)
        labelled.add(name)
    if reference is not None:
        name, x, y = reference
        axes.plot(x, y, label=legend(name), color="#777777", linewidth=1.2, linestyle="--")
    axes.set_title(plain(title), loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8 if len(names) <= len(COLOURS) else 6, frameon=False)
    with known_letters():
        figure.tight_layout()
    buffer = io.StringIO()
    # No date and fixed ids: equal runs give equal pages.
    with plt.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}), known_letters():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
