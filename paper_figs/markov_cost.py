"""The cost of an OMPO iteration against the number of its operations, as `python -m benchmarks` measured it.

From the root of a checkout, `python -m nashpref.paper_figs.markov_cost` draws
`results/figures/markov_cost.png` and .pdf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nashpref.paper_figs.style import BOUND, COLUMN, PALETTE, groups, read, render

NAMES = {
    "S": ("S = 5 … 400, A = H = 5", "o"),
    "A": ("A = 2 … 40, S = 50, H = 5", "s"),
    "H": ("H = 2 … 50, S = 50, A = 5", "^"),
    "S, sparse": ("S = 20 … 2000, A = H = 5,\nfinal preference, 3 successors", "D"),
}


def draw(results: Path) -> Figure:
    """One series for each dimension that grows; dashed, what reading 8 bytes an operation takes."""
    points = read(results / "markov_growth.csv")
    figure = Figure(figsize=(COLUMN, 2.7))
    axes = figure.subplots()
    for (varied, series), colour in zip(groups(points, "varied"), PALETTE, strict=False):
        name, marker = NAMES[varied]
        line: dict[str, Any] = {
            "linewidth": 0.9,
            "markersize": 3,
            "markerfacecolor": "white",
            "markeredgewidth": 0.8,
        }
        axes.plot(series["operations"], series["seconds"], marker=marker, color=colour, label=name, **line)
    bandwidth = points["bandwidth"][0]
    x = np.array([points["seconds"].min() * bandwidth / 8.0, points["operations"].max()])
    axes.plot(x, 8.0 * x / bandwidth, label=f"8 bytes for each at {bandwidth / 1e9:.0f} GB/s", **BOUND)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="multiply–adds of an iteration",
        ylabel="seconds per OMPO iteration",
    )
    figure.legend(loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    stem = Path("results/figures/markov_cost")
    stem.parent.mkdir(parents=True, exist_ok=True)
    render(draw, Path("benchmarks"), stem)
