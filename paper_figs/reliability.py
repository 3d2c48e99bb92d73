"""The figure of `nashpref evaluate`: how often the favourite wins, against the probability it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from nashpref.paper_figs.style import BOUND, COLUMN, GREY, PALETTE

STABLE = {"svg.hashsalt": "nashpref"}


def figure(bins: ArrayLike, path: str | Path) -> None:
    """Draw a reliability diagram to `path` (PNG, PDF or SVG by its suffix); the bytes depend on nothing else.

    Above, the frequency with which the favourite of a pair won against the mean probability that it was
    given, with intervals, and the diagonal on which both are equal; below, the number of pairs.

    Args:
        bins: `(n, 7)`: ends of the bin, pairs, mean probability, frequency and the ends of its interval,
            which may be NaN.
        path: of the file.
    """
    left, right, pairs, said, happened, low, high = np.asarray(bins, dtype=np.float64).T
    with style.context([Path(__file__).with_name("nashpref.mplstyle"), STABLE], after_reset=True):
        sheet = Figure(figsize=(COLUMN, 1.2 * COLUMN))
        above, below = sheet.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        above.plot([0.5, 1.0], [0.5, 1.0], **BOUND)
        above.vlines(said, low, high, color=PALETTE[0], linewidth=0.9)
        above.plot(said, happened, "o-", color=PALETTE[0], clip_on=False)
        place = {"textcoords": "offset points", "ha": "left", "va": "top"}
        above.annotate("calibrated", (0.8, 0.8), (4, -3), color=GREY, **place)
        above.set(
            ylabel="frequency with which the favourite won",
            ylim=(min(0.45, np.nanmin([*low, *happened]) - 0.02), 1.0),
        )
        below.bar(left, pairs, right - left, align="edge", color=PALETTE[0], alpha=0.4, edgecolor="white")
        below.set(xlim=(0.5, 1.0), xlabel="probability given to the favourite", ylabel="pairs")
        metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {"Software": None}}
        sheet.savefig(path, metadata=metadata.get(Path(path).suffix))
