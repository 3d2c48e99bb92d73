"""KL-regularised equilibria against brute force, closed forms, cvxpy and their own certificate."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nashpref.equilibrium import equilibrium
from nashpref.exact.cone_program import exponential_cone
from nashpref.exact.regularised import solve_regularised
from nashpref.games.matrix import MatrixGame
from nashpref.metrics import regularised_gap, unregularised_gap
from nashpref.policies import kl, normalise

BETAS = (1.0, 0.1, 0.01, 0.001)


def skew(upper):
    upper = np.triu(upper, 1)
    return upper - np.swapaxes(upper, -1, -2)


def game(kind, n, rng):
    """Skew payoffs in [−½, ½]."""
    if kind == "uniform":
        return skew(rng.random((n, n)) - 0.5)
    if kind == "tournament":
        return skew(rng.choice([-0.5, 0.5], (n, n)))
    if kind == "bradley_terry":
        rewards = rng.normal(size=n)
        return skew(1.0 / (1.0 + np.exp(rewards[None] - rewards[:, None])) - 0.5)
    if kind == "quantised":
        return skew(np.round(rng.random((n, n)) - 0.5, 1))
    if kind == "tied":
        return skew(rng.choice([-0.5, 0.0, 0.5], (n, n), p=[0.1, 0.8, 0.1]))
    if kind == "clones":
        originals = rng.integers(0, max(n // 3, 1), n)
        return skew(rng.random((n, n)) - 0.5)[np.ix_(originals, originals)]
    if kind == "nearly_tied":
        return 1e-9 * skew(rng.random((n, n)) - 0.5)
    assert kind == "partly_nearly_tied"
    return skew(0.499 * rng.choice([-1.0, 0.0, 1.0], (n, n)) + 1e-7 * rng.random((n, n)))


KINDS = (
    "uniform",
    "tournament",
    "bradley_terry",
    "quantised",
    "tied",
    "clones",
    "nearly_tied",
    "partly_nearly_tied",
)


def random_log_reference(n, rng, shape=()):
    return normalise(rng.normal(size=(*shape, n)))[0]


def residual(A, beta, log_mu, log_pi):
    """log π − log μ − A π/β, centred: zero exactly at equilibrium."""
    F = log_pi - log_mu - np.exp(log_pi) @ A.T / beta
    return F - np.sum(np.exp(log_pi) * F)


@st.composite
def problems(draw, largest=30):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, largest))
    A = game(draw(st.sampled_from(KINDS)), n, rng)
    concentration = draw(st.sampled_from([0.1, 1.0, 10.0]))
    mu = rng.dirichlet(np.full(n, concentration)) + 1e-30
    return A, normalise(np.log(mu))[0]


@settings(max_examples=60)
@given(problems(), st.sampled_from((1e6, *BETAS, 1e-4, 1e-5, 1e-6)))
def test_gap_is_certified_below_1e_20(problem, beta):
    A, log_mu = problem
    solution = solve_regularised(A, beta, log_mu)
    assert np.logaddexp.reduce(solution.log_policy) == pytest.approx(0.0, abs=1e-13)
    own = regularised_gap(solution.log_policy, A @ np.exp(solution.log_policy), beta, log_mu)
    assert 0.0 <= own <= 1e-20
    assert solution.gap == pytest.approx(own, rel=0.5, abs=1e-24)


@settings(max_examples=40)
@given(problems(), st.sampled_from(BETAS))
def test_fixed_point_holds_for_every_response(problem, beta):
    """`log π = log μ + A π/β + c`, also where π is far below the smallest float that the gap can see."""
    A, log_mu = problem
    solution = solve_regularised(A, beta, log_mu)
    assert np.abs(residual(A, beta, log_mu, solution.log_policy)).max() <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", BETAS)
def test_hundreds_of_responses(kind, beta):
    rng = np.random.default_rng(7)
    A, log_mu = game(kind, 300, rng), random_log_reference(300, rng)
    solution = solve_regularised(A, beta, log_mu)
    assert solution.gap <= 1e-20
    assert solution.steps <= {1.0: 3, 0.1: 5, 0.01: 9, 0.001: 20}[beta]


@pytest.mark.parametrize("beta", BETAS)
def test_a_thousand_responses(beta):
    rng = np.random.default_rng(8)
    A = game("uniform", 1000, rng)
    assert solve_regularised(A, beta, random_log_reference(1000, rng)).gap <= 1e-20


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([3.0, 1.0, 0.1]))
def test_gap_identity(seed, n, beta):
    """max_π' P_β(π' ≻ π) − min_π' P_β(π ≻ π') = 2β KL(π‖BR(π)), both optima in their closed form."""
    rng = np.random.default_rng(seed)
    A, log_mu = game("uniform", n, rng), random_log_reference(n, rng)
    log_pi, pi = normalise(2.0 * rng.normal(size=n))
    penalty = beta * float(kl(log_pi, log_mu))
    best = 0.5 + beta * np.logaddexp.reduce(log_mu + A @ pi / beta) + penalty
    worst = 0.5 - beta * np.logaddexp.reduce(log_mu - A.T @ pi / beta) - penalty
    assert regularised_gap(log_pi, A @ pi, beta, log_mu) == pytest.approx(best - worst, abs=1e-12)
    for other in rng.dirichlet(np.ones(n), 20):
        value = 0.5 + other @ A @ pi - beta * float(kl(np.log(other), log_mu)) + penalty
        assert value <= best + 1e-12


@pytest.mark.parametrize("kind", ["uniform", "tied", "clones"])
@pytest.mark.parametrize("beta", [1.0, 0.1, 0.01])
def test_agrees_with_the_cone_program(kind, beta):
    pytest.importorskip("cvxpy")
    rng = np.random.default_rng(3)
    A, log_mu = game(kind, 12, rng), random_log_reference(12, rng)
    policy = np.exp(solve_regularised(A, beta, log_mu).log_policy)
    assert np.abs(policy - exponential_cone(A, beta, log_mu)).max() <= 1e-4


@pytest.mark.parametrize("beta", [1e6, 1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("n", [3, 5, 9])
def test_a_cycle_with_a_uniform_reference_stays_uniform(n, beta):
    beats = (np.arange(n) - np.arange(n)[:, None]) % n
    A = np.where(beats == 0, 0.0, np.where(beats <= n // 2, 0.5, -0.5))
    solution = solve_regularised(A, beta, np.zeros(n))
    assert np.exp(solution.log_policy) == pytest.approx(1.0 / n, abs=1e-12)


def test_two_responses_have_a_scalar_equation():
    """With two responses log(π₁/π₂) = log(μ₁/μ₂) + a/β: nobody's policy matters to the other's margin."""
    a, beta, log_mu = 0.3, 0.05, normalise(np.array([0.4, -1.0]))[0]
    log_pi = solve_regularised(np.array([[0.0, a], [-a, 0.0]]), beta, log_mu).log_policy
    assert log_pi[0] - log_pi[1] == pytest.approx(log_mu[0] - log_mu[1] + a / beta, abs=1e-12)


def test_large_beta_gives_the_reference_and_small_beta_a_nash_equilibrium():
    rng = np.random.default_rng(4)
    A, log_mu = game("uniform", 20, rng), random_log_reference(20, rng)
    assert solve_regularised(A, 1e6, log_mu).log_policy == pytest.approx(log_mu, abs=2e-6)
    nearly_nash = np.exp(solve_regularised(A, 1e-6, log_mu).log_policy)
    assert unregularised_gap(A @ nearly_nash) <= 2e-4


@settings(max_examples=40)
@given(problems(), st.sampled_from(BETAS))
def test_a_priori_facts(problem, beta):
    """β KL(π*‖μ) ≤ ½ (arXiv:2405.14655, Lemma B.5) and Gap(π*) ≤ 2β (max log 1/μ − KL(π*‖μ))."""
    A, log_mu = problem
    log_pi = solve_regularised(A, beta, log_mu).log_policy
    divergence = float(kl(log_pi, log_mu))
    assert beta * divergence <= 0.5
    gap = unregularised_gap(A @ np.exp(log_pi))
    assert gap <= 2.0 * beta * (np.max(-log_mu) - divergence) + 1e-12


@settings(max_examples=40)
@given(problems(), st.sampled_from(BETAS), st.integers(0, 2**32))
def test_permutation_equivariance(problem, beta, seed):
    A, log_mu = problem
    order = np.random.default_rng(seed).permutation(len(A))
    policy = np.exp(solve_regularised(A, beta, log_mu).log_policy)
    permuted = np.exp(solve_regularised(A[np.ix_(order, order)], beta, log_mu[order]).log_policy)
    assert permuted == pytest.approx(policy[order], abs=1e-10)


def test_clones_share_what_their_original_gets():
    """A clone changes the game only by splitting the reference's mass."""
    rng = np.random.default_rng(5)
    A, log_mu = game("uniform", 7, rng), random_log_reference(7, rng)
    originals = np.array([0, 1, 2, 3, 4, 5, 6, 2, 2])
    share = np.log(np.array([1, 1, 1 / 3, 1, 1, 1, 1, 1 / 3, 1 / 3]))
    policy = np.exp(solve_regularised(A, 0.02, log_mu).log_policy)
    cloned = solve_regularised(A[np.ix_(originals, originals)], 0.02, log_mu[originals] + share)
    assert np.exp(cloned.log_policy - share) == pytest.approx(policy[originals], abs=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_batch_equals_loop(beta):
    rng = np.random.default_rng(6)
    A = np.stack([game(kind, 16, rng) for kind in KINDS for _ in range(4)])
    log_mu = random_log_reference(16, rng, (len(A),))
    batch = solve_regularised(A, beta, log_mu)
    assert batch.gap.shape == batch.steps.shape == (len(A),)
    for i, payoffs in enumerate(A):
        alone = solve_regularised(payoffs, beta, log_mu[i])
        assert np.exp(batch.log_policy[i]) == pytest.approx(np.exp(alone.log_policy), abs=1e-12)
        assert alone.gap.shape == alone.steps.shape == ()


def test_batches_beyond_one_working_set(monkeypatch):
    rng = np.random.default_rng(9)
    A = skew(rng.random((10, 6, 6)) - 0.5)
    whole = solve_regularised(A, 0.01, np.zeros(6))
    monkeypatch.setattr("nashpref.exact.regularised.WORKING_SET", 100)
    assert np.exp(solve_regularised(A, 0.01, np.zeros(6)).log_policy) == pytest.approx(
        np.exp(whole.log_policy), abs=1e-12
    )
    assert (whole.gap <= 1e-20).all()


@pytest.mark.parametrize("kind", ["uniform", "tournament", "quantised"])
def test_steps_at_small_beta(kind):
    """The support changes many times on the way; a method that crept past each change took thousands."""
    rng = np.random.default_rng(10)
    A = np.stack([game(kind, 30, rng) for _ in range(30)])
    solution = solve_regularised(A, 1e-5, np.zeros(30))
    assert (solution.gap <= 1e-20).all()
    assert solution.steps.mean() <= 35


def test_a_stalled_game_has_a_large_gap(monkeypatch):
    """What the method gives up is told by the certificate: here no Newton step is ever long enough."""
    monkeypatch.setattr("nashpref.exact.regularised.SHORTEST", 2.0)
    solution = solve_regularised(game("uniform", 10, np.random.default_rng(0)), 0.01, np.zeros(10))
    assert np.isfinite(solution.log_policy).all()
    assert solution.gap > 1e-3


@pytest.mark.parametrize("beta", [0.0, -1.0, np.inf, np.nan, 1e-15])
def test_bad_beta(beta):
    with pytest.raises(ValueError, match="beta ="):
        solve_regularised(np.array([[0.0, 0.5], [-0.5, 0.0]]), beta, np.zeros(2))


def test_reference_without_full_support():
    with pytest.raises(ValueError, match="positive everywhere"):
        solve_regularised(np.zeros((2, 2)), 1.0, np.array([0.0, -np.inf]))


def test_a_path_that_is_given_up_is_named(monkeypatch):
    rng = np.random.default_rng(3)
    games = MatrixGame(0.5 + np.stack([game("uniform", 9, rng), np.zeros((9, 9))]))
    assert equilibrium(games, 1e-3).method == ("newton", "newton")
    monkeypatch.setattr("nashpref.exact.regularised.MAX_STEPS", 2)
    stopped = equilibrium(games, 1e-3)
    assert stopped.method == ("newton, not converged", "newton")
    assert stopped.gap[0] > 1e-6


def test_rare_responses_are_set_right_after_the_path(monkeypatch):
    """Newton's method stops when the distance is rounding, which a probability of 1e-16 cannot move."""
    module = importlib.import_module("nashpref.exact.regularised")
    A = np.array(
        [[0.0, 0.4504637, -0.35584039], [-0.4504637, 0.0, -0.07667355], [0.35584039, 0.07667355, 0.0]]
    )
    log_mu = normalise(np.array([-1.08010753, -1.00236858, -1.2261098]))[0]
    follow = module._follow_path

    def sloppy(*arguments):
        theta, steps = follow(*arguments)
        return theta + np.where(theta < -30.0, 1e-3, 0.0), steps

    monkeypatch.setattr(module, "_follow_path", sloppy)
    solution = solve_regularised(A, 0.01, log_mu)
    assert solution.log_policy.min() < -30.0
    assert np.abs(residual(A, 0.01, log_mu, solution.log_policy)).max() <= 1e-12
