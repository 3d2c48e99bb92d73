"""Markov games: what is refused, what is kept, and the two linear maps of the dynamics."""

import dataclasses
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import nashpref as npf
from nashpref.testing import Description, descriptions, policies, preference_games
from nashpref.testing.markov_oracle import Play

H, S, A = 3, 4, 2
RNG = np.random.default_rng(0)
T = RNG.dirichlet(np.ones(S), (H, S, A))
STEPWISE = npf.zoo.random_preferences(S * A, RNG, batch=H).preferences.reshape(H, S, A, S, A)
FINAL = npf.zoo.random_preferences(S, RNG).preferences


def changed(array: Any, at: tuple[int, ...], value: float) -> Any:
    other = np.array(array)
    other[at] = value
    return other


def csr(transition: Any) -> list[Any]:
    return [sparse.csr_array(step.reshape(-1, step.shape[-1])) for step in transition]


# --- what is refused ---

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a row that does not sum to one": (
        {"transition": T * changed(np.ones((H, S, A, 1)), (1, 2, 1), 1.1)},
        "transition[h=1, s=2, a=1] sums to 1.1, not 1: divide it by its sum",
    ),
    "the worst row of all": (
        {"transition": T * changed(changed(np.ones((H, S, A, 1)), (1, 0, 0), 1.1), (1, 3, 1), 0.5)},
        "transition[h=1, s=3, a=1] sums to 0.5, not 1",
    ),
    "an empty row": (
        {"transition": T * changed(np.ones((H, S, A, 1)), (0, 0, 1), 0.0)},
        "[h=0, s=0, a=1] sums to 0,",
    ),
    "a negative probability": (
        {"transition": changed(T, (1, 1, 0, 3), -0.25)},
        "transition[h=1, s=1, a=0, s'=3] = -0.25 is negative: it must be a probability",
    ),
    "a probability that is not finite": (
        {"transition": changed(T, (0, 3, 1, 0), np.nan)},
        "transition[h=0, s=3, a=1, s'=0] = nan is not finite",
    ),
    "an infinite probability": (
        {"transition": changed(T, (1, 0, 0, 0), np.inf)},
        "[h=1, s=0, a=0, s'=0] = inf is not",
    ),
    "stationary, a row that does not sum to one": (
        {"transition": changed(T[0], (3, 0, 0), 2.0)},
        "transition[h=0, s=3, a=0] sums to ",
    ),
    "sparse, a row that does not sum to one": (
        {"transition": csr(T * changed(np.ones((H, S, A, 1)), (1, 2, 1), 1.1))},
        "transition[h=1, s=2, a=1] sums to 1.1, not 1",
    ),
    "sparse, a negative probability": (
        {"transition": csr(changed(T, (1, 1, 0, 3), -0.25))},
        "transition[h=1, s=1, a=0, s'=3] = -0.25 is negative",
    ),
    "sparse, not finite": (
        {"transition": csr(changed(T, (0, 3, 1, 0), np.nan))},
        "transition[h=0, s=3, a=1, s'=0] = nan is not finite",
    ),
    "sparse, an empty row": (
        {"transition": csr(T * changed(np.ones((H, S, A, 1)), (1, 3, 0), 0.0))},
        "transition[h=1, s=3, a=0] sums to 0, not 1",
    ),
    "no rows for a state": (
        {"transition": T[:, :-1]},
        "transition has shape (3, 3, 2, 4); a game needs (H, S, A, S)",
    ),
    "transitions of a single row": ({"transition": np.ones(4) / 4}, "transition has shape (4,)"),
    "no transitions": ({"transition": []}, "transition has shape (0,)"),
    "no actions": ({"transition": np.ones((H, S, 0, S))}, "transition has shape (3, 4, 0, 4)"),
    "no states": ({"transition": np.ones((H, 0, A, 0))}, "transition has shape (3, 0, 2, 0)"),
    "no steps of the transition": (
        {"transition": T[:0]},
        "transition has H = 0 steps: a game has at least one",
    ),
    "sparse steps of different shapes": (
        {"transition": [*csr(T)[:2], sparse.csr_array(np.eye(6))]},
        "the steps have different shapes, [(6, 6), (8, 4)]",
    ),
    "sparse rows that are no multiple of S": (
        {"transition": [sparse.csr_array(np.ones((7, 4)) / 4)] * H},
        "a sparse step has shape (S·A, S); got (7, 4)",
    ),
    "sparse without states": (
        {"transition": [sparse.csr_array((8, 0))] * H},
        "a sparse step has shape (S·A, S); got (8, 0)",
    ),
    "preferences that are not complementary": (
        {"preference": changed(STEPWISE, (1, 0, 1, 3, 0), 0.75) * 1.0},
        "preference[h=1, s=0, a=1, s'=3, a'=0] = 0.75 and its mirror image ",
    ),
    "a tie with itself that is none": (
        {"preference": changed(STEPWISE, (2, 1, 1, 1, 1), 0.9)},
        "preference[h=2, s=1, a=1, s'=1, a'=1] = 0.9 and its mirror image 0.9 sum to 1.8, not 1",
    ),
    "the worst pair of all": (
        {"preference": changed(changed(STEPWISE, (0, 0, 0, 0, 0), 0.51), (0, 2, 0, 2, 0), 0.7)},
        "preference[h=0, s=2, a=0, s'=2, a'=0] = 0.7",
    ),
    "a preference above one": (
        {"preference": changed(STEPWISE, (0, 3, 1, 2, 0), 1.5)},
        "preference[h=0, s=3, a=1, s'=2, a'=0] = 1.5 is not a probability in [0, 1]",
    ),
    "a negative preference": (
        {"preference": changed(STEPWISE, (2, 3, 1, 2, 0), -0.1)},
        "preference[h=2, s=3, a=1, s'=2, a'=0] = -0.1 is not a probability in [0, 1]",
    ),
    "a preference that is not finite": (
        {"preference": changed(STEPWISE, (0, 0, 0, 2, 1), np.nan)},
        "preference[h=0, s=0, a=0, s'=2, a'=1] = nan is not finite",
    ),
    "the same at every step, not complementary": (
        {"preference": changed(STEPWISE[0], (2, 0, 2, 0), 0.6)},
        "preference[s=2, a=0, s'=2, a'=0] = 0.6 and its mirror image 0.6",
    ),
    "final, not complementary": (
        {"preference": changed(FINAL, (3, 3), 0.25)},
        "preference[x=3, x'=3] = 0.25 and its mirror image 0.25 sum to 0.5, not 1",
    ),
    "final, outside [0, 1]": (
        {"preference": changed(FINAL, (1, 2), 2.0)},
        "preference[x=1, x'=2] = 2.0 is not a prob",
    ),
    "final, not finite": (
        {"preference": changed(FINAL, (1, 2), np.inf)},
        "preference[x=1, x'=2] = inf is not finite",
    ),
    "preferences of another number of states": (
        {"preference": STEPWISE[:, :3]},
        "preference has shape (3, 3, 2, 4, 2); with S = 4 states and A = 2 actions a game needs (H, ",
    ),
    "final preferences of another number of states": (
        {"preference": FINAL[:3, :3]},
        "preference has shape (3, 3);",
    ),
    "no steps of the preference": ({"preference": STEPWISE[:0]}, "preference has H = 0 steps"),
    "preferences of fewer steps": (
        {"preference": STEPWISE[:2]},
        "the number of steps H differs (transition: 3, preference: 2): give what is always the same once",
    ),
    "another horizon": (
        {"horizon": 4},
        "the number of steps H differs (horizon: 4, transition: 3, preference: 3)",
    ),
    "a shorter horizon": ({"horizon": 1}, "the number of steps H differs (horizon: 1, transition: 3"),
    "H = 0": ({"horizon": 0}, "horizon = 0: a game has at least one step"),
    "a negative horizon": ({"horizon": -2}, "horizon = -2: a game has at least one step"),
    "no horizon": (
        {"transition": T[0], "preference": FINAL},
        "horizon is missing: neither transition nor preference has an axis for the steps",
    ),
    "no horizon, sparse": ({"transition": csr(T)[0], "preference": STEPWISE[0]}, "horizon is missing"),
    "an initial state that does not exist": (
        {"initial": S},
        "initial = 4: there is no such state, they are 0 … 3",
    ),
    "a negative initial state": ({"initial": -1}, "initial = -1: there is no such state"),
    "half an initial state": ({"initial": 1.5}, "initial = 1.5: there is no such state"),
    "no initial state": ({"initial": np.nan}, "initial = nan: there is no such state"),
    "an infinite initial state": ({"initial": np.inf}, "initial = inf: there is no such state"),
    "an initial distribution of another size": (
        {"initial": [0.5, 0.5]},
        "initial has shape (2,); it is a state, or",
    ),
    "an initial distribution that does not sum to one": (
        {"initial": [0.5, 0.5, 0.5, 0.0]},
        "initial sums to 1.5, not 1: divide it by its sum",
    ),
    "a negative initial probability": (
        {"initial": [0.5, -0.5, 1.0, 0.0]},
        "initial[1] = -0.5: it must be a prob",
    ),
    "an initial probability that is not finite": (
        {"initial": [0.5, 0.5, np.nan, 0.0]},
        "initial[2] = nan: it must",
    ),
    "state labels without the final states": (
        {"state_labels": [["a", "b", "c", "d"]] * H},
        "state_labels: 4 sequences (the steps and the final states) of up to 4 labels are needed",
    ),
    "too many state labels": ({"state_labels": [range(5)] * 4}, "state_labels: 4 sequences"),
    "too few action labels": (
        {"action_labels": ["left"]},
        "action_labels: 2 distinct names are needed, got ['left']",
    ),
    "repeated action labels": ({"action_labels": ["up", "up"]}, "action_labels: 2 distinct names are needed"),
    "too many action labels, two of them alike": (
        {"action_labels": ["up", "down", "up"]},
        "action_labels: 2 distinct names are needed",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused_where_it_is(what: str) -> None:
    wrong, message = REFUSED[what]
    npf.MarkovGame(T, STEPWISE, 0)  # what is right
    options: dict[str, Any] = {"transition": T, "preference": STEPWISE, "initial": 0} | wrong
    with pytest.raises(ValueError, match=re.escape(message)):
        npf.MarkovGame(**options)


def test_rounding_is_not_refused() -> None:
    game = npf.MarkovGame(T * (1.0 + 5e-9), np.clip(STEPWISE + 4e-9, 0.0, 1.0), [0.5, 0.5 + 5e-9, 0.0, 0.0])
    assert game.initial_weights.sum() == pytest.approx(1.0, abs=1e-15)
    for payoffs in game.payoffs:
        np.testing.assert_array_equal(payoffs, -payoffs.T)


def test_what_no_preference_compares_is_not_looked_at() -> None:
    """The last step leads to final states, whose worth nobody asked for."""
    last = changed(T, (2, 0, 0, 0), np.nan)
    assert npf.MarkovGame(last, STEPWISE, 0).digest == npf.MarkovGame(T, STEPWISE, 0).digest
    with pytest.raises(ValueError, match=r"h=2, s=0, a=0, s'=0"):
        npf.MarkovGame(last, FINAL, 0)


def test_a_batch_is_not_one_game() -> None:
    with pytest.raises(ValueError, match="this is a batch of 3"):
        npf.MarkovGame.from_matrix(npf.zoo.random_preferences(4, RNG, batch=3))


@pytest.mark.parametrize("function", [npf.occupancy, npf.duality_gap, npf.best_response])
def test_bad_policies_are_refused_where_they_are(function: Any) -> None:
    game = npf.MarkovGame(T, STEPWISE, 0)
    uniform = np.full((H, S, A), 0.5)
    for policy, message in (
        (changed(uniform, (1, 2, 0), np.nan), r"policy\[1, 2, 0\] = nan is not finite"),
        (changed(uniform, (1, 2, 0), -0.5), r"policy\[1, 2, 0\] = -0.5 is negative"),
        (changed(uniform, (2, 3, 1), 0.6), r"policy\[2, 3\] sums to 1.1, not 1"),
        (uniform[:, :3], r"policy has shape \(3, 3, 2\); the game needs \(3, 4, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            function(game, policy)


# --- what is the same game ---


def test_what_is_always_the_same_is_given_once() -> None:
    """Steps that are one object share one array, wherever the same states are reached."""
    ways = {
        "arrays": npf.MarkovGame(np.stack([T[0]] * 5), np.stack([STEPWISE[0]] * 5), 0),
        "once": npf.MarkovGame(T[0], STEPWISE[0], 0, horizon=5),
        "transition once": npf.MarkovGame(T[0], np.stack([STEPWISE[0]] * 5), 0),
        "preference once": npf.MarkovGame(np.stack([T[0]] * 5), STEPWISE[0], 0),
        "one of a length of one": npf.MarkovGame(T[:1], STEPWISE[:1], 0, horizon=5),
    }
    assert len({game.digest for game in ways.values()}) == 1
    once = ways["once"]
    assert [len(states) for states in once.reached] == [1, S, S, S, S]
    assert len(set(map(id, once.payoffs[1:]))) == 1
    assert len(set(map(id, once.transitions[1:]))) == 1
    assert len(set(map(id, npf.MarkovGame(csr(T)[0], FINAL, 0, horizon=6).transitions[1:-1]))) == 1


def test_sharing_stops_where_the_states_differ() -> None:
    """A walk along a line reaches one state more at every step until it has all."""
    line = np.zeros((4, 2, 4))
    for s in range(4):
        line[s, 0, max(s - 1, 0)] = line[s, 1, min(s + 1, 3)] = 1.0
    game = npf.MarkovGame(line, FINAL, 3, horizon=6)
    assert [states.tolist() for states in game.reached] == [[3], [2, 3], [1, 2, 3], *[[0, 1, 2, 3]] * 4]
    policy = np.full(game.policy_shape, 0.5)
    np.testing.assert_allclose(game.plan(game.flat(policy)).sum(), 6.0)
    assert game.transitions[3] is game.transitions[5]
    assert game.transitions[2] is not game.transitions[3]


def test_every_format_of_a_sparse_matrix_is_the_same_game() -> None:
    step = T[0].reshape(S * A, S)
    columns = np.tile(np.arange(S), (S * A, 1))
    ends = S * np.arange(S * A + 1)
    wide: Any = sparse.csr_array(step)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    formats = {
        "csr": sparse.csr_array(step),
        "csr matrix": sparse.csr_matrix(step),
        "csc": sparse.csc_array(step),
        "coo": sparse.coo_array(step),
        "wide indices": wide,
        "unsorted": sparse.csr_array((step[:, ::-1].ravel(), columns[:, ::-1].ravel(), ends)),
        "in halves": sparse.csr_array((step.repeat(2) / 2.0, columns.repeat(2), 2 * ends)),
    }
    assert not formats["unsorted"].has_sorted_indices
    assert formats["in halves"].nnz == 2 * step.size
    games = {name: npf.MarkovGame(matrix, FINAL, 0, horizon=2) for name, matrix in formats.items()}
    assert {name for name, game in games.items() if game.digest != games["csr"].digest} == set()
    dense = npf.MarkovGame(step.reshape(S, A, S), FINAL, 0, horizon=2)
    kept: tuple[Any, ...] = games["csr"].transitions
    for ours, theirs in zip(kept, dense.transitions, strict=True):
        np.testing.assert_array_equal(ours.toarray(), np.asarray(theirs))


DIFFERENT: dict[str, dict[str, Any]] = {
    "the game": {},
    "another transition": {"transition": T[::-1]},
    "another preference": {"preference": STEPWISE[::-1]},
    "final states": {"preference": FINAL},
    "another initial state": {"initial": 1},
    "two initial states": {"initial": [0.5, 0.5, 0.0, 0.0]},
    "two initial states, other weights": {"initial": [0.25, 0.75, 0.0, 0.0]},
    "sparse": {"transition": csr(T)},
    "fewer steps": {"transition": T[:2], "preference": STEPWISE[:2]},
}


def test_the_digest_tells_games_apart() -> None:
    plain: dict[str, Any] = {"transition": T, "preference": STEPWISE, "initial": 0}
    games = {name: npf.MarkovGame(**(plain | other)) for name, other in DIFFERENT.items()}
    assert len({game.digest for game in games.values()}) == len(games)
    assert npf.MarkovGame(T, STEPWISE, 0).digest == games["the game"].digest
    assert npf.MarkovGame(T, STEPWISE, np.eye(S)[0]).digest == games["the game"].digest
    ties = np.full((1, S, A, S, A), 0.5)
    assert npf.MarkovGame(T[:1], ties, 0).digest != npf.MarkovGame(T[:1], ties, 1).digest  # another state
    padded = np.zeros((H, S + 1, A, S + 1))
    padded[:, :S, :, :S], padded[:, S, :, S] = T, 1.0
    beside = np.full((S + 1, S + 1), 0.5)
    beside[:S, :S] = FINAL
    assert npf.MarkovGame(padded, beside, 0).digest != games["final states"].digest  # another policy shape


def test_repr() -> None:
    assert repr(npf.MarkovGame(T, STEPWISE, 0)) == "MarkovGame(H=3, S=4, A=2, preference of every step)"
    several = npf.MarkovGame(csr(T), FINAL, [0.5, 0.5, 0.0, 0.0])
    assert repr(several) == "MarkovGame(H=3, S=4, A=2, preference of final states, sparse, initial states=2)"


def test_labels_are_kept() -> None:
    labels: Any = [["root"], ["a", "b"], [("a", 1), ("b", 2)], ["end"]]
    game = npf.MarkovGame(T, FINAL, 0, state_labels=labels, action_labels=["left", "right"])
    assert game.state_labels == (("root",), ("a", "b"), (("a", 1), ("b", 2)), ("end",))
    assert game.action_labels == ("left", "right")
    assert npf.MarkovGame.from_matrix(npf.zoo.comal()).action_labels == ("a", "b", "c")


# --- what is kept: the states that can be reached ---


def lists(arrays: Any) -> list[list[int]]:
    return [np.asarray(array).tolist() for array in arrays]


@settings(max_examples=60)
@given(description=descriptions(max_starts=3), is_sparse=st.booleans())
def test_reached_states_are_those_that_the_uniform_policy_visits(
    description: Description, is_sparse: bool
) -> None:
    game = description.game(sparse=is_sparse)
    H, _, _ = description.shape
    each = np.array([Play.of(description, 0, int(s)).reached for s in description.initial_states])
    assert lists(game.reached[:H]) == lists([np.flatnonzero(each[:, h].any(axis=0)) for h in range(H)])
    for h, (layer, states) in enumerate(zip(game.layers, game.reached, strict=False)):
        np.testing.assert_array_equal(game.reached_from[:, layer], each[:, h, states])
        assert layer.stop - layer.start == len(states)
    assert game.flat_shape == (len(each), sum(map(len, game.reached[:H])), game.actions)
    assert game.layers[0].start == 0
    assert all(a.stop == b.start for a, b in zip(game.layers, game.layers[1:], strict=False))
    assert len(game.reached) == H + game.terminal
    assert game.policy_shape == description.policy_shape


@settings(max_examples=60)
@given(data=st.data(), description=descriptions(max_starts=3))
def test_flat_and_full_are_each_others_inverse(data: st.DataObject, description: Description) -> None:
    game = description.game()
    policy = data.draw(policies(game.policy_shape))
    flat = game.flat(policy)
    assert flat.shape == game.flat_shape
    fill = data.draw(policies(game.policy_shape))
    full = game.full(flat, fill)
    reached = game.full(np.ones(game.flat_shape), 0.0) == 1.0
    np.testing.assert_array_equal(full, np.where(reached, policy, fill))
    np.testing.assert_array_equal(game.full(game.flat(full), fill), full)
    np.testing.assert_array_equal(reached.any(axis=-1), reached.all(axis=-1))
    assert reached.sum() == game.reached_from.sum() * game.actions


def test_a_stored_zero_leads_nowhere() -> None:
    stored = sparse.csr_array(np.array([[0.5, 0.5], [1.0, 1e-9]]))
    stored.data[3] = 0.0
    assert stored.nnz == 4
    game = npf.MarkovGame([stored, stored], np.full((2, 2), 0.5), 1)
    assert lists(game.reached) == [[1], [0], [0, 1]]
    both = [
        npf.MarkovGame([T, T], np.full((2, 2), 0.5), [0.5, 0.5]) for T in (stored, stored.toarray()[:, None])
    ]
    kept: Any = both[0].transitions[0]
    assert kept.nnz == 3
    np.testing.assert_array_equal(kept.toarray(), np.asarray(both[1].transitions[0]))


def test_a_transition_below_the_smallest_normal_float_still_leads_somewhere() -> None:
    tiny = np.zeros((3, 2, 2, 2))
    tiny[:, 0, :] = [1.0, 5e-324]
    tiny[:, 1, :, 1] = 1.0
    game = npf.MarkovGame(tiny, FINAL[:2, :2], 0)
    assert lists(game.reached) == [[0], [0, 1], [0, 1], [0, 1]]
    assert game.reached_from.all()


# --- the linear maps ---


@settings(max_examples=60)
@given(data=st.data(), description=descriptions(max_starts=3), is_sparse=st.booleans())
def test_plans_and_payoffs_are_the_definitions(
    data: st.DataObject, description: Description, is_sparse: bool
) -> None:
    """Occupancies and what they make every place worth, against following each initial state by itself."""
    game = description.game(sparse=is_sparse)
    policy = data.draw(policies(game.policy_shape, zeros=True))
    plan = game.plan(game.flat(policy))
    gain = game.payoff(plan)
    each = policy.reshape(-1, *description.shape)
    occupancies = npf.occupancy(game, policy).reshape(each.shape)
    for i, s in enumerate(description.initial_states):
        play = Play.of(dataclasses.replace(description, preference=description.preference - 0.5), 0, int(s))
        d, _ = play.occupancy(each[i])
        np.testing.assert_allclose(occupancies[i], d, atol=1e-15)
        places, final = play.gain(each[i])
        if game.terminal:
            np.testing.assert_allclose(gain[i], final[game.reached[-1]], atol=1e-15)
        else:
            for h, layer in enumerate(game.layers):
                np.testing.assert_allclose(gain[i, layer], places[h, game.reached[h]], atol=1e-15)
    for layer in game.layers:
        np.testing.assert_allclose(plan[:, layer].sum(axis=(1, 2)), 1.0, atol=1e-14)


@settings(max_examples=40)
@given(description=descriptions(max_starts=3), is_sparse=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_backward_is_the_transpose_of_forward(description: Description, is_sparse: bool, seed: int) -> None:
    game, rng = description.game(sparse=is_sparse), np.random.default_rng(seed)
    for h in range(len(game.transitions)):
        n, following = len(game.reached[h]), len(game.reached[h + 1])
        for rows in (1, 2, 5):
            d, v = rng.random((rows, n * game.actions)), rng.random((rows, following))
            assert game.forward(h, d).shape == (rows, following)
            assert game.backward(h, v).shape == (rows, n, game.actions)
            there = (game.forward(h, d) * v).sum(axis=1)
            back = (d * game.backward(h, v).reshape(rows, -1)).sum(axis=1)
            np.testing.assert_allclose(there, back, rtol=1e-13)


def test_large_products_in_blocks_are_products() -> None:
    """A few vectors are multiplied by a large matrix in blocks of it."""
    rng = np.random.default_rng(1)
    n, A = 60, 20  # 1200 × 1200 payoffs, 1200 × 60 transitions
    preference = npf.zoo.random_preferences(n * A, rng).preferences.reshape(n, A, n, A)
    game = npf.MarkovGame(rng.dirichlet(np.ones(n), (n, A)), preference, np.full(n, 1.0 / n), horizon=2)
    for rows in (1, 2, 3, 7):
        d = rng.random((rows, 2 * n, A))
        q = game.payoff(d)
        for layer, payoffs in zip(game.layers, game.payoffs, strict=True):
            expected = d[:, layer].reshape(rows, -1) @ payoffs.T
            np.testing.assert_allclose(q[:, layer].reshape(rows, -1), expected, atol=1e-11)


@settings(max_examples=40)
@given(data=st.data(), description=descriptions())
def test_playing_oneself_is_a_tie(data: st.DataObject, description: Description) -> None:
    game = description.game()
    plan = game.plan(game.flat(data.draw(policies(game.policy_shape))))
    gain = game.payoff(plan)
    if game.terminal:
        last = plan[:, game.layers[-1]].reshape(len(plan), -1)
        plan = game.forward(game.horizon - 1, last)
    np.testing.assert_allclose((plan * gain).reshape(len(plan), -1).sum(axis=1), 0.0, atol=1e-15)


# --- the matrix game as the case of one step ---


@settings(max_examples=30)
@given(game=preference_games(), data=st.data())
def test_a_matrix_game_is_a_markov_game_of_one_step(game: npf.MatrixGame, data: st.DataObject) -> None:
    """Bit for bit: payoffs, best responses, gaps (but for a rounding of 2β)."""
    markov = npf.MarkovGame.from_matrix(game)
    assert markov.policy_shape == (1, 1, game.n)
    assert repr(markov) == f"MarkovGame(H=1, S=1, A={game.n}, preference of every step)"
    np.testing.assert_array_equal(markov.payoffs[0], game.payoffs)
    policy, mu = data.draw(policies(game.n)), data.draw(policies(game.n, spread=3.0))
    for beta in (0.0, 0.3):
        gap = npf.duality_gap(markov, policy[None, None], beta, mu[None, None])
        assert gap == pytest.approx(
            npf.duality_gap(game, policy, beta, mu), rel=1e-13 if beta else 0.0, abs=0.0
        )
        response = npf.best_response(markov, policy[None, None], beta, mu[None, None])
        np.testing.assert_array_equal(response[0, 0], npf.best_response(game, policy, beta, mu))


@pytest.mark.parametrize("n", [2, 3, 17, 33, 64, 200, 300])
def test_runs_on_a_matrix_game_are_the_same_bits(n: int) -> None:
    rng = np.random.default_rng(n)
    game = npf.zoo.random_preferences(n, rng)
    markov = npf.MarkovGame.from_matrix(game)
    mu = rng.dirichlet(np.ones(n))
    for markov_rule, rule in (
        (npf.MTPO(beta=0.1), npf.GDA(beta=0.1)),
        (npf.MTPOTau(beta=0.1), npf.NashMD(beta=0.1)),
        (npf.OMPO(eta=0.5), npf.OGDA(eta=0.5)),
        (npf.MPO(eta=0.5), npf.MWU(eta=0.5)),
    ):
        ours = npf.solve(markov, markov_rule, 30, reference=mu[None, None])
        theirs = npf.solve(game, rule, 30, reference=mu, compiled=False)
        np.testing.assert_array_equal(ours.policy[0, 0], theirs.policy)
        np.testing.assert_allclose(ours.gap, theirs.gap, rtol=1e-12)
        np.testing.assert_allclose(ours.average_gap, theirs.average_gap, rtol=1e-12)


# --- unreached states keep the reference ---


@pytest.mark.parametrize("geometry", list(npf.Geometry))
@pytest.mark.parametrize("is_sparse", [False, True])
def test_unreached_states_keep_the_reference(geometry: npf.Geometry, is_sparse: bool) -> None:
    """Those that no start reaches, and those that only the other one does, in everything that is returned."""
    halves = np.zeros((3, 6, 2, 6))  # 0, 1, 2 and 3, 4 never meet; 5 is never reached
    halves[:, :3, :, :3] = RNG.dirichlet(np.ones(3), (3, 3, 2))
    halves[:, 3:5, :, 3:5] = RNG.dirichlet(np.ones(2), (3, 2, 2))
    halves[:, 5, :, 0] = 1.0
    final = npf.zoo.random_preferences(6, RNG).preferences
    game = npf.MarkovGame(csr(halves) if is_sparse else halves, final, [0.5, 0, 0, 0.5, 0, 0])
    mu = RNG.dirichlet(np.ones(2), game.policy_shape[:-1])
    start = RNG.dirichlet(np.ones(2), game.policy_shape[:-1])
    reached = np.zeros((2, 3, 6), dtype=bool)
    reached[0, 0, 0] = reached[1, 0, 3] = reached[0, 1:, :3] = reached[1, 1:, 3:5] = True

    def check(policy: Any) -> None:
        np.testing.assert_array_equal(policy[~reached], mu[~reached])
        assert (policy[reached] != mu[reached]).any()

    trace = npf.solve(game, npf.OGDA(), 5, geometry=geometry, reference=mu, start=start, keep_policies=True)
    assert trace.policies is not None
    for policy in (trace.policy, np.exp(trace.log_policy), trace.average_policy, *trace.policies):
        np.testing.assert_allclose(policy.sum(axis=-1), 1.0, atol=1e-14)
    for policy in (trace.policy, trace.average_policy, *trace.policies, *trace.snapshot.policies.values()):
        np.testing.assert_array_equal(policy[~reached], mu[~reached])
    check(trace.policy)
    for beta in (0.0, 0.2):
        check(npf.best_response(game, start, beta, mu))
    check(npf.policy_of_occupancy(game, npf.occupancy(game, start), mu))
    assert not npf.occupancy(game, start)[~reached].any()


# --- memory ---


def peak_of(make: Any) -> int:
    tracemalloc.start()
    game = make()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(game, npf.MarkovGame)
    return peak


def test_memory_is_within_twice_the_inputs() -> None:
    """Making a game takes what it keeps, and little more: copying is the one time, handing in the other."""
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(80), (4, 80, 5))
    stepwise = npf.zoo.random_preferences(400, rng, batch=4).preferences.reshape(4, 80, 5, 80, 5)
    final = npf.zoo.random_preferences(80, rng).preferences
    small = npf.MarkovGame(T, STEPWISE, 0)  # whatever is imported on first use
    assert small.horizon == H
    inputs = transition.nbytes + stepwise.nbytes
    assert peak_of(lambda: npf.MarkovGame(transition, stepwise, 0)) < 1.5 * inputs
    inputs = transition.nbytes + final.nbytes
    assert peak_of(lambda: npf.MarkovGame(transition, final, 0)) < 1.75 * inputs


def test_preferences_of_final_states_are_never_expanded() -> None:
    """Between the S·A places of a step they would take a hundred times the memory of the game."""
    rng = np.random.default_rng(0)
    n, A, H = 300, 10, 4
    rows = np.repeat(np.arange(n * A), 3)
    steps = [
        sparse.csr_array((np.full(3 * n * A, 1 / 3), (rows, rng.integers(0, n, 3 * n * A))), (n * A, n))
        for _ in range(H)
    ]
    final = npf.zoo.random_preferences(n, rng).preferences
    inputs = final.nbytes + sum(step.data.nbytes + step.indices.nbytes + step.indptr.nbytes for step in steps)
    assert inputs < (n * A) ** 2 * 8 / 40
    assert peak_of(lambda: npf.MarkovGame(steps, final, 0)) < 2.0 * inputs
    game = npf.MarkovGame(steps, final, 0)
    npf.solve(game, npf.MTPO(beta=0.1, eta=0.5), 2)
    tracemalloc.start()
    npf.solve(game, npf.MTPO(beta=0.1, eta=0.5), 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 8 * H * n * A  # policies, never a matrix of places
