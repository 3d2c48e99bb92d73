"""What reward-based methods converge to, in closed form: baselines to hold beside the equilibria.

Rewards r have shape `(n,)`; a Bradley–Terry reward gives `P(y ≻ y') = σ(r(y) − r(y'))`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, wrightomega

from nashpref.dynamic_programming import soft_response
from nashpref.games.markov import MarkovGame
from nashpref.policies import FloatArray, check_policy, check_reference, normalise, uniform


def rlhf(reward: ArrayLike, beta: float, reference: ArrayLike | None = None) -> FloatArray:
    """KL-regularised reward maximisation, `argmax_π E_π[r] − β KL(π‖μ) = μ e^{r/β}/Z`.

    The solution of RLHF and, when r is the Bradley–Terry reward of the preference, of DPO. With
    `r = q_ν` it is `nashpref.best_response(game, ν, beta)`.

    Args:
        reward: r, shape `(n,)`, finite.
        beta: β > 0.
        reference: μ, positive everywhere; uniform when None.

    Raises:
        ValueError: a reward that is no vector of finite numbers, β not positive, or a reference without full
            support.

    Source: arXiv:2305.18290, eq. 4.
    """
    r, mu = _check(reward, beta, reference)
    return normalise(np.log(mu) + r / beta)[1]


def multi_turn_rlhf(
    game: MarkovGame, reward: ArrayLike, beta: float, reference: ArrayLike | None = None
) -> FloatArray:
    """KL-regularised reward maximisation over H turns, `argmax_π E_π[Σ_h r_h(s_h, a_h)] − β KL_p(π‖μ)`.

    The soft dynamic program: `π_h(a|s) ∝ μ_h(a|s) e^{Q_h(s,a)/β}`, `Q_h = r_h + f V_{h+1}`,
    `V_h(s) = β log Σ_a μ_h(a|s) e^{Q_h(s,a)/β}`. For a reward of final states `V_{H+1} = r`. It is
    `nashpref.equilibrium(game, beta)` of `game = MarkovGame.from_rewards(transition, reward, initial)`, and
    the fixed point of multi-turn RLHF (arXiv:2405.14655, §3), the baseline of MTPO.

    Args:
        game: whose dynamics and initial states are used; its preference is not.
        reward: r, shape `(S,)` where `game` compares final states, else `(H, S, A)` or the last axes of it.
        beta: β > 0.
        reference: μ, shape `game.policy_shape`, positive everywhere; uniform when None.

    Returns:
        π, shape `game.policy_shape`; μ where a state cannot be reached.

    Raises:
        ValueError: as `rlhf`.
    """
    _check_beta(beta)
    S1, shape = game.flat_shape[0], (game.horizon, game.states, game.actions)
    needed = (game.states,) if game.terminal else shape
    r = np.asarray(reward, dtype=np.float64)
    if not r.ndim or r.shape != needed[-r.ndim :] or not np.isfinite(r).all():
        raise ValueError(f"reward has shape {r.shape}: finite numbers of shape {needed} are needed")
    if game.terminal:
        gain = np.tile(r[game.reached[-1]], (S1, 1))
    else:
        gain = game.flat(np.broadcast_to(r, (S1, *shape)))
    mu = check_reference(reference, game.policy_shape)
    return game.full(soft_response(game, np.log(game.flat(mu)), gain / beta)[1], mu)


def chi_po(reward: ArrayLike, beta: float, reference: ArrayLike | None = None) -> FloatArray:
    """χPO's solution, `argmax_π E_π[r] − β Σ_y μ(y) f(π(y)/μ(y))` with `f(z) = (z−1)²/2 + z log z`.

    The mixed χ² + KL regulariser replaces DPO's link log z by `φ(z) = z + log z`, so that
    `φ(π/μ) = (r − λ)/β`: π = μ·ω((r − λ)/β) with Wright's ω(u) = W₀(e^u), and λ fixed by Σπ = 1. Its
    tails are heavier than RLHF's: π/μ grows linearly in r, not exponentially.

    Args and errors as in `rlhf`.

    Source: arXiv:2407.13399.
    """
    r, mu = _check(reward, beta, reference)
    u = r / beta

    def excess(shift: float) -> float:
        return float(np.sum(mu * wrightomega(u - shift))) - 1.0

    # ω(1) = 1, so every ratio is ≥ 1 at the lower end and ≤ 1 at the upper one.
    low, high = float(u.min()) - 1.0, float(u.max()) - 1.0
    shift = low if low == high else brentq(excess, low, high, xtol=1e-15, rtol=1e-15)
    policy = mu * wrightomega(u - shift)
    return np.asarray(policy / policy.sum())


def c2_dpo_pair(
    preference: float, reference: ArrayLike, beta: float, *, constraint: str = "probability"
) -> FloatArray:
    """C2-DPO's solution on one pair (winner, loser): DPO's margin, with no mass leaving or entering the pair.

    DPO fixes only `log(π_w/μ_w) − log(π_l/μ_l) = logit(p)/β`. The constraint `φ(π_w) + φ(π_l) =
    φ(μ_w) + φ(μ_l)` fixes the rest, with φ = identity (`constraint="probability"`) or φ = log
    (`constraint="log"`). With more than one pair the constraints overlap, and the method is a penalty
    without a closed form.

    Args:
        preference: p = P(w ≻ l), strictly between 0 and 1.
        reference: `(μ_w, μ_l)`, positive, summing to at most 1.
        beta: β > 0.
        constraint: "probability" or "log".

    Returns:
        `(π_w, π_l)`. With φ = log the masses may sum to more than one when β is small: then no policy
        satisfies the constraint, and a `ValueError` says so.

    Source: arXiv:2502.17507 (v1 as C-3DPO, v2 as C2-DPO).
    """
    mu = np.asarray(reference, dtype=np.float64)
    if not 0.0 < preference < 1.0:
        raise ValueError(f"preference = {preference}: it must lie strictly between 0 and 1")
    if mu.shape != (2,) or not (mu > 0.0).all() or mu.sum() > 1.0 + 1e-12:
        raise ValueError(f"reference = {mu.tolist()}: two positive masses that sum to at most 1")
    _check_beta(beta)
    margin = (np.log(preference) - np.log1p(-preference)) / beta
    if constraint == "probability":
        share = expit(margin + np.log(mu[0] / mu[1]))
        return np.asarray(np.array([share, 1.0 - share]) * mu.sum())
    if constraint != "log":
        raise ValueError(f"constraint = {constraint!r}: 'probability' or 'log'")
    policy = mu * np.exp([margin / 2.0, -margin / 2.0])
    if policy.sum() > 1.0:
        raise ValueError(
            f"beta = {beta}: the log constraint needs total mass {policy.sum():.4g} > 1; raise beta"
        )
    return np.asarray(policy)


def _check(reward: ArrayLike, beta: float, reference: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    r = np.asarray(reward, dtype=np.float64)
    if r.ndim != 1 or not r.size or not np.isfinite(r).all():
        raise ValueError(f"reward has shape {r.shape}: a vector (n,) of finite numbers is needed")
    _check_beta(beta)
    mu = uniform(r.shape) if reference is None else reference
    return r, check_policy(mu, r.shape, "reference", positive=True)


def _check_beta(beta: float) -> None:
    if not (np.isfinite(beta) and beta > 0.0):
        raise ValueError(f"beta = {beta}: it must be finite and positive")
