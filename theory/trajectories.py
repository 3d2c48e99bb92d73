"""What the bounds are made of: extremes over trajectories, and what a run makes of every place.

All of it is computed from the game's transitions and payoffs, apart from the dynamic programs of the core
that the bounds put to the test. In a matrix game a trajectory is a response.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nashpref.games.markov import MarkovGame
from nashpref.games.matrix import MatrixGame
from nashpref.policies import FloatArray, kl, log_policy

Game = MatrixGame | MarkovGame
Ahead = Callable[[int, FloatArray], FloatArray]  # h and values (S₁, n_{h+1}) → (S₁, n_h, A)

TINY = 1e-100  # in place of a constant that is 0, so that it divides

# --- payoffs ---


def largest_payoff(game: Game) -> float:
    """`L = max|A|`, or the most that one trajectory can win against another from the same initial state.

    The Lipschitz constant of payoffs, from ‖·‖₁ of laws of trajectories to ‖·‖_∞. At most 1/2 with a
    preference of final states, H/2 with one at every step.
    """
    if isinstance(game, MatrixGame):
        return max(float(np.abs(game.payoffs).max()), TINY)
    most = game.payoffs[0] if game.terminal else np.zeros((0, 0))  # from two places on
    for h in reversed(range(game.horizon)):
        rows = len(game.reached[h]) * game.actions
        following, most = most, np.zeros((rows, rows))
        if h < len(game.transitions):
            successors = transition(game, h) > 0.0
            mine = np.stack([following[to].max(axis=0) for to in successors])
            most += np.stack([mine[:, to].max(axis=1) for to in successors], axis=1)
        if not game.terminal:
            most += game.payoffs[h]
        most = most.reshape(-1, game.actions, len(most) // game.actions, game.actions).max(axis=(1, 3))
    return max(float(most.diagonal().max()), TINY)


def step_payoffs(game: MarkovGame) -> FloatArray:
    """`L_h = max|A_h|`, h = 1 … H; one value, max|A|, for a preference of final states."""
    return np.array([max(float(np.abs(A).max()), TINY) for A in game.payoffs])


def payoff_ranges(game: MarkovGame) -> FloatArray:
    """`G_h`, h = 1 … H, within which the payoffs from step h on lie: at most H − h + 1, or 1."""
    ranges = 2.0 * step_payoffs(game)
    return np.full(game.horizon, ranges[0]) if game.terminal else np.asarray(ranges[::-1].cumsum()[::-1])


def payoff_extremes(game: Game, policy: FloatArray) -> FloatArray:
    """The most and the least, `(2,)`, that a plan wins against the policy; over all initial states."""
    if isinstance(game, MatrixGame):
        q = game.payoff(policy)
        return np.array([q.max(), q.min()])
    gain, final = (x[0] for x in gains(game, flat(game, policy[None])))
    most = _most(game, gain, final, game.backward).max()
    return np.array([most, -_most(game, -gain, -final, game.backward).max()])


# --- how improbable the start makes a plan, a trajectory, a place, an action ---


def start_entropy(game: Game, mu: FloatArray, weights: FloatArray | None = None) -> float:
    """`D = max_π Σ_h c_h E_π[log 1/μ(a_h|s_h)]`, the largest divergence of any π from μ.

    The divergence is `Σ_h c_h E_π KL(π_h‖μ_h)`: with weights `c_h = 1` (None) KL_p, that of trajectories.
    In a matrix game D is `max_y log 1/μ(y)`. A mean over the initial states.
    """
    if isinstance(game, MatrixGame):
        return float(-np.log(mu.min()))
    cost = -np.log(game.flat(mu))
    if weights is not None:
        cost = np.concatenate([c * cost[:, x] for c, x in zip(weights, game.layers, strict=True)], axis=1)
    return float(game.initial_weights @ _most(game, cost, _nothing(game), game.backward))


def trajectory_entropy(game: MarkovGame, mu: FloatArray) -> float:
    """`log 1/d̲`: d̲ the smallest probability `Π_h μ(a_h|s_h)` of the actions of a possible trajectory."""

    def worst_successor(h: int, values: FloatArray) -> FloatArray:
        worst = [values[:, to].max(axis=1) for to in transition(game, h) > 0.0]
        return np.stack(worst, axis=1).reshape(len(values), -1, game.actions)

    return float(_most(game, -np.log(game.flat(mu)), _nothing(game), worst_successor).max())


def occupancy_entropy(game: MarkovGame, mu: FloatArray) -> float:
    """`log 1/min d_h(s, a)` over the places that μ reaches. Where histories merge, less than `log 1/d̲`."""
    start = game.flat(mu)
    occupancy = visits(game, start[None])[0][..., None] * start
    return float(-np.log(occupancy[occupancy > 0.0].min()))


def action_entropy(game: MarkovGame, mu: FloatArray) -> float:
    """`log 1/π̲`: π̲ the smallest probability of an action under μ, in a state that can be reached."""
    return float(-np.log(game.flat(mu)[game.reached_from].min()))


def _most(game: MarkovGame, gain: FloatArray, final: FloatArray, ahead: Ahead) -> FloatArray:
    """`V_h(s) = max_a [gain_h + ahead(V_{h+1})](s, a)`, `V_{H+1}` = final, at the start: `(S₁,)`."""
    values = final
    for h in reversed(range(game.horizon)):
        q = gain[:, game.layers[h]]
        values = (q + ahead(h, values) if h < len(game.transitions) else q).max(axis=-1)
    return values.diagonal()


def _nothing(game: MarkovGame) -> FloatArray:
    """What final states are worth where only the way there counts."""
    return np.zeros((len(game.initial_states), len(game.reached[-1])))


# --- along a run: T policies, flat, `(T, S₁, N, A)` ---


def flat(game: MarkovGame, policies: FloatArray) -> FloatArray:
    """Policies `(T, *game.policy_shape)`, as a trace has them, at the reachable states."""
    return game.flat(policies).reshape(len(policies), *game.flat_shape)


def transition(game: MarkovGame, h: int) -> FloatArray:
    """`Pr(s' | h, s, a)` between reachable states, dense, `(n_h·A, n_{h+1})`."""
    T = game.transitions[h]
    return np.asarray(T if isinstance(T, np.ndarray) else T.toarray())


def visits(game: MarkovGame, policies: FloatArray) -> FloatArray:
    """`Pr(s_h = s | s_1)`, `(T, S₁, N)`."""
    T, S1, N, _ = policies.shape
    probability, here = np.empty((T, S1, N)), np.broadcast_to(np.eye(S1), (T, S1, S1))
    for h, layer in enumerate(game.layers):
        probability[..., layer] = here
        if h + 1 < game.horizon:
            here = (here[..., None] * policies[:, :, layer]).reshape(T, S1, -1) @ transition(game, h)
    return probability


def expected(game: MarkovGame, policy: FloatArray, x: FloatArray) -> FloatArray:
    """`E_π[Σ_h x_h(s_h)]` of each x, `(T, S₁, N)`, under one flat policy; a mean over the initial states."""
    return np.asarray((visits(game, policy[None])[0] * x).sum(axis=-1) @ game.initial_weights)


def divergence(game: Game, policy: FloatArray, log_policies: FloatArray) -> FloatArray:
    """`KL(π‖π_t)`, or `KL_p(π‖π_t)` in a mean over the initial states, of each log π_t of a trace: `(T,)`."""
    if isinstance(game, MatrixGame):
        return kl(log_policy(policy), log_policies)
    pi = game.flat(policy)
    return expected(game, pi, kl(log_policy(pi), flat(game, log_policies)))


def gains(game: MarkovGame, policies: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What each policy as an opponent makes every place, and every final state, worth; one of them is 0."""
    T, S1, _, _ = policies.shape
    occupancy = visits(game, policies)[..., None] * policies
    gain, final = np.zeros_like(policies), np.zeros((T, S1, len(game.reached[-1])))
    for h, layer in enumerate(game.layers):
        here = occupancy[:, :, layer].reshape(T, S1, -1)
        if not game.terminal:
            gain[:, :, layer] = (here @ game.payoffs[h].T).reshape(T, S1, -1, game.actions)
        elif h + 1 == game.horizon:
            final = here @ transition(game, h) @ game.payoffs[0].T
    return gain, final


def action_values(
    game: MarkovGame, policies: FloatArray, mu: FloatArray, beta: float
) -> tuple[FloatArray, FloatArray]:
    """`Q_h^{π,π}(s, a)` of the regularised game, and `log π/μ (a|s)`, of each policy.

    `Q_h = E[payoffs from h on − β Σ_{h'≥h} KL(π‖μ)[s_h'] | s_h = s, a_h = a]`, both players playing π, the
    opponent from where the player started. As in Shani et al. the cost of the state s itself counts.
    """
    T, S1, _, A = policies.shape
    ratio = np.log(policies) - np.log(mu)
    cost = beta * (policies * ratio).sum(axis=-1, keepdims=True)
    q, values = gains(game, policies)
    q -= cost
    for h in reversed(range(game.horizon)):
        layer = game.layers[h]
        if h < len(game.transitions):
            q[:, :, layer] += (values @ transition(game, h).T).reshape(T, S1, -1, A)
        values = (policies[:, :, layer] * q[:, :, layer]).sum(axis=-1)
    return q, ratio
