"""What a property of a rule is tried on in Markov games, in every geometry that applies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from numpy.random import Generator

from nashpref.games.markov import MarkovGame
from nashpref.mirror import Geometry, UpdateRule, target_beta
from nashpref.policies import FloatArray, IntArray, uniform
from nashpref.solve import solve
from nashpref.testing.cases import recorded
from nashpref.testing.markov_games import Description, descriptions
from nashpref.testing.markov_oracle import Play
from nashpref.testing.strategies import policies, preference_games, references
from nashpref.trace import Trace

STEPS = 4  # in each of two or three geometries


@dataclass(frozen=True, eq=False)
class MarkovCase:
    """A Markov game with a start and a reference; `build` makes the game of its description."""

    game: Description
    start: FloatArray
    reference: FloatArray
    build: Callable[[Description], MarkovGame] = Description.game

    def __str__(self) -> str:
        return f"game: {self.game}\nstart: {self.start}\nreference: {self.reference}"

    def run(self, rule: UpdateRule, geometry: Geometry, steps: int = STEPS) -> Trace:
        """The trace of `rule` with every iterate."""
        return solve(
            self.build(self.game),
            rule,
            steps,
            geometry=geometry,
            start=self.start,
            reference=self.reference,
            record=1,
            keep_policies=True,
        )

    def iterates(self, rule: UpdateRule, geometry: Geometry, steps: int = STEPS) -> FloatArray:
        """The policies π_0 … π_steps."""
        return recorded(self.run(rule, geometry, steps), steps, rule, self)

    def by_start(self) -> list[tuple[int, FloatArray, FloatArray]]:
        """Each initial state with its own start and reference, `(H, S, A)`."""
        each = (-1, *self.game.shape)
        starts = zip(self.start.reshape(each), self.reference.reshape(each), strict=True)
        return [(int(s), own, mu) for s, (own, mu) in zip(self.game.initial_states, starts, strict=True)]


Check = Callable[[UpdateRule, Any, Geometry], None]


def geometries(rule: UpdateRule) -> list[Geometry]:
    """Those in which `solve` takes the rule."""
    weighted_too = target_beta(rule) == 0.0
    return [geometry for geometry in Geometry if weighted_too or geometry is not Geometry.WEIGHTED_OCCUPANCY]


def in_every_geometry(check: Check) -> Callable[[UpdateRule, Any], None]:
    """Check a property in the geometries that apply, and name the one in which it fails."""

    @functools.wraps(check)
    def checked(rule: UpdateRule, case: Any) -> None:
        for geometry in geometries(rule):
            try:
                check(rule, case, geometry)
            except AssertionError as error:
                raise AssertionError(f"in the geometry {str(geometry)!r}, {error}") from None

    return checked


def generators() -> SearchStrategy[Generator]:
    """Sources of randomness for what need not shrink."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def markov_cases(
    draw: DrawFn, games: SearchStrategy[Description] | None = None, *, spread: float | None = 5.0
) -> MarkovCase:
    """A game of the strategy `games` (any) with any start and reference; `spread` as in `policies`."""
    game = draw(descriptions() if games is None else games)
    shape = game.policy_shape
    return MarkovCase(game, draw(policies(shape, spread=spread)), draw(references(shape)))


@st.composite
def markov_cases_at_equilibrium(draw: DrawFn, rule: UpdateRule) -> MarkovCase:
    """A start at the equilibrium that `rule` seeks, known by construction: no solver is involved.

    With β > 0 every policy π is the equilibrium for one reference, `μ ∝ π exp(−Q/β)`: π's soft response
    to itself at the temperature −β. With β = 0 an interior π is made one by projecting the payoffs until
    `A_h d_h = 0`.
    """
    game = draw(descriptions())
    pi = draw(policies(game.policy_shape, spread=2.0))
    return at_equilibrium(game, pi, rule, draw(references(game.policy_shape)))


def at_equilibrium(game: Description, pi: FloatArray, rule: UpdateRule, mu: FloatArray) -> MarkovCase:
    """The dynamics of `game` with preferences (β = 0) or a reference (β > 0) that make π the equilibrium."""
    beta = target_beta(rule)
    if beta == 0.0:
        # A rule whose own β is only a means (COMAL) is at rest where its reference is at equilibrium too.
        return MarkovCase(_balanced(game, pi), pi, pi if getattr(rule, "beta", 0.0) > 0.0 else mu)
    H = len(game.transition)
    margin = min(1.0, 10.0 * beta / H)  # or the reference would be too far from π for floats
    game = dataclasses.replace(game, preference=0.5 + margin * (game.preference - 0.5))
    log_mu = []
    for s, own, _ in MarkovCase(game, pi, mu).by_start():
        play = Play.of(game, 0, s)
        log_mu.append(play.soft_response(*play.gain(own), np.log(own), np.full(H, -beta)))
    return MarkovCase(game, pi, np.exp(log_mu).reshape(pi.shape))


def _balanced(game: Description, pi: FloatArray) -> Description:
    """The nearest payoffs that make every place worth the same against π, from every initial state."""
    H, S, A = game.shape
    met = [Play.of(game, 0, s).occupancy(own) for s, own, _ in MarkovCase(game, pi, pi).by_start()]
    if game.terminal:
        against = np.array([[final for _, final in met]])
    else:
        against = np.array([d.reshape(H, S * A) for d, _ in met]).swapaxes(0, 1)
    n = against.shape[-1]
    margins = game.preference.reshape(-1, n, n) - 0.5
    away = np.eye(n) - np.linalg.pinv(against) @ against
    margins = away @ margins @ away
    margins = (margins - np.swapaxes(margins, 1, 2)) / 2.0
    largest = np.abs(margins).max()
    margins *= 0.5 / max(largest, 0.5)
    return dataclasses.replace(game, preference=0.5 + margins.reshape(game.preference.shape))


@st.composite
def ways_to_a_winner(draw: DrawFn) -> tuple[MarkovCase, IntArray]:
    """A final state that beats every other, where one action in each state leads, for good; all is uniform.

    Returns also which action that is, `(H, S)`.
    """
    H, A, S = draw(st.integers(1, 3)), draw(st.integers(2, 3)), draw(st.integers(2, 4))
    winner = draw(st.integers(0, S - 1))
    rng = draw(generators())
    T = rng.dirichlet(np.full(S, 0.5), (H, S, A))
    T[..., winner] = 1e-3
    T /= T.sum(axis=-1, keepdims=True)
    way = rng.integers(0, A, (H, S))
    T[np.arange(H)[:, None], np.arange(S), way] = T[:, winner] = np.eye(S)[winner]
    P = draw(preference_games(min_n=S, max_n=S)).preferences.copy()
    P[winner], P[:, winner], P[winner, winner] = 1.0, 0.0, 0.5
    game = Description(T, P, np.eye(S)[(winner + 1) % S])
    way[:, winner] = -1
    everywhere = uniform(game.policy_shape)
    return MarkovCase(game, everywhere, everywhere), way
