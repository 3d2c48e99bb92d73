"""Exploitability of best-of-n against n: the equilibrium of the candidates, and Bradley–Terry's favourite."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from nashpref.paper_figs.style import PAGE, PALETTE, groups, read

COLOURS = {"equilibrium": PALETTE[0], "Bradley–Terry": PALETTE[1]}
TITLES = {
    "cycle": "rock–paper–scissors of styles",
    "annotators": "three annotators",
    "Bradley–Terry": "Bradley–Terry control",
}
MARKS = {"equilibrium": "o", "Bradley–Terry": "s"}


def draw(results: Path) -> Figure:
    """A panel for each task."""
    table = read(results / "exploitability.csv")
    figure = Figure(figsize=(PAGE, 2.5))
    tasks = list(groups(table, "task"))
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, (task, of_task) in zip(panels, tasks, strict=True):
        for selection, rows in groups(of_task, "selection"):
            control = task == "Bradley–Terry" and selection == "Bradley–Terry"  # the two coincide there
            axes.fill_between(
                rows["n"], rows["low"], rows["high"], color=COLOURS[selection], alpha=0.2, linewidth=0
            )
            axes.plot(
                rows["n"],
                rows["exploitability"],
                color=COLOURS[selection],
                marker=MARKS[selection],
                markersize=3.0,
                linestyle="--" if control else "-",
                markerfacecolor="none" if control else None,
                label=f"{selection} of n",
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(set(of_task["n"].astype(int).tolist())))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set(xlabel="n, candidates", title=TITLES[task])
        axes.set_ylim(bottom=0.0)
    panels[0].set_ylabel("exact exploitability of the answers")
    panels[0].legend(loc="lower left")
    return figure
