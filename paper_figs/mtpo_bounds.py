"""MTPO and MTPO-τ against their bounds, which in these units are the same for every game and β."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from nashpref.paper_figs.style import BOUND, PAGE, PALETTE, groups, guide, label_end, lines, read, where, wide

BOUNDS = {"MTPO": (32.0, -4.0), "MTPO-τ": (8.0, -2.0)}  # factor of HQ²/(β²(t+1)), slope that is measured


def draw(results: Path) -> Figure:
    """A panel for each method: β²KL/(HQ²), a line for each game, the median over games bold."""
    schedule = read(results / "schedule.csv")
    schedule["scaled"] = schedule["beta"] ** 2 * schedule["kl"] / (schedule["H"] * schedule["Q"] ** 2)
    made = where(schedule | {"made": schedule["step"] > 0}, made=True)
    figure = Figure(figsize=(PAGE, 2.7))
    panels = figure.subplots(1, len(BOUNDS), sharey=True)
    for axes, (method, (factor, slope)) in zip(panels, BOUNDS.items(), strict=True):
        rows = where(made, method=method)
        for (beta, curves), colour in zip(groups(rows, "beta"), PALETTE, strict=False):
            t, scaled = wide(curves, "step", "scaled")
            lines(axes, t, scaled, colour, label=f"β = {beta:g}")
        guide(axes, t, rows["scaled"].min() / 20.0, slope)
        axes.plot(t, factor / (t + 1), **BOUND)
        label_end(axes, t[-1], factor / t[-1], f"{factor:g}/(t+1)")
        axes.set(xscale="log", yscale="log", xlabel="iterations t", xlim=(0.8, 8 * t[-1]), title=method)
    panels[0].set_ylabel(r"$\beta^2\,$KL$_p(\pi^*_\beta\,\|\,\pi_t)\,/\,(H Q^2)$")
    panels[0].legend(loc="lower left")
    return figure
