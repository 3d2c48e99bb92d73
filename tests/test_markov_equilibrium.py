"""Equilibria of Markov games: certificates by brute force, other solvers, and the games they reduce to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator

import nashpref as npf
from nashpref.exact import markov_equilibrium, markov_interior_point, markov_regularised, stages
from nashpref.exact.markov_equilibrium import started_in
from nashpref.exact.markov_interior_point import interior_point
from nashpref.exact.markov_linear_program import formulate, linear_program
from nashpref.exact.markov_mirror_descent import mirror_descent
from nashpref.occupancy import flow_constraints, occupancy
from nashpref.policies import FloatArray, uniform
from nashpref.testing import markov_games, policies, references

BETAS = (1.0, 0.1, 0.01, 1e-3)
random_game = npf.zoo.random_markov_game


def largest_gap(game: npf.MarkovGame) -> float:
    """What solvers measure themselves by: no policy has a gap above twice this."""
    return sum(float(A.max(initial=0.0)) for A in game.payoffs)


# --- brute force ---


def pure_plans(game: npf.MarkovGame) -> FloatArray:
    """The occupancy measure of every deterministic policy of a game with one initial state, `(K, N, A)`."""
    _, N, A = game.flat_shape
    choices = itertools.product(range(A), repeat=N)
    return np.concatenate([game.plan(np.eye(A)[list(choice)][None]) for choice in choices])


def payoff(game: npf.MarkovGame, d: FloatArray, opponents: FloatArray) -> FloatArray:
    """The centred payoff of d, `(N, A)`, against each opponent, by the bilinear form."""
    if game.terminal:
        f, last = game.transitions[-1], game.layers[-1]
        ends = [m[last].ravel() @ f for m in (d, *opponents)]
        return np.array([ends[0] @ game.payoffs[0] @ end for end in ends[1:]])
    return np.array(
        [
            sum(d[h].ravel() @ A @ e[h].ravel() for h, A in zip(game.layers, game.payoffs, strict=True))
            for e in opponents
        ]
    )


@settings(max_examples=25)
@given(st.data())
def test_the_gap_is_what_the_best_deterministic_policies_gain(data: st.DataObject) -> None:
    game = data.draw(markov_games(max_horizon=2, max_states=2, max_actions=2, max_starts=1))
    policy = data.draw(policies(game.policy_shape))
    d = game.plan(game.flat(policy))[0]
    against = payoff(game, d, pure_plans(game))
    assert npf.duality_gap(game, policy) == pytest.approx(-2.0 * min(0.0, against.min()), abs=1e-12)
    response = game.plan(game.flat(npf.best_response(game, policy)))
    assert payoff(game, d, response)[0] == pytest.approx(against.min(), abs=1e-12)


@settings(max_examples=40)
@given(game=markov_games(max_horizon=2, max_states=3, max_actions=2, max_starts=1))
def test_no_deterministic_policy_gains_against_the_equilibrium(game: npf.MarkovGame) -> None:
    result = npf.equilibrium(game)
    d = game.plan(game.flat(result.policy))[0]
    assert payoff(game, d, pure_plans(game)).min() >= -1e-11
    assert result.gap == npf.duality_gap(game, result.policy)
    assert result.value == (0.5 if game.terminal else 0.5 * game.horizon)


def test_the_equilibrium_is_one_of_the_matrix_game_of_all_plans() -> None:
    """On a game that mixes: the mixture of deterministic policies that wins there has its occupancy."""
    game = random_game(2, 2, 2, np.random.default_rng(3))
    plans = pure_plans(game)
    A = np.array([payoff(game, d, plans) for d in plans])
    mixture = npf.equilibrium(npf.MatrixGame(0.5 + A)).policy
    d = np.tensordot(mixture, plans, 1)
    ours = occupancy(game, npf.equilibrium(game).policy)
    np.testing.assert_allclose(game.flat(ours)[0], d, atol=1e-8)


# --- certificates ---


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("shape", [(3, 3, 1), (5, 3, 3), (10, 10, 3), (30, 2, 10), (50, 5, 5)])
def test_random_games_are_solved_to_rounding(shape: tuple[int, int, int], terminal: bool) -> None:
    game = random_game(*shape, np.random.default_rng(0), terminal=terminal)
    result = npf.equilibrium(game)
    assert result.method == "interior point"
    assert result.gap <= 1e-12
    assert npf.duality_gap(game, result.policy) <= 1e-12


@pytest.mark.parametrize("terminal", [False, True])
def test_larger_sparse_games_are_solved_to_rounding(terminal: bool) -> None:
    game = random_game(150, 4, 4, np.random.default_rng(1), terminal=terminal, branching=3)
    assert game.layers[-1].stop > 250
    result = npf.equilibrium(game)
    assert result.method == "interior point"
    assert result.gap <= 1e-11


@settings(max_examples=50)
@given(game=markov_games(max_horizon=4, max_starts=1))
def test_games_of_every_kind_are_solved(game: npf.MarkovGame) -> None:
    result = npf.equilibrium(game)
    assert result.method in ("interior point", "linear program")
    assert result.gap <= 1e-10 * largest_gap(game)


def test_margins_of_any_size_are_told_apart() -> None:
    game = random_game(5, 3, 3, np.random.default_rng(4))
    P = [0.5 + 1e-9 * A.reshape(len(A) // 3, 3, -1, 3) for A in game.payoffs]
    small = npf.MarkovGame(np.full((5, 3, 5), 0.2), np.stack([P[1], P[2], P[1]]), 0, horizon=3)
    assert npf.equilibrium(small).gap <= 1e-12 * largest_gap(small)
    assert npf.duality_gap(small, uniform(small.policy_shape)) >= 1e-2 * largest_gap(small)


@pytest.mark.parametrize("terminal", [False, True])
def test_rare_states_are_no_obstacle(terminal: bool) -> None:
    """States that the uniform policy meets with probabilities down to 1e-40."""
    S, A, H = 8, 3, 4
    for seed in (5, 6, 7):
        rng = np.random.default_rng(seed)
        T = rng.dirichlet(np.full(S, 0.02), (H, S, A))
        n = S if terminal else S * A
        P = npf.zoo.random_preferences(n, rng).preferences
        game = npf.MarkovGame(T, P if terminal else P.reshape(S, A, S, A), 0)
        assert 0.0 < game.plan(uniform(game.flat_shape)).min() < 1e-13
        result = npf.equilibrium(game)
        assert (result.method, result.gap <= 1e-11) == ("interior point", True)


# --- what it reduces to ---


def test_one_step_is_the_matrix_game() -> None:
    for seed in range(5):
        matrix = npf.zoo.random_preferences(7, np.random.default_rng(seed))
        mu = np.random.default_rng(seed).dirichlet(np.ones(7))
        game = npf.MarkovGame.from_matrix(matrix)
        plain = npf.equilibrium(matrix)
        np.testing.assert_allclose(npf.equilibrium(game).policy[0, 0], plain.policy, atol=1e-10)
        for beta in BETAS:
            expected = npf.equilibrium(matrix, beta, mu).policy
            ours = npf.equilibrium(game, beta, mu).policy[0, 0]
            np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-14)


def leaves(game: npf.MarkovGame, policy: FloatArray) -> FloatArray:
    """The distribution of complete strings of a token game."""
    last = game.flat(occupancy(game, policy))[:, game.layers[-1]]
    return np.asarray(game.forward(game.horizon - 1, last.reshape(1, -1))[0])


def test_a_deterministic_tree_is_the_matrix_game_of_its_leaves() -> None:
    rng = np.random.default_rng(6)
    matrix = npf.zoo.random_preferences(8, rng)
    game = npf.zoo.token_game("ab", 3, matrix.preferences)
    plain = npf.equilibrium(game)
    assert plain.gap <= 1e-12
    np.testing.assert_allclose(leaves(game, plain.policy), npf.equilibrium(matrix).policy, atol=1e-9)
    mu = rng.dirichlet(np.ones(2), game.policy_shape[:-1])
    for beta in BETAS:
        ours = npf.equilibrium(game, beta, mu)
        expected = npf.equilibrium(matrix, beta, leaves(game, mu)).policy
        np.testing.assert_allclose(leaves(game, ours.policy), expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("terminal", [False, True])
def test_every_initial_state_has_its_own_equilibrium(terminal: bool) -> None:
    rng = np.random.default_rng(7)
    S, A, H = 6, 2, 3
    # Each state moves two on, or stays: from one initial state only half of the others are reached.
    T = np.zeros((S, A, S))
    for s in range(S):
        T[s, 0, (s + 2) % S] = 1.0
        T[s, 1, [s, (s + 2) % S]] = 0.5
    n = S if terminal else S * A
    skew = np.triu(rng.random((n, n)) - 0.5, 1)
    P = 0.5 + skew - skew.T
    P = P if terminal else P.reshape(S, A, S, A)
    rho = np.array([0.2, 0.3, 0.5, 0.0, 0.0, 0.0])
    game = npf.MarkovGame(T, P, rho, horizon=H)
    mu = rng.dirichlet(np.ones(A), (H, S))
    for beta in (0.0, 0.05):
        joint = npf.equilibrium(game, beta, mu)
        alone = [npf.equilibrium(npf.MarkovGame(T, P, s, horizon=H), beta, mu) for s in range(3)]
        assert joint.policy.shape == (3, H, S, A)
        assert joint.method == tuple(one.method for one in alone)
        for s in range(3):
            np.testing.assert_allclose(joint.policy[s], alone[s].policy, atol=1e-10)
        assert joint.gap <= 1e-12
        assert joint.gap == pytest.approx(npf.duality_gap(game, joint.policy, beta, mu), abs=1e-20)
        np.testing.assert_array_equal(joint.policy[0, :, 1], mu[:, 1])  # odd states: never reached from 0


@settings(max_examples=30)
@given(st.data())
def test_the_game_from_one_initial_state_is_the_same_game(data: st.DataObject) -> None:
    game = data.draw(markov_games(max_starts=3))
    policy = data.draw(policies(game.policy_shape))
    gap = 0.0
    for k, own in enumerate(game.reached_from):
        one = started_in(game, k)
        flat = game.flat(policy)[k : k + 1, own]
        np.testing.assert_allclose(one.plan(flat), game.plan(game.flat(policy))[k : k + 1, own], atol=1e-15)
        gap += game.initial_weights[k] * float(npf.duality_gap(one, one.full(flat, 1.0 / game.actions)))
    assert gap == pytest.approx(npf.duality_gap(game, policy), abs=1e-13)


# --- against other solvers ---


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("method", ["highs-ipm", "highs"])
def test_the_linear_program_agrees(terminal: bool, method: str) -> None:
    game = random_game(8, 3, 4, np.random.default_rng(8), terminal=terminal)
    flat = linear_program(game, method)
    assert npf.duality_gap(game, game.full(flat, 1.0 / 3.0)) <= 1e-9
    ours = npf.equilibrium(game).policy
    np.testing.assert_allclose(game.full(game.plan(flat), 0.0), occupancy(game, ours), atol=1e-7)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_linear_program_is_its_own_dual(terminal: bool) -> None:
    program = formulate(random_game(4, 3, 3, np.random.default_rng(9), terminal=terminal))
    assert abs(program.A + program.A.T).max() == 0.0
    assert program.A.shape == (program.E.shape[1],) * 2


@pytest.mark.parametrize("terminal", [False, True])
def test_the_program_of_the_lecture_agrees(terminal: bool) -> None:
    pytest.importorskip("cvxpy")
    from nashpref.exact.occupancy_program import nash_program

    game = random_game(4, 3, 3, np.random.default_rng(10), terminal=terminal)
    d, value = nash_program(game)
    assert value == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(game.plan(game.flat(npf.equilibrium(game).policy)), d, atol=1e-4)


# --- regularised ---


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("shape", [(3, 3, 1), (5, 3, 3), (50, 5, 5)])
def test_regularised_equilibria_to_rounding(shape: tuple[int, int, int], terminal: bool) -> None:
    rng = np.random.default_rng(11)
    game = random_game(*shape, rng, terminal=terminal)
    mu = rng.dirichlet(np.ones(shape[1]), game.policy_shape[:-1])
    for beta in (*BETAS, 1e-5):
        result = npf.equilibrium(game, beta, mu)
        assert result.method == "newton"
        assert result.gap <= 1e-14
        assert npf.duality_gap(game, result.policy, beta, mu) <= 1e-14
        response = npf.best_response(game, result.policy, beta, mu)
        np.testing.assert_allclose(occupancy(game, response), occupancy(game, result.policy), atol=1e-6)


@settings(max_examples=25)
@given(st.data())
def test_regularised_games_of_every_kind_are_solved(data: st.DataObject) -> None:
    game = data.draw(markov_games(max_horizon=4))
    mu = data.draw(references(game.policy_shape))
    for beta in (1.0, 1e-3, 1e-5):
        result = npf.equilibrium(game, beta, mu)
        assert set(np.atleast_1d(result.method)) == {"newton"}
        assert result.gap <= 1e-12


def test_the_regularised_path_ends_at_the_equilibrium() -> None:
    game = random_game(5, 3, 3, np.random.default_rng(12))
    exact = occupancy(game, npf.equilibrium(game).policy)
    distances = [
        np.abs(occupancy(game, npf.equilibrium(game, beta).policy) - exact).max()
        for beta in (1e-2, 1e-4, 1e-6)
    ]
    assert distances[0] > 1e-2
    assert distances[1] < 1e-2
    assert distances[2] < 1e-5


# --- a stated certificate ---


@pytest.mark.parametrize("terminal", [False, True])
def test_tol_is_met_by_whoever_gets_there_first(terminal: bool) -> None:
    game = random_game(20, 4, 4, np.random.default_rng(13), terminal=terminal)
    quick, exact = npf.equilibrium(game, tol=0.05), npf.equilibrium(game, tol=1e-9)
    assert quick.method == "optimistic mirror descent"
    assert 1e-6 < quick.gap <= 0.05
    assert exact.method == "interior point"
    assert exact.gap <= 1e-9
    assert quick.gap == npf.duality_gap(game, quick.policy)


def test_the_interior_point_stops_at_tol(monkeypatch: pytest.MonkeyPatch) -> None:
    game = random_game(20, 4, 4, np.random.default_rng(13))
    calls = count_calls(monkeypatch, markov_interior_point, "solve_stages")
    interior_point(game, 1e-3)
    early = len(calls)
    interior_point(game, 0.0)
    assert early < (len(calls) - early) / 1.5


@pytest.mark.parametrize("terminal", [False, True])
def test_mirror_descent_reaches_any_certificate_given_time(terminal: bool) -> None:
    game = random_game(6, 3, 3, np.random.default_rng(14), terminal=terminal)
    gaps = []
    for products in (10, 100, 1000, 10_000):
        policy = mirror_descent(game, 1e-3, products)
        gaps.append(npf.duality_gap(game, game.full(policy, 1.0 / 3.0)))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] <= 1e-3 < gaps[0]


def test_tol_is_without_effect_on_what_is_solved_exactly() -> None:
    matrix = npf.zoo.random_preferences(5, np.random.default_rng(0))
    np.testing.assert_array_equal(npf.equilibrium(matrix, tol=0.1).policy, npf.equilibrium(matrix).policy)
    game = random_game(4, 3, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(
        npf.equilibrium(game, 0.1, tol=0.1).policy, npf.equilibrium(game, 0.1).policy
    )


# --- failures are named ---


def test_the_linear_program_takes_over_where_the_interior_point_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    game = random_game(5, 3, 3, np.random.default_rng(15))
    monkeypatch.setattr(markov_equilibrium, "interior_point", lambda game, tol: uniform(game.flat_shape))
    result = npf.equilibrium(game)
    assert (result.method, result.gap <= 1e-9) == ("linear program", True)
    monkeypatch.setattr(markov_equilibrium, "LP_ROWS", 10)
    result = npf.equilibrium(game)
    assert result.method == "interior point, not converged"
    assert result.gap == npf.duality_gap(game, uniform(game.policy_shape)) > 0.1


def test_a_singular_system_gets_a_proximal_term(monkeypatch: pytest.MonkeyPatch) -> None:
    game = random_game(5, 3, 3, np.random.default_rng(16))
    solve = stages.solve_stages
    weights: list[FloatArray] = []

    def sometimes_singular(game: npf.MarkovGame, inverse: FloatArray, *rest: Any) -> Any:
        weights.append(inverse)
        if len(weights) % 3 == 0:
            raise np.linalg.LinAlgError
        return solve(game, inverse, *rest)

    monkeypatch.setattr(markov_interior_point, "solve_stages", sometimes_singular)
    assert npf.equilibrium(game).gap <= 1e-12
    monkeypatch.setattr(markov_interior_point, "solve_stages", raising(np.linalg.LinAlgError))
    assert npf.equilibrium(game).method == "linear program"


def test_a_path_that_is_given_up_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    game = random_game(5, 3, 3, np.random.default_rng(17))
    monkeypatch.setattr(markov_regularised, "MAX_STEPS", 3)
    result = npf.equilibrium(game, 1e-3)
    assert result.method == "newton, not converged"
    assert result.gap > 0.0


def test_bad_input_is_refused() -> None:
    game = random_game(3, 2, 2, np.random.default_rng(18))
    for beta in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="beta = "):
            npf.equilibrium(game, beta)
    with pytest.raises(ValueError, match=r"beta = 1e-15.*beta=0 is the game to solve"):
        npf.equilibrium(game, 1e-15)
    for tol in (-1e-3, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"tol = .*finite and ≥ 0"):
            npf.equilibrium(game, tol=tol)
    with pytest.raises(ValueError, match="max_entropy is for matrix games"):
        npf.equilibrium(game, max_entropy=True)
    with pytest.raises(ValueError, match="positive everywhere"):
        npf.equilibrium(game, 0.1, [0.0, 1.0])
    with pytest.raises(ValueError, match="reference has shape"):
        npf.equilibrium(game, 0.1, np.full((4, 2), 0.5))


# --- the linear algebra that both solvers share ---


@pytest.mark.parametrize("wide", [0, 10**6])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("branching", [None, 2])
def test_stages_solve_the_equations(
    monkeypatch: pytest.MonkeyPatch, wide: int, terminal: bool, branching: int | None
) -> None:
    """Against one dense system for everything, with spreads of Θ that an interior point has on its way."""
    monkeypatch.setattr(stages, "WIDE", wide)
    rng = np.random.default_rng(19)
    game = random_game(5, 3, 4, rng, terminal=terminal, branching=branching)
    _, N, A = game.flat_shape
    k = 2
    inverse = 10.0 ** rng.uniform(-3.0, 3.0, (N, A))
    right, kappa = rng.standard_normal((k, N, A)), rng.random(N)
    final = rng.standard_normal((k, len(game.reached[-1]))) if terminal else None
    keep = rng.random((N, A)) < 0.8
    keep[0, 0] = True
    x, V = stages.solve_stages(game, inverse, right, final, kappa, keep)
    assert not x[:, ~keep].any()
    assert not V[:, ~keep.any(axis=1)].any()
    np.testing.assert_allclose(
        np.concatenate([x.reshape(k, -1), V], axis=1),
        dense_solution(game, inverse, right, final, kappa, keep),
        rtol=1e-6,
        atol=1e-8,
    )


def dense_solution(
    game: npf.MarkovGame,
    inverse: FloatArray,
    right: FloatArray,
    final: FloatArray | None,
    kappa: FloatArray,
    keep: Any,
) -> FloatArray:
    """x and V, `(k, N·A + N)`; what does not take part is zero."""
    _, N, A = game.flat_shape
    n, k = N * A, len(right)
    E = flow_constraints(game)[0].toarray()
    own = np.repeat(np.eye(N), A, axis=0)
    payoffs, r = np.zeros((n, n)), right.reshape(k, n).copy()
    if game.terminal:
        f, last = np.zeros((n, len(game.reached[-1]))), game.layers[-1].start * A
        T = game.transitions[-1]
        f[last:] = T if isinstance(T, np.ndarray) else T.toarray()
        payoffs = f @ game.payoffs[0] @ f.T
        assert final is not None
        r += final @ f.T
    else:
        for layer, P in zip(game.layers, game.payoffs, strict=True):
            places = slice(layer.start * A, layer.stop * A)
            payoffs[places, places] = P
    matrix = np.zeros((n + N, n + N))
    matrix[:n, :n] = np.diag(1.0 / inverse.ravel()) - payoffs - own @ np.diag(kappa) @ own.T
    matrix[:n, n:], matrix[n:, :n] = E.T, E
    unknown = np.concatenate([keep.ravel(), keep.any(axis=1)])
    known = np.concatenate([r, np.zeros((k, N))], axis=1)
    solution = np.zeros((k, n + N))
    solution[:, unknown] = np.linalg.solve(matrix[np.ix_(unknown, unknown)], known[:, unknown].T).T
    return solution


@pytest.mark.parametrize("wide", [0, 10**6])
def test_both_forms_of_a_step_without_payoffs_solve_games(monkeypatch: pytest.MonkeyPatch, wide: int) -> None:
    monkeypatch.setattr(stages, "WIDE", wide)
    for seed in range(3):
        game = random_game(12, 3, 4, np.random.default_rng(seed), terminal=True, branching=3)
        assert npf.equilibrium(game).gap <= 1e-11
        assert npf.equilibrium(game, 1e-4).gap <= 1e-14


# --- helpers ---


def raising(error: type[Exception]) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:
    calls: list[None] = []
    function = getattr(module, name)

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(None)
        return function(*args, **options)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_generator_is_not_touched() -> None:
    """Equilibria are computed, not sampled: the same to the last bit."""
    game = random_game(6, 3, 3, Generator(np.random.PCG64(0)))
    runs: list[dict[str, float]] = [{}, {"beta": 0.01}, {"tol": 1e-2}]
    for options in runs:
        np.testing.assert_array_equal(
            npf.equilibrium(game, **options).policy,  # type: ignore[arg-type]
            npf.equilibrium(game, **options).policy,  # type: ignore[arg-type]
        )
