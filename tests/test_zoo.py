"""The zoo: every game is a preference matrix, and has the equilibrium that its docstring claims."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator, default_rng

from nashpref.equilibrium import equilibrium
from nashpref.games import zoo
from nashpref.games.matrix import MatrixGame
from nashpref.metrics import duality_gap
from nashpref.transitivity import condorcet_winner

RANDOM: dict[str, Callable[[int, Generator], MatrixGame]] = {
    "preferences": zoo.random_preferences,
    "logistic": lambda n, rng: zoo.random_logistic(n, rng, scale=3.0),
    "tournament": zoo.random_tournament,
    "quantised": lambda n, rng: zoo.random_quantised(n, rng, levels=4),
    "near ties": zoo.random_near_ties,
    "low rank": lambda n, rng: zoo.low_rank_skew(n, 4, rng),
    "bradley-terry": lambda n, rng: zoo.bradley_terry(rng.normal(size=n)),
    "clones": lambda n, rng: zoo.with_clones(zoo.random_preferences(n, rng), n - 1, 3),
    "dominated": lambda n, rng: zoo.with_dominated(zoo.random_tournament(n, rng), 0, rng),
    "blockwise": lambda n, rng: zoo.blockwise([zoo.random_preferences(n, rng), zoo.comal()], 0.8),
}


@pytest.mark.parametrize("kind", RANDOM)
@settings(max_examples=15)
@given(n=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_random_families_are_exactly_complementary_and_reproducible(kind: str, n: int, seed: int) -> None:
    P = RANDOM[kind](n, default_rng(seed)).preferences
    assert P.min() >= 0.0
    assert P.max() <= 1.0
    np.testing.assert_allclose(P + P.T, 1.0, rtol=0.0, atol=3e-16)
    np.testing.assert_array_equal(np.diag(P), 0.5)
    np.testing.assert_array_equal(P, RANDOM[kind](n, default_rng(seed)).preferences)


@pytest.mark.parametrize(
    "make",
    [
        zoo.random_preferences,
        zoo.random_logistic,
        zoo.random_tournament,
        zoo.random_near_ties,
        lambda n, rng, batch: zoo.random_quantised(n, rng, 3, batch),
    ],
)
def test_a_batch_holds_different_games(make: Callable[..., MatrixGame]) -> None:
    game = make(6, default_rng(0), batch=4)
    assert (game.batch, game.n) == (4, 6)
    assert not np.array_equal(game.preferences[0], game.preferences[1])


@pytest.mark.parametrize("n", [1, 3, 5, 7, 11])
@pytest.mark.parametrize("p", [0.6, 1.0])
def test_rock_paper_scissors(n: int, p: float) -> None:
    game = zoo.rock_paper_scissors(n, p)
    for i in range(n):
        for k in range(1, n // 2 + 1):
            assert game.preferences[i, (i + k) % n] == p
    assert duality_gap(game, np.full(n, 1 / n)) < 1e-15


@pytest.mark.parametrize("n", [0, 2, 4, -3])
def test_rock_paper_scissors_needs_an_odd_size(n: int) -> None:
    with pytest.raises(ValueError, match=f"n = {n}: .* odd"):
        zoo.rock_paper_scissors(n)


def test_the_annotators_are_transitive_and_their_mean_is_the_cycle() -> None:
    each = zoo.annotator_rankings()
    singles = [MatrixGame(P) for P in each.preferences]
    assert [condorcet_winner(game) for game in singles] == [2, 1, 0]  # h1 y3, h2 y2, h3 y1
    orders = [np.argsort(-game.payoffs.sum(axis=1)).tolist() for game in singles]
    assert orders == [[2, 0, 1], [1, 2, 0], [0, 1, 2]]
    np.testing.assert_allclose(
        zoo.annotators().preferences, zoo.condorcet_cycle(2 / 3).preferences, atol=1e-16
    )
    assert zoo.annotators().labels == zoo.condorcet_cycle().labels


def test_comal_has_the_equilibrium_of_its_opposite_margins() -> None:
    game = zoo.comal()
    assert (game.preferences[1, 0], game.preferences[2, 1], game.preferences[0, 2]) == (0.9, 0.9, 0.8)
    np.testing.assert_allclose(equilibrium(game).policy, np.array([4, 3, 4]) / 11, atol=1e-14)


def test_bradley_terry_is_the_logistic_of_reward_differences() -> None:
    rewards = np.array([[0.0, 1.0, -2.0], [3.0, 0.0, 0.5]])
    game = zoo.bradley_terry(rewards)
    assert game.preferences[0, 1, 2] == pytest.approx(1 / (1 + np.exp(-3.0)), abs=2e-16)
    assert game.preferences[1, 0, 1] == pytest.approx(1 / (1 + np.exp(-3.0)), abs=2e-16)


def test_low_rank_scores_have_the_rank() -> None:
    P = zoo.low_rank_skew(12, 4, default_rng(1), scale=0.5).preferences
    scores = np.log(P) - np.log(P.T)
    assert np.linalg.matrix_rank(scores, tol=1e-9) == 4
    for rank in (0, 3):
        with pytest.raises(ValueError, match=f"rank = {rank}"):
            zoo.low_rank_skew(5, rank, default_rng(0))


def test_a_tournament_has_no_ties_and_quantised_games_have_their_levels() -> None:
    P = zoo.random_tournament(20, default_rng(0)).preferences[np.triu_indices(20, 1)]
    assert set(P) == {0.0, 1.0}
    P = zoo.random_quantised(30, default_rng(0), 4).preferences[np.triu_indices(30, 1)]
    assert set(P) == {0.0, 0.25, 0.5, 0.75, 1.0}
    A = zoo.random_near_ties(20, default_rng(0)).payoffs
    assert 1e-10 < np.abs(A).max() <= 1e-9


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_clones_share_the_mass_of_the_one_they_copy(seed: int) -> None:
    game = zoo.random_preferences(7, default_rng(seed))
    alone = equilibrium(game).policy
    index = int(alone.argmax())
    cloned = equilibrium(zoo.with_clones(game, index, 2)).policy
    together = np.append(cloned[:7], 0.0)[:7]
    together[index] += cloned[7:].sum()
    np.testing.assert_allclose(together, alone, atol=1e-9)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), index=st.integers(0, 6))
def test_a_dominated_response_has_no_mass_and_changes_nothing(seed: int, index: int) -> None:
    rng = default_rng(seed)
    game = zoo.random_tournament(7, rng)
    worse = zoo.with_dominated(game, index, rng)
    assert np.all(worse.preferences[7, :7] <= game.preferences[index])
    assert worse.preferences[7, index] < 0.5
    policy = equilibrium(worse).policy
    assert policy[7] < 1e-12
    np.testing.assert_allclose(policy[:7], equilibrium(game).policy, atol=1e-9)


def test_games_made_from_games_keep_batches_and_labels() -> None:
    rng = default_rng(0)
    batch = zoo.random_preferences(4, rng, batch=3)
    assert zoo.with_clones(batch, 1, 2).preferences.shape == (3, 6, 6)
    dominated = zoo.with_dominated(batch, 1, rng)
    assert dominated.preferences.shape == (3, 5, 5)
    np.testing.assert_array_equal(dominated.preferences[:, :4, :4], batch.preferences)
    assert zoo.with_clones(zoo.comal(), 1).labels == ("a", "b", "c", "b (copy 1)")
    assert zoo.with_dominated(zoo.comal(), 0, rng).labels == ("a", "b", "c", "dominated")


def test_blockwise_plays_its_first_block() -> None:
    game = zoo.blockwise([zoo.comal(), zoo.rock_paper_scissors(5)], win=0.7)
    assert np.all(game.preferences[:3, 3:] == 0.7)
    expected = np.append(np.array([4, 3, 4]) / 11, np.zeros(5))
    np.testing.assert_allclose(equilibrium(game).policy, expected, atol=1e-12)
