"""Nash-MD on a language model, with the right opponent and with wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nashpref.paper_figs.style import GREY, PALETTE, groups, read

DASHED = (0, (3, 1.5))
COLOURS = {
    "geometric mixture": PALETTE[0],
    "half from the reference": PALETTE[4],
    "the policy for the reference": PALETTE[1],
}


def draw(results: Path) -> Figure:
    """Solid, the language model; dashed, the same rule in exact arithmetic."""
    settings = json.loads((results / "config.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(4.6, 3.1))
    axes = figure.subplots()
    for opponent, gaps in groups(read(results / "gaps.csv"), "method"):
        colour = COLOURS[opponent]
        axes.plot(gaps["round"], gaps["exact"], color=colour, linestyle=DASHED, linewidth=1.0)
        axes.plot(gaps["round"], gaps["gap"], color=colour, linewidth=1.4, label=opponent)
    axes.set(yscale="log", ylim=(2e-3, 2.0), xlim=(0, settings["rounds"]))
    axes.set(xlabel="iterations t", ylabel="regularised duality gap")
    axes.set_title(f"Nash-MD, β = {settings['beta']:g}, by its opponent")
    handles, _ = axes.get_legend_handles_labels()
    exact = Line2D([], [], color=GREY, linestyle=DASHED, label="exact, of each")
    figure.legend(handles=[*handles, exact], loc="outside lower center", ncols=2)
    return figure
