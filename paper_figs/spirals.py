"""Last iterates on the simplex of rock-paper-scissors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nashpref.paper_figs.simplex import project, triangle
from nashpref.paper_figs.style import COLOURS, PAGE, groups, read

RESPONSES = ("rock", "scissors", "paper")


def draw(results: Path) -> Figure:
    """One triangle per rule: the path of its iterates, the start (circle) and the equilibrium (star)."""
    eta = json.loads((results / "config.json").read_text(encoding="utf-8"))["eta"]
    figure = Figure(figsize=(PAGE, 2.5))
    curves = list(groups(read(results / "iterates.csv"), "method"))
    for axes, (method, rows) in zip(figure.subplots(1, len(curves)), curves, strict=True):
        triangle(axes, RESPONSES)
        x, y = project(np.stack([rows[name] for name in RESPONSES], axis=1))
        colour = COLOURS[method]
        axes.plot(x, y, color=colour, linewidth=0.7)
        axes.plot(x[0], y[0], "o", color=colour, markerfacecolor="white", markersize=4.5)
        axes.plot(x[-1], y[-1], "o", color=colour, markersize=3)
        centre = project(np.full((1, 3), 1 / 3))
        axes.plot(*centre, "*", color="black", markersize=6, markeredgewidth=0, zorder=5)
        first, last, steps = rows["kl"][0], rows["kl"][-1], rows["step"][-1]
        axes.set_title(f"{method}, η = {eta:g}", color=colour, fontweight="bold")
        axes.set_ylim(-0.2, 0.96)
        note = f"KL(π*‖π) {first:.2g} → {last:.2g} in {steps:.0f} steps"
        axes.text(0.5, -0.14, note, ha="center", va="top", fontsize=6.5)
    marks = [
        Line2D([], [], linestyle="", color="black", marker="o", markerfacecolor="white", label="start"),
        Line2D([], [], linestyle="", color="black", marker="o", markersize=3, label="last iterate"),
        Line2D([], [], linestyle="", color="black", marker="*", markersize=6, label="equilibrium π*"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, handletextpad=0.2)
    return figure
