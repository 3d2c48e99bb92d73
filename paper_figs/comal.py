"""COMAL's 3×3 cycle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nashpref.paper_figs.simplex import project, triangle
from nashpref.paper_figs.style import COLOURS, PAGE, groups, read

RESPONSES = ("a", "b", "c")
DRAWN = 300  # iterates whose path is drawn on the simplex


def draw(results: Path) -> Figure:
    """Left, the duality gap of the original game; right, the first iterates on the simplex."""
    figure = Figure(figsize=(PAGE, 2.6))
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1.0])
    triangle(right, RESPONSES)
    for method, rows in groups(read(results / "iterates.csv"), "method"):
        colour = COLOURS[method]
        left.plot(rows["step"], rows["unregularised_gap"], color=colour, linewidth=0.9, label=method)
        path = project(np.stack([rows[name] for name in RESPONSES], axis=1)[:DRAWN])
        right.plot(*path, color=colour, linewidth=0.8)
        if method == "COMAL":
            right.plot(*path[:, 0], "o", color="black", markerfacecolor="white", markersize=4.5, zorder=5)
    right.plot(
        *project(np.array([[4, 3, 4]]) / 11), "*", color="black", markersize=6, markeredgewidth=0, zorder=5
    )
    left.set(
        yscale="log", xlabel="iterations t", ylabel="duality gap, original game", xlim=(0, rows["step"][-1])
    )
    left.legend(loc="lower left")
    right.set_title("first iterates (○ start, ★ Nash)")
    return figure
