"""Regularised last iterates in EGPO's published simulation setting."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from nashpref.paper_figs.style import COLOURS, PAGE, groups, median, read, wide

# Curves that coincide stay visible: the first is drawn wider, the second dashed on top of it.
WIDTHS = {"GDA": 2.4, "OGDA": 2.4}
DASHES = {"MMD": (0, (1, 1)), "EGPO": (0, (3, 2)), "Nash-MD": (0, (5, 1, 1, 1))}


def draw(results: Path) -> Figure:
    """One panel per β; a thin line per game, the median over games bold."""
    settings = json.loads((results / "config.json").read_text(encoding="utf-8"))
    panels = list(groups(read(results / "gaps.csv"), "beta"))
    figure = Figure(figsize=(PAGE, 2.7))
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (beta, gaps), panel in zip(row, panels, settings["panels"], strict=True):
        for method, rows in groups(gaps, "method"):
            steps, gap = wide(rows, "step", "gap")
            style = {"color": COLOURS[method], "linestyle": DASHES.get(method, "-")}
            axes.plot(steps, gap, color=COLOURS[method], linewidth=0.3, alpha=min(0.35, 3.5 / gap.shape[1]))
            axes.plot(steps, median(gap), linewidth=WIDTHS.get(method, 1.2), label=method, **style)
        eta = 4 * panel["learning_rate"] / (beta * settings["n"])
        axes.set(yscale="log", xlabel="iterations t", ylim=(1e-16, 3.0), xlim=(0, steps[-1]))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(f"β = {beta:g}, η = {eta:.2g}")
    row[0].set_ylabel("regularised duality gap")
    handles, names = row[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), handlelength=2.6)
    return figure
