"""Triangular plots: a policy over three responses as a point of an equilateral triangle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpref.paper_figs.style import GREY

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])


def triangle(axes: Any, labels: Sequence[str]) -> None:
    """The simplex with a grid of quarters; `labels` at the lower left, lower right and upper corner."""
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set(xlim=(-0.06, 1.06), ylim=(-0.09, 0.96))
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        for share in (0.25, 0.5, 0.75):
            ends = share * CORNERS[a] + (1 - share) * CORNERS[[b, c]]
            axes.plot(*ends.T, color="#E6E6E6", linewidth=0.5, zorder=0)
    axes.plot(*CORNERS[[0, 1, 2, 0]].T, color=GREY, linewidth=0.8, zorder=1, solid_joinstyle="round")
    for corner, label, up in zip(CORNERS, labels, (-1, -1, 1), strict=True):
        place = {"ha": "center", "va": "bottom" if up > 0 else "top", "fontsize": 7}
        axes.annotate(label, corner, (0, 3 * up), textcoords="offset points", **place)


def project(policies: NDArray[Any]) -> NDArray[Any]:
    """Coordinates (2, R) of policies (R, 3)."""
    return np.asarray((policies @ CORNERS).T)
