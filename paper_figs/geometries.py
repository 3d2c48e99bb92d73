"""The average of OGDA in two geometries: with small steps the same, with large ones T^-1 or a plateau."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from nashpref.paper_figs.style import PAGE, PALETTE, groups, guide, lines, read, where, wide

NAMES = {"occupancy": "occupancy: soft values", "per-state": "per state: plain action values"}


def draw(results: Path) -> Figure:
    """A panel for each η; a thin line for each game, the median over games bold."""
    settings = json.loads((results / "config.json").read_text(encoding="utf-8"))
    gaps = read(results / "gaps.csv")
    figure = Figure(figsize=(PAGE, 2.7))
    panels = figure.subplots(1, len(settings["etas"]), sharey=True, squeeze=False)[0]
    for axes, eta in zip(panels, settings["etas"], strict=True):
        rows = where(gaps, eta=eta)
        for (geometry, curves), colour in zip(groups(rows, "geometry"), PALETTE, strict=False):
            line = "-" if geometry == "occupancy" else (0, (3, 1))  # on top of the other where they agree
            T, gap = wide(curves, "T", "average_gap")
            lines(axes, T, gap, colour, linestyle=line, label=NAMES[geometry])
        guide(axes, T, rows["average_gap"].min() / 3.0, -1.0)
        axes.set(xscale="log", yscale="log", xlabel="iterations T", xlim=(0.8, 6 * T[-1]))
        axes.set_title(f"OGDA, η = {eta:.3g}")
    panels[0].set_ylabel("duality gap of the average occupancy")
    panels[0].legend(loc="lower left")
    return figure
