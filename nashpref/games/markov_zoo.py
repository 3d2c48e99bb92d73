"""Named Markov games: random ones, gridworlds, games of tokens, and dialogues that can be read.

They are part of `nashpref.zoo`. Randomness is a `numpy.random.Generator` that is passed in.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from nashpref.games import builders
from nashpref.games.markov import MarkovGame
from nashpref.policies import FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MOVES = {
    "right": (0, 1),
    "down": (1, 0),
    "left": (0, -1),
    "up": (-1, 0),
    "down right": (1, 1),
    "down left": (1, -1),
    "up left": (-1, -1),
    "up right": (-1, 1),
    "stay": (0, 0),
    "jump right": (0, 2),
}
BLOCK = 1 << 16  # entries of a matrix completed together


def random_markov_game(
    S: int,
    A: int,
    H: int,
    rng: Generator,
    *,
    terminal: bool = False,
    branching: int | None = None,
    stationary: bool = False,
    starts: int = 1,
) -> MarkovGame:
    """Transitions uniform on the simplex, and independent preferences `P[i, j] ~ U(0, 1)` for i < j.

    Args:
        S, A, H: numbers of states, actions and steps.
        rng: where the randomness comes from.
        terminal: compare final states, `(S, S)`, rather than what is done at every step, `(H, S, A, S, A)`.
        branching: the most states that one action may lead to; sparse transitions then.
        stationary: the same transitions and preferences at every step.
        starts: how many states (the first ones) are initial; their distribution is uniform on the simplex.

    Raises:
        ValueError: a number below 1, or more initial states than states.
    """
    for name, value in (("S", S), ("A", A), ("H", H), ("starts", starts), ("branching", branching)):
        if value is not None and value < 1:
            raise ValueError(f"{name} = {value}: it must be at least 1")
    if starts > S:
        raise ValueError(f"starts = {starts}: there are only {S} states")
    steps = 1 if stationary else H
    transition: Any = (
        _simplex(rng, (steps, S, A, S))
        if branching is None
        else [_sparse(rng, S, A, branching) for _ in range(steps)]
    )
    if terminal:
        preference = _complete(rng.random((1, S, S)))[0]
    else:
        preference = _complete(rng.random((steps, S * A, S * A))).reshape(steps, S, A, S, A)
    initial = np.zeros(S)
    initial[:starts] = _simplex(rng, (starts,))
    return MarkovGame(transition, preference, initial, horizon=H)


def gridworld(
    cells: int,
    A: int,
    H: int,
    rng: Generator,
    *,
    slip: float = 0.1,
    features: int | None = None,
    terminal: bool = False,
    initial: int | ArrayLike = 0,
) -> MarkovGame:
    """Two walkers on a slippery grid: a move succeeds, or with probability `slip` goes to a random side.

    The cells fill a square row by row, the last row perhaps in part. The A actions are the first of right,
    down, left, up, the four diagonals, stay, and two to the right; a move off the grid does not move. A slip
    goes right, down, left or up, each with probability `slip/4`. In the spirit of the random gridworlds of
    OMPO (arXiv:2502.12678, Figure 2: up to 100 cells, 2 to 10 actions), whose details are not published.

    Args:
        cells: S, the number of cells.
        A: the number of actions, 1 to 10.
        H: the number of steps.
        rng: where the preference comes from.
        slip: probability of a slip.
        features: None, for independent preferences `~ U(0, 1)` between any two places (cell and action; cells
            with `terminal`), the same at every step. Or an even number of hidden features `e ~ N(0, I)` of a
            cell that decide, `P = σ(Σ_k e_{2k} e'_{2k+1} − e_{2k+1} e'_{2k})`: not transitive, and blind to
            the action.
        terminal: compare only the cells in which the walks end.
        initial: the initial cell, or a distribution over them.

    Raises:
        ValueError: more actions than there are moves, an odd number of features, a slip that is no
            probability.
    """
    if not 1 <= A <= len(MOVES):
        raise ValueError(f"A = {A}: a gridworld has 1 to {len(MOVES)} actions")
    if cells < 1 or not 0.0 <= slip <= 1.0:
        raise ValueError(f"cells = {cells} and slip = {slip}: a grid has cells, and slip is a probability")
    if features is not None and (features < 2 or features % 2):
        raise ValueError(f"features = {features}: an even number of features is needed, at least 2")
    from scipy.sparse import csr_array

    width, moves = int(np.ceil(np.sqrt(cells))), list(MOVES.values())
    aims = np.stack([_neighbours(cells, width, move) for move in moves[:A]], axis=1)
    slips = np.stack([_neighbours(cells, width, move) for move in moves[:4]], axis=1)
    successors = np.concatenate([aims[:, :, None], np.repeat(slips[:, None], A, axis=1)], axis=2)
    probability = np.tile([1.0 - slip, *[slip / 4.0] * 4], cells * A)
    starts = np.arange(0, successors.size + 1, 5)
    transition = csr_array((probability, successors.ravel(), starts), shape=(cells * A, cells))
    transition.sum_duplicates()

    if features is None:
        n = cells if terminal else cells * A
        preference = _complete(rng.random((1, n, n)))[0]
    else:
        e = rng.standard_normal((cells, features))
        score = e[:, ::2] @ e[:, 1::2].T
        preference = 0.5 + 0.5 * np.tanh(0.5 * (score - score.T))
        if not terminal:
            preference = np.repeat(np.repeat(preference, A, axis=0), A, axis=1)
    if not terminal:
        preference = preference.reshape(cells, A, cells, A)
    cell_names = [f"({cell // width}, {cell % width})" for cell in range(cells)]
    return MarkovGame(
        transition,
        preference,
        initial,
        horizon=H,
        state_labels=[cell_names] * (H + 1),
        action_labels=list(MOVES)[:A],
    )


def token_game(
    alphabet: Sequence[str], length: int, preference: builders.Preference | ArrayLike
) -> MarkovGame:
    """Two writers of strings: a state is a prefix, an action appends a token, complete strings are compared.

    Args:
        alphabet: the A tokens, as a list or as a string of letters.
        length: H, the number of tokens of a complete string; there are `A^H` of them, and `A^2H` preferences.
        preference: `preference(string, string')`, the probability that the first beats the second, or a
            matrix `(A^H, A^H)` of them, strings in lexicographic order.
    """
    A, tokens = len(alphabet), list(alphabet)
    strings = [["".join(word) for word in itertools.product(tokens, repeat=h)] for h in range(length + 1)]
    S = A**length

    from scipy.sparse import csr_array

    rows, ones = np.arange(S * A + 1), np.ones(S * A)
    # Row s·A + a is the prefix that a makes of prefix s; states that a step does not have stay.
    transition = [
        csr_array((ones, np.where(rows < A ** (h + 1), rows, rows // A)[:-1], rows), shape=(S * A, S))
        for h in range(length)
    ]
    return MarkovGame(
        transition,
        builders.compare(strings[-1], preference),
        0,
        state_labels=strings,
        action_labels=tokens,
    )


def penneys_game(length: int = 3) -> MarkovGame:
    """Penney's game, written toss by toss: which string of heads and tails will a fair coin show first?

    `P(x ≻ y) = (L(y,y) − L(y,x)) / (L(x,x) − L(x,y) + L(y,y) − L(y,x))` with Conway's leading numbers
    `L(x,y) = Σ_k 2^{k−1} 1{the last k of x are the first k of y}`. For every string another is better.
    """

    def lead(x: str, y: str) -> int:
        return sum(1 << (k - 1) for k in range(1, length + 1) if x[-k:] == y[:k])

    def first(x: str, y: str) -> float:
        for_x, for_y = lead(y, y) - lead(y, x), lead(x, x) - lead(x, y)
        return 0.5 if x == y else for_x / (for_x + for_y)

    return token_game("HT", length, first)


def dialogue(lost: float = 0.0) -> MarkovGame:
    """An assistant answers a user twice; three groups of annotators, who agree on no ranking, compare.

    The user says "My code is slow." The assistant asks back, explains, or fixes it; the user reacts, and the
    assistant answers once more. What annotators give for the first and the second answer:

        40 %, students                ask 2, explain 1, fix 0    ask 1, explain 2, fix 0
        35 %, people in a hurry       ask 1, explain 0, fix 2    ask 1, explain 0, fix 2
        25 %, experts                 ask 0, explain 2, fix 1    ask 2, explain 1, fix 0

    The same answer again counts 0. A group prefers the dialogue to which it gives more; the preference is
    the share of annotators who do (a tie halves a group), and it is cyclic. The equilibrium is unique:
    ask–explain 26/111, ask–fix 20/111, explain–ask 20/111, fix–ask 26/111, fix–explain 19/111.

    Args:
        lost: the probability that the user cannot follow the first answer and says "You have lost me.",
            upon which it counts 0 and may be repeated. With 0 the dialogue is a deterministic tree.
    """
    if not 0.0 <= lost <= 1.0:
        raise ValueError(f"lost = {lost}: it must be a probability")
    confused = "You have lost me."
    reactions = {"ask": "The double loop.", "explain": "I see. And now?", "fix": "It works! But why?"}
    groups = (
        (0.40, {"ask": 2, "explain": 1, "fix": 0}, {"ask": 1, "explain": 2, "fix": 0}),
        (0.35, {"ask": 1, "explain": 0, "fix": 2}, {"ask": 1, "explain": 0, "fix": 2}),
        (0.25, {"ask": 0, "explain": 2, "fix": 1}, {"ask": 2, "explain": 1, "fix": 0}),
    )

    def step(said: tuple[str, ...], answer: str) -> list[tuple[float, tuple[str, ...]]]:
        if len(said) > 1:
            return [(1.0, (*said, answer))]
        return [(1.0 - lost, (*said, answer, reactions[answer])), (lost, (*said, answer, confused))]

    def points(dialogue: tuple[str, ...], first: dict[str, int], second: dict[str, int]) -> int:
        _, one, reaction, other = dialogue
        if reaction == confused:
            return second[other]
        return first[one] + (second[other] if other != one else 0)

    def prefer(x: tuple[str, ...], y: tuple[str, ...]) -> float:
        margins = ((share, points(x, *given) - points(y, *given)) for share, *given in groups)
        return 0.5 + sum(share * ((margin > 0) - (margin < 0)) / 2.0 for share, margin in margins)

    return MarkovGame.from_model(step, prefer, ("My code is slow.",), actions=list(reactions), horizon=2)


def _neighbours(cells: int, width: int, move: tuple[int, int]) -> IntArray:
    """Where a move leads from each cell: the cell itself where there is none."""
    cell = np.arange(cells)
    row, column = cell // width + move[0], cell % width + move[1]
    there = row * width + column
    inside = (row >= 0) & (column >= 0) & (column < width) & (there < cells)
    return np.where(inside, there, cell)


def _simplex(rng: Generator, shape: tuple[int, ...]) -> FloatArray:
    """Distributions over the last axis, uniform on the simplex."""
    x = rng.standard_exponential(shape)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def _sparse(rng: Generator, S: int, A: int, branching: int) -> csr_array:
    """A step `(S·A, S)` of which each row has at most `branching` successors, drawn with replacement."""
    from scipy.sparse import csr_array

    successors = rng.integers(S, size=S * A * branching)
    starts = np.arange(0, S * A * branching + 1, branching)
    step = csr_array((_simplex(rng, (S * A, branching)).ravel(), successors, starts), shape=(S * A, S))
    step.sum_duplicates()
    return step


def _complete(P: FloatArray) -> FloatArray:
    """Keep what is above the diagonal of `(K, n, n)`, and make each matrix complementary, in place."""
    n = P.shape[-1]
    height = max(1, BLOCK // n)
    for matrix in P:
        for start in range(0, n, height):
            rows = slice(start, start + height)
            matrix[rows, :start] = 1.0 - matrix[:start, rows].T
            corner = np.triu(matrix[rows, rows], 1)
            matrix[rows, rows] = corner + np.tril(1.0 - corner.T, -1) + 0.5 * np.eye(len(corner))
    return P
