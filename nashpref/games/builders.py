"""Markov games from descriptions: a generative model, a tree of replies, rewards.

States may be anything hashable. They are numbered anew at every step, in the order in which they are found:
state k of step h is `game.state_labels[h][k]`. The documentation is that of the constructors of `MarkovGame`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from nashpref.games.markov import MarkovGame
from nashpref.games.matrix import SKEW_TOLERANCE
from nashpref.policies import SIMPLEX_TOLERANCE, FloatArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Step = Callable[[Any, Any], Iterable[Sequence[Any]]] | Mapping[Any, Any]
Preference = Callable[[Any, Any], float]
Place = tuple[Hashable, bool]  # a state, and whether the episode has ended in it
Path = tuple[str, ...]


def from_model(
    step: Step,
    preference: Preference,
    initial: Hashable | Mapping[Any, float],
    *,
    actions: Sequence[Any],
    horizon: int,
    every_step: bool = False,
) -> MarkovGame:
    """Walk the model breadth first, one layer of states for each step."""
    if horizon < 1:
        raise ValueError(f"horizon = {horizon}: a game has at least one step")
    if not len(actions):
        raise ValueError("actions is empty: a player needs at least one")
    start = initial if isinstance(initial, Mapping) else {initial: 1.0}
    layers: list[dict[Place, int]] = [{(state, False): k for k, state in enumerate(start)}]
    steps: list[list[tuple[float, int, int]]] = []
    known: dict[tuple[Place, int], list[tuple[float, Place]]] = {}
    for _ in range(horizon):
        following: dict[Place, int] = {}
        entries = []
        for place, s in layers[-1].items():
            for a, action in enumerate(actions):
                if (place, a) not in known:
                    known[place, a] = _successors(step, place, action)
                for probability, successor in known[place, a]:
                    to = following.setdefault(successor, len(following))
                    entries.append((probability, s * len(actions) + a, to))
        layers.append(following)
        steps.append(entries)

    S, A = max(map(len, layers)), len(actions)
    states = [[state for state, _ in layer] for layer in layers]
    rho = np.zeros(S)
    rho[: len(start)] = list(start.values())
    if every_step:
        compared = np.full((horizon, S * A, S * A), 0.5)
        for P, layer in zip(compared, states, strict=False):
            places = [(state, action) for state in layer for action in actions]
            P[: len(places), : len(places)] = compare(places, preference)
        compared = compared.reshape(horizon, S, A, S, A)
    else:
        compared = np.full((S, S), 0.5)
        compared[: len(states[-1]), : len(states[-1])] = compare(states[-1], preference)
    return MarkovGame(
        [_matrix(entries, len(layer), S, A) for entries, layer in zip(steps, states, strict=False)],
        compared,
        rho,
        horizon=horizon,
        state_labels=states,
        action_labels=actions if all(isinstance(action, str) for action in actions) else None,
    )


def from_tree(tree: Mapping[str, Any], preference: Preference | ArrayLike) -> MarkovGame:
    """The model whose states are the paths of the tree."""
    nodes = dict(_nodes(tree, ()))
    replies = {path: tuple(map(str, node)) for path, node in nodes.items() if isinstance(node, Mapping)}
    if not replies:
        raise ValueError("the tree is only a leaf: a game has at least one step, a mapping of replies")
    A = max(map(len, replies.values()))
    for path, options in replies.items():
        if len(options) not in (1, A):
            raise ValueError(
                f"{_spoken(path)} has {len(options)} replies where others have {A}: give every node {A}, or "
                "a single one, to which all actions lead"
            )
    leaves = [path for path in nodes if path not in replies]
    judge = (lambda one, other: preference(nodes[one], nodes[other])) if callable(preference) else preference
    P, place = compare(leaves, judge), {path: k for k, path in enumerate(leaves)}

    def step(path: Path, a: str | int) -> list[tuple[float, Path]]:
        options = replies.get(path)
        if options is None:  # a short branch waits for the others
            return [(1.0, path)]
        return [(1.0, (*path, options[actions.index(a) if len(options) > 1 else 0]))]

    named = {options for options in replies.values() if len(options) == A}
    actions: Sequence[str | int] = named.pop() if len(named) == 1 else range(A)
    return from_model(
        step,
        lambda one, other: P[place[one], place[other]],
        (),
        actions=actions,
        horizon=max(map(len, leaves)),
    )


def reward_preference(reward: ArrayLike, scale: float) -> FloatArray:
    """`P = 1/2 + scale (r − r')`: `(S,)` → `(S, S)`, `(S, A)` → `(S, A, S, A)`, and so for every step."""
    r = np.asarray(reward, dtype=np.float64)
    if r.ndim not in (1, 2, 3) or not r.size or not np.isfinite(r).all():
        raise ValueError(
            f"reward has shape {r.shape}: finite numbers are needed for final states (S,), "
            "or for each step (S, A) or (H, S, A)"
        )
    scaled = scale * r.reshape(1 if r.ndim < 3 else len(r), -1)
    spread = np.ptp(scaled, axis=1)
    if not (scale > 0.0 and spread.max() <= 0.5):
        h = int(spread.argmax())
        differ = float(np.ptp(r if r.ndim < 3 else r[h]))
        raise ValueError(
            f"scale = {scale:g} with rewards{f' of step {h}' if r.ndim == 3 else ''} that differ by up to "
            f"{differ:g}: 1/2 + scale (r − r') leaves [0, 1]; choose for example "
            f"scale = {0.495 / differ if differ else 1.0:.3g}"
        )
    P = scaled[:, :, None] - scaled[:, None, :]
    P += 0.5
    return P.reshape(r.shape * 2 if r.ndim < 3 else r.shape + r.shape[1:])


def compare(items: Sequence[Any], preference: Preference | ArrayLike) -> FloatArray:
    """`P[i, j] = preference(items[i], items[j])`, or `preference` itself where it is a matrix, checked."""
    n = len(items)
    if callable(preference):
        P = np.array([[preference(one, other) for other in items] for one in items], dtype=np.float64)
    else:
        P = np.asarray(preference, dtype=np.float64)
        if P.shape != (n, n):
            raise ValueError(f"preference has shape {P.shape}; the {n} ends to be compared need ({n}, {n})")
    error, outside = np.abs(P + P.T - 1.0), ~((P >= 0.0) & (P <= 1.0))
    if outside.any() or error.max() > SKEW_TOLERANCE:
        worst = outside if outside.any() else error
        i, j = (int(k) for k in np.unravel_index(int(worst.argmax()), P.shape))
        raise ValueError(
            f"preference({items[i]!r}, {items[j]!r}) = {P[i, j]:.10g} and in the other order {P[j, i]:.10g}: "
            "both must be probabilities, and sum to 1"
        )
    return P


def _nodes(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """All nodes of a tree with the replies that lead there, depth first."""
    yield path, node
    if isinstance(node, Mapping):
        if not node:
            raise ValueError(f"{_spoken(path)} has no replies: give it some, or make it a leaf (None)")
        for reply, child in node.items():
            yield from _nodes(child, (*path, str(reply)))


def _spoken(path: Path) -> str:
    return f"the tree at {' › '.join(path)!r}" if path else "the root of the tree"


def _successors(step: Step, place: Place, action: Any) -> list[tuple[float, Place]]:
    """Where an action leads, checked; a gymnasium entry is `(p, state, reward, terminated)`."""
    state, ended = place
    if ended:
        return [(1.0, place)]
    told = list(step[state][action] if isinstance(step, Mapping) else step(state, action))
    found = [(float(p), (following, bool(rest and rest[-1]))) for p, following, *rest in told]
    total = sum(p for p, _ in found)
    if any(not p >= 0.0 for p, _ in found) or not abs(total - 1.0) <= SIMPLEX_TOLERANCE:
        raise ValueError(
            f"step({state!r}, {action!r}) has the probabilities {[p for p, _ in found]}, "
            f"which sum to {total:.12g}: they must be ≥ 0 and sum to 1"
        )
    return [(p, place) for p, place in found if p > 0.0]


def _matrix(entries: list[tuple[float, int, int]], states: int, S: int, A: int) -> csr_array:
    """A step `(S·A, S)`. Rows of states that this step does not have stay where they are."""
    from scipy.sparse import csr_array

    probability, rows, successors = (np.array(part) for part in zip(*entries, strict=True))
    padding = np.arange(states * A, S * A)
    data = np.concatenate([probability, np.ones(len(padding))])
    at = (np.concatenate([rows, padding]), np.concatenate([successors, padding // A]))
    return csr_array((data, at), shape=(S * A, S))
