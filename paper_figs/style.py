"""What the figures share: colours, reading results, curves with their bounds, files with stable bytes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from numpy.typing import NDArray

COLUMN, PAGE = 3.4, 7.0  # widths in inches

# Okabe–Ito: told apart with any colour vision. One colour per method in all figures.
COLOURS: Mapping[str, str] = {
    "MWU": "#D55E00",
    "SPPO": "#D55E00",
    "GDA": "#E69F00",
    "INPO": "#E69F00",
    "OGDA": "#0072B2",
    "EGPO": "#009E73",
    "Nash-MD": "#CC79A7",
    "Nash-MP": "#56B4E9",
    "ONPO": "#CC79A7",
    "iterative IPO": "#56B4E9",
    "MMD": "#000000",
    "COMAL": "#0072B2",
    "RLHF/DPO": "#D55E00",
    "Nash": "#0072B2",
    "MPO": "#D55E00",
    "OMPO": "#0072B2",
    "MTPO": "#E69F00",
    "MTPO-τ": "#CC79A7",
}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BOUND: Mapping[str, Any] = {"color": "#767676", "linestyle": (0, (4, 2)), "linewidth": 0.9}
GREY = "#767676"

Table = dict[str, NDArray[Any]]


def read(path: Path) -> Table:
    """The columns of a CSV by name: floats where every cell is a number, else text."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    columns = {name: np.array(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)}
    return {name: _numbers(cells) for name, cells in columns.items()}


def _numbers(cells: NDArray[Any]) -> NDArray[Any]:
    try:
        return cells.astype(np.float64)
    except ValueError:
        return cells


def where(table: Table, **values: object) -> Table:
    """The rows in which every named column has the given value."""
    keep = np.logical_and.reduce([table[name] == value for name, value in values.items()])
    return {name: column[keep] for name, column in table.items()}


def groups(table: Table, by: str) -> Iterator[tuple[Any, Table]]:
    """The rows of each value of a column, in order of first appearance."""
    first = np.unique(table[by], return_index=True)[1]
    for value in table[by][np.sort(first)]:
        yield value, where(table, **{by: value})


def wide(table: Table, x: str, y: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """`x` (R,) and `y` (R, games) from rows in which all games share the values of x."""
    xs = np.unique(table[x])
    return xs, np.stack([where(table, **{x: value})[y] for value in xs])


def median(y: NDArray[Any]) -> NDArray[Any]:
    """The median over games (last axis); between the middle two it is their geometric mean.

    On a logarithmic axis their arithmetic mean would look like the larger one.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.median(np.log(y), axis=-1)))


def band(axes: Any, x: NDArray[Any], y: NDArray[Any], colour: str, **line: Any) -> None:
    """The median over games as a line, their range as a band."""
    axes.fill_between(x, y.min(axis=1), y.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, median(y), color=colour, **line)


def lines(
    axes: Any,
    x: NDArray[Any],
    y: NDArray[Any],
    colour: str,
    middle: Callable[[NDArray[Any]], NDArray[Any]] = median,
    **line: Any,
) -> None:
    """A thin line for each game (last axis), their middle as a bold one."""
    axes.plot(x, y, color=colour, linewidth=0.4, alpha=min(0.6, 5.0 / y.shape[1]))
    axes.plot(x, middle(y), color=colour, **({"linewidth": 1.6} | line))


def guide(axes: Any, x: NDArray[Any], end: float, slope: float) -> None:
    """A dotted power law with its slope, over the last one and a half decades of x, down to `end`."""
    late = x[30.0 * x >= x[-1]]
    axes.plot(late, end * (late / late[-1]) ** slope, color="black", linewidth=0.8, linestyle=":")
    label_end(axes, late[-1], end, f"slope −{-slope:g}", "black")


def label_end(axes: Any, x: float, y: float, text: str, colour: str = "#555555") -> None:
    """Name a curve just right of its last point."""
    place = {"va": "center", "fontsize": 6.5, "color": colour, "annotation_clip": False}
    axes.annotate(text, (x, y), (3, 0), textcoords="offset points", **place)


def render(draw: Callable[[Path], Figure], results: Path, stem: Path) -> list[Path]:
    """Draw the results of an experiment to `stem`.png and .pdf, whose bytes depend on nothing else."""
    sheet = Path(__file__).with_name("nashpref.mplstyle")
    written = []
    with style.context([sheet], after_reset=True):
        figure = draw(results)
        for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
            path = stem.with_name(stem.name + suffix)
            figure.savefig(path, metadata=metadata)
            written.append(path)
    return written
