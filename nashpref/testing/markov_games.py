"""Hypothesis strategies for Markov games of every kind, small enough to be played out by the definition.

Everything shrinks: fewer steps, states and actions first, then dynamics that stay in state 0, then ties.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import DrawFn, SearchStrategy
from scipy.sparse import csr_array

from nashpref.games.markov import MarkovGame
from nashpref.policies import FloatArray, IntArray
from nashpref.testing.strategies import preference_games


@dataclass(frozen=True, eq=False)
class Description:
    """A Markov game in full: every step and state of it, whether or not it can be reached.

    Attributes:
        transition: `(H, S, A, S)`.
        preference: `(H, S, A, S, A)`, or `(S, S)` between final states.
        initial: a distribution `(S,)`.
    """

    transition: FloatArray
    preference: FloatArray
    initial: FloatArray

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(H, S, A)`."""
        H, S, A, _ = self.transition.shape
        return H, S, A

    @property
    def terminal(self) -> bool:
        """Whether final states are compared."""
        return self.preference.ndim == 2

    @property
    def initial_states(self) -> IntArray:
        """The states in which the players may start."""
        return np.flatnonzero(self.initial)

    @property
    def policy_shape(self) -> tuple[int, ...]:
        """As `MarkovGame.policy_shape`."""
        starts = len(self.initial_states)
        return self.shape if starts == 1 else (starts, *self.shape)

    def game(self, *, sparse: bool = False) -> MarkovGame:
        """The game; what is the same at every step is handed over once."""
        H, S, A = self.shape
        transition = self.transition[0] if (self.transition == self.transition[0]).all() else self.transition
        preference = self.preference
        if not self.terminal and (preference == preference[0]).all():
            preference = preference[0]
        if not sparse:
            return MarkovGame(transition, preference, self.initial, horizon=H)
        steps = [csr_array(T) for T in transition.reshape(-1, S * A, S)]
        return MarkovGame(steps[0] if transition.ndim == 3 else steps, preference, self.initial, horizon=H)

    def starting_in(self, state: int) -> Description:
        """The same, but for the initial state."""
        return dataclasses.replace(self, initial=np.eye(len(self.initial))[state])


@st.composite
def descriptions(
    draw: DrawFn,
    *,
    max_horizon: int = 3,
    max_states: int = 4,
    max_actions: int = 3,
    min_starts: int = 1,
    max_starts: int = 2,
    terminal: bool | None = None,
    dynamics: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
) -> Description:
    """Markov games in full; arguments as in `markov_games`."""
    H, A = draw(_rarely_one(max_horizon)), draw(_rarely_one(max_actions))
    S = max(draw(_rarely_one(max_states)), min_starts)
    name = draw(st.sampled_from([name for name in dynamics or DYNAMICS if min_starts == 1 or name != "tree"]))
    if name == "tree":
        A = min(A, 2)
        S = A**H
    T = draw(DYNAMICS[name](H, S, A))
    if draw(st.booleans()) if terminal is None else terminal:
        P = draw(preference_games(min_n=S, max_n=S, kinds=kinds)).preferences
    else:
        n = S * A
        games = preference_games(min_n=n, max_n=n, kinds=kinds)
        count = draw(st.sampled_from([1, H]))  # once for all steps, or each its own
        steps = [draw(games).preferences.reshape(S, A, S, A) for _ in range(count)]
        P = np.stack(steps * (H // count))
    starts = st.lists(st.integers(0, S - 1), min_size=min_starts, max_size=min(max_starts, S), unique=True)
    chosen = [0] if name == "tree" else draw(starts)
    rho = np.zeros(S)
    rho[chosen] = np.arange(1, len(chosen) + 1)
    return Description(T, P, rho / rho.sum())


def markov_games(
    *,
    max_horizon: int = 3,
    max_states: int = 4,
    max_actions: int = 3,
    max_starts: int = 2,
    terminal: bool | None = None,
    dynamics: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
) -> SearchStrategy[MarkovGame]:
    """Markov games, dense or sparse; their policies are `policies(game.policy_shape)`.

    Args:
        max_horizon: the largest H.
        max_states: the largest S; a "tree" is binary and has the 2^H states that it takes.
        max_actions: the largest A.
        max_starts: the largest number of initial states.
        terminal: whether final states are compared; None: either.
        dynamics: keys of `DYNAMICS`; None: all.
        kinds: of preferences between the S final states, or the S·A places of a step: keys of `KINDS`; None:
            all.
    """
    drawn = descriptions(
        max_horizon=max_horizon,
        max_states=max_states,
        max_actions=max_actions,
        max_starts=max_starts,
        terminal=terminal,
        dynamics=dynamics,
        kinds=kinds,
    )
    return st.builds(lambda description, sparse: description.game(sparse=sparse), drawn, st.booleans())


def _rarely_one(most: int) -> SearchStrategy[int]:
    """Sizes up to `most`; the smallest, where there is least to go wrong, is what they shrink to."""
    return st.sampled_from([*range(1, most + 1), *range(2, most + 1)])


# --- dynamics: `(H, S, A)` to the transitions `(H, S, A, S)` ---


def _stochastic(H: int, S: int, A: int) -> SearchStrategy[FloatArray]:
    """Small integer weights, some of them zero; a row without any leads to state 0."""
    weights = arrays(np.int64, (H, S, A, S), elements=st.integers(0, 3), fill=st.nothing())

    def normalised(counts: IntArray) -> FloatArray:
        T = counts.astype(np.float64)
        T[..., 0] += T.sum(axis=-1) == 0.0
        return np.asarray(T / T.sum(axis=-1, keepdims=True))

    return weights.map(normalised)


def _stationary(H: int, S: int, A: int) -> SearchStrategy[FloatArray]:
    return _stochastic(1, S, A).map(lambda T: np.repeat(T, H, axis=0))


def _deterministic(H: int, S: int, A: int) -> SearchStrategy[FloatArray]:
    to = arrays(np.int64, (H, S, A), elements=st.integers(0, S - 1), fill=st.nothing())
    return to.map(lambda states: np.eye(S)[states])


def _random(H: int, S: int, A: int) -> SearchStrategy[FloatArray]:
    """No two probabilities alike, most of them small."""
    generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)
    return generators.map(lambda rng: rng.dirichlet(np.full(S, 0.3), (H, S, A)))


def _tree(H: int, S: int, A: int) -> SearchStrategy[FloatArray]:
    """Node s of a step, in state 0 the root, has the children `s·A + a`: a state is the path to it."""
    node, action = np.arange(S)[:, None], np.arange(A)
    return st.just(np.repeat(np.eye(S)[(node * A + action) % S][None], H, axis=0))


DYNAMICS: dict[str, Callable[[int, int, int], SearchStrategy[FloatArray]]] = {
    "deterministic": _deterministic,
    "stochastic": _stochastic,
    "stationary": _stationary,
    "random": _random,
    "tree": _tree,
}
"""Every kind of dynamics as a strategy for a given H, S and A."""
