"""DPO, RLHF and Nash methods on a language model: gaps on two tasks, leaks, and what is said in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nashpref.paper_figs.style import PAGE, PALETTE, Table, groups, read, where

COLOURS = {
    "start": "#BBBBBB",
    "DPO": PALETTE[1],
    "PPO": PALETTE[4],
    "GRPO": PALETTE[3],
    "Nash-MD": PALETTE[5],
    "EGPO": PALETTE[2],
}
SAID = ("start", "DPO", "GRPO", "EGPO")  # their policies are shown
WIDTH = 0.8


def draw(results: Path) -> Figure:
    """Above, the gaps by task and the leaks; below, the policies, with the equilibrium as marks."""
    settings = json.loads((results / "config.json").read_text(encoding="utf-8"))
    table = read(results / "gaps.csv")
    figure = Figure(figsize=(PAGE, 4.6))
    above, below = figure.subfigures(2, 1, height_ratios=(1.0, 0.9), squeeze=False)[:, 0]
    *tasks, last = above.subplots(1, 3)
    for axes, (task, rows) in zip(tasks, groups(table, "task"), strict=True):
        bars(axes, rows, "gap")
        for x, (method, exact) in enumerate(zip(rows["method"], rows["exact"], strict=True)):
            if method != "start":
                axes.plot([x - 0.45, x + 0.45], [exact, exact], color="black", linewidth=1.2)
        axes.set(ylim=(1e-5, 1.0), title="cyclic preference" if task == "cycle" else f"{task} control")
    bars(last, where(table, task="cycle"), "leak")
    last.set(ylim=(1e-4, 1.0), ylabel="probability", title="what is no response (cycle)")
    said(below.subplots(), read(results / "policies.csv"))
    beta = settings["beta"]
    tasks[0].set_ylabel(f"regularised duality gap, β = {beta:g}")
    mark = Line2D([], [], color="black", linewidth=1.2, label="the method in exact arithmetic")
    theirs = Line2D([], [], linewidth=0.0, label=f"(DPO, PPO, GRPO: KL with 4β = {4.0 * beta:g})")
    above.legend(handles=[mark, theirs], loc="outside lower center", ncols=2)
    return figure


def bars(axes: Any, rows: Table, column: str) -> None:
    """One for each method, on a logarithmic axis."""
    methods = rows["method"].tolist()
    axes.bar(methods, rows[column], WIDTH, color=[COLOURS[method] for method in methods])
    axes.set_yscale("log")
    axes.tick_params(axis="x", length=0, labelrotation=40)


def said(axes: Any, policies: Table) -> None:
    """Probabilities of the equilibrium's likeliest responses."""
    star = where(policies, method="equilibrium")
    x, width = np.arange(len(star["response"])), WIDTH / len(SAID)
    for k, method in enumerate(SAID):
        rows = where(policies, method=method)
        axes.bar(
            x + (k - (len(SAID) - 1) / 2) * width,
            rows["probability"],
            width,
            color=COLOURS[method],
            label=method,
        )
    for at, p in zip(x, star["probability"], strict=True):
        line = axes.plot([at - WIDTH / 2, at + WIDTH / 2], [p, p], color="black", linewidth=1.2)[0]
    line.set_label("equilibrium")
    axes.set_xticks(x, star["response"])
    axes.set(
        ylabel="probability", xlabel="response to the first prompt of the cycle", xlim=(-0.6, len(x) - 0.4)
    )
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper right", ncols=len(SAID) + 1)
