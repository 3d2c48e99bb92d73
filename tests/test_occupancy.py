"""The Bellman-flow polytope, its policies, and the projection onto it, against cvxpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator

import nashpref as npf
from nashpref.dynamic_programming import backward_pass, soft_response, trajectory_kl
from nashpref.occupancy import flow_constraints, occupancy, policy_of_occupancy
from nashpref.policies import FloatArray, normalise
from nashpref.testing import markov_games, policies


@settings(max_examples=20)
@given(st.data())
def test_the_flow_polytope_is_the_set_of_occupancy_measures(data: st.DataObject) -> None:
    game = data.draw(markov_games())
    E, b = flow_constraints(game)
    S1, N, A = game.flat_shape
    assert E.shape == (N, N * A)
    assert b.shape == (S1, N)
    d = game.flat(occupancy(game, data.draw(policies(game.policy_shape))))
    for k in range(S1):
        np.testing.assert_allclose(E @ d[k].ravel(), b[k], atol=1e-12)
    # Another measure with the same marginals of states, but not the same flow, is outside.
    if game.horizon > 1 and A > 1:
        last = game.layers[-1]
        wrong = d.copy()
        wrong[0, last] = np.roll(d[0, last], 1, axis=0) + 0.1
        assert np.abs(E @ wrong[0].ravel() - b[0]).max() > 1e-3


@settings(max_examples=20)
@given(st.data())
def test_the_transposed_constraints_are_the_bellman_operator(data: st.DataObject) -> None:
    game = data.draw(markov_games(max_starts=1))
    E, _ = flow_constraints(game)
    V = np.random.default_rng(0).standard_normal(game.flat_shape[1])
    backed_up = (E.T @ V).reshape(game.flat_shape)
    for h, layer in enumerate(game.layers):
        later = game.backward(h, V[None, game.layers[h + 1]]) if h + 1 < game.horizon else 0.0
        np.testing.assert_allclose(backed_up[:, layer] + later - V[None, layer, None], 0.0, atol=1e-12)


@settings(max_examples=20)
@given(st.data())
def test_policy_and_occupancy_determine_each_other(data: st.DataObject) -> None:
    game = data.draw(markov_games())
    policy = data.draw(policies(game.policy_shape))
    back = policy_of_occupancy(game, occupancy(game, policy), policy)
    np.testing.assert_allclose(back, policy, atol=1e-9)


def test_what_is_no_occupancy_measure_is_refused() -> None:
    game = npf.zoo.random_markov_game(3, 2, 2, np.random.default_rng(0))
    d = occupancy(game, np.full(game.policy_shape, 0.5))
    with pytest.raises(ValueError, match=r"measure has shape \(2, 3\)"):
        policy_of_occupancy(game, d[0, ..., 0][None].repeat(2, 0))
    for value in (-1e-3, np.nan):
        wrong = d.copy()
        wrong[1, 2, 1] = value
        with pytest.raises(ValueError, match=r"measure\[1, 2, 1\]"):
            policy_of_occupancy(game, wrong)
    wrong = d.copy()
    wrong[1, 2] += 0.01
    with pytest.raises(ValueError, match=r"measure\[1, 2\] is not what flows"):
        policy_of_occupancy(game, wrong)


# --- the Bregman projection of a mirror step ---


def projections(rng: Generator, terminal: bool) -> tuple[npf.MarkovGame, FloatArray, FloatArray]:
    """A game, a prior that is not normalised, and gains of the size of the temperatures."""
    game = npf.zoo.random_markov_game(4, 3, 3, rng, terminal=terminal)
    log_prior = np.log(rng.dirichlet(np.ones(3), game.flat_shape[:2])) + rng.normal(0.0, 0.3, game.flat_shape)
    shape = (1, len(game.reached[-1])) if terminal else game.flat_shape
    return game, log_prior, 3.0 * rng.standard_normal(shape)


def weightings(H: int) -> list[list[float] | None]:
    return [None, list(np.arange(H, 0.0, -1.0))]


@pytest.mark.parametrize("terminal", [False, True])
def test_soft_response_is_the_projection_that_cvxpy_finds(terminal: bool) -> None:
    cvx = pytest.importorskip("nashpref.exact.occupancy_program")
    pytest.importorskip("cvxpy")
    game, log_prior, gain = projections(np.random.default_rng(1), terminal)
    for temperature in weightings(game.horizon):
        log_pi, pi, value = soft_response(game, log_prior, gain, temperature)
        d, maximum = cvx.projection_program(game, log_prior, gain, temperature)
        assert value[0] == pytest.approx(maximum, abs=1e-6)
        np.testing.assert_allclose(game.plan(pi), d, atol=1e-4)
        # And the value is that of the policy, term by term.
        plan = game.plan(pi)
        cost = weighted_cost(game, plan, log_pi, log_prior, temperature)
        assert value[0] == pytest.approx(earned(game, plan, gain) - cost, abs=1e-12)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_temperature_that_theorem_8_prints_misses_the_projection(terminal: bool) -> None:
    """arXiv:2502.12678 gives V_{h+1} the temperature of step h; with equal ones that is the same."""
    game, log_prior, gain = projections(np.random.default_rng(1), terminal)
    unit, paper = weightings(game.horizon)
    _, pi, _ = soft_response(game, log_prior, gain, unit)
    np.testing.assert_allclose(as_printed(game, log_prior, gain, [1.0] * game.horizon), pi, atol=1e-12)
    assert paper is not None
    _, right, value = soft_response(game, log_prior, gain, paper)
    printed = as_printed(game, log_prior, gain, paper)
    plan = game.plan(printed)
    objective = earned(game, plan, gain) - weighted_cost(game, plan, np.log(printed), log_prior, paper)
    assert objective < value[0] - 1e-4  # a hundred times what cvxpy is held to above
    assert np.abs(plan - game.plan(right)).max() > 1e-3


def as_printed(game: npf.MarkovGame, log_prior: FloatArray, gain: FloatArray, c: list[float]) -> FloatArray:
    """The backward pass of Theorem 8 as it stands."""
    pi = np.empty_like(log_prior)

    def backup(h: int, q: FloatArray) -> FloatArray:
        layer, before = game.layers[h], c[max(h - 1, 0)]
        _, pi[:, layer] = normalise(log_prior[:, layer] + q / c[h])
        return np.asarray(before * np.logaddexp.reduce(log_prior[:, layer] + q / before, axis=-1))

    backward_pass(game, gain, backup)
    return pi


def earned(game: npf.MarkovGame, plan: FloatArray, gain: FloatArray) -> float:
    if game.terminal:
        plan = game.forward(game.horizon - 1, plan[:, game.layers[-1]].reshape(1, -1))
    return float(np.vdot(plan, gain))


def weighted_cost(
    game: npf.MarkovGame,
    plan: FloatArray,
    log_pi: FloatArray,
    log_prior: FloatArray,
    c: list[float] | None,
) -> float:
    """`Σ_h c_h Σ_s d_h(s) Σ_a π (log π − log p)`, by the definition: p need not be normalised."""
    weights = np.ones(game.horizon) if c is None else c
    return sum(
        weight * float((plan[:, layer] * (log_pi - log_prior)[:, layer]).sum())
        for weight, layer in zip(weights, game.layers, strict=True)
    )


def test_the_cost_of_a_normalised_prior_is_the_trajectory_kl() -> None:
    rng = np.random.default_rng(2)
    game = npf.zoo.random_markov_game(4, 3, 3, rng)
    log_pi, log_mu = np.log(rng.dirichlet(np.ones(3), (2, *game.flat_shape[:2])))
    plan = game.plan(np.exp(log_pi))
    assert trajectory_kl(plan, log_pi, log_mu)[0] == pytest.approx(
        weighted_cost(game, plan, log_pi, log_mu, None), abs=1e-12
    )
