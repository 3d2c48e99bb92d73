"""The experiments behind the figures: `nashpref reproduce`.

Each module holds the settings of one experiment and a pure function from settings to tables. A script of
the same name in `nashpref.paper_figs` draws them, from the CSV files alone.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import nashpref as npf
from nashpref.experiments import (
    averages,
    best_of_n,
    comal,
    contraction,
    decoding,
    dialogue,
    dialogue_training,
    exploitability,
    geometries,
    learned_preference,
    markov_iterates,
    mtpo_bounds,
    nash_md_bounds,
    network_methods,
    network_opponents,
    network_rules,
    ompo_mpo,
    regularised,
    reversal,
    spirals,
)
from nashpref.experiments.common import Experiment, save
from nashpref.progress import progress_bar

EXPERIMENTS: dict[str, Experiment] = {
    "spirals": spirals.EXPERIMENT,
    "nash_md_bounds": nash_md_bounds.EXPERIMENT,
    "averages": averages.EXPERIMENT,
    "regularised": regularised.EXPERIMENT,
    "comal": comal.EXPERIMENT,
    "contraction": contraction.EXPERIMENT,
    "exploitability": exploitability.EXPERIMENT,
    "mtpo_bounds": mtpo_bounds.EXPERIMENT,
    "ompo_mpo": ompo_mpo.EXPERIMENT,
    "markov_iterates": markov_iterates.EXPERIMENT,
    "geometries": geometries.EXPERIMENT,
    "dialogue": dialogue.EXPERIMENT,
    "network_rules": network_rules.EXPERIMENT,
    "network_opponents": network_opponents.EXPERIMENT,
    "network_methods": network_methods.EXPERIMENT,
    "learned_preference": learned_preference.EXPERIMENT,
    "dialogue_training": dialogue_training.EXPERIMENT,
    "decoding": decoding.EXPERIMENT,
    "best_of_n": best_of_n.EXPERIMENT,
    "reversal": reversal.EXPERIMENT,
}


def reproduce(
    names: Iterable[str] = tuple(EXPERIMENTS),
    *,
    size: Literal["quick", "default", "full"] = "default",
    out: Path | str = "results",
    data: Sequence[Path | str] = (),
    progress: bool = False,
) -> list[Path]:
    """Run experiments and draw their figures; returns the files drawn.

    The results of each go to `out/<name>/` (`config.json`, `env.json` and CSV files), its figure to
    `out/figures/<name>.png` and `.pdf`. The same settings give the same bytes.

    Args:
        names: keys of `EXPERIMENTS`; all by default.
        size: "quick" (seconds), "default", or "full" (more games and steps).
        out: the folder of the results; it is created.
        data: labelled CSV matrices of real preferences for "exploitability".
        progress: show a bar, on a terminal, once two seconds have passed.

    Raises:
        ValueError: an unknown name, a package that is not installed, data that no named experiment uses, or a
            matrix that cannot be read; before anything is computed or written.
    """
    names, out = list(names), Path(out)
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise ValueError(f"no experiment {unknown[0]!r}: there are {', '.join(EXPERIMENTS)}")
    for name in names:
        if packages := missing(name):
            raise ValueError(
                f"{name} needs {packages[0]}: pip install 'nashpref[llm]', or name other experiments"
            )
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("figures need matplotlib: pip install 'nashpref[plot]'")
    if data and "exploitability" not in names:
        raise ValueError(
            f"{data[0]}: only the experiment 'exploitability' uses matrices, and it is not named"
        )
    for path in data:
        exploitability.reward(npf.MatrixGame.from_csv(path))
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with progress_bar(progress, len(names), "experiment") as bar:
        for done, name in enumerate(names, start=1):
            experiment = EXPERIMENTS[name]
            settings = experiment.sizes[size]
            if data and name == "exploitability":
                settings = dataclasses.replace(settings, matrices=tuple(map(str, data)))
            save(out / name, settings, experiment.run(settings))
            written += draw(name, out)
            bar(done)
    return written


def missing(name: str) -> list[str]:
    """The packages that an experiment needs and that are not installed."""
    return [package for package in EXPERIMENTS[name].needs if importlib.util.find_spec(package) is None]


def draw(name: str, out: Path) -> list[Path]:
    """Draw the figure of an experiment from its results under `out`, computing nothing."""
    from nashpref.paper_figs.style import render

    script = importlib.import_module(f"nashpref.paper_figs.{name}")
    return render(script.draw, out / name, out / "figures" / name)
