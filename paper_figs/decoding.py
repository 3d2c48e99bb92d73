"""Decoding with a reward: reward against cost, against the weight of the KL, and FaRMA's consistency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nashpref.paper_figs.style import GREY, PAGE, PALETTE, Table, groups, read

COLOURS = {
    "μ": GREY,
    "ARGS": PALETTE[1],
    "PARGS": PALETTE[4],
    "CD": PALETTE[5],
    "FaRMA": PALETTE[0],
    "CARDS": PALETTE[3],
    "best of n": PALETTE[2],
    "DPO": "#8C564B",
    "PPO": "#000000",
}
TRAINED = ("DPO", "PPO")


def draw(results: Path) -> Figure:
    """Left, every method and setting against its cost; in the middle, against β; right, training."""
    table = read(results / "methods.csv")
    figure = Figure(figsize=(PAGE, 2.9))
    cost, weight, training = figure.subplots(1, 3, width_ratios=[1.15, 1.0, 0.9])
    for method, rows in groups(table, "method"):
        marks(cost, rows, "tokens", method)
        if method not in ("μ", "best of n"):
            marks(weight, rows, "setting", method)
    weight.axhline(table["reward"][0], color=COLOURS["μ"], linewidth=0.8, dashes=(4, 2))  # μ comes first
    cost.set(xscale="log", xlabel="tokens through a network, per response", ylabel="true reward")
    weight.set(xscale="log", xlabel="β", title="reward against the KL's weight")
    weight.invert_xaxis()
    cost.set_title("reward against cost")
    course(training, read(results / "training.csv"))
    handles, labels = cost.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def marks(axes: Any, rows: Table, x: str, method: str) -> None:
    """With standard errors; policies that were trained are hollow."""
    axes.errorbar(
        rows[x],
        rows["reward"],
        rows["error"],
        color=COLOURS[method],
        marker="D" if method in TRAINED else "o",
        markersize=3.2,
        markerfacecolor="none" if method in TRAINED else COLOURS[method],
        linewidth=0.9,
        elinewidth=0.7,
        label=method,
    )


def course(axes: Any, table: Table) -> None:
    """Running means over 20 steps."""
    window = min(20, len(table["step"]))
    for name, colour, label in (("L1", PALETTE[1], "L1 alone"), ("FaRMA", PALETTE[0], "L1 and L2 in turn")):
        smooth = np.convolve(table[name], np.ones(window) / window, mode="valid")
        axes.plot(table["step"][window - 1 :], smooth, color=colour, label=label)
    axes.set(yscale="log", xlabel="optimizer step", title="FaRMA's inconsistency")
    axes.set_ylabel("|r(prefix) − max r(next)| / spread of r")
    axes.legend(loc="best")
