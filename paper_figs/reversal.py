"""Names backwards: exact match on held-out names over training with a reward, and before and after."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nashpref.paper_figs.style import GREY, PAGE, PALETTE, groups, read, where

BEFORE, LONGER = "#BBBBBB", GREY


def draw(results: Path) -> Figure:
    """Left, a line for each algorithm, the mean over seeds, with their range; right, bars with the range."""
    settings = json.loads((results / "config.json").read_text(encoding="utf-8"))
    training, supervised = read(results / "training.csv"), read(results / "supervised.csv")
    figure = Figure(figsize=(PAGE, 2.5))
    over, bars = figure.subplots(1, 2, width_ratios=(1.2, 1.0))
    short, long = supervised["exact_match"]
    heights = [("demonstrations", np.array([short]), BEFORE), ("twice as long", np.array([long]), LONGER)]
    for (method, rows), colour in zip(groups(training, "method"), PALETTE, strict=False):
        rounds = np.unique(rows["round"])
        found = np.stack([where(rows, round=each)["exact_match"] for each in rounds])
        over.fill_between(rounds, found.min(axis=1), found.max(axis=1), color=colour, alpha=0.2, linewidth=0)
        over.plot(rounds, found.mean(axis=1), color=colour, label=method)
        heights.append((method.replace(", ", ",\n"), found[-1], colour))
    over.axhline(0.9, color="black", linewidth=0.8, linestyle=":")
    over.set(xlabel="rounds of RL", ylabel="exact match, held-out names", xlim=(0, settings["rounds"]))
    over.legend(loc="lower right")
    for x, (_, values, colour) in enumerate(heights):
        mean = values.mean()
        bars.bar(x, mean, 0.8, color=colour)
        bars.plot([x, x], [values.min(), values.max()], color="black", linewidth=1.2)
        bars.annotate(f"{mean:.1%}", (x, values.max()), (0, 2), textcoords="offset points", ha="center")
    bars.axvline(1.5, color="black", linewidth=0.6)
    bars.set_xticks(range(len(heights)), [name for name, _, _ in heights], rotation=40, ha="right")
    seeds = len(settings["seeds"])
    bars.set(
        ylim=(0.0, 1.08),
        title="before and after" + (f", mean and range of {seeds} seeds" if seeds > 1 else ""),
    )
    bars.tick_params(axis="x", length=0)
    bars.grid(axis="x", visible=False)
    return figure
