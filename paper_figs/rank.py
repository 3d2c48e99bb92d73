"""The figure of `nashpref rank`: Nash mass beside Bradley–Terry scores, and the margins they summarise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nashpref.analysis import Ranking
from nashpref.policies import FloatArray

NASH, SCORE, MUTED = "#0072B2", "#D55E00", "#767676"  # Okabe–Ito: told apart with any colour vision
SUPPORT = 1e-6  # Nash mass that counts as support
LEGIBLE = 60  # names that fit beside the rows
STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "svg.hashsalt": "nashpref",
    "text.parse_math": False,  # a response may be called "a_$x$"
}


def figure(ranking: Ranking, path: str | Path) -> None:
    """Draw `ranking` to `path` (PNG, PDF or SVG by its suffix); the bytes depend on nothing else.

    Left, a dot for the Nash mass of each response and one for its Bradley–Terry score, with bootstrap
    intervals where there are any; rows from the highest score down (from the highest mean margin where there
    is no fit). Right, the margins `P(row ≻ column) − 1/2` in the same order. The Nash support is named in
    bold and marked along the columns. Needs matplotlib.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fit, boot = ranking.bradley_terry, ranking.bootstrap
    scores = ranking.game.payoffs.mean(axis=1) if fit is None else fit.scores
    order = np.argsort(-scores, kind="stable")
    side = float(np.clip(0.17 * len(order), 2.2, 8.0))
    with rc_context(STYLE):
        drawing = Figure(figsize=(side + 4.6, side + 0.7), layout="constrained")
        FigureCanvasAgg(drawing)
        mass_axes, score_axes, map_axes = drawing.subplots(1, 3, width_ratios=[1.3, 1.3, side])

        ends = None if boot is None else boot.nash[:, order]
        _dots(mass_axes, ranking.nash[order], ends, NASH, "Nash mass")
        if fit is None:
            _dots(score_axes, scores[order], None, MUTED, "mean margin (no fit)")
        else:
            ends = None if boot is None or boot.scores is None else boot.scores[:, order]
            _dots(score_axes, scores[order], ends, SCORE, "Bradley–Terry score")
        _name_rows(mass_axes, ranking, order)
        _margins(drawing, map_axes, ranking, order)

        path = Path(path)
        # No date and no version in the file: the same ranking gives the same bytes.
        metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {"Software": None}}
        drawing.savefig(path, metadata=metadata.get(path.suffix.lower()))


def _dots(axes: Any, values: FloatArray, ends: FloatArray | None, colour: str, label: str) -> None:
    rows = np.arange(len(values))
    if len(rows) <= LEGIBLE:
        for row in rows:
            axes.axhline(row, color="#E6E6E6", lw=0.5, zorder=0)
    axes.axvline(0.0, color=MUTED, lw=0.5, zorder=0)
    if ends is not None:
        axes.hlines(rows, ends[0], ends[1], color=colour, lw=1.2)
    axes.plot(values, rows, "o", color=colour, ms=3.5 if len(rows) <= LEGIBLE else 2, clip_on=False)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)


def _name_rows(axes: Any, ranking: Ranking, order: Any) -> None:
    """Names beside the first panel; where not all fit, those of the largest Nash mass, without overlap."""
    apart = max(1.0, len(order) / LEGIBLE)
    shown: list[int] = []
    for row in np.lexsort((np.arange(len(order)), -ranking.nash[order], order != ranking.favourite)).tolist():
        if all(abs(row - other) >= apart for other in shown):
            shown.append(row)
    axes.set_yticks(
        shown, [ranking.labels[order[row]] for row in shown], fontsize=8 if len(order) <= 25 else 6
    )
    axes.tick_params(axis="y", length=0)
    for row, text in zip(shown, axes.get_yticklabels(), strict=True):
        if ranking.nash[order[row]] > SUPPORT:
            text.set_fontweight("bold")
            text.set_color(NASH)


def _margins(drawing: Any, axes: Any, ranking: Ranking, order: Any) -> None:
    margins = ranking.game.payoffs[np.ix_(order, order)]
    limit = max(float(margins.max()), 1e-12)
    image = axes.imshow(
        margins, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto"
    )
    support = np.flatnonzero(ranking.nash[order] > SUPPORT)
    above = np.full(len(support), 1.012)
    axes.plot(support, above, "v", color=NASH, ms=3, clip_on=False, transform=axes.get_xaxis_transform())
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("opponent, same order (▾ Nash)")
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = drawing.colorbar(image, ax=axes, shrink=0.8, aspect=25)
    bar.set_label("P(row ≻ column) − 1/2")
    bar.outline.set_linewidth(0.4)
