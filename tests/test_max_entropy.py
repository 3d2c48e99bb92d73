"""The maximum-entropy equilibrium: cases worked by hand, optimality conditions, cvxpy and the β → 0 limit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from nashpref.exact.max_entropy import _face_optimum, is_unique, maximum_entropy
from nashpref.exact.regularised import solve_regularised
from nashpref.policies import entropy

RPS = 0.5 * np.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
COMAL = np.array([[0.0, -0.4, 0.3], [0.4, 0.0, -0.4], [-0.3, 0.4, 0.0]])  # equilibrium (4, 3, 4)/11


def skew(upper):
    upper = np.triu(upper, 1)
    return upper - upper.T


def some_equilibrium(A):
    """A vertex of the polytope of equilibria; scaled, since HiGHS's tolerances are absolute."""
    n, size = len(A), np.abs(A).max() or 1.0
    x = linprog(np.zeros(n), A_ub=A / size, b_ub=np.zeros(n), A_eq=np.ones((1, n)), b_eq=[1.0]).x
    return np.maximum(x, 0.0) / np.maximum(x, 0.0).sum()


def shannon(x):
    with np.errstate(divide="ignore"):
        return float(entropy(np.log(x)))


def block(*games, cross=None):
    n = sum(map(len, games))
    A, at = np.zeros((n, n)), 0
    for game in games:
        A[at : at + len(game), at : at + len(game)] = game
        at += len(game)
    if cross is not None:
        m = len(games[0])
        A[:m, m:], A[m:, :m] = cross, -cross.T
    return A


def assert_maximum_entropy(A, x):
    """Optimality by duality: no equilibrium y has ⟨−log x, y − x⟩ > 0, none plays what x does not."""
    n, size, played = len(A), np.abs(A).max() or 1.0, x > 0.0
    assert x.min() >= 0.0
    assert x.sum() == pytest.approx(1.0, abs=1e-14)
    assert np.max(A @ x) <= 1e-12 * size
    polytope = {"A_ub": A / size, "b_ub": np.zeros(n), "A_eq": np.ones((1, n)), "b_eq": [1.0]}
    elsewhere = linprog(np.where(played, 0.0, -1.0), **polytope)
    assert -elsewhere.fun <= 1e-7
    slope = -np.log(np.where(played, x, 1.0))
    best = linprog(-slope, bounds=[(0.0, None) if p else (0.0, 0.0) for p in played], **polytope)
    assert -best.fun - slope @ x <= 1e-7


def test_unique_equilibrium_is_returned_unchanged():
    policy = np.array([4.0, 3.0, 4.0]) / 11.0
    assert is_unique(COMAL, policy)
    assert maximum_entropy(COMAL, policy) is policy


def test_condorcet_winner_is_unique():
    A = skew(np.full((4, 4), 0.2))
    winner = np.array([1.0, 0.0, 0.0, 0.0])
    assert is_unique(A, winner)
    assert maximum_entropy(A, winner) is winner


@pytest.mark.parametrize("n", [1, 2, 7])
def test_all_ties_give_the_uniform_policy(n):
    vertex = np.eye(n)[0]
    assert is_unique(np.zeros((n, n)), vertex) is (n == 1)
    assert maximum_entropy(np.zeros((n, n)), vertex) == pytest.approx(1.0 / n, abs=1e-15)


def test_two_top_responses_that_tie():
    A = skew(np.array([[0, 0, 0.3], [0, 0, 0.1], [0, 0, 0]]))
    assert maximum_entropy(A, np.array([0.0, 1.0, 0.0])) == pytest.approx([0.5, 0.5, 0.0], abs=1e-14)


def test_clones_share_equally():
    """COMAL's game with its second response three times over: (4, 1, 1, 1, 4)/11."""
    originals = np.array([0, 1, 1, 1, 2])
    A = COMAL[np.ix_(originals, originals)]
    x = maximum_entropy(A, np.array([4.0, 3.0, 0.0, 0.0, 4.0]) / 11.0)
    assert x == pytest.approx(np.array([4.0, 1.0, 1.0, 1.0, 4.0]) / 11.0, abs=1e-14)


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_two_disjoint_cycles_mix_by_their_entropies(scale):
    """Every mixture of their equilibria p, q is one; entropy is largest with weights ∝ e^H(p), e^H(q)."""
    A = block(RPS, scale * COMAL)
    p, q = np.full(3, 1.0 / 3.0), np.array([4.0, 3.0, 4.0]) / 11.0
    weights = np.exp([shannon(p), shannon(q)])
    expected = np.concatenate([weights[0] * p, weights[1] * q]) / weights.sum()
    start = np.concatenate([p, np.zeros(3)])
    assert not is_unique(A, start)
    assert maximum_entropy(A, start) == pytest.approx(expected, abs=1e-12)


def test_a_binding_response_tilts_the_mixture():
    """a and b tie; c, which beats a and loses to b, limits how much of a may be played.

    Beaten by 0.1 against 0.3, a may have up to ¾ and gets ½; by 0.3 against 0.1, it gets all it may, ¼.
    """
    free = skew(np.array([[0, 0, -0.1], [0, 0, 0.3], [0, 0, 0]]))
    assert maximum_entropy(free, np.array([0.0, 1.0, 0.0])) == pytest.approx([0.5, 0.5, 0.0], abs=1e-13)
    binding = skew(np.array([[0, 0, -0.3], [0, 0, 0.1], [0, 0, 0]]))
    assert maximum_entropy(binding, np.array([0.0, 1.0, 0.0])) == pytest.approx([0.25, 0.75, 0.0], abs=1e-13)


def test_a_response_that_binds_without_force():
    """c ties with the mixture ½, ½ that is best without it: zero slack and zero multiplier at once."""
    A = skew(np.array([[0, 0, -0.2], [0, 0, 0.2], [0, 0, 0]]))
    assert maximum_entropy(A, np.array([0.0, 1.0, 0.0])) == pytest.approx([0.5, 0.5, 0.0], abs=1e-13)


def test_a_response_that_comes_to_bind_on_the_way():
    """The same game from a point where c does not bind yet; entropy pulls towards ½, ½."""
    A = skew(np.array([[0, 0, -0.3], [0, 0, 0.1], [0, 0, 0]]))
    x = _face_optimum(A[:2, :2], A[2:, :2], np.array([0.15, 0.85]))
    assert x == pytest.approx([0.25, 0.75], abs=1e-13)


def test_a_response_that_only_seems_to_bind():
    """c allows up to ¾ of a; a guess that is all but there must still find ½, ½."""
    A = skew(np.array([[0, 0, -0.1], [0, 0, 0.3], [0, 0, 0]]))
    x = _face_optimum(A[:2, :2], A[2:, :2], np.array([0.75 - 1e-8, 0.25 + 1e-8]))
    assert x == pytest.approx([0.5, 0.5], abs=1e-13)


def structured_game(kind, n, rng):
    """Games with many equilibria."""
    if kind == "ternary":
        return 0.5 * skew(rng.integers(-1, 2, (n, n)))
    if kind == "mostly_tied":
        return 0.5 * skew(rng.choice([-1, 0, 0, 0, 0, 1], (n, n)))
    if kind == "integers":
        return skew(rng.integers(-3, 4, (n, n))) / 6.0
    if kind == "clones":
        originals = rng.integers(0, n // 3 + 1, n)
        return skew(rng.random((n, n)) - 0.5)[np.ix_(originals, originals)]
    if kind == "blocks":
        half = n // 2
        return block(skew(rng.random((half, half)) - 0.5), skew(rng.random((n - half, n - half)) - 0.5))
    assert kind == "low_rank"
    points = rng.normal(size=(n, 2))
    A = points @ np.array([[0.0, 1.0], [-1.0, 0.0]]) @ points.T
    return 0.5 * skew(A / np.abs(A).max())


KINDS = ("ternary", "mostly_tied", "integers", "clones", "blocks", "low_rank")


@settings(max_examples=100)
@given(st.sampled_from(KINDS), st.integers(2, 16), st.integers(0, 2**32))
def test_optimality_on_games_with_many_equilibria(kind, n, seed):
    A = structured_game(kind, n, np.random.default_rng(seed))
    assert_maximum_entropy(A, maximum_entropy(A, some_equilibrium(A)))


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(2, 12), st.integers(0, 2**32))
def test_it_does_not_depend_on_the_equilibrium_given_nor_on_the_order(kind, n, seed):
    rng = np.random.default_rng(seed)
    A = structured_game(kind, n, rng)
    x = maximum_entropy(A, some_equilibrium(A))
    assert maximum_entropy(A, x) == pytest.approx(x, abs=1e-9)
    order = rng.permutation(n)
    B = A[np.ix_(order, order)]
    assert maximum_entropy(B, some_equilibrium(B)) == pytest.approx(x[order], abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_limit_of_the_regularised_equilibria(kind):
    A = structured_game(kind, 10, np.random.default_rng(11))
    x = maximum_entropy(A, some_equilibrium(A))
    errors = [
        np.abs(np.exp(solve_regularised(A, beta, np.zeros(10)).log_policy) - x).sum() for beta in (1e-4, 1e-6)
    ]
    assert errors[1] <= 1e-4
    assert errors[1] <= 0.1 * errors[0] + 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_cvxpy(kind):
    cp = pytest.importorskip("cvxpy")
    A = structured_game(kind, 12, np.random.default_rng(12))
    x = maximum_entropy(A, some_equilibrium(A))
    y = cp.Variable(12)
    cp.Problem(cp.Maximize(cp.sum(cp.entr(y))), [y >= 0, cp.sum(y) == 1, A @ y <= 0]).solve(solver="CLARABEL")
    assert x == pytest.approx(y.value, abs=1e-4)


@pytest.mark.parametrize("kind", ["clones", "blocks"])
def test_hundreds_of_responses(kind):
    A = structured_game(kind, 200, np.random.default_rng(13))
    assert_maximum_entropy(A, maximum_entropy(A, some_equilibrium(A)))


def test_scale_does_not_matter():
    A = structured_game("clones", 9, np.random.default_rng(14))
    x = maximum_entropy(A, some_equilibrium(A))
    assert maximum_entropy(1e-9 * A, some_equilibrium(A)) == pytest.approx(x, abs=1e-9)


@pytest.mark.parametrize("margin", [1e-6, 1e-9, 1e-11])
def test_a_hair_of_a_margin_is_no_tie(margin):
    A = skew(np.array([[0, margin, 0.3], [0, 0, 0.1], [0, 0, 0]]))
    winner = np.array([1.0, 0.0, 0.0])
    assert maximum_entropy(A, winner) is winner


def test_a_margin_in_the_rounding_is_a_tie():
    A = skew(np.array([[0, 1e-14, 0.3], [0, 0, 0.1], [0, 0, 0]]))
    assert maximum_entropy(A, np.array([1.0, 0.0, 0.0])) == pytest.approx([0.5, 0.5, 0.0], abs=1e-12)


def test_a_misleading_path_is_refused(monkeypatch):
    """A point far from the limit suggests the wrong support: better no answer than a policy that can lose."""
    monkeypatch.setattr("nashpref.exact.max_entropy.SMALL_BETAS", (0.3,))
    A = block(COMAL, COMAL, cross=np.full((3, 3), 0.2))
    A = A[np.ix_([0, 1, 1, 2, 3, 4, 5], [0, 1, 1, 2, 3, 4, 5])]
    with pytest.raises(RuntimeError, match="all but ties"):
        maximum_entropy(A, np.array([4.0, 3.0, 0.0, 4.0, 0.0, 0.0, 0.0]) / 11.0)
