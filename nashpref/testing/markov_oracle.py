"""Markov games by the definition: two players whose joint state is followed step by step.

Slow, plain, and without a line in common with the interpreters. Everything starts in one state s₁; arrays are
those of a `Description`, every state of every step. A *player* is 0 (paid P) or 1 (paid 1 − Pᵀ).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nashpref.mirror import Geometry, UpdateRule
from nashpref.policies import FloatArray
from nashpref.testing.markov_games import Description


@dataclass(frozen=True)
class Play:
    """What one player of a game meets, its own place first.

    Attributes:
        transition: `(H, S, A, S)`.
        pays: `(H, S, A, S, A)` what each step pays.
        final: `(S, S)` what the final states pay.
        start: s₁.
    """

    transition: FloatArray
    pays: FloatArray
    final: FloatArray
    start: int

    @classmethod
    def of(cls, game: Description, player: int, start: int) -> Play:
        """The game as `player` sees it."""
        H, S, A = game.shape
        P = game.preference if game.terminal else game.preference.reshape(H, S * A, S * A)
        if player == 1:
            P = 1.0 - np.swapaxes(P, -1, -2)
        if game.terminal:
            return cls(game.transition, np.zeros((H, S, A, S, A)), P, start)
        return cls(game.transition, P.reshape(H, S, A, S, A), np.zeros((S, S)), start)

    def occupancy(self, policy: FloatArray) -> tuple[FloatArray, FloatArray]:
        """`Pr(s_h = s, a_h = a)`, `(H, S, A)`, and the distribution of final states, `(S,)`."""
        mass, d = np.eye(len(self.final))[self.start], []
        for T, pi in zip(self.transition, policy, strict=True):
            d.append(mass[:, None] * pi)
            mass = np.einsum("sa,sax->x", d[-1], T)
        return np.array(d), mass

    def gain(self, opponent: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What an opponent makes each place worth, `(H, S, A)`, and each final state, `(S,)`."""
        d, mass = self.occupancy(opponent)
        return np.einsum("hsatb,htb->hsa", self.pays, d), self.final @ mass

    def action_values(
        self, own: FloatArray, opponent: FloatArray, beta: float = 0.0, reference: FloatArray | None = None
    ) -> FloatArray:
        """Regularised `Q_h(s, a)` of playing `own` against `opponent`, who started in s₁: `(H, S, A)`.

        By Bellman's recursion for the joint state (s, t) of the two players; what the opponent has become
        until step h is then averaged out.
        """
        d, _ = self.occupancy(opponent)
        values, worth = np.empty_like(own), self.final
        for h in reversed(range(len(own))):
            T, pi, rho = self.transition[h], own[h], opponent[h]
            joint = self.pays[h] + np.einsum("sax,xy,tby->satb", T, worth, T)
            values[h] = np.einsum("satb,tb->sa", joint, d[h])
            worth = np.einsum("sa,satb,tb->st", pi, joint, rho)
            if beta > 0.0 and reference is not None:
                worth = worth - beta * _kl(pi, reference[h])[:, None] + beta * _kl(rho, reference[h])
        return values

    def soft_response(
        self, gain: FloatArray, final: FloatArray, log_prior: FloatArray, weights: FloatArray
    ) -> FloatArray:
        """`log argmax_d ⟨d, gain⟩ − Σ_h c_h Σ_s d_h(s) KL(π_h‖p_h)`, c = `weights`; p need not sum to 1."""
        log_pi, value = np.empty_like(gain), final
        for h in reversed(range(len(gain))):
            logits = log_prior[h] + (gain[h] + self.transition[h] @ value) / weights[h]
            total = np.logaddexp.reduce(logits, axis=-1)
            log_pi[h], value = logits - total[:, None], weights[h] * total
        return log_pi

    @property
    def reached(self) -> NDArray[np.bool_]:
        """The states that some policy gets to, `(H, S)`."""
        paths, _ = self.occupancy(np.ones(self.transition.shape[:3]))
        return np.asarray(paths.any(axis=-1))


def markov_two_player_iterates(
    game: Description,
    rule: UpdateRule,
    start: FloatArray,
    reference: FloatArray,
    steps: int,
    geometry: Geometry,
) -> FloatArray:
    """Both players' iterates `(2, steps + 1, …)` when each runs `rule` against the other, by the definition.

    As `two_player_iterates`; once for each initial state, and with the reference where it does not lead.
    """
    each = game.policy_shape if len(game.initial_states) > 1 else (1, *game.policy_shape)
    iterates = np.empty((2, steps + 1, *each))
    for i, s in enumerate(game.initial_states):
        own, mu = start.reshape(each)[i], reference.reshape(each)[i]
        iterates[:, :, i] = _iterates(game, int(s), rule, own, mu, steps, geometry)
    return iterates.reshape(2, steps + 1, *game.policy_shape)


def _iterates(
    game: Description,
    state: int,
    rule: UpdateRule,
    start: FloatArray,
    reference: FloatArray,
    steps: int,
    geometry: Geometry,
) -> FloatArray:
    plays = (Play.of(game, 0, state), Play.of(game, 1, state))
    beta = float(getattr(rule, "beta", 0.0))
    H = len(start)
    c = np.arange(H, 0, -1.0) if geometry is Geometry.WEIGHTED_OCCUPANCY else np.ones(H)
    logs: list[dict[str, FloatArray]] = [
        {"reference": np.log(reference), "current": np.log(start)} for _ in plays
    ]

    def log_policy(player: int, name: str) -> FloatArray:
        return logs[player].get(name, np.log(start))

    iterates: list[list[FloatArray]] = [[start], [start]]
    for t in range(steps):
        for step in rule.steps(t):
            written = []
            for player, play in enumerate(plays):
                log_pi, gain, final = np.zeros(game.shape), np.zeros(game.shape), np.zeros(game.shape[1])
                for name, weight in step.anchors.items():
                    log_pi += weight * log_policy(player, name)
                mu = np.exp(log_policy(player, "reference"))
                for name, weight in step.payoffs.items():
                    opponent = np.exp(log_policy(1 - player, name))
                    if geometry is Geometry.PER_STATE:
                        own = np.exp(log_policy(player, name))
                        gain += weight * play.action_values(own, opponent, beta, mu)
                    else:
                        places, finals = play.gain(opponent)
                        gain, final = gain + weight * places, final + weight * finals
                if geometry is Geometry.PER_STATE:
                    log_pi = log_pi + gain
                    written.append(log_pi - np.logaddexp.reduce(log_pi, axis=-1, keepdims=True))
                else:
                    written.append(play.soft_response(gain, final, log_pi, c))
            for player in (0, 1):
                logs[player][step.to] = written[player]
        for player in (0, 1):
            iterates[player].append(np.exp(logs[player]["current"]))
    return np.where(plays[0].reached[:, :, None], np.array(iterates), reference)


def _kl(p: FloatArray, q: FloatArray) -> FloatArray:
    return np.asarray((p * (np.log(p) - np.log(q))).sum(axis=-1))
