"""The Markov games of the zoo are what their docstrings say."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref.games import examples, markov_zoo

zoo = npf.zoo


def dense(game, h):
    T = game.transitions[h]
    return T if isinstance(T, np.ndarray) else T.toarray()


RANDOM = {
    "steps": {},
    "terminal": {"terminal": True},
    "sparse": {"branching": 2},
    "stationary": {"stationary": True},
    "starts": {"starts": 3},
    "all": {"terminal": True, "branching": 3, "stationary": True, "starts": 2},
}


@pytest.mark.parametrize("kind", RANDOM)
@settings(max_examples=10)
@given(S=st.integers(3, 7), A=st.integers(2, 4), H=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_random_games_are_reproducible_and_of_the_shape_asked_for(kind, S, A, H, seed):
    options = RANDOM[kind]
    game = zoo.random_markov_game(S, A, H, np.random.default_rng(seed), **options)
    assert (game.states, game.actions, game.horizon) == (S, A, H)
    assert game.terminal is options.get("terminal", False)
    assert len(game.initial_states) == options.get("starts", 1)
    for h in range(len(game.transitions)):
        T = dense(game, h)
        np.testing.assert_allclose(T.sum(axis=1), 1.0, atol=1e-14)
        assert (T > 0.0).sum(axis=1).max() <= options.get("branching", S)
    assert game.digest == zoo.random_markov_game(S, A, H, np.random.default_rng(seed), **options).digest
    assert game.digest != zoo.random_markov_game(S, A, H, np.random.default_rng(seed + 1), **options).digest


@pytest.mark.parametrize("options", [dict(S=0), dict(A=0), dict(H=0), dict(starts=5), dict(branching=0)])
def test_a_random_game_that_cannot_be_is_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        zoo.random_markov_game(**{"S": 4, "A": 2, "H": 2, "rng": np.random.default_rng(0)} | options)


def test_random_steps_differ_unless_the_game_is_stationary():
    changing = zoo.random_markov_game(5, 2, 4, np.random.default_rng(0))
    assert not np.allclose(dense(changing, 1), dense(changing, 2))
    assert not np.allclose(changing.payoffs[1], changing.payoffs[2])
    same = zoo.random_markov_game(5, 2, 4, np.random.default_rng(0), stationary=True)
    np.testing.assert_array_equal(dense(same, 1), dense(same, 2))
    np.testing.assert_array_equal(same.payoffs[1], same.payoffs[2])


def test_random_preferences_are_independent_and_uniform():
    A = zoo.random_markov_game(20, 10, 2, np.random.default_rng(0)).payoffs[1]
    upper = np.sort(A[np.triu_indices(len(A), 1)] + 0.5)
    grid = np.linspace(0.0, 1.0, len(upper))
    assert np.abs(upper - grid).max() < 2.0 / np.sqrt(len(upper))  # Kolmogorov–Smirnov


@given(n=st.integers(1, 40), height=st.integers(1, 400))
def test_a_matrix_is_completed_in_blocks_of_any_height(n, height):
    upper = np.random.default_rng(n).random((2, n, n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markov_zoo, "BLOCK", height)
        P = markov_zoo._complete(upper.copy())
    above = np.triu(np.ones((n, n), dtype=bool), 1)
    np.testing.assert_array_equal(P[:, above], upper[:, above])
    np.testing.assert_array_equal(P + np.swapaxes(P, 1, 2), np.ones((2, n, n)))


# --- gridworlds ---


def test_a_small_gridworld_by_hand():
    # 0 1 2
    # 3 4     five cells; actions right, down
    game = zoo.gridworld(5, 2, 3, np.random.default_rng(0), slip=0.4, initial=np.full(5, 0.2))
    T = dense(game, 0).reshape(5, 2, 5)
    sides = {0: (1, 3, 0, 0), 1: (2, 4, 0, 1), 2: (2, 2, 1, 2), 3: (4, 3, 3, 0), 4: (4, 4, 3, 1)}
    for cell, (right, down, left, up) in sides.items():
        for a, aim in enumerate((right, down)):
            expected = np.zeros(5)
            expected[aim] += 0.6
            for side in (right, down, left, up):
                expected[side] += 0.1
            np.testing.assert_allclose(T[cell, a], expected, atol=1e-15)
    assert game.state_labels[3] == ("(0, 0)", "(0, 1)", "(0, 2)", "(1, 0)", "(1, 1)")
    assert game.action_labels == ("right", "down")


def test_all_ten_moves_of_a_gridworld_go_where_they_say():
    game = zoo.gridworld(25, 10, 1, np.random.default_rng(0), slip=0.0, terminal=True, initial=12)
    assert dense(game, 0).shape == (10, 10)
    names = [game.state_labels[1][game.reached[1][k]] for k in dense(game, 0).argmax(axis=1)]
    assert dict(zip(game.action_labels, names, strict=True)) == {
        "right": "(2, 3)",
        "down": "(3, 2)",
        "left": "(2, 1)",
        "up": "(1, 2)",
        "down right": "(3, 3)",
        "down left": "(3, 1)",
        "up left": "(1, 1)",
        "up right": "(1, 3)",
        "stay": "(2, 2)",
        "jump right": "(2, 4)",
    }


def test_gridworld_preferences_are_the_same_at_every_step_and_features_ignore_the_action():
    everywhere = np.full(9, 1 / 9)
    plain = zoo.gridworld(9, 3, 3, np.random.default_rng(0), initial=everywhere)
    np.testing.assert_array_equal(plain.payoffs[0], plain.payoffs[2])
    hidden = zoo.gridworld(9, 3, 3, np.random.default_rng(0), features=2, initial=everywhere)
    cells = hidden.payoffs[0].reshape(9, 3, 9, 3)
    np.testing.assert_array_equal(cells, np.broadcast_to(cells[:, :1, :, :1], cells.shape))
    P = cells[:, 0, :, 0] + 0.5
    assert np.linalg.matrix_rank(np.log(P) - np.log(P.T), tol=1e-9) == 2
    last = zoo.gridworld(9, 3, 3, np.random.default_rng(0), features=2, initial=everywhere, terminal=True)
    np.testing.assert_array_equal(last.payoffs[0], cells[:, 0, :, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(A=11), "A = 11"),
        (dict(A=0), "A = 0"),
        (dict(cells=0), "cells = 0"),
        (dict(slip=1.5), "slip = 1.5"),
        (dict(features=3), "features = 3"),
        (dict(features=0), "features = 0"),
        (dict(initial=4), "initial = 4"),
        (dict(H=0), "horizon = 0"),
    ],
)
def test_a_gridworld_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.gridworld(**{"cells": 4, "A": 2, "H": 2, "rng": np.random.default_rng(0)} | options)


# --- strings ---


def test_the_prefixes_of_a_token_game_are_its_states():
    game = zoo.token_game(["a", "b", "c"], 2, lambda x, y: 0.5 + 0.5 * np.sign((x > y) - (x < y)))
    strings = ["".join(word) for word in itertools.product("abc", repeat=2)]
    assert game.state_labels == (("",), ("a", "b", "c"), tuple(strings))
    assert [len(states) for states in game.reached] == [1, 3, 9]
    policy = np.zeros(game.policy_shape)
    policy[..., 2] = 1.0
    policy[1, 2] = [0.0, 1.0, 0.0]
    d = npf.occupancy(game, policy)
    final = game.forward(1, game.flat(d)[:, game.layers[1]].reshape(1, -1))[0]
    assert strings[final.argmax()] == "cb"
    for x, y in itertools.product(range(9), repeat=2):
        assert game.payoffs[0][x, y] == (x > y) / 2 - (x < y) / 2


def test_a_token_game_is_the_matrix_game_of_its_strings():
    matrix = npf.zoo.random_preferences(8, np.random.default_rng(3))
    game = zoo.token_game("01", 3, matrix.preferences)
    tree = {a: {b: {c: None for c in "01"} for b in "01"} for a in "01"}
    assert game.payoffs[0].tobytes() == matrix.payoffs.tobytes()
    assert npf.MarkovGame.from_tree(tree, matrix.preferences).digest == game.digest


def test_penneys_game_has_the_known_odds_and_no_best_string():
    game = zoo.penneys_game()
    P, strings = game.payoffs[0] + 0.5, list(game.state_labels[-1])

    def chance(x, y):
        return P[strings.index(x), strings.index(y)]

    # Penney (1969): against each string the best reply and its chance, from Gardner's table.
    for x, y, p in [
        ("HHH", "THH", 7 / 8),
        ("HHT", "THH", 3 / 4),
        ("HTH", "HHT", 2 / 3),
        ("HTT", "HHT", 2 / 3),
        ("THH", "TTH", 2 / 3),
        ("THT", "TTH", 2 / 3),
        ("TTH", "HTT", 3 / 4),
        ("TTT", "HTT", 7 / 8),
    ]:
        assert chance(y, x) == pytest.approx(p, abs=1e-15)
        assert P[:, strings.index(x)].max() == chance(y, x)


# --- dialogues ---

KNOWN = {  # what is said first and second, in 111ths
    ("ask", "explain"): 26,
    ("ask", "fix"): 20,
    ("explain", "ask"): 20,
    ("fix", "ask"): 26,
    ("fix", "explain"): 19,
}


def test_the_dialogue_has_the_equilibrium_of_its_docstring():
    game = zoo.dialogue()
    assert (game.horizon, game.actions, [len(states) for states in game.reached]) == (2, 3, [1, 3, 9])
    ends = [(label[1], label[3]) for label in game.state_labels[-1]]
    mix = np.array([KNOWN.get(end, 0) for end in ends]) / 111
    payoff = game.payoffs[0] @ mix
    assert payoff.max() < 1e-15  # nothing does better against it
    assert (payoff[mix == 0.0] < -1e-3).all()  # and nothing else as well: it is the only one
    support = game.payoffs[0][np.ix_(mix > 0.0, mix > 0.0)]
    assert np.linalg.matrix_rank(support, tol=1e-9) == 4


def test_the_dialogue_cycles():
    game = zoo.dialogue()
    ends = [(label[1], label[3]) for label in game.state_labels[-1]]
    best = {end: ends[int(game.payoffs[0][:, k].argmax())] for k, end in enumerate(ends)}
    assert all(game.payoffs[0][:, k].max() > 0.0 for k in range(9))  # every dialogue loses to another
    seen, end = [], ends[0]
    while end not in seen:
        seen.append(end)
        end = best[end]
    assert len(seen) - seen.index(end) >= 3


def test_a_user_who_is_lost():
    game = zoo.dialogue(lost=0.25)
    assert [len(states) for states in game.reached] == [1, 6, 18]
    np.testing.assert_allclose(sorted(set(dense(game, 0).ravel())), [0.0, 0.25, 0.75])
    ends = list(game.state_labels[-1])
    confused = [k for k, (_, _, reaction, _) in enumerate(ends) if reaction == "You have lost me."]
    A = game.payoffs[0][np.ix_(confused, confused)]
    second = np.array([["ask", "explain", "fix"].index(ends[k][3]) for k in confused])
    for answer in range(3):  # whatever had been said first, only the second answer counts
        same = A[second == answer]
        np.testing.assert_array_equal(same, np.broadcast_to(same[0], same.shape))
    everyone = zoo.dialogue(lost=1.0)
    assert [len(states) for states in everyone.reached] == [1, 3, 9]
    for lost in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"lost = {lost}"):
            zoo.dialogue(lost=lost)


# --- the games that the command writes ---


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_every_example_is_a_game_that_depends_on_its_seed_or_on_nothing(name):
    game, again, other = (examples.make(name, seed) for seed in (0, 0, 1))
    assert isinstance(game, npf.MarkovGame if name in examples.MARKOV else npf.MatrixGame)
    assert game.digest == again.digest
    random = name in ("bradley-terry", "low-rank", "random", "tournament", "gridworld") or "random-" in name
    assert (game.digest != other.digest) == random
