"""The definition, played out by two players: shares no code with the interpreters, so it is their oracle."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from nashpref.games.matrix import MatrixGame
from nashpref.mirror import UpdateRule
from nashpref.policies import FloatArray


def two_player_iterates(
    game: MatrixGame, rule: UpdateRule, start: FloatArray, reference: FloatArray, steps: int
) -> FloatArray:
    """Both players' iterates `(2, steps + 1, n)` when each runs `rule` against the other, by the definition.

    The row player is paid P, the column player 1 − Pᵀ; a named opponent is the *other* player's policy of
    that name. One game; `start` and `reference` have shape `(n,)` and are positive.
    """
    P = game.preferences
    pays = (P, 1.0 - P.T)
    logs: list[dict[str, FloatArray]] = [{}, {}]
    for own in logs:
        own["reference"], own["current"] = np.log(reference), np.log(start)
    iterates: list[list[FloatArray]] = [[start], [start]]
    for t in range(steps):
        for step in rule.steps(t):
            written = []
            for player in (0, 1):
                own, other = logs[player], logs[1 - player]
                total = np.zeros(game.n)
                for name, weight in step.anchors.items():
                    total += weight * own.get(name, np.log(start))
                for name, weight in step.payoffs.items():
                    total += weight * (pays[player] @ np.exp(other.get(name, np.log(start))))
                written.append(total - logsumexp(total))
            for player in (0, 1):
                logs[player][step.to] = written[player]
        for player in (0, 1):
            iterates[player].append(np.exp(logs[player]["current"]))
    return np.array(iterates)
