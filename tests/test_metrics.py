"""Gaps and best responses against brute force."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import rel_entr, softmax

import nashpref as npf
from nashpref.testing import policies, preference_batches, preference_games, references

BETAS = st.sampled_from([0.01, 0.1, 1.0, 10.0])


@st.composite
def games_with_policies(draw: st.DrawFn, zeros: bool = False) -> tuple[npf.MatrixGame, Any, Any]:
    game = draw(preference_games())
    return game, draw(policies(game.n, zeros=zeros)), draw(references(game.n))


def regularised_win(P: Any, pi: Any, other: Any, beta: float, mu: Any) -> float:
    """P_β(π ≻ π') written out."""
    return float(pi @ P @ other - beta * rel_entr(pi, mu).sum() + beta * rel_entr(other, mu).sum())


@settings(max_examples=60)
@given(drawn=games_with_policies(zeros=True))
def test_unregularised_gap_by_enumeration_of_both_players(drawn: tuple[npf.MatrixGame, Any, Any]) -> None:
    game, pi, _ = drawn
    P = game.preferences
    assert npf.duality_gap(game, pi) == pytest.approx((P @ pi).max() - (pi @ P).min(), abs=1e-12)


@settings(max_examples=60)
@given(drawn=games_with_policies(zeros=True), beta=BETAS, seed=st.integers(0, 99))
def test_regularised_gap_is_both_players_best_deviation(
    drawn: tuple[npf.MatrixGame, Any, Any], beta: float, seed: int
) -> None:
    """2β KL(π‖BR_β(π)) = max_π' P_β(π' ≻ π) − min_π' P_β(π ≻ π'), both attained at the best response."""
    game, pi, mu = drawn
    P, gap = game.preferences, npf.duality_gap(game, pi, beta, mu)
    best = npf.best_response(game, pi, beta, mu)
    highest = regularised_win(P, best, pi, beta, mu)
    lowest = regularised_win(P, pi, best, beta, mu)
    scale = 1.0 + 60.0 * beta  # the KL terms that cancel in the textbook form are this large
    assert highest - lowest == pytest.approx(gap, abs=1e-12 * scale)
    rng = np.random.default_rng(seed)
    for other in (
        *rng.dirichlet(np.full(game.n, 0.3), 20),
        *softmax(np.log(best + 1e-300) + rng.normal(0.0, 1e-3, (5, game.n)), axis=-1),
    ):
        assert regularised_win(P, other, pi, beta, mu) <= highest + 1e-12 * scale
        assert regularised_win(P, pi, other, beta, mu) >= lowest - 1e-12 * scale


def test_regularised_gap_by_numerical_optimisation() -> None:
    rng = np.random.default_rng(3)
    game = npf.zoo.random_preferences(4, rng)
    pi, mu, beta = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4)), 0.2
    P = game.preferences
    highest = -minimize(lambda x: -regularised_win(P, softmax(x), pi, beta, mu), np.zeros(4), tol=1e-12).fun
    lowest = minimize(lambda x: regularised_win(P, pi, softmax(x), beta, mu), np.zeros(4), tol=1e-12).fun
    assert npf.duality_gap(game, pi, beta, mu) == pytest.approx(highest - lowest, abs=1e-10)


@settings(max_examples=40)
@given(game=preference_batches(), data=st.data(), beta=st.sampled_from([0.0, 0.1]))
def test_a_batch_is_its_games(game: npf.MatrixGame, data: st.DataObject, beta: float) -> None:
    pi, mu = data.draw(policies(game.policy_shape)), data.draw(references(game.policy_shape))
    gaps, responses = npf.duality_gap(game, pi, beta, mu), npf.best_response(game, pi, beta, mu)
    assert isinstance(gaps, np.ndarray)
    for b, P in enumerate(game.preferences):
        one = npf.MatrixGame(P)
        gap = npf.duality_gap(one, pi[b], beta, mu[b])
        assert isinstance(gap, float)
        assert gaps[b] == pytest.approx(gap, rel=1e-9, abs=1e-13)
        np.testing.assert_allclose(responses[b], npf.best_response(one, pi[b], beta, mu[b]), atol=1e-12)


def test_the_gap_is_both_sides_not_exploitability() -> None:
    game = npf.zoo.rock_paper_scissors()
    rock = np.array([1.0, 0.0, 0.0])
    assert npf.duality_gap(game, rock) == 1.0  # paper wins for sure: 1 − 0; exploitability is 1/2
    np.testing.assert_array_equal(npf.best_response(game, rock), [0.0, 0.0, 1.0])
    assert npf.duality_gap(game, np.full(3, 1 / 3)) == pytest.approx(0.0, abs=1e-16)


def test_best_response_shares_mass_among_exact_ties() -> None:
    game = npf.zoo.with_clones(npf.zoo.rock_paper_scissors(), 2)
    np.testing.assert_array_equal(npf.best_response(game, [1.0, 0.0, 0.0, 0.0]), [0.0, 0.0, 0.5, 0.5])


def test_best_response_is_the_closed_form_of_rlhf() -> None:
    game, mu = npf.zoo.bradley_terry([1.0, 0.0, -1.0]), np.array([0.2, 0.3, 0.5])
    reward = game.preferences @ mu
    expected = mu * np.exp(reward / 0.5)
    np.testing.assert_allclose(npf.best_response(game, mu, 0.5, mu), expected / expected.sum(), rtol=1e-14)


@settings(max_examples=30)
@given(drawn=games_with_policies(), beta=BETAS)
def test_zero_exactly_at_equilibrium(drawn: tuple[npf.MatrixGame, Any, Any], beta: float) -> None:
    game, pi, mu = drawn
    solved = npf.equilibrium(game, beta, mu)
    scale = beta * np.abs(np.log(mu)).max()
    assert npf.duality_gap(game, solved.policy, beta, mu) <= 1e-14 * (1.0 + scale)
    distance = np.abs(pi - solved.policy).sum()
    # Gap_β(π) ≥ 2β KL(π‖π*_β) by strong convexity, ≥ β‖π − π*_β‖₁² by Pinsker
    assert npf.duality_gap(game, pi, beta, mu) >= beta * distance**2 * (1.0 - 1e-6) - 1e-25


@pytest.mark.parametrize("metric", [npf.duality_gap, npf.best_response])
def test_bad_inputs(metric: Any) -> None:
    game = npf.zoo.rock_paper_scissors()
    fair = np.full(3, 1 / 3)
    for beta in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"beta = {beta}"):
            metric(game, fair, beta)
    with pytest.raises(ValueError, match=r"reference\[2\] = 0.0 is zero"):
        metric(game, fair, 0.1, [0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"policy sums to 0\.9"):
        metric(game, [0.3, 0.3, 0.3])
    with pytest.raises(ValueError, match=r"policy has shape \(2,\)"):
        metric(game, [0.5, 0.5])
