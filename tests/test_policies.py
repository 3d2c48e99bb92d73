"""Log-space policies: what the rest of the library takes for granted."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from nashpref.policies import (
    check_policy,
    entropy,
    geometric_mixture,
    kl,
    largest,
    log_policy,
    normalise,
    uniform,
)
from nashpref.testing import policies

SHAPES = st.sampled_from([(1,), (2,), (5,), (3, 4), (1, 1)])
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(policies(shape), policies(shape)))


@settings(max_examples=50)
@given(shift=st.floats(-1e6, 1e6), policy=SHAPES.flatmap(policies))
def test_normalise_returns_both_forms_and_forgets_constants(shift: float, policy: Any) -> None:
    log_pi, pi = normalise(np.log(policy) + shift)
    np.testing.assert_allclose(pi, policy, rtol=1e-9, atol=0.0)  # the shift costs 1e6 ulp
    np.testing.assert_allclose(pi.sum(axis=-1), 1.0, atol=1e-15 * policy.shape[-1])
    np.testing.assert_allclose(np.exp(log_pi), pi, rtol=1e-12)


def test_normalise_keeps_what_underflows() -> None:
    log_pi, pi = normalise(np.array([0.0, -5000.0]))
    assert pi.tolist() == [1.0, 0.0]
    assert log_pi.tolist() == [0.0, -5000.0]


@settings(max_examples=100)
@given(pair=PAIRS)
def test_kl_is_the_textbook_sum_and_never_negative(pair: tuple[Any, Any]) -> None:
    p, q = pair
    log_p, log_q = log_policy(p), log_policy(q)
    divergence = kl(log_p, log_q)
    assert divergence.shape == p.shape[:-1]
    assert (divergence >= 0.0).all()
    np.testing.assert_allclose(divergence, rel_entr(p, q).sum(axis=-1), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(kl(log_p, log_p), 0.0)


def test_kl_is_accurate_where_the_textbook_sum_cancels() -> None:
    """A perturbation of 1e-9: KL = ½ Σ p d² = 5e-19 for the signs below, against 1e-16 of noise."""
    log_p = log_policy(uniform((4,)))
    log_q, _ = normalise(log_p + 1e-9 * np.array([1.0, -1.0, 1.0, -1.0]))
    assert kl(log_p, log_q) == pytest.approx(5e-19, rel=1e-6)


def test_kl_with_zeros() -> None:
    pure, mixed = log_policy(np.array([1.0, 0.0])), log_policy(np.array([0.25, 0.75]))
    assert kl(pure, mixed) == pytest.approx(np.log(4.0), rel=1e-15)
    assert kl(mixed, pure) == np.inf
    assert kl(pure, pure) == 0.0


def test_kl_of_an_underflowing_policy() -> None:
    log_q, _ = normalise(np.array([0.0, -5000.0]))
    assert kl(log_policy(np.array([0.5, 0.5])), log_q) == pytest.approx(2500.0 - np.log(2.0), rel=1e-14)


@settings(max_examples=50)
@given(policy=SHAPES.flatmap(lambda shape: policies(shape, zeros=True)))
def test_entropy_is_log_n_minus_the_divergence_from_uniform(policy: Any) -> None:
    n = policy.shape[-1]
    expected = np.log(n) - rel_entr(policy, 1.0 / n).sum(axis=-1)
    np.testing.assert_allclose(entropy(log_policy(policy)), expected, atol=1e-12)


@settings(max_examples=50)
@given(pair=PAIRS, weight=st.floats(-0.5, 1.5))
def test_geometric_mixture(pair: tuple[Any, Any], weight: float) -> None:
    p, q = pair
    mixed = geometric_mixture({"p": np.log(p), "q": np.log(q)}, {"p": weight, "q": 1.0 - weight})
    expected = normalise(weight * np.log(p) + (1.0 - weight) * np.log(q))[0]
    np.testing.assert_allclose(mixed, expected, rtol=1e-12, atol=1e-12)


def test_uniform() -> None:
    np.testing.assert_array_equal(uniform((2, 4)), np.full((2, 4), 0.25))


BAD_POLICIES = {
    "nan": ([0.5, np.nan, 0.5], r"policy\[1\] = nan is not finite"),
    "infinite": ([np.inf, 0.0, 0.0], r"policy\[0\] = inf is not finite"),
    "negative": ([0.5, 0.6, -0.1], r"policy\[2\] = -0.1 is negative"),
    "sum": ([0.5, 0.5, 0.5], r"policy sums to 1.5, not 1: divide it by its sum"),
    "wrong shape": ([0.5, 0.5], r"policy has shape \(2,\); the game needs \(3,\)"),
    "batch of a single game": (np.full((2, 3), 1 / 3), r"policy has shape \(2, 3\); the game needs \(3,\)"),
}


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_bad_policies(case: str) -> None:
    value, message = BAD_POLICIES[case]
    with pytest.raises(ValueError, match=message):
        check_policy(value, (3,), "policy")


def test_bad_rows_of_a_batch_are_named() -> None:
    with pytest.raises(ValueError, match=r"policy\[1\] sums to 0.9"):
        check_policy([[0.5, 0.5], [0.5, 0.4]], (2, 2), "policy")
    with pytest.raises(ValueError, match=r"reference\[1, 0\] = 0.0 is zero; it must be positive everywhere"):
        check_policy([[0.5, 0.5], [0.0, 1.0]], (2, 2), "reference", positive=True)


def test_check_policy_broadcasts_and_copies() -> None:
    given = np.array([0.25, 0.75])
    checked = check_policy(given, (3, 2), "policy")
    np.testing.assert_array_equal(checked, np.tile(given, (3, 1)))
    checked[0, 0] = 9.0
    assert given[0] == 0.25
    assert checked[1, 0] == 0.25
    assert check_policy([1, 0], (2,), "policy").dtype == np.float64
    check_policy([0.5, 0.5 + 9e-9], (2,), "policy")  # within the tolerance of 1e-8


def test_log_policy_of_zeros_is_minus_infinity() -> None:
    assert log_policy(np.array([1.0, 0.0])).tolist() == [0.0, -np.inf]


@pytest.mark.parametrize("shape", [(1,), (40,), (5, 1), (5000, 3), (2, 3000, 7), (6, 32), (6, 33), (0, 3)])
def test_largest_is_the_maximum_of_every_row(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_array_equal(largest(values), values.max(axis=-1))
    strided = np.moveaxis(np.random.default_rng(1).normal(size=(*shape[::-1],)), 0, -1)
    np.testing.assert_array_equal(largest(strided), strided.max(axis=-1))
