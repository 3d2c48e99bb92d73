"""A dialogue as a tree of flows: what the user says, and how often each policy answers what."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nashpref.paper_figs.style import COLOURS, GREY, PAGE, Table, groups, read, where

TITLES = {"RLHF": "multi-turn RLHF on a reward model", "Nash": "Nash"}
TONES = {"RLHF": COLOURS["RLHF/DPO"], "Nash": COLOURS["Nash"]}
ALL = 1.9  # how high the flow of all dialogues is; leaves are 1 apart
ROOT, INNER, LEAF = (0.0, 0.14), (0.34, 0.55), 0.76  # from where to where the boxes reach
RARE = 0.005  # shares below are written in grey: they round to 0 %
THIN = 0.1  # half of the height that holds no label
SMALL = {"fontsize": 6.5, "va": "center"}


def draw(results: Path) -> Figure:
    """A tree for each policy, from left to right; widths are occupancies, labels π_h(answer | state)."""
    beta = json.loads((results / "config.json").read_text(encoding="utf-8"))["beta"]
    turns, summary = read(results / "turns.csv"), read(results / "summary.csv")
    policies = list(groups(turns, "policy"))
    figure = Figure(figsize=(PAGE, 3.4))
    for axes, (policy, rows) in zip(figure.subplots(1, len(policies)), policies, strict=True):
        exploitability = where(summary, policy=policy)["exploitability"][0]
        axes.set_title(f"{TITLES[policy]}, β = {beta:g}", color=TONES[policy], fontweight="bold")
        tree(axes, rows, TONES[policy])
        note = f"the best reply to it is preferred in {100 * (0.5 + exploitability):.1f} % of comparisons"
        axes.text(0.5, axes.get_ylim()[0], note, ha="center", fontsize=7)
    return figure


def tree(axes: Any, rows: Table, colour: str) -> None:
    """The two turns, the leaves equally spaced."""
    first, second = where(rows, turn=1), where(rows, turn=2)
    leaf = {child: -float(k) for k, child in enumerate(second["child"])}
    inner = {node: mean([leaf[c] for c in answers["child"]]) for node, answers in groups(second, "node")}
    root = mean(inner.values())
    axes.set(xlim=(0.0, 1.0), ylim=(1.0 - len(leaf) - 1.4, 1.1))
    axes.axis("off")
    axes.text(1.0, 0.85, "dialogue", ha="right", color=GREY, **SMALL)

    box(axes, ROOT, root, quote(first["said"][0], 8))
    for start, child, answer, p, d in stacked(first, root):
        flow(axes, (ROOT[1], start), (INNER[0], inner[child]), p, d, colour)
        said = quote(where(second, node=child)["said"][0], 12)
        box(axes, INNER, inner[child], said, answer)
    for node, answers in groups(second, "node"):
        for start, child, answer, p, d in stacked(answers, inner[node]):
            flow(axes, (INNER[1], start), (LEAF, leaf[child]), p, d, colour)
            axes.text(LEAF + 0.01, leaf[child], answer, fontweight="bold", **SMALL)
            axes.text(1.0, leaf[child], share(d), ha="right", color=tone(d), **SMALL)


def stacked(answers: Table, centre: float) -> Iterator[tuple[float, float, str, float, float]]:
    """Each answer with the height at which its flow leaves a state: one below the other."""
    top = centre + ALL * answers["occupancy"].sum() / 2.0
    names = ("child", "answer", "probability", "occupancy")
    for child, answer, p, d in zip(*(answers[name] for name in names), strict=True):
        yield top - ALL * d / 2.0, child, answer, p, d
        top -= ALL * d


def flow(axes: Any, start: Any, end: Any, probability: float, occupancy: float, colour: str) -> None:
    """A band as high as the occupancy, with the probability of the answer where it arrives."""
    t = np.linspace(0.0, 1.0, 60)
    x, y = start[0] + t * (end[0] - start[0]), start[1] + (3 * t**2 - 2 * t**3) * (end[1] - start[1])
    half = ALL * occupancy / 2.0
    if half < THIN:  # a hairline, so that also what is never said is seen
        axes.plot(x, y, color="#BBBBBB", linewidth=0.6, zorder=1)
    axes.fill_between(x, y - half, y + half, color=colour, alpha=0.45, linewidth=0, zorder=2)
    beside = (half + 0.2 if end[1] > start[1] else -half - 0.2) if half < THIN else 0.0
    place = {"ha": "right", "color": tone(probability), "zorder": 4}
    axes.text(end[0] - 0.015, end[1] + beside, share(probability), **(SMALL | place))


def box(axes: Any, sides: tuple[float, float], y: float, said: str, answer: str = "") -> None:
    """What has just been said: the answer of the assistant (bold), and what the user says to it."""
    lines = said.count("\n") + 1 + bool(answer)
    height = 0.45 * lines + 0.35
    patch = Rectangle((sides[0], y - height / 2), sides[1] - sides[0], height, facecolor="#F2F2F2", zorder=3)
    axes.add_patch(patch)
    top, x = y + 0.45 * (lines - 1) / 2.0, sides[0] + 0.01
    if answer:
        axes.text(x, top, answer, fontweight="bold", zorder=4, **SMALL)
        top -= 0.45
    for line in said.split("\n"):
        axes.text(x, top, line, style="italic", zorder=4, **SMALL)
        top -= 0.45


def share(p: float) -> str:
    """In per cent."""
    return f"{100 * p:.0f} %"


def tone(p: float) -> str:
    """Grey for what is never said."""
    return GREY if p < RARE else "black"


def quote(text: str, width: int) -> str:
    """In quotation marks, in lines of at most `width` characters."""
    return "“" + "\n".join(textwrap.wrap(text, width)) + "”"
