"""Markov preference games: two independent copies of one finite-horizon MDP, judged against each other."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nashpref.games.matrix import SKEW_TOLERANCE, MatrixGame
from nashpref.policies import SIMPLEX_TOLERANCE, FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csc_array, csr_array

    from nashpref.games import builders

    Transition = FloatArray | csr_array
else:
    Transition = Any

BLOCK = 1 << 16  # entries of a matrix looked at together: half a megabyte, which stays in cache
FEW = 4  # vectors that are multiplied one by one


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
        steps, S, A, transition_steps = _check_transition(transition)
        preferences, terminal, preference_steps = _check_shape(preference, S, A)
        self.horizon = _check_horizon(horizon, transition_steps, preference_steps)
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
        self.transposes = tuple(T.T for T in self.transitions)
        self.state_labels = _check_state_labels(state_labels, self.horizon, S)
        self.action_labels = _check_action_labels(action_labels, A)

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

    @staticmethod
    def from_model(
        step: builders.Step,
        preference: builders.Preference,
        initial: Hashable | Mapping[Any, float],
        *,
        actions: Sequence[Any],
        horizon: int,
        every_step: bool = False,
    ) -> MarkovGame:
        """The game of a generative model, of which only what can be reached is built; transitions are sparse.

        Args:
            step: `step(state, action)` lists `(probability, next state)`; states are hashable. Or a table
                `step[state][action]`, such as gymnasium's `env.unwrapped.P`: its entries `(probability, next
                state, reward, terminated)` are understood, and where an episode has terminated it stays.
            preference: `preference(x, x')`, the probability that the final state x beats x'; or, with
                `every_step`, `preference((s, a), (s', a'))`. Called for both orders of every pair.
            initial: the initial state, or a mapping from states to probabilities.
            actions: what `step` is called with; if all are strings they become `action_labels`.
            horizon: H.
            every_step: compare at every step rather than final states.

        States are numbered anew at every step, as they are found: `state_labels[h][k]` is state k of step h.

        Raises:
            ValueError: probabilities that do not sum to one, preferences that are not complementary (the
                states are named), H = 0, no actions.
        """
        from nashpref.games import builders

        return builders.from_model(
            step, preference, initial, actions=actions, horizon=horizon, every_step=every_step
        )

    @staticmethod
    def from_tree(tree: Mapping[str, Any], preference: builders.Preference | ArrayLike) -> MarkovGame:
        """The game of a deterministic tree of replies, as of dialogues, whose leaves are compared.

        Args:
            tree: a mapping from each reply to what follows: another mapping, or a leaf, which is anything
                else. A node has A replies, or one, to which all actions lead (the user's turn). Branches may
                end early; their leaves wait for the last turn.
            preference: `preference(leaf, leaf')`, the probability that the first leaf beats the second, or a
                matrix of them, leaves in the order of the tree.

        States are labelled by the replies that lead to them. Where all nodes offer the same replies, these
        are the `action_labels`.

        Raises:
            ValueError: a node with another number of replies, a matrix of another size, preferences that are
                not complementary; the node or the leaves are named.
        """
        from nashpref.games import builders

        return builders.from_tree(tree, preference)

    @classmethod
    def from_rewards(
        cls,
        transition: Any,
        reward: ArrayLike,
        initial: int | ArrayLike,
        *,
        scale: float = 1.0,
        horizon: int | None = None,
        state_labels: Sequence[Sequence[Hashable]] | None = None,
        action_labels: Sequence[str] | None = None,
    ) -> MarkovGame:
        """The game whose preference is linear in a reward, `P = 1/2 + scale (r − r')`: multi-turn RLHF.

        The opponent adds a constant to the payoffs, so that `MTPO(beta)` on this game is the policy
        optimisation of RLHF with the reward `scale·r`, and `closed_forms.multi_turn_rlhf` is its equilibrium.

        Args:
            transition, initial, horizon, state_labels, action_labels: as in `MarkovGame`.
            reward: r of final states, shape `(S,)`; or of what is done at each step, `(H, S, A)`, or `(S, A)`
                for the same at every step. (The preference of each step is a dense matrix all the same.)
            scale: keeps P in [0, 1].

        Raises:
            ValueError: rewards of another shape, not finite, or too far apart for `scale` (one that fits is
                named); and what `MarkovGame` raises.
        """
        from nashpref.games import builders

        preference = builders.reward_preference(reward, scale)
        return cls(
            transition,
            preference,
            initial,
            horizon=horizon,
            state_labels=state_labels,
            action_labels=action_labels,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the game to a .npz or .json file, whole or not at all (format: `nashpref.games.files`)."""
        from nashpref.games import files

        files.save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> MarkovGame:
        """Read what `save` wrote: the same game, to the last bit. Or a file written by hand.

        Raises `ValueError`, naming the file, the place and the remedy, for a file that is no game, is
        damaged, comes from another version, or describes what is no game.
        """
        from nashpref.games import files

        return files.load(path)

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
                mass = self.forward(h, np.repeat(mass > 0.0, A, axis=1).astype(np.float64))
        return possible

    # --- the two linear maps of the dynamics, and the payoffs ---

    def backward(self, h: int, values: FloatArray) -> FloatArray:
        """`Σ_s' Pr(s' | h, s, a) values(s')`: `(S₁, n_{h+1})` → `(S₁, n_h, A)`."""
        return _product(self.transitions[h], values).reshape(len(values), -1, self.actions)

    def forward(self, h: int, occupancy: FloatArray) -> FloatArray:
        """`Σ_{s,a} d_h(s, a) Pr(s' | h, s, a)`: `(S₁, n_h·A)` → `(S₁, n_{h+1})`."""
        return _product(self.transposes[h], occupancy)

    def plan(self, policy: FloatArray) -> FloatArray:
        """The occupancy measure `d_h(s, a)` of a flat policy, `(S₁, N, A)`."""
        d = np.empty_like(policy)
        mass = np.eye(len(policy))
        for h, layer in enumerate(self.layers):
            here = np.multiply(mass[:, :, None], policy[:, layer], out=d[:, layer])
            if h + 1 < self.horizon:
                mass = self.forward(h, here.reshape(len(d), -1))
        return d

    def payoff(self, occupancy: FloatArray) -> FloatArray:
        """What the opponent with this (flat) occupancy makes each place worth.

        `A_h d_h` for every step, `(S₁, N, A)`; or, for a preference of final states, `A m`,
        `(S₁, n_{H+1})`.
        """
        S1 = len(occupancy)
        if self.terminal:
            last = occupancy[:, self.layers[-1]].reshape(S1, -1)
            return _product(self.payoffs[0], self.forward(self.horizon - 1, last))
        q = np.empty_like(occupancy)
        for layer, payoffs in zip(self.layers, self.payoffs, strict=True):
            here = occupancy[:, layer]
            q[:, layer] = _product(payoffs, here.reshape(S1, -1)).reshape(here.shape)
        return q

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that is reachable: two games with the same digest are the same game."""
        shape = (self.horizon, self.states, self.actions, self.terminal, *map(len, self.reached))
        digest = hashlib.sha256(repr(shape).encode())
        for array in (self.initial_weights, *self.reached, *self.payoffs):
            digest.update(np.ascontiguousarray(array).data)
        for T in self.transitions:
            indices = () if isinstance(T, np.ndarray) else (T.indices, T.indptr)
            digest.update(np.ascontiguousarray(T.data if indices else T).data)
            for part in indices:
                digest.update(part.astype(np.int64).data)  # scipy chooses their width
        return digest.hexdigest()

    def __repr__(self) -> str:
        kind = "final states" if self.terminal else "every step"
        sparse = "" if all(isinstance(T, np.ndarray) for T in self.transitions) else ", sparse"
        starts = len(self.initial_states)
        return (
            f"MarkovGame(H={self.horizon}, S={self.states}, A={self.actions}, preference of {kind}{sparse}"
            f"{f', initial states={starts}' if starts > 1 else ''})"
        )


def _product(matrix: Transition | csc_array, vectors: FloatArray) -> FloatArray:
    """`matrix @ v` for each row v of `vectors`: `(S₁, n)` → `(S₁, m)`.

    For a product of two matrices BLAS copies the large one first, which takes longer than reading it twice:
    a few vectors go one by one over blocks of it that stay in cache.
    """
    if not isinstance(matrix, np.ndarray):
        return np.ascontiguousarray((matrix @ vectors.T).T)
    if not 1 < len(vectors) <= FEW or matrix.size <= BLOCK:
        return np.asarray(vectors.dot(matrix.T))  # `@` takes half as long again in small games
    products = np.empty((len(vectors), len(matrix)))
    for rows in _blocks(*matrix.shape):
        for vector, product in zip(vectors, products, strict=True):
            np.matmul(matrix[rows], vector, out=product[rows])
    return products


# --- from what was handed in to what is kept ---


def _check_transition(transition: Any) -> tuple[list[Any], int, int, int | None]:
    """One matrix `(S·A, S)` for each step, S, A, and H; or just one, and None. Dense ones are views."""
    stationary = _is_sparse(transition)
    if stationary:
        transition = [transition]
    if isinstance(transition, Sequence) and transition and all(map(_is_sparse, transition)):
        shapes = {T.shape for T in transition}
        if len(shapes) > 1:
            raise ValueError(f"transition: the steps have different shapes, {sorted(shapes)}")
        rows, S = shapes.pop()
        if not S or rows % S or not rows:
            raise ValueError(f"transition: a sparse step has shape (S·A, S); got {(rows, S)}")
        return [T.tocsr() for T in transition], S, rows // S, None if stationary else len(transition)
    T = np.asarray(transition, dtype=np.float64)
    stationary = T.ndim == 3
    if stationary:
        T = T[None]
    if T.ndim != 4 or T.shape[1] != T.shape[3] or 0 in T.shape[1:]:
        raise ValueError(
            f"transition has shape {np.shape(transition)}; a game needs (H, S, A, S), (S, A, S) for "
            "stationary dynamics, or H scipy sparse matrices (S·A, S)"
        )
    if not len(T):
        raise ValueError("transition has H = 0 steps: a game has at least one")
    H, S, A, _ = T.shape
    return [T[h].reshape(S * A, S) for h in range(H)], S, A, None if stationary else H


def _is_sparse(matrix: Any) -> bool:
    """Whether it comes from scipy.sparse, which takes longer to import than all of nashpref."""
    return hasattr(matrix, "tocsr")


def _check_shape(preference: Any, S: int, A: int) -> tuple[list[FloatArray], bool, int | None]:
    """One matrix `(S·A, S·A)` for each step, False, and H; or just one, whether it is `(S, S)`, and None."""
    P = np.asarray(preference, dtype=np.float64)
    if P.shape == (S, S):
        return [P], True, None
    if P.shape == (S, A, S, A):
        return [P.reshape(S * A, S * A)], False, None
    if P.ndim != 5 or P.shape[1:] != (S, A, S, A):
        raise ValueError(
            f"preference has shape {P.shape}; with S = {S} states and A = {A} actions a game needs "
            f"(H, {S}, {A}, {S}, {A}), ({S}, {A}, {S}, {A}) for the same at every step, "
            f"or ({S}, {S}) for final states"
        )
    if not len(P):
        raise ValueError("preference has H = 0 steps: a game has at least one")
    return [P[h].reshape(S * A, S * A) for h in range(len(P))], False, len(P)


def _check_horizon(horizon: int | None, transition: int | None, preference: int | None) -> int:
    """H, on which everything that has an axis for it must agree; one step given stands for all."""
    told = {"horizon": horizon, "transition": transition, "preference": preference}
    lengths = {name: length for name, length in told.items() if length is not None}
    if not lengths:
        raise ValueError("horizon is missing: neither transition nor preference has an axis for the steps")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon = {horizon}: a game has at least one step")
    H = max(lengths.values())
    if any(length not in (1, H) for length in lengths.values()) or horizon not in (None, H):
        told_text = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"the number of steps H differs ({told_text}): give what is always the same once")
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
    for rows in _blocks(n, n):
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
        if rho not in range(S):
            raise ValueError(f"initial = {rho}: there is no such state, they are 0 … {S - 1}")
        return np.array([int(rho)], dtype=np.int64), np.ones(1)
    rho = rho.astype(np.float64)
    if rho.shape != (S,):
        raise ValueError(f"initial has shape {rho.shape}; it is a state, or a distribution ({S},)")
    if not np.isfinite(rho).all() or rho.min() < 0.0:
        s = int(np.argmax(~np.isfinite(rho) | (rho < 0.0)))
        raise ValueError(f"initial[{s}] = {rho[s]}: it must be a probability")
    states, total = np.flatnonzero(rho), rho.sum()
    if abs(total - 1.0) > SIMPLEX_TOLERANCE:
        raise ValueError(f"initial sums to {total:.12g}, not 1: divide it by its sum")
    if abs(total - 1.0) > 1e-14:  # so that what has been normalised stays as it is
        return states, rho[states] / total
    return states, rho[states]


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


def _check_action_labels(labels: Sequence[str] | None, A: int) -> tuple[str, ...] | None:
    if labels is None:
        return None
    names = tuple(map(str, labels))
    if not len(names) == len(set(names)) == A:
        raise ValueError(f"action_labels: {A} distinct names are needed, got {list(names)}")
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
            part.sum_duplicates()  # the one way to write it, whatever it was made from
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
    for block in _blocks(len(rows), len(rows)):
        if everything:
            A[block] = (P[block] - P[:, block].T) / 2.0
        else:
            A[block] = (P[np.ix_(rows[block], rows)] - P[np.ix_(rows, rows[block])].T) / 2.0
    A.flags.writeable = False
    return A


def _blocks(rows: int, columns: int) -> Iterable[slice]:
    height = max(1, BLOCK // columns)
    return (slice(start, min(start + height, rows)) for start in range(0, rows, height))
