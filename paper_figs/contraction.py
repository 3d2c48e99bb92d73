"""Contraction factors: measured points on predicted curves."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nashpref.paper_figs.style import BOUND, COLOURS, GREY, PAGE, groups, read, where

MARKERS = {"GDA": "o", "MMD": "s", "OGDA": "^", "EGPO": "D"}


def draw(results: Path) -> Figure:
    """One panel per game: KL factor per step over η; dotted verticals are the stability limits."""
    beta = json.loads((results / "config.json").read_text(encoding="utf-8"))["beta"]
    factors, curves, limits = (read(results / f"{name}.csv") for name in ("factors", "curves", "limits"))
    games = list(groups(factors, "game"))
    figure = Figure(figsize=(PAGE, 2.6))
    row = figure.subplots(1, len(games), sharey=True, squeeze=False)[0]
    for axes, (game, measured) in zip(row, games, strict=True):
        axes.axhline(1.0, **BOUND)
        for method, points in groups(measured, "method"):
            colour = COLOURS[method]
            curve = where(curves, game=game, method=method)
            limit = where(limits, game=game, method=method)
            axes.plot(curve["eta"], curve["predicted"], color=colour, linewidth=0.9)
            axes.plot(
                points["eta"],
                points["measured"],
                MARKERS[method],
                color=colour,
                markersize=3,
                markerfacecolor="white",
                markeredgewidth=0.8,
                label=method,
            )
            axes.axvline(limit["limit"][0], color=colour, linewidth=0.7, linestyle=":")
        axes.set(
            xscale="log", xlabel="step size η", ylim=(0.0, 1.45), xlim=(curve["eta"][0], curve["eta"][-1])
        )
        ticks = [eta for eta in (0.125, 0.25, 0.5, 1, 2, 4, 8) if curve["eta"][0] <= eta <= curve["eta"][-1]]
        axes.set_xticks(ticks, [f"{eta:g}" for eta in ticks])
        axes.set_xticks([], minor=True)
        axes.set_title(f"{game}, ω = {limit['omega'][0]:.3f}")
    row[0].set_ylabel(f"KL factor per step, β = {beta:g}")
    handles, names = row[0].get_legend_handles_labels()
    handles += [Line2D([], [], color=GREY, linewidth=0.9), Line2D([], [], color=GREY, linestyle=":")]
    names = [f"{name}, measured" for name in names] + ["spectrum", "stability limit"]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure
