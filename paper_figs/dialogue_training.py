"""Dialogues with a language model: exact gaps over training, beside the same rules in exact arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nashpref.paper_figs.style import GREY, PAGE, PALETTE, groups, read

DASHED = (0, (3, 1.5))
AVERAGES = ("OMPO", "MPO")


def draw(results: Path) -> Figure:
    """Left and middle, the cycle: regularised gaps and averages'; right, when dialogues are compared."""
    table = read(results / "gaps.csv")
    tasks = dict(groups(table, "task"))
    figure = Figure(figsize=(PAGE, 2.7))
    regularised, averages, turns = figure.subplots(1, 3)
    colours = iter(PALETTE)
    for method, gaps in groups(tasks["cycle"], "method"):
        axes = averages if method in AVERAGES else regularised
        if method == "DPO":
            axes.axhline(gaps["gap"][-1], color=next(colours), linestyle=":", label="DPO, single turns")
        else:
            _curve(axes, method, gaps, next(colours))
    colours = iter(PALETTE)
    for method, gaps in groups(tasks["every turn"], "method"):
        _curve(turns, method, gaps, next(colours), bound=method.endswith("end"))
    for axes, title, label in (
        (regularised, "a cycle, with β", "regularised duality gap"),
        (averages, "a cycle, β = 0: averages", "duality gap of the average"),
        (turns, "a cycle at every turn", "regularised duality gap"),
    ):
        axes.set(title=title, ylabel=label, xlabel="iterations t", yscale="log")
        axes.legend(fontsize="small", loc="lower left")
    key = [
        Line2D([], [], color=GREY, label="language model"),
        Line2D([], [], color=GREY, linestyle=DASHED, label="same rule, exact (right, orange: lower bound)"),
    ]
    figure.legend(handles=key, loc="outside lower center", ncols=2)
    return figure


def _curve(axes: Axes, method: str, gaps: Mapping[str, Any], colour: str, *, bound: bool = False) -> None:
    axes.plot(gaps["round"], gaps["gap"], color=colour, linewidth=1.2, label=method)
    if not np.isnan(gaps["exact"]).all():
        width = 1.8 if bound else 1.0
        axes.plot(gaps["round"], gaps["exact"], color=colour, linestyle=DASHED, linewidth=width)
    axes.set_xlim(0, gaps["round"][-1])
