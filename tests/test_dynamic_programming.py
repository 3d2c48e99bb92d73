"""Backward passes against brute force: joint states, trajectories, deterministic policies, an optimiser."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import nashpref as npf
from nashpref.dynamic_programming import (
    action_values,
    backward_pass,
    greedy_response,
    plain_gap,
    policy_of,
    regularised_gap,
    soft_response,
    trajectory_kl,
)
from nashpref.policies import FloatArray, kl, largest, log_policy, normalise
from nashpref.testing import Description, descriptions, policies, references
from nashpref.testing.markov_oracle import Play

SMALL = descriptions(
    max_horizon=2, max_states=3, max_actions=2, dynamics=["stochastic", "deterministic", "random"]
)
BETAS = st.sampled_from([0.05, 0.5, 3.0])


def centred(description: Description) -> Description:
    return dataclasses.replace(description, preference=description.preference - 0.5)


def plays(description: Description, policy: FloatArray) -> Iterator[tuple[Play, FloatArray]]:
    """The centred game from each initial state, with that state's policy."""
    for s, own in zip(description.initial_states, policy.reshape(-1, *description.shape), strict=True):
        yield Play.of(centred(description), 0, int(s)), own


def average(description: Description, values: list[float]) -> float:
    return float(np.dot(description.initial[description.initial_states], values))


# --- brute force ---

Path = list[tuple[int, int]]


def trajectories(play: Play, policy: FloatArray) -> Iterator[tuple[float, Path, int]]:
    """Every trajectory that has a chance: its probability, its states and actions, and where it ends."""

    def go_on(probability: float, path: Path, state: int) -> Iterator[tuple[float, Path, int]]:
        h = len(path)
        if h == len(policy):
            yield probability, path, state
            return
        for a, to in itertools.product(range(policy.shape[2]), range(policy.shape[1])):
            chance = policy[h, state, a] * play.transition[h, state, a, to]
            if chance > 0.0:
                yield from go_on(probability * chance, [*path, (state, a)], to)

    yield from go_on(1.0, [], play.start)


def value(play: Play, own: FloatArray, other: FloatArray) -> float:
    """`V(π, π')` by the definition: the expected sum of payoffs over pairs of independent trajectories."""
    total = 0.0
    for p, path, end in trajectories(play, own):
        for q, other_path, other_end in trajectories(play, other):
            paid = play.final[end, other_end]
            for h, ((s, a), (t, b)) in enumerate(zip(path, other_path, strict=True)):
                paid += play.pays[h, s, a, t, b]
            total += p * q * paid
    return total


def divergence(play: Play, p: FloatArray, q: FloatArray) -> float:
    """`KL_p(p‖q)` by the definition: the KL of the distributions of trajectories."""
    total = 0.0
    for probability, path, _ in trajectories(play, p):
        log_ratio = sum(np.log(p[h, s, a] / q[h, s, a]) for h, (s, a) in enumerate(path))
        total += probability * log_ratio
    return total


def deterministic(play: Play) -> Iterator[FloatArray]:
    """Every deterministic policy."""
    H, S, A, _ = play.transition.shape
    for choice in itertools.product(range(A), repeat=H * S):
        yield np.eye(A)[np.array(choice).reshape(H, S)]


def first_value(play: Play, own: FloatArray, gain: FloatArray, final: FloatArray) -> float:
    """`⟨d, gain⟩`."""
    d, mass = play.occupancy(own)
    return float((d * gain).sum() + mass @ final)


@settings(max_examples=40)
@given(data=st.data(), description=SMALL)
def test_values_are_sums_over_trajectories(data: st.DataObject, description: Description) -> None:
    """⟨d, A d'⟩ = pairs of trajectories = the joint state's Bellman recursion."""
    game = description.game()
    pi, other = (data.draw(policies(game.policy_shape, zeros=True)) for _ in range(2))
    plan, gain = game.plan(game.flat(pi)), game.payoff(game.plan(game.flat(other)))
    weighted = (
        plan * gain
        if not game.terminal
        else game.forward(game.horizon - 1, plan[:, game.layers[-1]].reshape(len(plan), -1)) * gain
    )
    ours = weighted.reshape(len(plan), -1).sum(axis=1)
    each = zip(plays(description, pi), plays(description, other), ours, strict=True)
    for (play, own), (_, against), mine in each:
        assert mine == pytest.approx(value(play, own, against), abs=1e-14)
        joint = play.action_values(own, against)[0, play.start] @ own[0, play.start]
        assert mine == pytest.approx(joint, abs=1e-14)


@settings(max_examples=40)
@given(data=st.data(), description=SMALL)
def test_the_gap_is_that_of_the_best_deterministic_policies(
    data: st.DataObject, description: Description
) -> None:
    """2 max over every deterministic policy, and the greedy response attains it."""
    game = description.game()
    pi = data.draw(policies(game.policy_shape, zeros=True))
    gain = game.payoff(game.plan(game.flat(pi)))
    response, value_of_response = greedy_response(game, gain)
    greedy = npf.best_response(game, pi).reshape(-1, *description.shape)
    best = []
    for i, (play, own) in enumerate(plays(description, pi)):
        places, final = play.gain(own)
        best.append(max(first_value(play, each, places, final) for each in deterministic(play)))
        assert value_of_response[i] == pytest.approx(best[-1], abs=1e-14)
        assert first_value(play, greedy[i], places, final) == pytest.approx(best[-1], abs=1e-14)
    expected = average(description, [2.0 * max(b, 0.0) for b in best])
    assert plain_gap(game, gain) == pytest.approx(expected, abs=1e-14)
    assert npf.duality_gap(game, pi) == pytest.approx(expected, abs=1e-14)
    np.testing.assert_allclose(response.sum(axis=-1), 1.0)


def test_ties_are_shared() -> None:
    """Where two actions are best each has half, and the value does not depend on it."""
    game = npf.MarkovGame(np.ones((2, 1, 3, 1)), np.full((1, 3, 1, 3), 0.5), 0)
    gain = np.array([[[1.0, 1.0, 0.0], [0.0, 2.0, -1.0]]])
    response, best = greedy_response(game, gain)
    np.testing.assert_array_equal(response, [[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]])
    np.testing.assert_array_equal(best, [3.0])


@settings(max_examples=40)
@given(data=st.data(), description=SMALL)
def test_trajectory_kl_is_that_of_the_trajectories(data: st.DataObject, description: Description) -> None:
    game = description.game()
    p, q = (data.draw(policies(game.policy_shape, spread=4.0)) for _ in range(2))
    flat_p, flat_q = game.flat(p), game.flat(q)
    ours = trajectory_kl(game.plan(flat_p), np.log(flat_p), np.log(flat_q))
    each = zip(plays(description, p), q.reshape(-1, *description.shape), ours, strict=True)
    for (play, own), reference, mine in each:
        assert mine == pytest.approx(divergence(play, own, reference), rel=1e-12, abs=1e-13)


@settings(max_examples=60)
@given(data=st.data(), description=descriptions(max_starts=3), beta=BETAS)
def test_action_values_are_the_joint_recursions(
    data: st.DataObject, description: Description, beta: float
) -> None:
    """Of the regularised game, wherever one can get to; the cost at the place itself is left out."""
    game = description.game()
    pi, mu = data.draw(policies(game.policy_shape, spread=5.0)), data.draw(references(game.policy_shape))
    flat, flat_mu = game.flat(pi), game.flat(mu)
    cost = beta * kl(log_policy(flat), np.log(flat_mu))
    ours = game.full(action_values(game, flat, game.payoff(game.plan(flat)), cost), np.nan)
    each = zip(plays(description, pi), mu.reshape(-1, *description.shape), strict=True)
    for i, ((play, own), reference) in enumerate(each):
        expected = play.action_values(own, own, beta, reference)
        # The opponent's cost is the same whatever one does.
        expected += _paid_by_opponent(play, own, beta * kl(np.log(own), np.log(reference)))[:, None, None]
        mine = ours.reshape(-1, *description.shape)[i]
        np.testing.assert_allclose(
            mine[play.reached], expected[play.reached], atol=1e-12 * (1.0 + np.abs(expected).max())
        )


def _paid_by_opponent(play: Play, policy: FloatArray, cost: FloatArray) -> FloatArray:
    """What the KL of the steps after h costs an opponent from s₁, `(H,)`, with the sign it has in Q."""
    d, _ = play.occupancy(policy)
    steps = (d.sum(axis=-1) * cost).sum(axis=-1)
    return np.asarray(steps - np.cumsum(steps[::-1])[::-1])


# --- the soft response ---


def objective(
    game: npf.MarkovGame, policy: FloatArray, log_prior: FloatArray, gain: FloatArray, c: list[float]
) -> FloatArray:
    """`⟨d, gain⟩ − Σ_h c_h Σ_s d_h(s) Σ_a π log(π/p)`, `(S₁,)`, for a flat policy without zeros."""
    plan = game.plan(policy)
    ratio = plan * (np.log(policy) - log_prior)
    paid = np.zeros(len(plan))
    for h, layer in enumerate(game.layers):
        paid -= c[h] * ratio[:, layer].sum(axis=(1, 2))
        if not game.terminal:
            paid += (plan[:, layer] * gain[:, layer]).sum(axis=(1, 2))
    if game.terminal:
        last = plan[:, game.layers[-1]].reshape(len(plan), -1)
        paid += (game.forward(game.horizon - 1, last) * gain).sum(axis=1)
    return paid


def soft_problem(
    description: Description, seed: int
) -> tuple[npf.MarkovGame, FloatArray, FloatArray, list[float]]:
    """Any gain, any prior (not normalised), any temperatures."""
    game, rng = description.game(), np.random.default_rng(seed)
    log_prior = rng.normal(size=game.flat_shape) * 2.0
    starts, n_final = len(game.initial_states), len(game.reached[-1])
    gain = rng.normal(size=(starts, n_final) if game.terminal else game.flat_shape)
    return game, log_prior, gain, rng.uniform(0.3, 3.0, game.horizon).tolist()


@settings(max_examples=60)
@given(description=descriptions(max_starts=3), seed=st.integers(0, 2**32 - 1))
def test_the_soft_response_is_optimal(description: Description, seed: int) -> None:
    """Its value is what it gets, and another policy gets less: by its divergence from the optimum."""
    game, log_prior, gain, c = soft_problem(description, seed)
    rng = np.random.default_rng(seed)
    log_pi, pi, best = soft_response(game, log_prior, gain, c)
    np.testing.assert_allclose(pi.sum(axis=-1), 1.0, atol=1e-14)
    np.testing.assert_allclose(np.exp(log_pi), pi, rtol=1e-13)
    np.testing.assert_allclose(objective(game, pi, log_prior, gain, c), best, atol=1e-12)
    for size in (1e-3, 0.1, 1.0, 10.0):
        _, other = normalise(log_pi + size * rng.normal(size=log_pi.shape))
        lost = best - objective(game, other, log_prior, gain, c)
        assert (lost >= -1e-12).all()
        occupied = game.plan(other).sum(axis=-1) * kl(np.log(other), log_pi)
        expected = sum(c[h] * occupied[:, layer].sum(axis=1) for h, layer in enumerate(game.layers))
        np.testing.assert_allclose(lost, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=12)
@given(description=SMALL, seed=st.integers(0, 2**32 - 1))
def test_the_soft_response_is_what_an_optimiser_finds(description: Description, seed: int) -> None:
    """A quasi-Newton method on the logits of the policy, which knows nothing of dynamic programming."""
    game, log_prior, gain, c = soft_problem(description, seed)
    _, _, best = soft_response(game, log_prior, gain, c)

    def loss(logits: FloatArray) -> float:
        _, policy = normalise(logits.reshape(log_prior.shape))
        return -float(objective(game, policy, log_prior, gain, c).sum())

    found = minimize(loss, np.zeros(log_prior.size), method="BFGS", options={"gtol": 1e-7, "maxiter": 500})
    assert -found.fun == pytest.approx(best.sum(), abs=1e-8)


@settings(max_examples=40)
@given(description=descriptions(max_starts=3), seed=st.integers(0, 2**32 - 1))
def test_what_a_prior_lacks_is_passed_on(description: Description, seed: int) -> None:
    """An unnormalised prior is a normalised one and a gain of c_h times the log of its sum in that state."""
    game, log_prior, gain, c = soft_problem(description, seed)
    if game.terminal:
        return
    total = np.logaddexp.reduce(log_prior, axis=-1, keepdims=True)
    extra = np.concatenate([c[h] * total[:, layer] for h, layer in enumerate(game.layers)], axis=1)
    with_prior = soft_response(game, log_prior, gain, c)
    with_gain = soft_response(game, log_prior - total, gain + extra, c)
    for ours, theirs in zip(with_prior, with_gain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@settings(max_examples=30)
@given(data=st.data(), description=descriptions(max_starts=3))
def test_without_a_gain_the_prior_is_the_response(data: st.DataObject, description: Description) -> None:
    game = description.game()
    flat = game.flat(data.draw(policies(game.policy_shape)))
    gain = np.zeros_like(game.payoff(game.plan(flat)))
    for c in (None, [2.0] * game.horizon):
        log_pi, pi, best = soft_response(game, log_policy(flat), gain, c)
        np.testing.assert_allclose(pi, flat, rtol=1e-12, atol=1e-300)
        np.testing.assert_allclose(best, 0.0, atol=1e-13)
        assert np.isfinite(log_pi).all()


@settings(max_examples=30)
@given(data=st.data(), description=descriptions(max_starts=3))
def test_several_gains_share_a_pass(data: st.DataObject, description: Description) -> None:
    game = description.game()
    gains = [game.payoff(game.plan(game.flat(data.draw(policies(game.policy_shape))))) for _ in range(3)]
    together = backward_pass(game, np.concatenate(gains), lambda _, q: largest(q))
    apart = [backward_pass(game, gain, lambda _, q: largest(q)) for gain in gains]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-15)


# --- the gap of the regularised game ---


@settings(max_examples=60)
@given(data=st.data(), description=descriptions(max_starts=3), beta=BETAS)
def test_the_regularised_gap_is_the_difference_of_optima(
    data: st.DataObject, description: Description, beta: float
) -> None:
    """2β KL_p(π‖BR) = 2(max_d ⟨d, g⟩ − β KL_p(d‖μ) + β KL_p(π‖μ)): against itself π gets 0."""
    game = description.game()
    pi, mu = data.draw(policies(game.policy_shape, spread=5.0)), data.draw(references(game.policy_shape))
    flat, log_mu = game.flat(pi), np.log(game.flat(mu))
    plan = game.plan(flat)
    gain = game.payoff(plan)
    _, _, best = soft_response(game, log_mu, gain / beta)
    own = trajectory_kl(plan, log_policy(flat), log_mu)
    expected = float(game.initial_weights @ (2.0 * beta * (best + own)))
    gap = npf.duality_gap(game, pi, beta, mu)
    assert gap == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert gap == regularised_gap(game, log_policy(flat), plan, gain, beta, log_mu)
    assert gap >= 0.0


@settings(max_examples=15)
@given(data=st.data(), description=SMALL, beta=BETAS)
def test_the_regularised_gap_is_what_both_players_can_gain(
    data: st.DataObject, description: Description, beta: float
) -> None:
    """From trajectories alone: what the best response gets, less what the policy itself gets, twice."""
    game = description.game()
    pi, mu = (data.draw(policies(game.policy_shape, spread=2.0)) for _ in range(2))
    response = npf.best_response(game, pi, beta, mu)
    each = (array.reshape(-1, *description.shape) for array in (response, mu))
    gaps = []
    for (play, own), best, reference in zip(plays(description, pi), *each, strict=True):
        gained = value(play, best, own) - beta * divergence(play, best, reference)
        gained -= value(play, own, own) - beta * divergence(play, own, reference)
        gaps.append(2.0 * gained)
    assert npf.duality_gap(game, pi, beta, mu) == pytest.approx(
        average(description, gaps), rel=1e-9, abs=1e-13
    )


@settings(max_examples=40)
@given(data=st.data(), description=descriptions(max_starts=3), beta=BETAS)
def test_no_policy_does_better_than_the_best_response(
    data: st.DataObject, description: Description, beta: float
) -> None:
    game = description.game()
    pi, other = (data.draw(policies(game.policy_shape, spread=3.0)) for _ in range(2))
    mu = data.draw(references(game.policy_shape))
    response = game.flat(npf.best_response(game, pi, beta, mu))
    gain = game.payoff(game.plan(game.flat(pi)))
    log_mu, c = np.log(game.flat(mu)), [beta] * game.horizon
    best = objective(game, response, log_mu, gain, c)
    assert (best >= objective(game, game.flat(other), log_mu, gain, c) - 1e-12).all()


# --- back from occupancies ---


@settings(max_examples=40)
@given(data=st.data(), description=descriptions(max_starts=3))
def test_a_policy_is_that_of_its_occupancy(data: st.DataObject, description: Description) -> None:
    """Where it arrives; elsewhere the fallback."""
    game = description.game()
    pi = data.draw(policies(game.policy_shape, zeros=True))
    fallback = data.draw(policies(game.policy_shape))
    plan = game.plan(game.flat(pi))
    arrives = plan.sum(axis=-1, keepdims=True) > 0.0
    back = policy_of(game, plan, game.flat(fallback))
    np.testing.assert_allclose(back, np.where(arrives, game.flat(pi), game.flat(fallback)), atol=1e-12)
