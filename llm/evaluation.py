"""What is measured of preference models and of policies, each number with its interval.

Of a preference model: whether it names the winner (accuracy), whether its probabilities are those of the
labels (log-loss, Brier score, calibration), and what it says beyond any ranking (cycles). Of a policy: how
often it wins, how well it predicts (perplexity), how far it has moved (KL from the reference).

All are functions of arrays, and leave models and files to others; randomness is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from nashpref.analysis import rank
from nashpref.games.matrix import MatrixGame
from nashpref.llm.data import Pair, Text
from nashpref.llm.intervals import Estimate, bootstrap, proportion, variance_of_mean
from nashpref.llm.preferences.adapters import Preference, RewardPreference, key_of
from nashpref.llm.preferences.models import ResponseModel
from nashpref.metrics import duality_gap
from nashpref.policies import FloatArray, IntArray
from nashpref.progress import progress_bar

NEAREST = 2.0**-24  # to 0 and 1 that a float32 probability is told apart from them: the log-loss stays finite
SUPPORT = 1e-6  # equilibrium mass that counts as support
ASKED = 1024  # pairs that a preference is asked at once


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose favourite is given a probability in `[low, high)`: what was said, and what happened.

    Attributes:
        confidence: mean of the probability that was given.
        frequency: how often the favourite did win.
    """

    low: float
    high: float
    pairs: int
    confidence: float
    frequency: Estimate


@dataclass(frozen=True, slots=True)
class PairReport:
    """A preference against labels.

    Attributes:
        pairs, prompts: how many.
        undecided: pairs with label 1/2, which have no winner and are left out of the accuracy.
        accuracy: how often the likelier winner is the label's; a prediction of 1/2 counts as half. None when
            all pairs are undecided.
        log_loss: `−y log p − (1 − y) log(1 − p)`, y the label; log 2 for the prediction 1/2. Predictions
            count as at least 2⁻²⁴ away from 0 and 1.
        brier: `(p − y)²`.
        calibration_error: ECE, `Σ_b (n_b/n) |confidence_b − frequency_b|` over the bins. Noise adds to it,
            and its interval lies high.
        debiased_calibration_error: `√Σ_b (n_b/n) ((confidence_b − frequency_b)² − V_b)` with V_b the variance
            of the difference between prompts: noise adds nothing on average; 0 where the sum is negative.
            Bins of a single prompt, of which V_b is not known, are left out.
        reliability: the bins that are not empty.
    """

    pairs: int
    prompts: int
    undecided: int
    accuracy: Estimate | None
    log_loss: Estimate
    brier: Estimate
    calibration_error: Estimate
    debiased_calibration_error: float
    reliability: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class TransitivityReport:
    """What a preference says of K responses to each prompt that no ranking of them can.

    Attributes:
        prompts: how many, each with a K×K matrix.
        responses: mean K.
        cycles: mean share of strict 3-cycles among the triples of a prompt.
        condorcet: share of prompts in which one response beats all others.
        support: mean number of responses in the support of the equilibrium of largest entropy.
        favourite_gap: mean duality gap of the response with the highest Bradley–Terry score, between 0 and 1;
            None when no prompt has such scores.
        without_favourite: prompts in which some responses never lose to the others, so that there are none.
    """

    prompts: int
    responses: float
    cycles: Estimate
    condorcet: Estimate
    support: Estimate
    favourite_gap: Estimate | None
    without_favourite: int


def predictions(preference: Preference, pairs: Sequence[Pair], *, progress: bool = False) -> FloatArray:
    """`Pr(chosen ≻ rejected)` of each pair, `(N,)`; with a bar, on a terminal, after two seconds."""
    p = np.empty(len(pairs))
    with progress_bar(progress, len(pairs), "pair") as bar:
        for start in range(0, len(pairs), ASKED):
            part = pairs[start : start + ASKED]
            asked = [pair.prompt for pair in part], [pair.chosen for pair in part]
            p[start : start + len(part)] = preference(*asked, [pair.rejected for pair in part]).numpy()
            bar(start + len(part))
    return p


def prompt_groups(prompts: Iterable[Text]) -> IntArray:
    """The same number for the same prompt, `(N,)`, as the groups of `nashpref.llm.intervals`."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(key_of(prompt), len(numbers)) for prompt in prompts], dtype=np.int64)


def pair_report(
    predicted: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    rng: Generator,
    *,
    bins: int = 10,
    resamples: int = 2000,
) -> PairReport:
    """Accuracy, log-loss, Brier score and calibration of predictions p of labels y, both `Pr(a ≻ b)`.

    Which response of a pair is called a often is its label already. So calibration is asked of the favourite,
    the likelier winner, whose probability `max(p, 1 − p)` is in [1/2, 1]: the bins divide that into equal
    parts. Shares have the intervals of `proportion`, the others those of `bootstrap`.

    Args:
        predicted: p, `(N,)`.
        labels: y, `(N,)`, soft or hard.
        groups: the prompt of each pair, `(N,)` integers.
        rng: of the bootstrap.
        bins: of the calibration.
        resamples: of the bootstrap.

    Raises:
        ValueError: no pairs, or numbers that are no probabilities.
    """
    p, y, group = np.asarray(predicted, float), np.asarray(labels, float), np.asarray(groups)
    if not len(p) or not p.shape == y.shape == group.shape:
        raise ValueError(f"{len(p)} predictions, {len(y)} labels, {len(group)} groups: as many, at least one")
    for name, values in (("predicted", p), ("labels", y)):
        if not ((values >= 0.0) & (values <= 1.0)).all():
            raise ValueError(f"{name}: numbers outside [0, 1]; probabilities are needed")
    decided = y != 0.5
    right = 0.5 + 0.5 * np.sign(p - 0.5) * np.sign(y - 0.5)

    inside = p.clip(NEAREST, 1.0 - NEAREST)
    surprise = -y * np.log(inside) - (1.0 - y) * np.log1p(-inside)

    confidence, won = np.maximum(p, 1.0 - p), 0.5 + np.sign(p - 0.5) * (y - 0.5)
    edges = np.linspace(0.5, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], confidence, side="right")
    excess = (place[:, None] == range(bins)) * (confidence - won)[:, None]
    terms = np.column_stack([np.ones(len(p)), surprise, (p - y) ** 2, excess])
    log_loss, brier, calibration_error = bootstrap(terms, group, _losses, rng, resamples=resamples)
    members = [(b, place == b) for b in np.unique(place).tolist()]
    return PairReport(
        pairs=len(p),
        prompts=len(np.unique(group)),
        undecided=int((~decided).sum()),
        accuracy=proportion(right[decided], group[decided]) if decided.any() else None,
        log_loss=log_loss,
        brier=brier,
        calibration_error=calibration_error,
        debiased_calibration_error=_debiased([((confidence - won)[m], group[m]) for _, m in members]),
        reliability=tuple(
            Bin(
                low=float(edges[b]),
                high=float(edges[b + 1]),
                pairs=int(m.sum()),
                confidence=float(confidence[m].mean()),
                frequency=proportion(won[m], group[m]),
            )
            for b, m in members
        ),
    )


def _losses(sums: FloatArray) -> FloatArray:
    """Mean log-loss, mean Brier score and ECE, from sums of 1, of the losses, and of each bin's excess."""
    return np.asarray(np.array([sums[1], sums[2], np.abs(sums[3:]).sum()]) / sums[0])


def _debiased(bins: Sequence[tuple[FloatArray, IntArray]]) -> float:
    """See `PairReport`, from `confidence − won` and the prompts in each bin."""
    total = 0.0
    for excess, group in bins:
        prompts = len(np.unique(group))
        if prompts > 1:
            noise = variance_of_mean(excess, group) * prompts / (prompts - 1)
            total += len(excess) * (float(excess.mean()) ** 2 - noise)
    return float(np.sqrt(max(total, 0.0) / sum(len(excess) for excess, _ in bins)))


def pair_reports(
    predicted: ArrayLike, pairs: Sequence[Pair], rng: Generator, *, bins: int = 10
) -> tuple[PairReport, dict[str, PairReport]]:
    """`pair_report` of all pairs, and of those of each source."""
    p, groups = np.asarray(predicted, float), prompt_groups(pair.prompt for pair in pairs)
    labels, sources = np.array([pair.p_chosen for pair in pairs]), np.array([pair.source for pair in pairs])
    report = partial(pair_report, rng=rng, bins=bins)
    return report(p, labels, groups), {
        str(source): report(p[here], labels[here], groups[here])
        for source in np.unique(sources)
        for here in [sources == source]
    }


def transitivity(
    matrices: Iterable[FloatArray], rng: Generator, *, resamples: int = 2000
) -> TransitivityReport:
    """Cycles, equilibria and what a reward model would choose, from a K×K matrix for each prompt.

    Args:
        matrices: `P[i, j] = Pr(i ≻ j)`, K ≥ 3.
        rng: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: no matrices, or one of fewer than three responses, which cannot cycle.
    """
    sizes, cycles, condorcet, support, gaps = [], [], [], [], []
    for k, P in enumerate(matrices):
        if len(P) < 3:
            raise ValueError(f"matrices[{k}] has {len(P)} responses: a cycle needs three")
        game = MatrixGame(P)
        ranking = rank(game, cycles=0)
        sizes.append(game.n)
        cycles.append(ranking.cycles.share)
        condorcet.append(ranking.condorcet_winner is not None)
        support.append(int((ranking.nash > SUPPORT).sum()))
        if ranking.favourite is not None:
            gaps.append(float(duality_gap(game, np.eye(game.n)[ranking.favourite])))
    if not sizes:
        raise ValueError("no matrices: prompts with at least three responses are needed")
    each = range(len(sizes))
    return TransitivityReport(
        len(sizes),
        float(np.mean(sizes)),
        proportion(cycles, each),
        proportion(condorcet, each),
        mean(support, each, rng, resamples=resamples),
        proportion(gaps, range(len(gaps))) if gaps else None,
        len(sizes) - len(gaps),
    )


def win_rates(
    preference: Preference,
    prompts: Sequence[Text],
    ours: Sequence[Sequence[Text]],
    theirs: Sequence[Sequence[Text]],
    *,
    progress: bool = False,
) -> FloatArray:
    """`w(x) = (1/KL) Σ_kl Pr(y_k ≻ z_l | x)` for each prompt, from K samples of ours and L of theirs, `(B,)`.

    Unbiased for the win-rate of the two policies; `proportion(w, prompt_groups(prompts))` is its mean with an
    interval in which only prompts are independent, since the KL comparisons of a prompt share their samples.

    No position is favoured: a `Preference` is antisymmetric, learned models by construction, and a judge that
    may favour a position by being asked both ways (`nashpref.llm.preferences.from_judge`). So exchanging the
    players gives 1 − w.

    Args:
        preference: a model or an adapter.
        prompts: B of them.
        ours, theirs: at least one response of each player to each prompt.
        progress: show a bar, on a terminal, once two seconds have passed.

    Raises:
        ValueError: numbers that do not fit, or a preference that says something else when asked in the other
            order.
    """
    if not len(prompts) == len(ours) == len(theirs) or not all(ours) or not all(theirs) or not prompts:
        raise ValueError(
            f"{len(prompts)} prompts with {len(ours)} and {len(theirs)} groups of responses: at least one "
            "prompt, and of each player at least one response to each"
        )
    both = [
        float(preference(prompts[:1], *each))
        for each in ((ours[0][:1], theirs[0][:1]), (theirs[0][:1], ours[0][:1]))
    ]
    if abs(sum(both) - 1.0) > 1e-4:
        raise ValueError(
            f"the preference gives {both[0]:g} and, asked in the other order, {both[1]:g}, which do not "
            "sum to 1: let nashpref.llm.preferences.from_judge ask it both ways"
        )
    rates = np.empty(len(prompts))
    with progress_bar(progress, len(prompts), "prompt") as bar:
        for b, (prompt, y, z) in enumerate(zip(prompts, ours, theirs, strict=True)):
            rates[b] = _between(preference, prompt, y, z).mean()
            bar(b + 1)
    return rates


def _between(preference: Preference, prompt: Text, y: Sequence[Text], z: Sequence[Text]) -> FloatArray:
    """`Pr(y_k ≻ z_l)`, K×L."""
    if isinstance(preference, ResponseModel | RewardPreference):  # one look at each response is enough
        return preference.matrix(prompt, [*y, *z])[: len(y), len(y) :]
    pairs = [(a, b) for a in y for b in z]
    p = preference([prompt] * len(pairs), [a for a, _ in pairs], [b for _, b in pairs])
    return np.asarray(p.double()).reshape(len(y), len(z))


def perplexity(
    logps: ArrayLike, lengths: ArrayLike, groups: ArrayLike, rng: Generator, *, resamples: int = 2000
) -> Estimate:
    """`exp(−Σ_i log π(y_i|x_i) / Σ_i |y_i|)`: per token, the end-of-sequence token included.

    Args:
        logps: of completions, `(N,)`, as of `nashpref.llm.logprobs.completion_logps`.
        lengths: their tokens, `(N,)`.
        groups: the prompt of each, `(N,)` integers.
        rng: of the bootstrap.
        resamples: of the bootstrap.
    """
    terms = np.column_stack([logps, lengths])
    return bootstrap(terms, groups, lambda s: np.exp([-s[0] / s[1]]), rng, resamples=resamples)[0]


def mean(values: ArrayLike, groups: ArrayLike, rng: Generator, *, resamples: int = 2000) -> Estimate:
    """The mean of any numbers, `(N,)`, over resampled groups: such as of the sums of `divergence`."""
    terms = np.column_stack([values, np.ones(np.shape(values))])
    return bootstrap(terms, groups, lambda s: s[:1] / s[1], rng, resamples=resamples)[0]
