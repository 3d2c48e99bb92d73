"""Every rule on a language model, a panel each, next to the same rule in exact arithmetic."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nashpref.paper_figs.style import GREY, PAGE, PALETTE, groups, read

COLUMNS = 4
NETWORK, ORIGINAL = PALETTE[0], PALETTE[1]
DASHED = (0, (3, 1.5))


def draw(results: Path) -> Figure:
    """Solid, the language model; dashed, `nashpref.solve`. Orange: the gap of the original game."""
    panels = list(groups(read(results / "gaps.csv"), "method"))
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(PAGE, 0.6 + 1.35 * rows))
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes, (method, gaps) in zip(grid.flat, panels, strict=True):
        beta = gaps["beta"][0]
        colour = NETWORK if beta > 0.0 else ORIGINAL
        axes.plot(gaps["round"], gaps["exact"], color=GREY, linestyle=DASHED, linewidth=1.2)
        axes.plot(gaps["round"], gaps["gap"], color=colour, linewidth=1.2)
        axes.set_xlim(0, gaps["round"][-1])
        if beta > 0.0:
            axes.set(yscale="log", ylim=(1e-3, 1.0))
        else:
            axes.set_ylim(0.0, 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_title(f"{method}, β = {beta:g}")
    for axes in grid[-1]:
        axes.set_xlabel("iterations t")
    for axes in grid[:, 0]:
        axes.set_ylabel("duality gap")
    key = [
        Line2D([], [], color=NETWORK, label="language model, regularised gap"),
        Line2D([], [], color=ORIGINAL, label="language model, gap of the original game"),
        Line2D([], [], color=GREY, linestyle=DASHED, label="same rule, exact"),
    ]
    figure.legend(handles=key, loc="outside lower center", ncols=3)
    return figure
