"""Exact equilibria: certificates on every kind of game, agreement of the solvers, and the fallback."""

from __future__ import annotations

import importlib
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nashpref.equilibrium import CERTIFIED, Equilibrium, equilibrium
from nashpref.exact.double_oracle import double_oracle
from nashpref.exact.interior_point import interior_point, interior_points
from nashpref.exact.linear_program import linear_program
from nashpref.games.matrix import MatrixGame
from nashpref.metrics import duality_gap
from nashpref.policies import FloatArray


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2026)


# The package attribute of this name is the function.
equilibrium_module = importlib.import_module("nashpref.equilibrium")
SOLVERS = {  # where `equilibrium` finds each solver when it needs it
    "interior_point": "nashpref.exact.interior_point.interior_point",
    "interior_points": "nashpref.exact.interior_point.interior_points",
    "double_oracle": "nashpref.exact.double_oracle.double_oracle",
    "linear_program": "nashpref.exact.linear_program.linear_program",
}


def skew(upper: FloatArray) -> FloatArray:
    upper = np.triu(upper, 1)
    return upper - upper.T


def uniform(n: int, rng: np.random.Generator) -> FloatArray:
    return skew(rng.random((n, n)) - 0.5)


def tournament(n: int, rng: np.random.Generator) -> FloatArray:
    return skew(rng.integers(0, 2, (n, n)) - 0.5)


def bradley_terry(n: int, rng: np.random.Generator, cycles: float = 0.5) -> FloatArray:
    rewards = rng.normal(size=n)
    logits = rewards[:, None] - rewards + cycles * skew(rng.normal(size=(n, n)))
    return 1.0 / (1.0 + np.exp(-logits)) - 0.5


def transitive(n: int, rng: np.random.Generator) -> FloatArray:
    return bradley_terry(n, rng, cycles=0.0)


def quantised(n: int, rng: np.random.Generator) -> FloatArray:
    return skew(np.round(10.0 * bradley_terry(n, rng)) / 10.0)


def tied(n: int, rng: np.random.Generator) -> FloatArray:
    return skew(np.where(rng.random((n, n)) < 0.7, 0.0, rng.random((n, n)) - 0.5))


def clones(n: int, rng: np.random.Generator) -> FloatArray:
    k = max(1, n // 2)
    of = rng.integers(0, k, n)
    return uniform(k, rng)[np.ix_(of, of)]


def nearly_tied(n: int, rng: np.random.Generator) -> FloatArray:
    return 2e-9 * uniform(n, rng)


def two_scales(n: int, rng: np.random.Generator) -> FloatArray:
    return skew(uniform(n, rng) * np.where(rng.random((n, n)) < 0.5, 1.0, 1e-9))


def reducible(n: int, rng: np.random.Generator) -> FloatArray:
    A, k = uniform(n, rng), n // 2
    A[:k, k:], A[k:, :k] = 0.5, -0.5
    return A


def indifferent(n: int, rng: np.random.Generator) -> FloatArray:
    return np.zeros((n, n))


UNIQUE = (uniform, tournament, bradley_terry, nearly_tied)  # one equilibrium, for almost all draws
KINDS = (*UNIQUE, transitive, quantised, tied, clones, two_scales, reducible, indifferent)


def game_of(*payoffs: FloatArray) -> MatrixGame:
    """One game, or the batch of several."""
    return MatrixGame(0.5 + (payoffs[0] if len(payoffs) == 1 else np.stack(payoffs)))


def assert_certified(game: MatrixGame, eq: Equilibrium, tolerance: float = CERTIFIED) -> None:
    """The policy is a policy, and the gap is its own and small on the scale of its game."""
    assert eq.policy.shape == game.policy_shape
    assert eq.policy.min() >= 0.0
    np.testing.assert_allclose(eq.policy.sum(axis=-1), 1.0, rtol=0.0, atol=1e-13)
    largest = np.abs(game.payoffs).max(axis=(-1, -2))
    np.testing.assert_allclose(eq.gap, duality_gap(game, eq.policy), rtol=0.0, atol=1e-15)
    assert np.all(eq.gap <= tolerance * largest), np.max(eq.gap / largest)
    assert np.all(np.asarray(eq.value) == 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 33, 64, 100, 130, 400])
def test_every_kind_is_certified_without_the_fallback(
    kind: Callable[..., FloatArray], n: int, rng: np.random.Generator
) -> None:
    game = game_of(kind(n, rng))
    before = game.payoffs.copy()
    eq = equilibrium(game)
    assert_certified(game, eq)
    assert eq.method in ("interior point", "double oracle")
    assert np.array_equal(game.payoffs, before)


@pytest.mark.parametrize(("kind", "n"), [(uniform, 1000), (bradley_terry, 2000), (quantised, 2000)])
def test_large_games(kind: Callable[..., FloatArray], n: int, rng: np.random.Generator) -> None:
    game = game_of(kind(n, rng))
    eq = equilibrium(game)
    assert_certified(game, eq)
    assert eq.method == ("interior point" if kind is uniform else "double oracle")


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(KINDS), n=st.integers(1, 24), seed=st.integers(0, 2**32 - 1))
def test_random_small_games(kind: Callable[..., FloatArray], n: int, seed: int) -> None:
    game = game_of(kind(n, np.random.default_rng(seed)))
    assert_certified(game, equilibrium(game))


@settings(max_examples=300, deadline=None)
@given(
    upper=st.integers(2, 7).flatmap(
        lambda n: st.lists(st.sampled_from([-0.5, -0.1, 0.0, 1e-9, 0.1, 0.5]), min_size=n * n, max_size=n * n)
    )
)
def test_degenerate_small_games(upper: list[float]) -> None:
    n = int(len(upper) ** 0.5)
    game = game_of(skew(np.reshape(upper, (n, n))))
    assert_certified(game, equilibrium(game))


# ---- closed forms


def cycle(ab: float, bc: float, ca: float) -> FloatArray:
    """Margins of a ≻ b ≻ c ≻ a."""
    return np.array([[0.0, ab, -ca], [-ab, 0.0, bc], [ca, -bc, 0.0]])


@pytest.mark.parametrize(
    ("payoffs", "expected"),
    [
        (cycle(0.5, 0.5, 0.5), [1 / 3, 1 / 3, 1 / 3]),
        (cycle(-0.4, -0.4, -0.3), [4 / 11, 3 / 11, 4 / 11]),  # COMAL: P[b,a] = P[c,b] = .9, P[a,c] = .8
        (cycle(0.1, 0.2, 0.5), [0.2 / 0.8, 0.5 / 0.8, 0.1 / 0.8]),  # the margin of the opposite edge
        (cycle(3e-9, 1e-9, 2e-9), [1 / 6, 2 / 6, 3 / 6]),
        (cycle(0.5, 0.5, -0.5), [1.0, 0.0, 0.0]),
    ],
)
def test_three_responses(payoffs: FloatArray, expected: list[float]) -> None:
    policy = equilibrium(game_of(payoffs)).policy
    if np.max(expected) == 1.0 or np.ptp(np.abs(payoffs[payoffs != 0])) == 0:
        np.testing.assert_allclose(policy, expected, rtol=0.0, atol=1e-15)
    # 1/2 + 1e-9 keeps 1e-7 of a margin of 1e-9
    np.testing.assert_allclose(policy, expected, atol=1e-14 + 1e-15 / np.abs(payoffs).max())


@pytest.mark.parametrize("n", [3, 7, 51, 201])
def test_rock_paper_scissors_of_any_odd_size_is_uniform(n: int) -> None:
    beats = (np.arange(n)[None, :] - np.arange(n)[:, None]) % n
    game = game_of(np.where(beats == 0, 0.0, np.where(beats <= n // 2, 0.5, -0.5)))
    np.testing.assert_allclose(equilibrium(game).policy, 1.0 / n, rtol=0.0, atol=1e-15)


def test_a_condorcet_winner_takes_all(rng: np.random.Generator) -> None:
    for n in (2, 9, 150):
        A = uniform(n, rng)
        A[n // 2], A[:, n // 2] = 0.01, -0.01
        A[n // 2, n // 2] = 0.0
        eq = equilibrium(game_of(A))
        assert np.array_equal(eq.policy, np.eye(n)[n // 2])
        assert eq.gap == 0.0


def test_generic_support_is_odd_and_exact(rng: np.random.Generator) -> None:
    for n in (10, 25, 60, 140):
        game = game_of(uniform(n, rng))
        policy = equilibrium(game).policy
        support = policy > 0.0  # exact zeros outside
        assert support.sum() % 2 == 1
        assert game.payoff(policy)[~support].max() < -1e-6  # strictly worse: complementarity
        np.testing.assert_allclose(game.payoff(policy)[support], 0.0, atol=1e-15)


# ---- agreement


def test_solvers_agree_where_the_equilibrium_is_unique(rng: np.random.Generator) -> None:
    for kind in UNIQUE:
        for n in (3, 8, 20, 50):
            A = kind(n, rng)
            reference = interior_point(A)
            for other in (linear_program(A), interior_points(A[None])[0]):
                np.testing.assert_allclose(other, reference, rtol=0.0, atol=1e-9, err_msg=kind.__name__)
            batched = interior_points(A[None])[0]
            assert np.array_equal(batched > 0.0, reference > 0.0)
            assert max((A @ batched).max(), (A @ reference).max()) <= 1e-15 * A.max()  # both purified


def test_double_oracle_finds_the_equilibrium_of_the_whole_game(rng: np.random.Generator) -> None:
    for n in (150, 500):
        A = bradley_terry(n, rng, cycles=2.0)
        np.testing.assert_allclose(double_oracle(A), interior_point(A), rtol=0.0, atol=1e-12)


def test_double_oracle_keeps_what_it_has_seen(rng: np.random.Generator) -> None:
    """a, b, c form a cycle; only a looks good against uniform play. It takes a round to see that c beats a,
    another to see that b beats c, and an oracle that had dropped a by then would go round for ever."""
    n, (a, b, c) = 200, (5, 60, 190)
    A = transitive(n, rng)
    for response, margin in ((a, 0.45), (b, 0.01), (c, 0.01)):
        A[response], A[:, response] = margin, -margin
    core = [a, b, c]
    A[np.ix_(core, core)] = cycle(1e-6, 2e-6, 5e-6)
    eq = equilibrium(game_of(A))
    assert eq.method == "double oracle"
    np.testing.assert_allclose(eq.policy[core], [0.25, 0.625, 0.125], atol=1e-9)


def test_compiled_simplex(rng: np.random.Generator) -> None:
    pytest.importorskip("numba")
    simplex = equilibrium_module.compiled_simplex()
    for kind in KINDS:
        for n in (1, 2, 5, 16, 40):
            payoffs = np.stack([kind(n, rng) for _ in range(30)])
            policies = simplex(payoffs)
            assert policies.min() >= 0.0
            np.testing.assert_allclose(policies.sum(axis=1), 1.0, atol=1e-13)
            gains = np.matmul(payoffs, policies[..., None]).max(axis=(1, 2))
            certified = 2.0 * gains <= CERTIFIED * payoffs.max(axis=(1, 2))
            assert certified.mean() >= (0.8 if kind is two_scales else 1.0), (kind.__name__, n)
            if kind in UNIQUE:
                np.testing.assert_allclose(policies, interior_points(payoffs), rtol=0.0, atol=1e-8)


def test_compiled_simplex_shares_games_over_threads(rng: np.random.Generator) -> None:
    pytest.importorskip("numba")
    simplex = equilibrium_module.compiled_simplex()
    payoffs = np.stack([uniform(32, rng) for _ in range(101)])  # more work than THREADED_WORK, uneven
    one_by_one = np.concatenate([simplex(A[None]) for A in payoffs])
    assert np.array_equal(simplex(payoffs), one_by_one)


def test_permutation_equivariance(rng: np.random.Generator) -> None:
    for kind in UNIQUE:
        for n in (7, 40, 200):
            A, order = kind(n, rng), rng.permutation(n)
            permuted = equilibrium(game_of(A[np.ix_(order, order)])).policy
            np.testing.assert_allclose(permuted, equilibrium(game_of(A)).policy[order], rtol=0, atol=1e-11)


def test_memory_order_does_not_matter(rng: np.random.Generator) -> None:
    for shape in ((20, 20), (150, 150), (6, 9, 9)):
        upper = np.triu(rng.random(shape) - 0.5, 1)
        P = 0.5 + upper - np.swapaxes(upper, -1, -2)
        expected = equilibrium(MatrixGame(P)).policy
        assert np.array_equal(equilibrium(MatrixGame(np.asfortranarray(P))).policy, expected)


def test_scale_does_not_matter(rng: np.random.Generator) -> None:
    """Margins of 1e-9 keep seven digits in P, so the equilibrium keeps about as many."""
    A = uniform(12, rng)
    small = equilibrium(game_of(1e-9 * A))
    np.testing.assert_allclose(small.policy, equilibrium(game_of(A)).policy, rtol=0.0, atol=1e-5)
    assert small.gap <= 1e-21


# ---- batches


@pytest.fixture(params=["numpy", "compiled"])
def batch_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of solving a batch of small games."""
    if request.param == "numpy":
        monkeypatch.setattr(equilibrium_module, "compiled_simplex", lambda: None)
    else:
        pytest.importorskip("numba")
    return str(request.param)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 17, 64, 70])
def test_batch_of_all_kinds_equals_the_loop(batch_path: str, n: int, rng: np.random.Generator) -> None:
    payoffs = [kind(n, rng) for kind in KINDS]
    game = game_of(*payoffs)
    eq = equilibrium(game)
    assert_certified(game, eq)
    assert eq.gap.shape == eq.value.shape == (len(KINDS),)
    assert len(eq.method) == len(KINDS)
    if n <= 64:
        assert set(eq.method) <= {"simplex", "interior point"}
        assert ("simplex" in eq.method) == (batch_path == "compiled")
    for i in range(len(UNIQUE)):
        np.testing.assert_allclose(eq.policy[i], equilibrium(game_of(payoffs[i])).policy, rtol=0, atol=1e-9)


def test_batch_of_one(rng: np.random.Generator) -> None:
    A = uniform(9, rng)
    single, batch = equilibrium(game_of(A)), equilibrium(MatrixGame(0.5 + A[None]))
    assert batch.policy.shape == (1, 9)
    assert batch.method == (single.method,)
    assert np.array_equal(batch.policy[0], single.policy)
    assert isinstance(single.gap, float)
    assert isinstance(single.value, float)


def test_a_batch_larger_than_one_piece(batch_path: str, rng: np.random.Generator) -> None:
    upper = np.triu(rng.random((1500, 12, 12)) - 0.5, 1)
    game = MatrixGame(0.5 + upper - np.swapaxes(upper, 1, 2))
    assert_certified(game, equilibrium(game))


def test_batch_of_large_games(rng: np.random.Generator) -> None:
    game = game_of(*(kind(140, rng) for kind in (bradley_terry, uniform, clones, transitive, tied)))
    eq = equilibrium(game)
    assert_certified(game, eq)
    assert eq.method[:2] == ("double oracle", "interior point")


# ---- which method, and what happens when it fails


def test_numba_is_used_only_when_it_is_loaded_or_worth_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    names = lambda batch, n: [name for name, _ in equilibrium_module._solvers(batch, n)]  # noqa: E731
    assert names(4, 16) == ["simplex", "interior point", "linear program"]
    monkeypatch.delitem(importlib.import_module("sys").modules, "numba")
    assert names(4, 16) == ["interior point", "linear program"]
    assert names(10_000, 16) == ["simplex", "interior point", "linear program"]
    assert names(10_000, 65) == ["interior point", "linear program"]
    assert names(1, 16) == ["interior point", "linear program"]
    assert names(1, 500) == ["double oracle", "interior point", "linear program"]


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without the extra: the loader finds nothing, and batches are solved all the same."""
    modules = importlib.import_module("sys").modules
    monkeypatch.setitem(modules, "numba", None)
    monkeypatch.delitem(modules, "nashpref.exact.simplex", raising=False)
    equilibrium_module.compiled_simplex.cache_clear()
    try:
        assert equilibrium_module.compiled_simplex() is None
        game = game_of(*(uniform(6, np.random.default_rng(seed)) for seed in range(50)))
        eq = equilibrium(game)
    finally:
        equilibrium_module.compiled_simplex.cache_clear()
    assert_certified(game, eq)
    assert set(eq.method) == {"interior point"}


def first_response(payoffs: FloatArray) -> FloatArray:
    return np.eye(payoffs.shape[-1])[np.zeros(payoffs.shape[:-2], int)]


def nonsense(payoffs: FloatArray) -> FloatArray:
    return np.full(payoffs.shape[:-1], np.nan)


@pytest.mark.parametrize("broken", [first_response, nonsense])
def test_a_failed_certificate_falls_back_to_the_linear_program(
    broken: Callable[[FloatArray], FloatArray], monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    for name in ("interior_point", "double_oracle", "interior_points"):
        monkeypatch.setattr(SOLVERS[name], broken)
    monkeypatch.setattr(equilibrium_module, "compiled_simplex", lambda: None)
    for n in (5, 140):
        game = game_of(uniform(n, rng))
        eq = equilibrium(game)
        assert eq.method == "linear program"
        assert_certified(game, eq)
    game = game_of(*(cycle(0.1, 0.2, 0.5) if i != 2 else cycle(0.5, 0.5, -0.5) for i in range(5)))
    eq = equilibrium(game)
    assert_certified(game, eq)
    solved = "interior point" if broken is first_response else "linear program"  # a beats b and c there
    assert eq.method == ("linear program", "linear program", solved, "linear program", "linear program")


def test_certificates_are_relative_to_each_game_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOLVERS["interior_points"], first_response)
    monkeypatch.setattr(equilibrium_module, "compiled_simplex", lambda: None)
    eq = equilibrium(game_of(*(scale * cycle(0.1, 0.2, 0.5) for scale in (1.0, 1e-13, 1.0, 1.0))))
    assert eq.gap[1] <= 1e-25  # where any policy at all has a gap of 1e-13
    assert eq.method[1] == "linear program"


def test_a_failed_simplex_falls_back_to_the_interior_point(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(equilibrium_module, "compiled_simplex", lambda: first_response)
    game = game_of(*(uniform(9, rng) for _ in range(6)), transitive(9, rng) * 0.0)
    eq = equilibrium(game)
    assert_certified(game, eq)
    assert eq.method[-1] == "simplex"
    assert "interior point" in eq.method


@pytest.mark.parametrize("best", ["interior_point", "linear_program"])
def test_when_every_method_fails_the_best_is_kept_and_its_gap_says_so(
    best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("interior_point", "linear_program"):
        monkeypatch.setattr(SOLVERS[name], first_response)
    monkeypatch.setattr(SOLVERS[best], lambda A: np.full(len(A), 1.0 / len(A)))
    game = game_of(cycle(0.5, 0.5, 0.4))
    eq = equilibrium(game)
    assert eq.method == best.replace("_", " ")
    assert eq.gap == duality_gap(game, np.full(3, 1 / 3)) > 0.01


def test_memory(rng: np.random.Generator) -> None:
    """One n×n work array, and a purification on half the responses: with P and A under 8n² doubles."""
    n = 700
    game = game_of(uniform(n, rng))
    tracemalloc.start()
    try:
        equilibrium(game)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 2.0 * 8 * n**2


# ---- regularised games, largest entropy, bad input


def test_regularised(rng: np.random.Generator) -> None:
    A, mu = uniform(8, rng), rng.dirichlet(np.ones(8))
    game = game_of(A)
    eq = equilibrium(game, beta=0.1, reference=mu)
    assert (eq.method, eq.beta, eq.value) == ("newton", 0.1, 0.5)
    best_response = mu * np.exp(A @ eq.policy / 0.1)
    np.testing.assert_allclose(eq.policy, best_response / best_response.sum(), rtol=1e-12)
    assert eq.gap == pytest.approx(duality_gap(game, eq.policy, 0.1, mu), abs=1e-20)
    assert eq.gap <= 1e-20

    batch = equilibrium(game_of(A, -A), beta=0.1, reference=mu)
    np.testing.assert_allclose(batch.policy[0], eq.policy, rtol=1e-12)
    assert batch.method == ("newton", "newton")
    assert batch.gap.shape == batch.value.shape == (2,)


def test_largest_entropy_differs_from_the_first_equilibrium_found() -> None:
    """A lopsided 3-cycle and a response that ties with all: any mixture of the two is an equilibrium."""
    A = np.zeros((4, 4))
    A[:3, :3] = cycle(0.45, 0.05, 0.05)
    game = game_of(A)
    inner = equilibrium(game_of(A[:3, :3])).policy
    tie = 1 / (1 + np.exp(-np.sum(inner * np.log(inner))))  # maximises the entropy of the mixture
    eq = equilibrium(game, max_entropy=True)
    np.testing.assert_allclose(eq.policy, np.append((1 - tie) * inner, tie), atol=1e-9)
    assert np.abs(eq.policy - equilibrium(game).policy).max() > 0.01


def test_an_undecided_largest_entropy_is_named_and_spares_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from nashpref.exact.max_entropy import maximum_entropy

    def refuses_ties(A: FloatArray, policy: FloatArray) -> FloatArray:
        if not A.any():
            raise RuntimeError("undecided")
        return maximum_entropy(A, policy)

    monkeypatch.setattr("nashpref.exact.max_entropy.maximum_entropy", refuses_ties)
    game = game_of(np.zeros((3, 3)), cycle(0.5, 0.5, 0.5))
    eq = equilibrium(game, max_entropy=True)
    assert eq.method[0].endswith("largest entropy undecided")
    assert "entropy" not in eq.method[1]  # the only equilibrium there is
    assert_certified(game, eq)


def test_largest_entropy_among_clones() -> None:
    """Two rocks: every split of rock's third is an equilibrium, the even one has the largest entropy."""
    rps = cycle(0.5, 0.5, 0.5)
    of = [0, 0, 1, 2]
    game = game_of(rps[np.ix_(of, of)])
    eq = equilibrium(game, max_entropy=True)
    np.testing.assert_allclose(eq.policy, [1 / 6, 1 / 6, 1 / 3, 1 / 3], atol=1e-8)
    assert_certified(game, eq)
    assert eq.method.endswith("maximum entropy")

    batch = equilibrium(game_of(game.payoffs, np.zeros((4, 4))), max_entropy=True)
    np.testing.assert_allclose(batch.policy, [eq.policy, np.full(4, 0.25)], atol=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -0.1}, r"beta = -0\.1"),
        ({"beta": np.nan}, "beta = nan"),
        ({"reference": [0.5, 0.5, 0.0]}, r"reference\[2\] = 0\.0 is zero"),
        ({"beta": 0.1, "reference": [0.5, 0.5]}, "reference has shape"),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        equilibrium(game_of(cycle(0.5, 0.5, 0.5)), **arguments)


def test_blas_threads_are_limited_and_given_back() -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    from nashpref.exact.threads import blas_threads

    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with blas_threads(100, worth=900):
            assert threads() == {1}
        assert threads() == before
        with blas_threads(900, worth=900), blas_threads(10, worth=900):
            assert threads() == before
