"""A learned preference in the loop, and the two mixtures that a mirror step may mean."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from nashpref.paper_figs.style import BOUND, GREY, PAGE, PALETTE, groups, read

BLUE, RED, *_ = PALETTE


def draw(results: Path) -> Figure:
    """Left, both gaps on the way; right, what sets the two mixtures apart, and what weights leave of it."""
    training = read(results / "training.csv")
    (end,) = read(results / "preference.csv")["learned_equilibrium"]
    figure = Figure(figsize=(PAGE, 2.8))
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1.0])

    left.plot(training["step"], training["gap"], color=BLUE, label="in the true game")
    left.plot(
        training["step"], training["learned_gap"], color=RED, dashes=(3, 1.5), label="in the learned game"
    )
    tenth = training["gap"][0] / 10
    for level, text in ((tenth, "a tenth of the start"), (end, "true gap of the learned equilibrium")):
        left.axhline(level, **BOUND)
        left.annotate(
            text, (0, level), (3, 1), textcoords="offset points", va="bottom", fontsize=6.5, color="#555555"
        )
    left.set(yscale="log", xlabel="optimizer steps", ylabel="exact regularised duality gap")
    left.set_xlim(0, training["step"][-1])
    left.set_title("EGPO against a preference learned from votes")
    left.legend(loc="upper right")

    table = read(results / "mixtures.csv")
    inside = (table["weight"] > 0.0) & (table["weight"] < 1.0)  # at the ends there is nothing to mix
    table = {name: column[inside] for name, column in table.items()}
    for colour, (pair, rows) in zip(PALETTE, groups(table, "policies"), strict=False):
        right.plot(rows["weight"], rows["total_variation"], color=colour, label=pair)
        for K in (8, 32, 128):
            right.plot(rows["weight"], rows[f"weighted_{K}"], color=colour, linewidth=0.7, dashes=(3, 1.5))
            if pair == table["policies"][0]:
                x, y = rows["weight"][-1], rows[f"weighted_{K}"][-1]
                right.annotate(
                    f"K = {K}", (x, y), (4, 0), textcoords="offset points", va="center", fontsize=6.5
                )
    right.set(yscale="log", xlabel="weight of the second policy", ylabel="total variation", xlim=(0.1, 1.05))
    right.set_ylim(4e-6, 0.05)
    right.set_xticks([0.25, 0.5, 0.75])
    right.set_title("mixture of tokens against that of responses")
    right.plot([], [], color=GREY, linewidth=0.7, dashes=(3, 1.5), label="responses by K weighted samples")
    right.legend(loc="lower center")
    return figure
