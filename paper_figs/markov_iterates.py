"""Last against average iterate in Markov games, in the original game and in the regularised one."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nashpref.paper_figs.style import COLOURS, PAGE, groups, label_end, lines, median, read, wide

DASHED = (0, (3, 1.5))


def draw(results: Path) -> Figure:
    """Left, β = 0; right, β > 0. The last iterate solid, a thin line for each game; the average dashed."""
    settings = json.loads((results / "config.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(PAGE, 2.9))
    left, right = figure.subplots(1, 2)
    for axes, kind in ((left, "original"), (right, "regularised")):
        for method, rows in groups(read(results / f"{kind}.csv"), "method"):
            width = 1.2 if method == "OMPO" else 2.2  # where the two coincide both are seen
            lines(axes, *wide(rows, "step", "gap"), COLOURS[method], linewidth=width, label=method)
            t, average = wide(rows, "step", "average_gap")
            axes.plot(t, median(average), color=COLOURS[method], linestyle=DASHED, linewidth=width)
        axes.set(yscale="log", xlabel="iterations t")
        axes.legend(loc="lower left" if kind == "original" else "upper right")
    left.set(xscale="log", xlim=(0.8, None), ylabel="duality gap")
    left.set_title(f"original game, η = {settings['eta']:g}")
    beta, eta = settings["beta"], settings["regularised_eta"]
    right.set(ylabel="regularised duality gap", title=f"β = {beta:g}, η = {eta:g}")
    rate = (1.0 - eta * beta) ** (2.0 * t)
    right.plot(t, rate, color="black", linewidth=0.8, linestyle=":")
    label_end(right, t[-1], rate[-1], r"$(1-\eta\beta)^{2t}$", "black")
    key = [
        Line2D([], [], color="black", label="last iterate"),
        Line2D([], [], color="black", linestyle=DASHED, label="average occupancy"),
    ]
    figure.legend(handles=key, loc="outside lower center", ncols=2)
    return figure
