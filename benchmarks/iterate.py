"""`solve`: equivalent rules, the two interpreters, and speed against the loop that one writes by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

import nashpref as npf
from benchmarks import loops
from benchmarks.harness import Measured, Row, interleave, row, seconds, timed
from benchmarks.regularised import random_reference
from nashpref.mirror import toward_reference
from nashpref.policies import FloatArray

Loop = Callable[[FloatArray, float, float, int], loops.Gaps]

ETA, BETA = 0.5, 0.1
EQUIVALENCE_STEPS = 1000


def rows() -> Iterator[Row]:
    """Agreement, then ratios."""
    yield row("equivalent rules: largest difference over 1000 iterates", "≤ 1e-12", "", equivalences)
    yield row("compiled and numpy: largest difference over 1000 iterates", "≤ 1e-12", "", interpreters)
    numpy_over = "`solve` (numpy) with gaps at every step over"
    for n, steps in ((3, 5000), (10, 5000), (30, 5000), (100, 3000)):
        yield row(f"{numpy_over} a hand-written loop, OGDA n = {n}", "≤ 2", "×", over_loop, n, steps)
    for n, steps in ((1000, 1000), (2000, 200), (4000, 50)):
        yield row(f"{numpy_over} a hand-written loop, OGDA n = {n}", "≤ 1.1", "×", over_loop, n, steps)
        name = f"{numpy_over} the bare matrix–vector product, OGDA n = {n}"
        yield row(name, "≤ 1.3", "×", over_product, n, steps)
    for name, rule, loop in (
        ("Nash-MD", npf.NashMD(beta=BETA, eta=ETA), loops.nash_md),
        ("EGPO", npf.EGPO(beta=BETA, eta=ETA), loops.egpo),
    ):
        for n, target, steps in ((10, "≤ 2", 3000), (1000, "≤ 1.1", 500)):
            title = f"{numpy_over} a hand-written loop, {name} n = {n}"
            yield row(title, target, "×", over_regularised_loop, rule, loop, n, steps)
    for n in (3, 10, 16):
        name = f"`solve` (compiled) with gaps at every step against a hand-written loop, OGDA n = {n}"
        yield row(name, "≥ 20", "×", compiled_against_loop, n)
    name = "bandwidth of an OGDA step, n = 4000, as a share of a streaming read"
    yield row(name, None, "×", bandwidth)


# --- agreement ---


@dataclass(frozen=True)
class UnmixedNashMD:
    """Nash-MD whose opponent is not mixed with the reference: theory says that it is GDA."""

    beta: float
    eta: float

    def steps(self, t: int) -> Sequence[npf.MirrorStep]:
        """The opponent is a mixture with weight 0 on the reference."""
        anchors = toward_reference("current", self.eta * self.beta)
        return (
            npf.MirrorStep("mixture", {"current": 1.0, "reference": 0.0}),
            npf.MirrorStep("current", anchors, {"mixture": self.eta}),
        )


def equivalences() -> Measured:
    """Each rule against the equivalent one, and against the paper's own form written by hand."""
    b, e = BETA, ETA
    explicit = e / (1.0 + e * b)
    forms: dict[str, tuple[npf.UpdateRule, Callable[[FloatArray, FloatArray], Iterator[FloatArray]]]] = {
        "ONPO ≡ one-call OMWU (q₋₁ = 0)": (
            npf.ONPO(eta=e),
            lambda A, mu: loops.one_call_omwu(A, mu, e, centred=True),
        ),
        "OGDA ≡ one-call OMWU": (npf.OGDA(eta=e), lambda A, mu: loops.one_call_omwu(A, mu, e, centred=False)),
        "GDA ≡ INPO": (npf.GDA(beta=b, eta=e), lambda A, mu: loops.inpo(A, mu, b, e)),
        "MMD ≡ implicit magnet": (npf.MMD(beta=b, eta=e), lambda A, mu: loops.magnetic(A, mu, b, e)),
        "Nash-MP ≡ implicit mirror-prox": (
            npf.NashMP(beta=b, eta=e),
            lambda A, mu: loops.nash_mp(A, mu, b, e),
        ),
    }
    twins: dict[str, tuple[npf.UpdateRule, npf.UpdateRule]] = {
        "MMD(η) ≡ GDA(η/(1+ηβ))": (npf.MMD(beta=b, eta=e), npf.GDA(beta=b, eta=explicit)),
        "Nash-MP(η) ≡ EGPO(η/(1+ηβ))": (npf.NashMP(beta=b, eta=e), npf.EGPO(beta=b, eta=explicit)),
        "Nash-MD without mixing ≡ GDA": (UnmixedNashMD(b, e), npf.GDA(beta=b, eta=e)),
        "Nash-EMA(d = 0) ≡ GDA": (npf.NashEMA(beta=b, eta=e, decay=0.0), npf.GDA(beta=b, eta=e)),
        "MNPO(λ = 1) ≡ GDA": (npf.MNPO(beta=b, eta=e, weights=(1.0,)), npf.GDA(beta=b, eta=e)),
        "GDA(β = 0) ≡ MWU": (npf.GDA(eta=e), npf.MWU(eta=e)),
    }
    rng = np.random.default_rng(20)
    random = (npf.zoo.random_preferences(n, rng) for n in (10, 100))
    worst = dict.fromkeys([*forms, *twins], 0.0)
    for game in (npf.zoo.rock_paper_scissors(), npf.zoo.comal(), *random):
        mu = random_reference(game.n, rng)
        for name, (rule, form) in forms.items():
            written = np.array(list(itertools.islice(form(game.payoffs, mu), EQUIVALENCE_STEPS + 1)))
            worst[name] = max(worst[name], difference(iterates(game, rule, mu), written))
        for name, (rule, twin) in twins.items():
            worst[name] = max(worst[name], difference(iterates(game, rule, mu), iterates(game, twin, mu)))
    each = ", ".join(f"{name} {value:.0e}" for name, value in worst.items())
    return max(worst.values()), f"4 games, n = 3…100: {each}"


def interpreters() -> Measured:
    """Every rule on single games and a batch, from random references."""
    b, e = BETA, ETA
    rules: list[npf.UpdateRule] = [
        npf.MWU(eta=e),
        npf.GDA(beta=b),
        npf.GDA(beta=b, eta=e),
        npf.NashMD(beta=b),
        npf.NashEMA(beta=b),
        npf.OGDA(),
        npf.OGDA(beta=b),
        npf.ONPO(),
        npf.EGPO(beta=b),
        npf.MMD(beta=b),
        npf.NashMP(beta=b),
        npf.MNPO(beta=b, eta=e),
        npf.COMAL(beta=b, every=50),
        npf.BestResponse(beta=b),
    ]
    rng = np.random.default_rng(21)
    games = [
        npf.zoo.rock_paper_scissors(),
        npf.zoo.random_preferences(10, rng),
        npf.zoo.random_preferences(100, rng),
        npf.zoo.random_preferences(5, rng, batch=8),
    ]
    worst, where = 0.0, "no difference at all"
    for game in games:
        mu = random_reference(game.n, rng)
        for rule in rules:
            error = difference(iterates(game, rule, mu, compiled=True), iterates(game, rule, mu))
            if error > worst:
                worst, where = error, f"worst: {rule}, {game}"
    return worst, f"{len(rules)} rules, {len(games)} games; {where}"


def iterates(
    game: npf.MatrixGame, rule: npf.UpdateRule, mu: FloatArray, *, compiled: bool = False
) -> FloatArray:
    """Every iterate, from the reference μ."""
    trace = npf.solve(
        game, rule, EQUIVALENCE_STEPS, reference=mu, record=1, keep_policies=True, compiled=compiled
    )
    assert trace.policies is not None
    return trace.policies


def difference(ours: FloatArray, other: FloatArray) -> float:
    """Largest difference of a probability at any step."""
    return float(np.abs(ours - other).max())


# --- speed ---


def uniform_game(n: int) -> npf.MatrixGame:
    """The game of the speed rows."""
    return npf.zoo.random_preferences(n, np.random.default_rng(22))


def over_loop(n: int, steps: int) -> Measured:
    """OGDA on the numpy path."""
    game, rule = uniform_game(n), npf.OGDA(eta=ETA)
    pairs = interleave(
        lambda: npf.solve(game, rule, steps, record=1, compiled=False),
        lambda: loops.ogda(game.payoffs, ETA, steps),
        9,
    ).each(steps, steps)
    return pairs.slowdown, f"{pairs} a step; {loops.agreement(*pairs.results)}"


def over_product(n: int, steps: int) -> Measured:
    """OGDA over nothing but `A @ π`, as often."""
    game, rule = uniform_game(n), npf.OGDA(eta=ETA)
    A, pi = game.payoffs, np.full(n, 1.0 / n)

    def products() -> None:
        for _ in range(steps):
            A @ pi

    pairs = interleave(lambda: npf.solve(game, rule, steps, record=1, compiled=False), products, 9)
    return pairs.slowdown, f"{pairs.each(steps, steps)} a step"


def over_regularised_loop(rule: npf.UpdateRule, loop: Loop, n: int, steps: int) -> Measured:
    """A rule that takes two products a step, with regularised gaps."""
    game = uniform_game(n)
    pairs = interleave(
        lambda: npf.solve(game, rule, steps, record=1, compiled=False),
        lambda: loop(game.payoffs, BETA, ETA, steps),
        9,
    ).each(steps, steps)
    return pairs.slowdown, f"{pairs} a step; {loops.agreement(*pairs.results)}"


def compiled_against_loop(n: int) -> Measured:
    """100,000 steps compiled, 10,000 by hand, compared per step."""
    game, rule, ours, peer = uniform_game(n), npf.OGDA(eta=ETA), 100_000, 10_000
    note = loops.agreement(
        npf.solve(game, rule, 1000, record=1, compiled=True), loops.ogda(game.payoffs, ETA, 1000)
    )
    pairs = interleave(
        lambda: npf.solve(game, rule, ours, record=1, compiled=True),
        lambda: loops.ogda(game.payoffs, ETA, peer),
    ).each(ours, peer)
    return pairs.speedup, f"{pairs} a step; {note}"


def bandwidth() -> Measured:
    """Bytes of A over the time of a step, against the fastest of three ways to read as many once."""
    n, steps = 4000, 30
    game, rule = uniform_game(n), npf.OGDA(eta=ETA)
    numbers = np.ones(n * n)
    readers = (numbers.sum, numbers.max, lambda: numbers @ numbers)
    npf.solve(game, rule, 1, record=1, compiled=False)
    shares, speeds = [], []
    for _ in range(5):
        step = timed(lambda: npf.solve(game, rule, steps, record=1, compiled=False))[0] / steps
        read = min(timed(reader, 3)[0] for reader in readers)
        shares.append(read / step)
        speeds.append(numbers.nbytes / step)
    return median(shares), f"{median(speeds) / 1e9:.3g} GB/s; a read takes {seconds(read)}"
