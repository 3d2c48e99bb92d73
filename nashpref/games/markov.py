"""Markov preference games: two independent copies of one finite-horizon MDP, judged against each other."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Hashable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nashpref.games.matrix import SKEW_TOLERANCE, MatrixGame
from nashpref.policies import SIMPLEX_TOLERANCE, FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    Transition = FloatArray | csr_array
else:
    Transition = Any

BLOCK = 1 << 16  # entries of a matrix looked at together: what checking a game may hold besides the game


class MarkovGame:
    """The symmetric two-player zero-sum game of preferences over the trajectories of a finite-horizon MDP.

    Both players start in the same state, act in their own copy of the MDP for H steps and never meet; then
    (or at every step) a preference compares where they are. With the occupancy measure
    `d_h(s, a) = Pr(s_h = s, a_h = a | s_1)` of a policy the centred payoff is bilinear,

        V(π, π' | s_1) = Σ_h ⟨d_h, A_h d'_h⟩,   A_h = P_h − 1/2   (preference at every step), or
        V(π, π' | s_1) = ⟨m, A m'⟩,             m(x) = Pr(s_{H+1} = x)   (preference of final states).

    The skew payoffs make the value 0 and the equilibrium symmetric. It is one for each initial state: as
    a prompt does, each has its own policy; gaps are averaged over `initial`.

    Args:
        transition: `Pr(s' | h, s, a)`: a dense array `(H, S, A, S)`; H scipy sparse matrices `(S·A, S)`, row
            `s·A + a`; or one of either, `(S, A, S)` or `(S·A, S)`, for stationary dynamics. The last step
            leads to the final states: without a preference of those it is not looked at.
        preference: `P[h, s, a, s', a']`, the probability that being in s and doing a beats being in s' and
            doing a', shape `(H, S, A, S, A)`, or `(S, A, S, A)` for the same at every step; or
            `P[x, x']` over final states, shape `(S, S)`. Entries in [0, 1], `P + Pᵀ = 1` to 1e-8.
        initial: the initial state, or a distribution `(S,)` over them.
        horizon: H; needed where neither transition nor preference has an axis for it.
        state_labels: what the states of each step (and the final ones) stand for; optional.
        action_labels: A distinct names; optional.

    Only states that can be reached are kept: step h has the states `reached[h]`, and policies are handled
    inside as flat arrays `(S₁, N, A)`, the N = Σ_h n_h reachable states of all steps one after the other
    (`layers[h]` is the slice of step h). `flat` and `full` convert. Unreachable states cost nothing; a policy
    keeps its reference there.

    Raises:
        ValueError: shapes that do not fit together, a row of the transition that is no distribution,
            preferences outside [0, 1] or not complementary (the h, s, a are named), H = 0, an initial state
            that does not exist.
    """

    def __init__(
        self,
        transition: Any,
        preference: Any,
        initial: int | ArrayLike,
        *,
        horizon: int | None = None,
        state_labels: Sequence[Sequence[Hashable]] | None = None,
        action_labels: Sequence[str] | None = None,
    ) -> None:
        steps, S, A = _check_transition(transition)
        preferences, terminal = _check_shape(preference, S, A)
        self.horizon = _check_horizon(horizon, len(steps), 1 if terminal else len(preferences))
        self.states, self.actions, self.terminal = S, A, terminal
        steps = steps * self.horizon if len(steps) == 1 else steps
        for h, T in enumerate(steps[: self.horizon] if terminal else steps[: self.horizon - 1]):
            if h == 0 or T is not steps[h - 1]:
                _check_rows(T, h, A)
        for h, P in enumerate(preferences):
            _check_preference(P, (A if not terminal else 0), h if len(preferences) > 1 else None)

        self.initial_states, self.initial_weights = _check_initial(initial, S)
        self.reached = _reach(steps, self.initial_states, self.horizon + terminal, A)
        self.transitions = _restrict(steps, self.reached, A)
        if terminal:
            self.payoffs: tuple[FloatArray, ...] = (_centred(preferences[0], self.reached[-1]),)
        else:
            if len(preferences) == 1:
                preferences = preferences * self.horizon
            self.payoffs = _restrict_payoffs(preferences, self.reached, A)
        self.transposes = tuple(T if isinstance(T, np.ndarray) else T.T for T in self.transitions)
        self.state_labels = _check_state_labels(state_labels, self.horizon, S)
        self.action_labels = None if action_labels is None else tuple(map(str, action_labels))
        if self.action_labels is not None and len(set(self.action_labels)) != A:
            raise ValueError(f"action_labels: {A} distinct names are needed, got {list(self.action_labels)}")

    @classmethod
    def from_matrix(cls, game: MatrixGame) -> MarkovGame:
        """The game with H = 1, one state, and the responses of `game` as actions."""
        if game.batch is not None:
            raise ValueError(f"a Markov game is one game; this is a batch of {game.batch}")
        n = game.n
        return cls(
            np.ones((1, 1, n, 1)),
            game.preferences.reshape(1, 1, n, 1, n),
            0,
            action_labels=game.labels,
        )

    # --- shapes ---

    @cached_property
    def layers(self) -> tuple[slice, ...]:
        """Where each step's states are in a flat array."""
        ends = np.cumsum([len(states) for states in self.reached[: self.horizon]]).tolist()
        return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))

    @property
    def policy_shape(self) -> tuple[int, ...]:
        """Shape of a policy: `(H, S, A)`, or `(S₁, H, S, A)` where there are several initial states."""
        shape = (self.horizon, self.states, self.actions)
        return shape if len(self.initial_states) == 1 else (len(self.initial_states), *shape)

    @property
    def flat_shape(self) -> tuple[int, int, int]:
        """`(S₁, N, A)`."""
        return len(self.initial_states), self.layers[-1].stop, self.actions

    def flat(self, array: FloatArray) -> FloatArray:
        """The entries of an array of `policy_shape` at reachable states, `(S₁, N, A)`."""
        array = array.reshape(-1, self.horizon, self.states, self.actions)
        return np.concatenate(
            [array[:, h, states] for h, states in enumerate(self.reached[: self.horizon])], axis=1
        )

    def full(self, flat: FloatArray, fill: FloatArray | float) -> FloatArray:
        """An array of `policy_shape`: `flat` at the states reachable from each initial state, else `fill`."""
        array = np.empty((len(flat), self.horizon, self.states, self.actions))
        array[...] = fill
        for h, states in enumerate(self.reached[: self.horizon]):
            own = self.reached_from[:, self.layers[h], None]
            array[:, h, states] = np.where(own, flat[:, self.layers[h]], array[:, h, states])
        return array.reshape(self.policy_shape)

    @cached_property
    def reached_from(self) -> NDArray[np.bool_]:
        """Which states can be reached from each initial state, `(S₁, N)`."""
        S1, N, A = self.flat_shape
        possible = np.ones((S1, N), dtype=bool)
        mass = np.eye(S1)
        for h, layer in enumerate(self.layers):
            possible[:, layer] = mass > 0.0
            if h + 1 < self.horizon:
                spread = np.repeat(mass > 0.0, A, axis=1) / A
                mass = self.forward(h, spread)
        return possible

    # --- the two linear maps of the dynamics, and the payoffs ---

    def backward(self, h: int, values: FloatArray) -> FloatArray:
        """`Σ_s' Pr(s' | h, s, a) values(s')`: `(S₁, n_{h+1})` → `(S₁, n_h, A)`."""
        T = self.transitions[h]
        if len(values) == 1:
            expected = T @ values[0]
        else:
            expected = values @ T.T if isinstance(T, np.ndarray) else np.ascontiguousarray((T @ values.T).T)
        return np.asarray(expected).reshape(len(values), -1, self.actions)

    def forward(self, h: int, occupancy: FloatArray) -> FloatArray:
        """`Σ_{s,a} d_h(s, a) Pr(s' | h, s, a)`: `(S₁, n_h·A)` → `(S₁, n_{h+1})`."""
        T = self.transposes[h]
        if isinstance(T, np.ndarray):
            return np.asarray(occupancy[0] @ T)[None] if len(occupancy) == 1 else np.asarray(occupancy @ T)
        if len(occupancy) == 1:
            return np.asarray(T @ occupancy[0])[None]
        return np.ascontiguousarray((T @ occupancy.T).T)

    def plan(self, policy: FloatArray) -> FloatArray:
        """The occupancy measure `d_h(s, a)` of a flat policy, `(S₁, N, A)`."""
        d = np.empty_like(policy)
        mass = np.eye(len(policy))
        for h, layer in enumerate(self.layers):
            np.multiply(mass[:, :, None], policy[:, layer], out=d[:, layer])
            if h + 1 < self.horizon:
                mass = self.forward(h, d[:, layer].reshape(len(d), -1))
        return d

    def payoff(self, occupancy: FloatArray) -> FloatArray:
        """What the opponent with this (flat) occupancy makes each place worth.

        `A_h d_h` for every step, `(S₁, N, A)`; or, for a preference of final states, `A m`,
        `(S₁, n_{H+1})`.
        """
        S1 = len(occupancy)
        last = occupancy[:, self.layers[-1]].reshape(S1, -1)
        if self.terminal:
            return _product(self.payoffs[0], self.forward(self.horizon - 1, last))
        q = np.empty_like(occupancy)
        for layer, payoffs in zip(self.layers, self.payoffs, strict=True):
            d = occupancy[:, layer]
            q[:, layer] = _product(payoffs, d.reshape(S1, -1)).reshape(d.shape)
        return q

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that is reachable: two games with the same digest are the same game."""
        digest = hashlib.sha256(self.initial_weights.tobytes())
        for array in (*self.reached, *self.payoffs):
            digest.update(np.ascontiguousarray(array).data)
        for T in self.transitions:
            for part in (T,) if isinstance(T, np.ndarray) else (T.data, T.indices, T.indptr):
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        kind = "final states" if self.terminal else "every step"
        sparse = "" if all(isinstance(T, np.ndarray) for T in self.transitions) else ", sparse"
        starts = len(self.initial_states)
        return (
            f"MarkovGame(H={self.horizon}, S={self.states}, A={self.actions}, preference of {kind}{sparse}"
            f"{f', initial states={starts}' if starts > 1 else ''})"
        )


def _product(matrix: FloatArray, vectors: FloatArray) -> FloatArray:
    """`matrix @ v` for each row v: `(S₁, n)` → `(S₁, n)`; for one row the product of a matrix game."""
    return np.asarray(matrix @ vectors[0])[None] if len(vectors) == 1 else np.asarray(vectors @ matrix.T)


# --- from what was handed in to what is kept ---


def _check_transition(transition: Any) -> tuple[list[Any], int, int]:
    """One matrix `(S·A, S)` for each step (one in all if stationary), S and A; dense ones are views."""
    from scipy.sparse import issparse

    if issparse(transition):
        transition = [transition]
    if isinstance(transition, Sequence) and transition and all(map(issparse, transition)):
        shapes = {T.shape for T in transition}
        if len(shapes) > 1:
            raise ValueError(f"transition: the steps have different shapes, {sorted(shapes)}")
        rows, S = shapes.pop()
        if not S or rows % S or not rows:
            raise ValueError(f"transition: a sparse step has shape (S·A, S); got {(rows, S)}")
        return [T.tocsr() for T in transition], S, rows // S
    T = np.asarray(transition, dtype=np.float64)
    if T.ndim == 3:
        T = T[None]
    if T.ndim != 4 or T.shape[1] != T.shape[3] or 0 in T.shape[1:]:
        raise ValueError(
            f"transition has shape {np.shape(transition)}; a game needs (H, S, A, S), (S, A, S) for "
            "stationary dynamics, or H scipy sparse matrices (S·A, S)"
        )
    if not len(T):
        raise ValueError("transition has H = 0 steps: a game has at least one")
    H, S, A, _ = T.shape
    return [T[h].reshape(S * A, S) for h in range(H)], S, A


def _check_shape(preference: Any, S: int, A: int) -> tuple[list[FloatArray], bool]:
    """One matrix `(S·A, S·A)` for each step (one in all if always the same); or the terminal one `(S, S)`."""
    P = np.asarray(preference, dtype=np.float64)
    if P.shape == (S, S):
        return [P], True
    if P.shape == (S, A, S, A):
        P = P[None]
    if P.ndim != 5 or P.shape[1:] != (S, A, S, A):
        raise ValueError(
            f"preference has shape {P.shape}; with S = {S} states and A = {A} actions a game needs "
            f"(H, {S}, {A}, {S}, {A}), ({S}, {A}, {S}, {A}) for the same at every step, "
            f"or ({S}, {S}) for final states"
        )
    if not len(P):
        raise ValueError("preference has H = 0 steps: a game has at least one")
    return [P[h].reshape(S * A, S * A) for h in range(len(P))], False


def _check_horizon(horizon: int | None, transitions: int, preferences: int) -> int:
    """H, on which everything that has an axis for it must agree."""
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon = {horizon}: a game has at least one step")
    lengths = {"horizon": horizon or 1, "transition": transitions, "preference": preferences}
    told = {name: length for name, length in lengths.items() if length > 1}
    if len(set(told.values())) > 1:
        told_text = ", ".join(f"{name}: {length}" for name, length in told.items())
        raise ValueError(f"the number of steps H differs ({told_text}): give what is the same once")
    H = max(lengths.values())
    if horizon is not None and horizon != H:
        raise ValueError(f"horizon = {horizon}, but transition or preference has {H} steps")
    return H


def _check_rows(T: Any, h: int, A: int) -> None:
    """Every row of a step is a distribution."""
    dense = isinstance(T, np.ndarray)
    values = T if dense else T.data
    for wrong, what in ((~np.isfinite(values), "is not finite"), (values < 0.0, "is negative")):
        if wrong.any():
            if dense:
                row, to = (int(k) for k in np.argwhere(wrong)[0])
            else:
                k = int(np.argmax(wrong))
                row, to = int(np.searchsorted(T.indptr, k, side="right")) - 1, int(T.indices[k])
            at = f"h={h}, s={row // A}, a={row % A}, s'={to}"
            raise ValueError(f"transition[{at}] = {T[row, to]} {what}: it must be a probability")
    total = np.asarray(T.sum(axis=1)).ravel()
    error = np.abs(total - 1.0)
    if error.max() > SIMPLEX_TOLERANCE:
        row = int(error.argmax())
        raise ValueError(
            f"transition[h={h}, s={row // A}, a={row % A}] sums to {total[row]:.12g}, not 1: "
            "divide it by its sum"
        )


def _check_preference(P: FloatArray, A: int, h: int | None) -> None:
    """Entries in [0, 1] and complementary; looked at in blocks of rows, so that nothing large is made."""
    n = len(P)
    worst, where = 0.0, (0, 0)
    for rows in _blocks(n):
        block = P[rows]
        for bad, what in (
            (~np.isfinite(block), "is not finite"),
            ((block < 0.0) | (block > 1.0), "is not a probability in [0, 1]"),
        ):
            if bad.any():
                i, j = (int(k) for k in np.argwhere(bad)[0])
                i += rows.start
                raise ValueError(f"preference[{_place(i, j, A, h)}] = {P[i, j]} {what}")
        error = np.abs(block + P[:, rows].T - 1.0)
        if error.max() > worst:
            worst = float(error.max())
            i, j = (int(k) for k in np.unravel_index(int(error.argmax()), error.shape))
            where = (i + rows.start, j)
    if worst > SKEW_TOLERANCE:
        i, j = min(where), max(where)
        raise ValueError(
            f"preference[{_place(i, j, A, h)}] = {P[i, j]:.10g} and its mirror image {P[j, i]:.10g} sum to "
            f"{P[i, j] + P[j, i]:.10g}, not 1 (worst entry): the two orders of a pair must be complementary"
        )


def _place(i: int, j: int, A: int, h: int | None) -> str:
    if A == 0:
        return f"x={i}, x'={j}"
    step = "" if h is None else f"h={h}, "
    return f"{step}s={i // A}, a={i % A}, s'={j // A}, a'={j % A}"


def _check_initial(initial: int | ArrayLike, S: int) -> tuple[IntArray, FloatArray]:
    """The initial states and their probabilities."""
    rho = np.asarray(initial)
    if rho.ndim == 0:
        if rho != int(rho) or not 0 <= int(rho) < S:
            raise ValueError(f"initial = {rho}: there is no such state, they are 0 … {S - 1}")
        return np.array([int(rho)], dtype=np.int64), np.ones(1)
    rho = rho.astype(np.float64)
    if rho.shape != (S,):
        raise ValueError(f"initial has shape {rho.shape}; it is a state, or a distribution ({S},)")
    if not np.isfinite(rho).all() or rho.min() < 0.0:
        s = int(np.argmax(~np.isfinite(rho) | (rho < 0.0)))
        raise ValueError(f"initial[{s}] = {rho[s]}: it must be a probability")
    if abs(rho.sum() - 1.0) > SIMPLEX_TOLERANCE:
        raise ValueError(f"initial sums to {rho.sum():.12g}, not 1: divide it by its sum")
    states = np.flatnonzero(rho)
    return states, rho[states] / rho.sum()


def _check_state_labels(
    labels: Sequence[Sequence[Hashable]] | None, H: int, S: int
) -> tuple[tuple[Hashable, ...], ...] | None:
    if labels is None:
        return None
    names = tuple(tuple(step) for step in labels)
    if len(names) != H + 1 or any(len(step) > S for step in names):
        raise ValueError(
            f"state_labels: {H + 1} sequences (the steps and the final states) of up to {S} labels are needed"
        )
    return names


def _reach(steps: list[Any], initial: IntArray, layers: int, A: int) -> tuple[IntArray, ...]:
    """The states that can be reached at each step."""
    reached = [np.sort(initial)]
    for T in steps[: layers - 1]:
        from_here = T[_rows(reached[-1], A)]
        if isinstance(from_here, np.ndarray):
            following = np.flatnonzero((from_here > 0.0).any(axis=0))
        else:
            following = np.unique(from_here.indices[from_here.data > 0.0]).astype(np.int64)
        reached.append(following)
    return tuple(reached)


def _rows(states: IntArray, A: int) -> IntArray:
    """The rows `s·A + a` of all actions in `states`."""
    return (states[:, None] * A + np.arange(A)).ravel()


def _restrict(steps: list[Any], reached: tuple[IntArray, ...], A: int) -> tuple[Transition, ...]:
    """The transitions between reachable states; a step like the one before shares its arrays."""
    kept: list[Transition] = []
    for h, (here, following) in enumerate(itertools.pairwise(reached)):
        same = h > 0 and steps[h] is steps[h - 1]
        if same and np.array_equal(here, reached[h - 1]) and np.array_equal(following, here):
            kept.append(kept[-1])
            continue
        T = steps[h]
        if isinstance(T, np.ndarray):
            kept.append(T[np.ix_(_rows(here, A), following)])
        else:
            from scipy.sparse import csr_array

            part = csr_array(T[_rows(here, A)][:, following], dtype=np.float64)
            part.eliminate_zeros()
            kept.append(part)
    return tuple(kept)


def _restrict_payoffs(
    preferences: list[FloatArray], reached: tuple[IntArray, ...], A: int
) -> tuple[FloatArray, ...]:
    kept: list[FloatArray] = []
    for h, here in enumerate(reached):
        if h > 0 and preferences[h] is preferences[h - 1] and np.array_equal(here, reached[h - 1]):
            kept.append(kept[-1])
        else:
            kept.append(_centred(preferences[h], _rows(here, A)))
    return tuple(kept)


def _centred(P: FloatArray, rows: IntArray) -> FloatArray:
    """The skew part `(P − Pᵀ)/2` of the rows and columns, exactly antisymmetric, made block by block."""
    everything = len(rows) == len(P)
    A = np.empty((len(rows), len(rows)))
    for block in _blocks(len(rows)):
        if everything:
            A[block] = (P[block] - P[:, block].T) / 2.0
        else:
            A[block] = (P[np.ix_(rows[block], rows)] - P[np.ix_(rows, rows[block])].T) / 2.0
    A.flags.writeable = False
    return A


def _blocks(n: int) -> Iterable[slice]:
    height = max(1, BLOCK // n)
    return (slice(start, min(start + height, n)) for start in range(0, n, height))
