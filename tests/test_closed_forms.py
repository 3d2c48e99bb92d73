"""The reward-based baselines against their defining optimisation problems."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nashpref as npf
from nashpref.closed_forms import c2_dpo_pair, chi_po, rlhf

rewards = st.lists(st.floats(-3, 3), min_size=1, max_size=8).map(np.array)
betas = st.floats(1e-2, 10.0)


def random_simplex(n, seed):
    return np.random.default_rng(seed).dirichlet(np.ones(n))


@given(rewards, betas)
def test_rlhf_is_the_maximiser(reward, beta):
    mu = random_simplex(len(reward), 0)
    pi = rlhf(reward, beta, mu)

    def objective(p):
        return p @ reward - beta * np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / mu), 0.0))

    for seed in range(5):
        other = 0.9 * pi + 0.1 * random_simplex(len(reward), seed)
        assert objective(pi) >= objective(other) - 1e-12


@given(rewards, betas)
def test_chi_po_satisfies_its_link(reward, beta):
    mu = random_simplex(len(reward), 1)
    z = chi_po(reward, beta, mu) / mu
    assert abs(np.sum(mu * z) - 1) < 1e-12
    positive = z > 1e-12
    link = (reward / beta - z - np.log(np.where(positive, z, 1.0)))[positive]
    assert np.ptp(link) < 1e-9 * max(1.0, np.abs(reward / beta).max())  # φ(z) − r/β is one constant, −λ/β


def test_chi_po_is_more_cautious_than_rlhf():
    reward, beta = np.array([0.0, 1.0, 2.0, 3.0]), 0.1
    assert rlhf(reward, beta)[3] > 0.99 > 0.9 > chi_po(reward, beta)[3] * 0.9
    assert chi_po(reward, 1.0).argmax() == 3


def test_rlhf_of_the_bradley_terry_reward_is_dpo_and_the_best_response_of_its_payoff():
    game = npf.zoo.comal()
    nu = np.array([0.2, 0.5, 0.3])
    np.testing.assert_allclose(rlhf(game.payoff(nu), 0.2), npf.best_response(game, nu, 0.2), atol=1e-15)


@given(st.floats(0.01, 0.99), st.floats(0.05, 5.0), st.floats(0.01, 0.6), st.floats(0.01, 0.39))
def test_c2_dpo_keeps_the_margin_and_the_mass(p, beta, mu_w, mu_l):
    pi = c2_dpo_pair(p, (mu_w, mu_l), beta)
    assert pi.sum() == pytest.approx(mu_w + mu_l, rel=1e-12)
    if pi.min() > 1e-12:
        margin = np.log(pi[0] / mu_w) - np.log(pi[1] / mu_l)
        assert margin == pytest.approx(np.log(p / (1 - p)) / beta, rel=1e-6, abs=1e-9)
        assert abs(p - 0.5) < 1e-9 or np.sign(margin) == np.sign(p - 0.5)


def test_c2_dpo_log_constraint():
    pi = c2_dpo_pair(0.7, (0.2, 0.3), 1.0, constraint="log")
    assert np.log(pi).sum() == pytest.approx(np.log([0.2, 0.3]).sum())
    assert np.log(pi[0] / 0.2) - np.log(pi[1] / 0.3) == pytest.approx(np.log(0.7 / 0.3))
    with pytest.raises(ValueError, match="raise beta"):
        c2_dpo_pair(0.9, (0.2, 0.3), 0.1, constraint="log")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rlhf([1.0, np.nan], 1.0), "finite"),
        (lambda: rlhf([1.0], 0.0), "beta = 0"),
        (lambda: chi_po([1.0, 2.0], 1.0, [1.0, 0.0]), "zero"),
        (lambda: c2_dpo_pair(1.0, (0.5, 0.5), 1.0), "preference = 1"),
        (lambda: c2_dpo_pair(0.6, (0.9, 0.5), 1.0), "reference"),
        (lambda: c2_dpo_pair(0.6, (0.4, 0.5), 1.0, constraint="kl"), "constraint"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
