"""Backward passes through a Markov game: best responses, soft and greedy, and the gaps they certify.

All arrays are flat, `(S₁, N, A)` (see `MarkovGame`); a *gain* is what an opponent makes each place worth, as
`MarkovGame.payoff` returns it. An opponent enters only through its gain: it plays its own copy of the MDP,
so that no joint `Q(s, a, s', a')` is ever needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nashpref.games.markov import MarkovGame
from nashpref.policies import FloatArray, kl, largest


def backward_pass(
    game: MarkovGame, gain: FloatArray, backup: Callable[[int, FloatArray], FloatArray]
) -> FloatArray:
    """`Q_h = gain_h + f V_{h+1}`, `V_h = backup(h, Q_h)`, last step first; returns V at the start, `(S₁,)`.

    Q has shape `(S₁, n_h, A)`, V `(S₁, n_h)`. With a preference of final states `V_{H+1} = gain`, else 0.
    Several gains one after the other, `(k S₁, …)`, share a pass, whose cost is that of reading the dynamics.
    """
    values = gain if game.terminal else None
    for h in reversed(range(game.horizon)):
        if values is None:
            q = gain[:, game.layers[h]]
        else:
            q = game.backward(h, values)
            if not game.terminal:
                q += gain[:, game.layers[h]]
        values = backup(h, q)
    S1 = len(game.initial_states)
    return np.diagonal(np.asarray(values).reshape(-1, S1, S1), axis1=1, axis2=2).ravel()


def soft_response(
    game: MarkovGame,
    log_prior: FloatArray,
    gain: FloatArray,
    temperature: Sequence[float] | None = None,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`argmax_d ⟨d, gain⟩ − Σ_h c_h Σ_s d_h(s) KL(π_h(·|s) ‖ p_h(·|s))` over the occupancy measures, exactly.

    The Bregman projection onto the Bellman-flow polytope, by the backward soft dynamic program

        Q_h = gain_h + f V_{h+1},   π_h ∝ p_h exp(Q_h/c_h),   V_h(s) = c_h log Σ_a p_h(a|s) exp(Q_h(s,a)/c_h).

    The prior p need not be normalised: what a state lacks or has too much is passed on to those before it.
    The temperature of `V_h` is that of its own step; arXiv:2502.12678, Theorem 8, prints the one before.

    Args:
        log_prior: log p. gain: `(S₁, N, A)`, or `(S₁, n_{H+1})` for a preference of final states.
        temperature: c_1 … c_H; all 1 when None, and the divergence is KL_p, that of trajectories.

    Returns:
        log π and π, `(S₁, N, A)`, and the maximum, `(S₁,)`.
    """
    log_pi, pi, total = np.empty_like(log_prior), np.empty_like(log_prior), np.empty(log_prior.shape[:2])

    def backup(h: int, q: FloatArray) -> FloatArray:
        layer, c = game.layers[h], 1.0 if temperature is None else temperature[h]
        logits = np.add(log_prior[:, layer], q if c == 1.0 else q / c, out=log_pi[:, layer])
        peak = largest(logits)
        logits -= peak[..., None]
        weights = np.exp(logits, out=pi[:, layer])
        log_sum = peak + np.log(np.add.reduce(weights, axis=-1, out=total[:, layer]))
        return log_sum if c == 1.0 else c * log_sum

    value = backward_pass(game, gain, backup)
    log_pi -= np.log(total)[..., None]  # of all steps at once: small games cost what they call
    pi /= total[..., None]
    return log_pi, pi, value


def greedy_response(game: MarkovGame, gain: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`argmax_d ⟨d, gain⟩`: uniform over the best actions of each state, and the maximum, `(S₁,)`."""
    pi = np.empty(game.flat_shape)

    def backup(h: int, q: FloatArray) -> FloatArray:
        value = largest(q)
        best = q == value[..., None]
        pi[:, game.layers[h]] = best / best.sum(axis=-1, keepdims=True)
        return value

    value = backward_pass(game, gain, backup)
    return pi, value


def action_values(game: MarkovGame, policy: FloatArray, gain: FloatArray, cost: FloatArray) -> FloatArray:
    """`Q_h(s, a) = gain_h + f V_{h+1}`, `V_h(s) = Σ_a π(a|s) Q_h(s, a) − cost_h(s)`: `(S₁, N, A)`.

    With `cost = β KL(π‖μ)[s]` the regularised Q of MTPO, short of the cost of its own state, which is the
    same for all actions.
    """
    values = np.empty_like(policy)

    def backup(h: int, q: FloatArray) -> FloatArray:
        layer = game.layers[h]
        values[:, layer] = q
        return np.asarray(np.vecdot(policy[:, layer], q) - cost[:, layer])

    backward_pass(game, gain, backup)
    return values


def trajectory_kl(plan: FloatArray, log_p: FloatArray, log_q: FloatArray) -> FloatArray:
    """`KL_p(p‖q) = Σ_h Σ_s d_h(s) KL(p_h(·|s)‖q_h(·|s))`, d = `plan` the occupancy of p: `(S₁,)`."""
    return np.asarray((plan.sum(axis=-1) * kl(log_p, log_q)).sum(axis=-1))


def plain_gap(game: MarkovGame, gain: FloatArray) -> float:
    """The duality gap `2 max_d ⟨d, gain⟩` of the policy with this gain, averaged over the initial states."""
    return float(plain_gaps(game, gain)[0])


def plain_gaps(game: MarkovGame, *gains: FloatArray) -> FloatArray:
    """`plain_gap` of each gain, in one pass.

    Playing the policy itself gains exactly 0, so a maximum below that is rounding.
    """
    value = backward_pass(game, np.concatenate(gains), lambda _, q: largest(q))
    return np.asarray((2.0 * np.maximum(value, 0.0)).reshape(len(gains), -1) @ game.initial_weights)


def regularised_gap(
    game: MarkovGame, log_pi: FloatArray, plan: FloatArray, gain: FloatArray, beta: float, log_mu: FloatArray
) -> float:
    """`2β KL_p(π ‖ BR_β(π))`, averaged over the initial states.

    It is the duality gap of the game with payoff `V(π, π') − β KL_p(π‖μ) + β KL_p(π'‖μ)`: for every occupancy
    `⟨d, gain⟩ − β KL_p(d‖μ)` falls short of its maximum by `β KL_p(d‖BR)`.
    """
    log_response, _, _ = soft_response(game, log_mu, gain / beta)
    return float(game.initial_weights @ (2.0 * beta * trajectory_kl(plan, log_pi, log_response)))


def policy_of(game: MarkovGame, plan: FloatArray, fallback: FloatArray) -> FloatArray:
    """`π_h(a|s) = d_h(s, a) / Σ_a d_h(s, a)`, and `fallback` where the state is not reached."""
    mass = plan.sum(axis=-1, keepdims=True)
    return np.where(mass > 0.0, plan / np.where(mass > 0.0, mass, 1.0), fallback)
