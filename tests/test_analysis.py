"""Bradley–Terry, cycles, curl and `rank`, against closed forms and brute force."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from scipy.optimize import minimize

from nashpref.analysis import rank
from nashpref.bradley_terry import fit_bradley_terry
from nashpref.games import zoo
from nashpref.games.matrix import MatrixGame
from nashpref.transitivity import condorcet_loser, condorcet_winner, hodge, three_cycles

SEEDS = st.integers(0, 2**32 - 1)
examples = settings(max_examples=25)


def counted(game: MatrixGame, counts: float | np.ndarray) -> MatrixGame:
    N = np.broadcast_to(counts, game.preferences.shape) * ~np.eye(game.n, dtype=bool)
    return MatrixGame(game.preferences, counts=N, labels=game.labels)


# --- Bradley–Terry ---


@examples
@given(seed=SEEDS, n=st.integers(2, 15), spread=st.sampled_from([0.1, 1.0, 3.0]))
def test_scores_of_a_bradley_terry_game_are_recovered(seed: int, n: int, spread: float) -> None:
    rng = default_rng(seed)
    rewards = rng.normal(0.0, spread, n)
    N = rng.integers(1, 1000, (n, n))
    for weights in (np.ones((n, n)), N + N.T):
        fit = fit_bradley_terry(zoo.bradley_terry(rewards).preferences * weights)
        np.testing.assert_allclose(fit.scores, rewards - rewards.mean(), atol=1e-8)
        assert fit.residual < 1e-13


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_the_maximum_that_a_generic_optimiser_finds(seed: int) -> None:
    W = default_rng(seed).integers(0, 9, (6, 6)) + 1.0 - np.eye(6)
    np.fill_diagonal(W, 0.0)

    def loss(r: np.ndarray) -> float:
        return float(np.sum(W * np.logaddexp(0.0, r - r[:, None])))

    best = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-9})
    fit = fit_bradley_terry(W)
    np.testing.assert_allclose(fit.scores, best.x - best.x.mean(), atol=1e-5)
    assert loss(fit.scores) <= best.fun + 1e-10


def test_two_responses_have_the_log_odds() -> None:
    assert np.ptp(fit_bradley_terry([[0, 3], [1, 0]]).scores) == pytest.approx(np.log(3.0), abs=1e-12)
    assert fit_bradley_terry([[0.0]]).scores.tolist() == [0.0]


def test_extreme_odds_converge() -> None:
    P = zoo.bradley_terry([0.0, 30.0, 60.0]).preferences * (1 - np.eye(3))
    P[0, 2] = P[2, 0] = 0.0  # leave a chain, whose maximum is each pair's log-odds
    np.testing.assert_allclose(
        np.diff(fit_bradley_terry(P).scores), 30.0, atol=1e-3
    )  # 1 − 1e-13 has 1e-3 digits
    small = np.array([[0.0, 1e-20], [1.0, 0.0]])
    np.testing.assert_allclose(np.ptp(fit_bradley_terry(small).scores), 20 * np.log(10.0), atol=1e-9)


def test_the_damping_reaches_maxima_where_plain_newton_diverges() -> None:
    wins = np.array([[0, 0, 1, 0], [1e5, 0, 0, 0], [1, 10, 0, 10], [1e5, 10, 1e5, 0]])
    fit = fit_bradley_terry(wins)
    assert fit.residual < 1e-15
    assert np.argsort(fit.scores).tolist() == [0, 1, 2, 3]


def test_wins_beyond_float64_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"did not settle .* pseudo-counts"):
        fit_bradley_terry([[0.0, 1e300, 0.0], [1e-300, 0.0, 1e-300], [0.0, 1e300, 0.0]])


@pytest.mark.parametrize(
    ("wins", "group"),
    [
        ([[0, 1, 1], [0, 0, 1], [0, 2, 0]], "'a' never lost to any of the other 2"),
        ([[0, 1, 1], [1, 0, 1], [0, 0, 0]], "'a', 'b' never lost to any of the other 1"),
        ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], "'c' never lost to any of the other 2"),
    ],
)
def test_no_maximum_is_said_not_chased(wins: list[list[float]], group: str) -> None:
    with pytest.raises(ValueError, match=f"no maximum-likelihood .*: {group}, .*prior"):
        fit_bradley_terry(wins, "abc")
    assert np.isfinite(fit_bradley_terry(np.array(wins) + 0.5).scores).all()


# --- cycles and Condorcet ---


@examples
@given(seed=SEEDS, n=st.integers(1, 9), kind=st.sampled_from(["uniform", "quantised", "tournament"]))
def test_cycles_against_brute_force(seed: int, n: int, kind: str) -> None:
    rng = default_rng(seed)
    game = {
        "uniform": lambda: zoo.random_preferences(n, rng),
        "quantised": lambda: zoo.random_quantised(n, rng, 4),
        "tournament": lambda: zoo.random_tournament(n, rng),
    }[kind]()
    A = game.payoffs
    found = {}
    for i, j, k in combinations(range(n), 3):
        for cycle in ((i, j, k), (i, k, j)):
            strength = min(A[cycle[0], cycle[1]], A[cycle[1], cycle[2]], A[cycle[2], cycle[0]])
            if strength > 0.0:
                found[cycle] = strength
    every = three_cycles(game, strongest=1000)
    assert (every.count, every.triples) == (len(found), n * (n - 1) * (n - 2) // 6)
    assert {cycle.responses: cycle.strength for cycle in every.strongest} == found
    expected = [cycle for _, cycle in sorted((-s, c) for c, s in found.items())][:4]
    assert [cycle.responses for cycle in three_cycles(game, strongest=4).strongest] == expected
    assert three_cycles(game, strongest=0).count == len(found)


@pytest.mark.parametrize("seed", range(5))
def test_the_strongest_cycles_are_those_of_the_full_list(seed: int) -> None:
    for game in (
        zoo.random_preferences(12, default_rng(seed)),
        zoo.random_quantised(12, default_rng(seed), 8),
    ):
        every = three_cycles(game, strongest=1000).strongest
        assert len(every) > 20
        assert three_cycles(game, strongest=7).strongest == every[:7]


def test_the_number_of_cycles_of_the_circulant() -> None:
    for n in (3, 5, 9, 21):  # n(n² − 1)/24, the most that n responses can have
        assert three_cycles(zoo.rock_paper_scissors(n)).count == n * (n * n - 1) // 24


def test_rounding_is_not_a_preference() -> None:
    A = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) * 1e-14
    assert three_cycles(MatrixGame(0.5 + A)).count == 0
    assert condorcet_winner(MatrixGame(0.5 + 1e-14 * np.array([[0, 1], [-1, 0]]))) is None


def test_condorcet_winner_and_loser() -> None:
    game = zoo.bradley_terry([0.0, 2.0, 1.0])
    assert (condorcet_winner(game), condorcet_loser(game)) == (1, 0)
    tied = zoo.bradley_terry([0.0, 2.0, 2.0])
    assert (condorcet_winner(tied), condorcet_loser(tied)) == (None, 0)
    assert condorcet_winner(zoo.rock_paper_scissors()) is None


# --- Hodge ---


@examples
@given(seed=SEEDS, n=st.integers(2, 10), sparse=st.booleans())
def test_hodge_splits_orthogonally(seed: int, n: int, sparse: bool) -> None:
    rng = default_rng(seed)
    Y, w = rng.normal(size=(n, n)), rng.random((n, n)) * (rng.random((n, n)) > (0.7 if sparse else 0.0))
    Y, w = Y - Y.T, np.triu(w, 1) + np.triu(w, 1).T
    split = hodge(Y, w)
    gradient = split.potential[:, None] - split.potential
    np.testing.assert_allclose(gradient + split.curl, Y, atol=1e-12)
    np.testing.assert_allclose(
        np.sum(w * split.curl, axis=1), 0.0, atol=1e-10
    )  # orthogonal to every gradient
    if w.any():
        energy = np.sum(w * gradient**2) + np.sum(w * split.curl**2)
        assert energy == pytest.approx(np.sum(w * Y**2), rel=1e-10)
        assert split.curl_share == pytest.approx(np.sum(w * split.curl**2) / energy, abs=1e-12)


def test_curl_share_of_a_gradient_a_cycle_and_nothing() -> None:
    r = np.arange(5.0) ** 2
    assert hodge(r[:, None] - r).curl_share < 1e-28
    np.testing.assert_allclose(hodge(r[:, None] - r).potential, r - r.mean(), atol=1e-12)
    assert hodge(zoo.rock_paper_scissors(7).payoffs).curl_share == pytest.approx(1.0, abs=1e-14)
    assert hodge(np.zeros((3, 3))).curl_share == 0.0


# --- rank ---


@examples
@given(seed=SEEDS, n=st.integers(2, 8))
def test_rank_of_a_bradley_terry_game(seed: int, n: int) -> None:
    rewards = np.round(default_rng(seed).normal(size=n), 3) + 1e-4 * np.arange(n)  # distinct
    ranking = rank(zoo.bradley_terry(rewards))
    best = int(rewards.argmax())
    assert ranking.flow == "log-odds"
    assert ranking.curl_share < 1e-20
    assert ranking.nash[best] == pytest.approx(1.0, abs=1e-12)
    assert ranking.condorcet_winner == ranking.favourite == best
    assert ranking.exploitability == pytest.approx(0.0, abs=1e-15)
    assert ranking.cycles.count == 0


def test_rank_of_the_annotators() -> None:
    ranking = rank(zoo.annotators())
    np.testing.assert_allclose(ranking.nash, 1 / 3, atol=1e-12)
    assert ranking.bradley_terry is not None
    np.testing.assert_allclose(ranking.bradley_terry.scores, 0.0, atol=1e-12)
    assert ranking.exploitability == pytest.approx(1 / 6, abs=1e-14)
    assert ranking.curl_share == pytest.approx(1.0, abs=1e-12)
    assert [cycle.responses for cycle in ranking.cycles.strongest] == [(0, 1, 2)]
    assert "y1 ≻ y2 ≻ y3 ≻ y1, each by 0.167" in ranking.table()
    assert "tied with 2 more" in ranking.table()


def test_the_favourite_can_lose_to_a_response_of_lower_score() -> None:
    # a crushes c and loses to b narrowly; b ties with c: reward models prefer a.
    game = MatrixGame([[0.5, 0.45, 0.95], [0.55, 0.5, 0.5], [0.05, 0.5, 0.5]], labels=["a", "b", "c"])
    ranking = rank(game)
    assert ranking.favourite == 0
    assert ranking.exploitability == pytest.approx(0.05)
    assert ranking.nash_win_rate == pytest.approx(0.5 + ranking.nash @ game.payoffs[:, 0])
    assert "favourite: a, " in ranking.table()
    assert "by b" in ranking.table()


def test_nash_is_the_equilibrium_of_largest_entropy() -> None:
    # A lopsided 3-cycle and a response that ties with all: any mixture of the two is an equilibrium.
    cycle = np.array([0.05, 0.05, 0.45]) / 0.55  # each response weighs the margin of the opposite edge
    P = np.array([[0.5, 0.95, 0.45, 0.5], [0.05, 0.5, 0.55, 0.5], [0.55, 0.45, 0.5, 0.5], [0.5] * 4])
    tie = 1 / (1 + np.exp(-np.sum(cycle * np.log(cycle))))  # maximises the entropy of the mixture
    ranking = rank(MatrixGame(P))
    np.testing.assert_allclose(ranking.nash, np.append((1 - tie) * cycle, tie), atol=1e-6)


def test_certain_preferences_are_ranked_without_a_fit() -> None:
    ranking = rank(zoo.blockwise([zoo.rock_paper_scissors(), zoo.rock_paper_scissors()]), cycles=2)
    assert (ranking.flow, ranking.favourite, ranking.exploitability) == ("margins", None, None)
    assert ranking.bradley_terry is None
    assert "0, 1, 2 never lost to any of the other 3" in ranking.table()
    assert json.loads(ranking.to_json())["bradley_terry"] is None
    assert len(ranking.cycles.strongest) == 2


@pytest.mark.parametrize("n", [1, 2])
def test_rank_of_the_smallest_games(n: int) -> None:
    ranking = rank(zoo.bradley_terry(np.arange(n)))
    assert ranking.nash[n - 1] == 1.0
    assert ranking.condorcet_winner == n - 1
    assert ranking.cycles.share == 0.0


def test_weights_matter_to_the_fit() -> None:
    game = zoo.random_preferences(5, default_rng(0))
    N = np.ones((5, 5))
    N[0, 1] = N[1, 0] = 1e6
    fit = rank(counted(game, N)).bradley_terry
    assert fit is not None
    odds = np.log(game.preferences[0, 1] / game.preferences[1, 0])
    assert fit.scores[0] - fit.scores[1] == pytest.approx(odds, abs=1e-4)


def test_json_and_table_agree_on_names() -> None:
    game = counted(zoo.comal(), 40.0)
    ranking = rank(game, bootstrap=50, rng=default_rng(0))
    content = json.loads(ranking.to_json())
    assert content["labels"] == ["a", "b", "c"]
    np.testing.assert_allclose(content["nash"]["mass"], np.array([4, 3, 4]) / 11, atol=1e-12)
    assert content["cycles"]["strongest"][0]["responses"] == ["a", "c", "b"]
    assert content["bootstrap"]["resamples"] == 50
    lines = ranking.table().splitlines()
    assert {line.split()[0] for line in lines[2:5]} == {"a", "b", "c"}
    assert all(line.count("[") == 2 for line in lines[2:5])


# --- bootstrap ---


def test_bootstrap_intervals_have_the_width_of_the_data() -> None:
    game = counted(zoo.bradley_terry([0.0, 0.4]), 100.0)
    boot = rank(game, bootstrap=4000, rng=default_rng(0)).bootstrap
    assert boot is not None
    assert boot.scores is not None
    p = game.preferences[1, 0]
    deviation = 1 / np.sqrt(101 * p * (1 - p))  # delta method for the log-odds; a score is half of them
    np.testing.assert_allclose(boot.scores[:, 1], 0.2 + np.array([-0.98, 0.98]) * deviation, atol=0.02)
    assert boot.favourite is not None
    assert boot.favourite[1] == pytest.approx(0.973, abs=0.015)  # Φ(0.4/deviation)
    assert boot.favourite.sum() == pytest.approx(1.0)


def test_bootstrap_shrinks_with_counts_and_repeats_with_its_seed() -> None:
    def width(count: float) -> float:
        boot = rank(counted(zoo.comal(), count), bootstrap=200, rng=default_rng(1)).bootstrap
        assert boot is not None
        return float(np.ptp(boot.nash[:, 0]))

    assert width(10_000) < 0.2 * width(100) < 0.2 * 1.0
    assert width(100) == width(100)


def test_chance_curl_tells_noise_from_cycles() -> None:
    rng = default_rng(3)
    truth = zoo.bradley_terry(rng.normal(size=6)).preferences
    wins = np.triu(rng.binomial(60, truth), 1)
    noisy = MatrixGame.from_counts(wins + np.tril(60 - wins.T, -1))
    ranking = rank(noisy, bootstrap=200, rng=rng)
    assert ranking.bootstrap is not None
    assert ranking.bootstrap.chance_curl is not None
    assert 0.0 < ranking.curl_share < ranking.bootstrap.chance_curl
    cyclic = rank(counted(zoo.comal(), 60.0), bootstrap=200, rng=rng)
    assert cyclic.bootstrap is not None
    assert cyclic.bootstrap.chance_curl is not None
    assert cyclic.curl_share > 0.9
    loser = counted(zoo.blockwise([zoo.comal(), zoo.comal()], 0.9), 60.0)
    ranking = rank(loser, bootstrap=100, rng=rng)
    assert ranking.bootstrap is not None
    assert ranking.bootstrap.chance_curl is not None
    assert ranking.curl_share > ranking.bootstrap.chance_curl


def test_pairs_never_compared_and_certain_pairs_stay_as_they_are() -> None:
    wins = np.array([[0, 5, 0], [0, 0, 4], [0, 2, 0]])
    game = MatrixGame.from_counts(wins, missing="half")
    boot = rank(game, bootstrap=30, rng=default_rng(0)).bootstrap
    assert boot is not None
    assert (boot.scores, boot.favourite, boot.exploitability, boot.chance_curl) == (None, None, None, None)
    assert np.isfinite(boot.nash).all()


def test_rank_says_what_it_needs() -> None:
    game, rng = zoo.comal(), default_rng(0)
    with pytest.raises(ValueError, match="needs the number of comparisons"):
        rank(game, bootstrap=10, rng=rng)
    with pytest.raises(ValueError, match="needs a generator"):
        rank(counted(game, 9.0), bootstrap=10)
    with pytest.raises(ValueError, match="bootstrap = -1"):
        rank(game, bootstrap=-1)
    with pytest.raises(ValueError, match="batch of 3"):
        rank(zoo.annotator_rankings())


# --- the figure ---


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_the_figure_is_drawn_the_same_twice(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    from nashpref.paper_figs.rank import figure

    labels = ["costs $^$", "b", "c"]
    game = MatrixGame(zoo.comal().preferences, labels=labels, counts=9.0 * (1 - np.eye(3)))
    for ranking in (rank(game, bootstrap=20, rng=default_rng(0)), rank(zoo.bradley_terry([0.0, 1e3]))):
        for name in ("one", "two"):
            figure(ranking, tmp_path / f"{name}.{suffix}")
        first = (tmp_path / f"one.{suffix}").read_bytes()
        assert len(first) > 2000
        assert b"CreationDate" not in first
        assert first == (tmp_path / f"two.{suffix}").read_bytes()
