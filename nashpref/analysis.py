"""What a preference matrix says: who wins, by which notion of winning, and how much a reward would hide.

`rank` puts the Nash equilibrium (the von Neumann winner) beside a Bradley–Terry fit, with the Condorcet
winner, the cycles, the share of the preference that no reward can express, and intervals when the number of
comparisons is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import expit

from nashpref.bradley_terry import BradleyTerry, fit_bradley_terry
from nashpref.equilibrium import equilibrium
from nashpref.games.matrix import MatrixGame
from nashpref.policies import FloatArray
from nashpref.progress import progress_bar
from nashpref.transitivity import TIE, Cycles, condorcet_loser, condorcet_winner, hodge, three_cycles

CONFIDENCE = 0.95
CHUNK = 2**22  # floats of resampled preferences held at a time: 32 MB


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals over resampled comparisons; each interval is stacked `(low, high)` first.

    A resample that leaves several equilibria contributes any one of them.

    `favourite[i]` is the fraction of resamples in which i has the highest Bradley–Terry score. Exploitability
    is that of each resample's own favourite. It is a maximum over noisy entries, and noise has curl: both
    intervals sit above the estimate when comparisons are few. So `chance_curl` says what curl share 95 % of
    judges who *are* Bradley–Terry, with the fitted scores, would stay below on as many comparisons. The last
    four are None where there is no Bradley–Terry fit.
    """

    resamples: int
    nash: FloatArray
    curl_share: FloatArray
    chance_curl: float | None
    scores: FloatArray | None
    exploitability: FloatArray | None
    favourite: FloatArray | None


@dataclass(frozen=True)
class Ranking:
    """The result of `rank`; responses are indices into `labels`."""

    game: MatrixGame
    labels: tuple[str, ...]
    nash: FloatArray
    nash_gap: float
    nash_method: str
    bradley_terry: BradleyTerry | None
    bradley_terry_error: str | None
    condorcet_winner: int | None
    condorcet_loser: int | None
    cycles: Cycles
    flow: str
    curl_share: float
    favourite: int | None
    exploitability: float | None
    nash_win_rate: float | None
    bootstrap: Bootstrap | None

    def to_json(self) -> str:
        """Everything except the matrix, responses by name; arrays in the order of `labels`."""
        bt, boot = self.bradley_terry, self.bootstrap
        name = self._name
        content = {
            "labels": self.labels,
            "nash": {"mass": self.nash.tolist(), "gap": self.nash_gap, "method": self.nash_method},
            "bradley_terry": bt and {"scores": bt.scores.tolist(), "residual": bt.residual},
            "bradley_terry_error": self.bradley_terry_error,
            "condorcet_winner": name(self.condorcet_winner),
            "condorcet_loser": name(self.condorcet_loser),
            "cycles": {
                "count": self.cycles.count,
                "triples": self.cycles.triples,
                "strongest": [
                    {"responses": [name(i) for i in cycle.responses], "strength": cycle.strength}
                    for cycle in self.cycles.strongest
                ],
            },
            "curl_share": {"of": self.flow, "share": self.curl_share},
            "favourite": name(self.favourite),
            "exploitability": self.exploitability,
            "nash_win_rate": self.nash_win_rate,
            "bootstrap": boot
            and {key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in vars(boot).items()},
        }
        return json.dumps(content, indent=2, ensure_ascii=False)

    def table(self) -> str:
        """A table of the responses, highest Nash mass first, and a line for each fact about the game."""
        return "\n".join([*self._rows(), "", *self._facts()])

    def _rows(self) -> list[str]:
        fit, boot, n = self.bradley_terry, self.bootstrap, len(self.labels)
        scores, score_ends = (None, None) if fit is None else (fit.scores, boot.scores if boot else None)
        columns = [
            ["response", *self.labels],
            ["Nash mass", *_cells(n, self.nash, boot.nash if boot else None, "{:.3f}")],
            ["Bradley–Terry", *_cells(n, scores, score_ends, "{:+.3f}")],
        ]
        if boot is not None and boot.favourite is not None:
            columns.append(["P(favourite)", *_cells(n, boot.favourite, None, "{:.3f}")])
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in zip(*columns, strict=True)
        ]
        second = np.zeros(n) if scores is None else scores
        order = np.lexsort((-second, -np.round(self.nash, 9)))
        return [lines[0], "─" * len(lines[0]), *(lines[i + 1] for i in order)]

    def _facts(self) -> list[str]:
        cycles, boot = self.cycles, self.bootstrap
        winner, loser = self._name(self.condorcet_winner), self._name(self.condorcet_loser)
        facts = [
            f"Condorcet winner: {winner or 'none'}; loser: {loser or 'none'}",
            f"strict 3-cycles: {cycles.count} of {cycles.triples} triples ({cycles.share:.1%})",
        ]
        for cycle in cycles.strongest:
            names = [self.labels[i] for i in (*cycle.responses, cycle.responses[0])]
            facts.append(f"  {' ≻ '.join(names)}, each by {cycle.strength:.3f} or more")
        loss = {
            "log-odds": "share of the squared log-odds that no reward expresses",
            "margins": "share of the squared margins that is no difference of rewards (some P is 0 or 1)",
        }
        curl = f"{loss[self.flow]}: {self.curl_share:.1%}"
        if boot is not None:
            curl += _interval(boot.curl_share, "{:.1%}")
            curl += "" if boot.chance_curl is None else f"; by chance up to {boot.chance_curl:.1%}"
        facts.append(curl)
        if self.favourite is None or self.exploitability is None:
            facts.append(f"Bradley–Terry: {self.bradley_terry_error}")
        else:
            rival = self.labels[int(np.argmax(self.game.payoffs[:, self.favourite]))]
            facts += [
                f"Bradley–Terry favourite: {self.labels[self.favourite]}{self._tied()}, exploitability "
                f"(max_y P(y ≻ favourite) − 1/2) {self.exploitability:.4f}"
                + _interval(boot.exploitability if boot else None, "{:.4f}")
                + (f", by {rival}" if self.exploitability > TIE else ""),
                f"Nash policy beats the favourite with probability {self.nash_win_rate:.4f}",
            ]
        facts.append(f"Nash equilibrium: duality gap {self.nash_gap:.1e} ({self.nash_method})")
        if boot is not None:
            facts.append(
                f"[ ]: {CONFIDENCE:.0%} percentile intervals of {boot.resamples} bootstrap resamples; "
                "noise adds curl and exploitability, so that theirs lie high"
            )
        return facts

    def _tied(self) -> str:
        others = 0 if self.bradley_terry is None else int(np.sum(_top(self.bradley_terry.scores))) - 1
        return f" (tied with {others} more)" if others else ""

    def _name(self, index: int | None) -> str | None:
        return None if index is None else self.labels[index]


def rank(
    game: MatrixGame,
    *,
    bootstrap: int = 0,
    rng: Generator | None = None,
    cycles: int = 5,
    progress: bool = False,
) -> Ranking:
    """Nash beside Bradley–Terry, cycles and curl, for a single game.

    The Nash mass is that of the equilibrium of largest entropy. Bradley–Terry is fitted by maximum likelihood
    to the comparisons, or with equal weight on every pair when their number is unknown; where the maximum
    does not exist, its entries are None and the reason is reported. The favourite's exploitability is
    `max_y P(y ≻ favourite) − 1/2`, half its duality gap.

    Args:
        game: n responses; `game.counts` weighs pairs when known.
        bootstrap: resamples for intervals; 0 for none.
        rng: the generator they need.
        cycles: how many of the strongest cycles to list.
        progress: show a bar for the resamples, on a terminal, once two seconds have passed.

    Raises:
        ValueError: a batch; a bootstrap without counts or without a generator.
    """
    if game.batch is not None:
        raise ValueError(f"rank takes one game; this is a batch of {game.batch}: rank each")
    if bootstrap < 0:
        raise ValueError(f"bootstrap = {bootstrap}: the number of resamples must be ≥ 0")
    if bootstrap and game.counts is None:
        raise ValueError("a bootstrap needs the number of comparisons of each pair: give the game counts")
    if bootstrap and rng is None:
        raise ValueError("a bootstrap needs a generator: rng=numpy.random.default_rng(seed)")

    solution = equilibrium(game, max_entropy=True)
    P, weights = game.preferences, _weights(game)
    fit, error = None, None
    try:
        fit = fit_bradley_terry(P * weights, game.labels)
    except ValueError as reason:
        error = str(reason)
    favourite = None if fit is None else int(np.argmax(_top(fit.scores)))
    against = None if favourite is None else game.payoffs[:, favourite]
    flow = "margins" if np.any((weights > 0.0) & ((P == 0.0) | (P == 1.0))) else "log-odds"
    return Ranking(
        game=game,
        labels=game.labels or tuple(map(str, range(game.n))),
        nash=solution.policy,
        nash_gap=float(solution.gap),
        nash_method=str(solution.method),
        bradley_terry=fit,
        bradley_terry_error=error,
        condorcet_winner=condorcet_winner(game),
        condorcet_loser=condorcet_loser(game),
        cycles=three_cycles(game, cycles),
        flow=flow,
        curl_share=_curl_share(P, weights, flow),
        favourite=favourite,
        exploitability=None if against is None else float(against.max()),
        nash_win_rate=None if against is None else float(0.5 + solution.policy @ against),
        bootstrap=_bootstrap(P, weights, flow, fit, bootstrap, rng, progress) if bootstrap and rng else None,
    )


def _weights(game: MatrixGame) -> FloatArray:
    return np.ones((game.n, game.n)) - np.eye(game.n) if game.counts is None else game.counts


def _curl_share(P: FloatArray, weights: FloatArray, flow: str) -> float:
    """The share of the squared preference that no reward expresses.

    Under Bradley–Terry the log-odds `log P_ij/P_ji` are exactly `r_i − r_j`: their curl is what a reward
    model loses. (The margins of a Bradley–Terry game have a curl, which is that of σ.) A certain preference
    has infinite log-odds; then the margins stand in, `Ranking.flow` says so, and the share is what no
    difference of rewards expresses: more than what every Bradley–Terry reward misses.
    """
    if flow == "margins":
        return hodge((P - P.T) / 2.0, weights).curl_share
    known = np.where(weights > 0.0, P, 0.5)
    return hodge(np.log(known) - np.log(known.T), weights).curl_share


def _resamples(P: FloatArray, N: FloatArray, times: int, rng: Generator) -> Iterator[FloatArray]:
    """Bayesian bootstrap (Rubin 1981) of each pair's comparisons, in chunks `(R, n, n)`.

    Random weights on the N comparisons of a pair give it the win share `Beta(N p, N (1 − p))`: the mean of
    the binomial bootstrap, and its variance times N/(N + 1), for counts that need not be whole. A share in
    (0, 1) stays there, so that a resample has a Bradley–Terry maximum whenever the data have one. A tie or a
    soft label varies less than the win or loss that it counts as here: intervals are then too wide, not too
    narrow.
    """
    i, j = np.nonzero(np.triu((N > 0.0) & (P > 0.0) & (P < 1.0), 1))
    size = max(1, CHUNK // P.size)
    for start in range(0, times, size):
        R = np.repeat(P[None], min(size, times - start), axis=0)
        share = rng.beta(N[i, j] * P[i, j], N[i, j] * P[j, i], size=(len(R), len(i))).clip(1e-9, 1 - 1e-9)
        R[:, i, j], R[:, j, i] = share, 1.0 - share
        yield R


def _bootstrap(
    P: FloatArray,
    N: FloatArray,
    flow: str,
    fit: BradleyTerry | None,
    times: int,
    rng: Generator,
    progress: bool,
) -> Bootstrap:
    nash, curl, scores, regret, chance = [], [], [], [], []
    with progress_bar(progress, times, "resample") as bar:
        for batch in _resamples(P, N, times, rng):
            nash.append(equilibrium(MatrixGame(batch)).policy)
            for Q in batch:
                curl.append(_curl_share(Q, N, flow))
                if fit is not None:
                    scores.append(fit_bradley_terry(Q * N).scores)
                    regret.append(Q[:, scores[-1].argmax()].max() - 0.5)
                bar(len(curl))
    if fit is not None:
        model = expit(fit.scores[:, None] - fit.scores)
        chance = [_curl_share(Q, N, flow) for batch in _resamples(model, N, times, rng) for Q in batch]
    ends = (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)
    return Bootstrap(
        resamples=times,
        nash=np.quantile(np.concatenate(nash), ends, axis=0),
        curl_share=np.quantile(curl, ends),
        chance_curl=float(np.quantile(chance, CONFIDENCE)) if chance else None,
        scores=np.quantile(scores, ends, axis=0) if scores else None,
        exploitability=np.quantile(regret, ends) if regret else None,
        favourite=np.bincount(np.argmax(scores, axis=1), minlength=len(P)) / times if scores else None,
    )


def _top(scores: FloatArray) -> NDArray[np.bool_]:
    """Which scores are the highest, ties up to the accuracy of the fit included."""
    return np.asarray(scores >= scores.max() - 1e-8)


def _cells(n: int, values: FloatArray | None, ends: FloatArray | None, form: str) -> list[str]:
    if values is None:
        return ["—"] * n
    return [
        form.format(v) + _interval(None if ends is None else ends[:, i], form) for i, v in enumerate(values)
    ]


def _interval(ends: FloatArray | None, form: str) -> str:
    return "" if ends is None else f" [{form.format(ends[0])}, {form.format(ends[1])}]"
