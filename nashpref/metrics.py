"""How far a policy is from equilibrium: best responses and duality gaps, regularised and not."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from nashpref import dynamic_programming
from nashpref.games.markov import MarkovGame
from nashpref.games.matrix import MatrixGame
from nashpref.policies import FloatArray, check_policy, check_reference, kl, largest, log_policy, normalise


def best_response(
    game: MatrixGame | MarkovGame, policy: ArrayLike, beta: float = 0.0, reference: ArrayLike | None = None
) -> FloatArray:
    """The policy that does best against `policy`, `argmax_π' P(π' ≻ π) − β KL(π'‖μ)`.

    With β > 0 it is `μ exp(q_π/β) / Z`: the closed form of RLHF with reward `q_π`, of DPO when the
    preference is Bradley–Terry, and of IPO with sampling policy π. With β = 0 it is uniform over the
    responses with the largest `P(y ≻ π)`, exact ties included.

    In a Markov game it is found by dynamic programming, soft with KL_p, the KL of trajectories, or greedy.
    Where a state cannot be reached, the answer is the reference.

    Args:
        game: the game.
        policy: the opponent π, shape `game.policy_shape`.
        beta: weight of the KL towards the reference, ≥ 0.
        reference: μ, positive everywhere; uniform when None.
    """
    pi = check_policy(policy, game.policy_shape, "policy")
    beta, mu = check_beta(beta), check_reference(reference, game.policy_shape)
    if isinstance(game, MarkovGame):
        gain = game.payoff(game.plan(game.flat(pi)))
        if beta > 0.0:
            _, response, _ = dynamic_programming.soft_response(game, np.log(game.flat(mu)), gain / beta)
        else:
            response, _ = dynamic_programming.greedy_response(game, gain)
        return game.full(response, mu)
    q = game.payoff(pi)
    if beta > 0.0:
        return normalise(np.log(mu) + q / beta)[1]
    winners = q == np.max(q, axis=-1, keepdims=True)
    return np.asarray(winners / np.sum(winners, axis=-1, keepdims=True))


def duality_gap(
    game: MatrixGame | MarkovGame, policy: ArrayLike, beta: float = 0.0, reference: ArrayLike | None = None
) -> float | FloatArray:
    """`max_π' P_β(π' ≻ π) − min_π' P_β(π ≻ π')`: zero exactly at equilibrium; both players' gains.

    `P_β(π ≻ π') = P(π ≻ π') − β KL(π‖μ) + β KL(π'‖μ)`. Because the game is symmetric the two halves are
    equal, so the gap is twice the exploitability of `policy`.

    With β = 0 it is `2 max_y q_π(y)`; with β > 0 it is `2β KL(π ‖ BR_β(π))`, which is non-negative and
    accurate to 1e-30 where the difference of the two optima cancels at 1e-16.

    In a Markov game it is `2 max_d Σ_h ⟨d_h, A_h d^π_h⟩`, or `2β KL_p(π ‖ BR_β(π))`, for each initial state,
    averaged over their distribution.

    Args and errors as in `best_response`. Returns a float, or shape `(B,)` for a batch.
    """
    pi = check_policy(policy, game.policy_shape, "policy")
    beta, mu = check_beta(beta), check_reference(reference, game.policy_shape)
    if isinstance(game, MarkovGame):
        policy = game.flat(pi)
        plan = game.plan(policy)
        gain = game.payoff(plan)
        if beta == 0.0:
            return dynamic_programming.plain_gap(game, gain)
        log_pi, log_mu = log_policy(policy), np.log(game.flat(mu))
        return dynamic_programming.regularised_gap(game, log_pi, plan, gain, beta, log_mu)
    q = game.payoff(pi)
    gap = unregularised_gap(q) if beta == 0.0 else regularised_gap(log_policy(pi), q, beta, np.log(mu))
    return float(gap) if game.batch is None else gap


def unregularised_gap(q: FloatArray) -> FloatArray:
    """`2 max_y q(y)` from the payoff vector `q = A π` that an interpreter already has.

    Playing π itself gains exactly 0, so a maximum below that is rounding.
    """
    return np.asarray(2.0 * np.maximum(largest(q), 0.0))


def regularised_gap(log_pi: FloatArray, q: FloatArray, beta: float, log_mu: FloatArray) -> FloatArray:
    """`2β KL(π ‖ μ e^{q/β}/Z)` from log π, the payoff vector `q = A π` and log μ."""
    return 2.0 * beta * kl(log_pi, normalise(log_mu + q / beta)[0])


def check_beta(beta: float) -> float:
    """Return β as a float; raise `ValueError` unless it is finite and ≥ 0."""
    if not (math.isfinite(beta) and beta >= 0.0):
        raise ValueError(f"beta = {beta}: the weight of the KL must be finite and ≥ 0")
    return float(beta)
