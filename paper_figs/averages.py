"""The gap of the average iterate, with the bounds beside the measurements."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nashpref.paper_figs.style import BOUND, COLOURS, PAGE, band, groups, label_end, median, read, where, wide


def draw(results: Path) -> Figure:
    """Left, gaps of the averages (bold) and of the last iterates (faint); right, T·gap of the fast ones."""
    settings = json.loads((results / "config.json").read_text(encoding="utf-8"))
    eta, D = settings["eta"], math.log(settings["n"])
    rvu, printed = 2 * D / eta + 1 + eta / 4, 4 * math.sqrt(D)
    gaps = read(results / "gaps.csv")
    figure = Figure(figsize=(PAGE, 2.8))
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1.0])

    for method, rows in groups(gaps, "method"):
        T, last = wide(rows, "T", "last_gap")
        colour, mark = COLOURS[method], "o" if method == "MWU" else None
        if method != "ONPO":
            left.plot(T, median(last), color=colour, alpha=0.4, linewidth=0.7, marker=mark, markersize=2)
            name = f"{method}, η = {eta:g}" if method == "OGDA" else "MWU, η = √(8D/T), a run for each T"
            band(left, *wide(rows, "T", "average_gap"), colour, marker=mark, label=name)
    T = np.unique(gaps["T"])
    for bound, text in ((np.sqrt(2 * D / T), "√(2D/T)"), (rvu / T, "(2D/η+1+η/4)/T")):
        left.plot(T, bound, **BOUND)
        label_end(left, T[-1], bound[-1], text)
    left.set(xscale="log", yscale="log", xlabel="iterations T", ylabel="duality gap", xlim=(0.8, 60 * T[-1]))
    left.set_title("average iterate (faint: last iterate)")
    left.legend(loc="lower left")

    for method in ("OGDA", "ONPO"):
        T, gap = wide(where(gaps, method=method), "T", "average_gap")
        right.plot(
            T, T[:, None] * gap, color=COLOURS[method], linewidth=0.4, alpha=min(0.6, 12 / gap.shape[1])
        )
        right.plot([], [], color=COLOURS[method], label=method)
    for bound, text in ((rvu, "2D/η+1+η/4"), (printed, "4√D: ONPO,\nas printed")):
        right.axhline(bound, **BOUND)
        right.text(T[0], bound, text, va="bottom", fontsize=6.5, color="#555555")
    right.set(xscale="log", xlabel="iterations T", ylabel="T · duality gap", ylim=(0, 1.12 * rvu))
    right.set_title("T · average gap, a line for each game")
    right.legend(loc="lower right")
    return figure
