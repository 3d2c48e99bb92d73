"""Nash-MD against its two bounds, and the plateau of a constant step."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from nashpref.paper_figs.style import (
    BOUND,
    COLOURS,
    PAGE,
    PALETTE,
    band,
    groups,
    label_end,
    read,
    where,
    wide,
)


def draw(results: Path) -> Figure:
    """Left, β²·KL under the theorem's schedule, for which the bounds of all β coincide; right, constant η."""
    settings = json.loads((results / "config.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(PAGE, 2.7))
    left, right = figure.subplots(1, 2)

    schedule = read(results / "schedule.csv")
    made = where(schedule | {"made": schedule["step"] > 0}, made=True)
    for (beta, rows), colour in zip(groups(made, "beta"), PALETTE, strict=False):
        T, kl = wide(rows, "step", "kl")
        band(left, T, beta**2 * kl, colour, label=f"β = {beta:g}")
        if beta == 1.0:
            lowest = beta**2 * kl.min() / 30.0
            tail = T[len(T) // 2 :]
            left.plot(tail, lowest * (tail / tail[-1]) ** -2.0, color="black", linewidth=0.8, linestyle=":")
            label_end(left, tail[-1], lowest, "slope −2", "black")
    for factor, text in ((8.0, "8/(T+1)"), (0.5, "1/(2(T+1))")):
        left.plot(T, factor / (T + 1), **BOUND)
        label_end(left, T[-1], factor / T[-1], text)
    left.set(xscale="log", yscale="log", xlabel="iterations T", xlim=(0.8, 18 * T[-1]))
    left.set_ylabel(r"$\beta^2\,$KL$(\pi^*_\beta\,\|\,\pi_T)$")
    left.set_title(r"Nash-MD, $\eta_t = 2\,/\,(\beta(t+2))$")
    left.legend(loc="lower left")

    for method, rows in groups(read(results / "constant.csv"), "method"):
        for line, (eta, curve) in zip(("-", (0, (1, 1))), groups(rows, "eta"), strict=False):
            steps, kl = wide(curve, "step", "kl")
            band(right, steps, kl, COLOURS[method], linestyle=line, label=f"{method}, η = {eta:g}")
    right.set(yscale="log", xlabel="iterations t", ylabel=r"KL$(\pi^*_\beta\,\|\,\pi_t)$")
    right.set_title(f"constant η, β = {settings['constant_beta']:g}")
    right.legend(loc="center right")
    return figure
