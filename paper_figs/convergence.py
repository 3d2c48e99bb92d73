"""Gap against iterations for any traces: `nashpref solve --figure`, or a rule of one's own among others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from nashpref.paper_figs.style import COLUMN, PALETTE
from nashpref.trace import Trace

FLOOR = 1e-32  # gaps that are exactly zero are drawn here


def figure(traces: Mapping[str, Trace], path: str | os.PathLike[str]) -> None:
    """Draw the gap of the last iterate (solid) and of the average (dotted) of each trace to `path`.

    The suffix chooses the format (PNG, PDF, SVG). In a batch the line is the median over its games and the
    band their range. A trace is drawn in the game that its rule solves: `Trace.gap`.

    Raises:
        ValueError: no traces, or a suffix that matplotlib cannot write.
    """
    if not traces:
        raise ValueError("no traces to draw: give a mapping from names to traces")
    with style.context([Path(__file__).with_name("nashpref.mplstyle")], after_reset=True):
        sheet = Figure(figsize=(1.3 * COLUMN, COLUMN))
        axes = sheet.subplots()
        for k, (name, trace) in enumerate(traces.items()):
            colour = PALETTE[k % len(PALETTE)]
            label = f"{name} (β = {trace.beta:g})" if trace.beta else name
            made = trace.steps > 0  # the start has no place on a logarithmic axis
            for gap, line, text in ((trace.gap, "-", label), (trace.average_gap, ":", None)):
                games = np.maximum(gap.reshape(len(trace.steps), -1)[made], FLOOR)
                axes.plot(trace.steps[made], np.median(games, axis=1), line, color=colour, label=text)
                if games.shape[1] > 1:
                    ends = games.min(axis=1), games.max(axis=1)
                    axes.fill_between(trace.steps[made], *ends, color=colour, alpha=0.2, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="iterations t")
        axes.set(ylabel="duality gap (dotted: of the average)")
        axes.legend(loc="best")
        sheet.savefig(path)
