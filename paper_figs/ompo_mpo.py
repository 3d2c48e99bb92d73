"""OMPO against MPO: exploitability of the average occupancy, with the theorems' steps and with tuned ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nashpref.paper_figs.style import BOUND, COLOURS, PAGE, groups, label_end, lines, read, where, wide

DASHED = (0, (3, 1))
EARLY = 100  # where the paper's Figure 2 finds OMPO as good as MPO after 2000


def draw(results: Path) -> Figure:
    """Left, the theorems' steps; right, constant steps chosen for these games. Means over the games."""
    settings = json.loads((results / "config.json").read_text(encoding="utf-8"))
    rows, games = read(results / "exploitability.csv"), read(results / "games.csv")
    figure = Figure(figsize=(PAGE, 2.8))
    left, right = figure.subplots(1, 2, sharey=True)
    left.set(yscale="log")

    average = {method: wide(table, "T", "average") for method, table in groups(rows, "method")}
    lines(left, *average["MPO, theorem"], COLOURS["MPO"], mean, marker="o", label="MPO, a run for each T")
    lines(
        left, *average["OMPO, weighted"], COLOURS["OMPO"], mean, linestyle=DASHED, label="OMPO, weights H−h+1"
    )
    lines(left, *average["OMPO"], COLOURS["OMPO"], mean, label="OMPO, unit weights")
    T, H = average["OMPO"][0], settings["H"]
    bounds = {
        "MPO's bound": 2.0 * H**2 * np.sqrt(np.log(games["A"])[:, None] / T),
        "OMPO's bound": 5.0 * H * games["D"][:, None] / (np.sqrt(0.5) * T),
    }
    for name, bound in bounds.items():
        left.plot(T, bound.mean(axis=0), **BOUND)
        label_end(left, T[-1], bound.mean(axis=0)[-1], name)
    left.set(title="the theorems' steps", ylim=(4e-4, 4.0))
    left.set_ylabel("exploitability of the average occupancy")

    for name, t, offset, side in (("MPO", T[-1], (5, 0), "left"), ("OMPO", EARLY, (-4, -6), "right")):
        eta = settings[f"{name.lower()}_eta"]
        lines(right, *average[f"{name}, tuned"], COLOURS[name], mean, label=f"{name}, η = {eta:g}")
        reached = where(rows, method=f"{name}, tuned", T=t)["average"].mean()
        right.plot(t, reached, "o", color="black", markersize=3, zorder=5)
        place = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 6.5}
        right.annotate(f"{reached:.2g} at T = {t:.0f}", (t, reached), offset, **place)
    right.set(title="constant steps, tuned")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="iterations T", xlim=(0.8, 12 * T[-1]))
        axes.legend(loc="lower left")
    return figure


def mean(y: NDArray[Any]) -> NDArray[Any]:
    """Over the games, as in the paper."""
    return np.asarray(y.mean(axis=-1))
