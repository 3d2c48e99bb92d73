"""What `nashpref solve` prints: how the run ended, its gaps, and the policies."""

from __future__ import annotations

import numpy as np

from nashpref.games.markov import MarkovGame
from nashpref.games.matrix import MatrixGame
from nashpref.policies import FloatArray
from nashpref.trace import Trace

SHOWN = 5e-4  # actions less likely than this are not listed


def report(game: MatrixGame | MarkovGame, trace: Trace, top: int) -> str:
    """The text, with the `top` most likely responses, or the `top` states that are reached most often."""
    which = f"gap (β = {trace.beta:g})" if trace.beta else "duality gap"
    lines = [
        f"{trace.rule}",
        f"status {trace.status} after {trace.snapshot.step} steps",
        f"{which}: last iterate {trace.gap[-1]:.3e}, average iterate {trace.average_gap[-1]:.3e}",
    ]
    if trace.beta:
        lines.append(f"gap in the original game: {trace.unregularised_gap[-1]:.3e}")
    table = _responses(game, trace, top) if isinstance(game, MatrixGame) else _states(game, trace, top)
    return "\n".join([*lines, "", *table])


def _responses(game: MatrixGame, trace: Trace, top: int) -> list[str]:
    labels = game.labels or tuple(map(str, range(game.n)))
    order = np.argsort(-trace.policy, kind="stable")[:top]
    width = max(len(labels[i]) for i in order)
    lines = [f"{'response':<{width}}  last iterate  average iterate"]
    lines += [
        f"{labels[i]:<{width}}  {trace.policy[i]:12.6f}  {trace.average_policy[i]:15.6f}" for i in order
    ]
    if game.n > top:
        lines.append(f"… and {game.n - top} more (--top)")
    return lines


def _states(game: MarkovGame, trace: Trace, top: int) -> list[str]:
    """Step by step the states, each with how often the last iterate gets there, and what is done there."""
    policy, average = game.flat(trace.policy), game.flat(trace.average_policy)
    reached = game.initial_weights[:, None] * game.plan(policy).sum(axis=-1)
    often = np.argsort(-reached, axis=None, kind="stable")
    chosen = np.sort(often[: min(top, int((reached > 0.0).sum()))])
    several = len(game.initial_states) > 1
    title = ["h", *(["from"] if several else []), "state", "reached", "action"]
    rows = [(*title, "last iterate", "average iterate")]
    for start, n in zip(*np.unravel_index(chosen, reached.shape), strict=True):
        h = next(h for h, layer in enumerate(game.layers) if n < layer.stop)
        k = n - game.layers[h].start
        place = [str(h), _name(game, h, game.reached[h][k]), f"{reached[start, n]:.3f}"]
        if several:
            place.insert(1, _name(game, 0, game.initial_states[start]))
        likely: dict[str, FloatArray] = {}  # a reply to which several actions lead is listed once
        for name, *both in zip(_actions(game, h, k), policy[start, n], average[start, n], strict=True):
            likely[name] = likely.get(name, np.zeros(2)) + both
        for name, (last, mean) in likely.items():
            if max(last, mean) >= SHOWN:
                rows.append((*place, name, f"{last:.3f}", f"{mean:.3f}"))
                place = [""] * len(place)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = {"reached", "last iterate", "average iterate"}
    sides = [">" if title in right else "<" for title in rows[0]]
    lines = ["  ".join(map("{:{}{}}".format, row, sides, widths)) for row in rows]
    hidden = int((reached > 0.0).sum()) - len(chosen)
    return [*lines, f"… and {hidden} more states (--top)"] if hidden > 0 else lines


def _name(game: MarkovGame, h: int, state: int) -> str:
    """The label of a state; of a tuple, as of the turns of a dialogue, its parts."""
    label = state if game.state_labels is None else game.state_labels[h][state]
    return (" › ".join(map(str, label)) if isinstance(label, tuple) else str(label)) or "(start)"


def _actions(game: MarkovGame, h: int, k: int) -> list[str]:
    """The names of the actions in the k-th reachable state of step h; in a tree, the replies they are."""
    A, labels = game.actions, game.state_labels
    names = list(game.action_labels or map(str, range(A)))
    if labels is None or h >= len(game.transitions):
        return names
    said, stays = labels[h][game.reached[h][k]], 0
    for a in range(A):
        following = game.transitions[h][[k * A + a]].nonzero()[1]
        after = labels[h + 1][game.reached[h + 1][following[0]]] if len(following) == 1 else None
        stays += after == said
        if isinstance(said, tuple) and isinstance(after, tuple) and after[:-1] == said:
            names[a] = str(after[-1])
    return names if stays < A else ["(stays)"] * A
