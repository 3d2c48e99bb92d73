"""Accuracy of every method on real pairs, with intervals, a panel for each file of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from nashpref.paper_figs.style import BOUND, GREY, PAGE, PALETTE, Table, read, where

BASELINES = {"length": "length alone", "TF-IDF + length": "words and length"}
COLOURS = {"scratch": PALETTE[0], "pretrained": PALETTE[1]}
ADDED = " + length"
TITLES = {"hh_harmless_test": "HH-RLHF, harmless", "pandalm_pairs": "PandaLM"}


def draw(results: Path) -> Figure:
    """A dot for each method: filled by itself, hollow with the length of the answers beside it."""
    tables = {path.parent.name: read(path) for path in sorted(results.glob("*/results.csv"))}
    most = max(len(rows(table)) for table in tables.values())
    figure = Figure(figsize=(PAGE, 0.9 + 0.17 * most))
    for axes, (name, table) in zip(
        figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True
    ):
        panel(axes, table)
        axes.set_title(f"{TITLES.get(name, name)}, {table['pairs'][0]:.0f} pairs")
    shown = [
        Line2D([], [], color=colour, marker="o", linewidth=1.0, label=label)
        for label, colour in (
            ("baseline", GREY),
            ("from scratch", COLOURS["scratch"]),
            ("pretrained", COLOURS["pretrained"]),
        )
    ]
    hollow = Line2D(
        [], [], color="black", marker="o", markerfacecolor="white", linewidth=1.0, label="and length"
    )
    figure.legend(handles=[*shown, hollow], loc="outside lower center", ncols=4)
    return figure


def rows(table: Table) -> list[str]:
    """The methods that have a row of their own."""
    return [name for name in table["method"] if name in BASELINES or not name.endswith(ADDED)]


def panel(axes: Any, table: Table) -> None:
    """The methods of one file, from top to bottom."""
    names = rows(table)
    soft = any(name.endswith("soft") for name in names)
    for y, name in enumerate(names):
        kind = next((kind for kind in COLOURS if kind in name), None)
        colour = GREY if kind is None else COLOURS[kind]
        dot(axes, where(table, method=name), y if kind is None else y - 0.16, colour, colour)
        if kind is not None:
            dot(axes, where(table, method=name + ADDED), y + 0.16, colour, "white")
    axes.axvline(0.5, **BOUND)
    words = where(table, method="TF-IDF + length")["accuracy"][0]
    axes.axvline(words, color="#CCCCCC", linewidth=0.8, zorder=0)
    axes.set_yticks(np.arange(len(names)), [title(name, soft) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MultipleLocator(0.05))
    axes.set_xlabel("accuracy, with 95 % interval")


def dot(axes: Any, row: Table, y: float, colour: str, face: str) -> None:
    """The accuracy and its interval."""
    axes.plot([row["accuracy_low"][0], row["accuracy_high"][0]], [y, y], color=colour, linewidth=1.0)
    axes.plot(row["accuracy"][0], y, "o", color=colour, markerfacecolor=face, markersize=3.5)


def title(name: str, soft: bool) -> str:
    """The kind of model, and its labels where there are two kinds."""
    if name in BASELINES:
        return BASELINES[name]
    kind, _, labels = name.split(", ")
    return f"{kind}, {labels} labels" if soft else kind
