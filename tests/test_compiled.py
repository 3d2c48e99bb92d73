"""The compiled interpreter: the numpy one's iterates, for programs of any shape."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref import MirrorStep
from nashpref.testing import policies, preference_batches, preference_games, references, two_player_iterates

pytest.importorskip("numba")
from nashpref.compiled import encode

NAMES = ["current", "reference", "a", "b"]


@dataclass(frozen=True)
class Program:
    """Programs drawn at random, one after the other for ever."""

    programs: tuple[tuple[MirrorStep, ...], ...]

    def steps(self, t: int) -> Sequence[MirrorStep]:
        return self.programs[t % len(self.programs)]


@st.composite
def mirror_steps(draw: st.DrawFn) -> MirrorStep:
    """Copies, mixtures with negative weights, and steps against up to three opponents; any name written."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    weights = draw(st.lists(st.floats(-0.4, 0.8), min_size=len(names) - 1, max_size=len(names) - 1))
    anchors = dict(zip(names, [*weights, 1.0 - sum(weights)], strict=True))
    opponents = draw(st.dictionaries(st.sampled_from(NAMES), st.floats(-0.5, 1.0), max_size=3))
    return MirrorStep(draw(st.sampled_from(NAMES)), anchors, opponents)


PROGRAMS = st.lists(st.lists(mirror_steps(), max_size=4).map(tuple), min_size=1, max_size=3).map(
    lambda programs: Program(tuple(programs))
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[npf.MatrixGame, Program, dict[str, Any]]:
    game = draw(st.one_of(preference_games(max_n=4), preference_batches(max_n=4)))
    start = draw(policies(game.policy_shape, spread=3.0))
    other = draw(policies(game.policy_shape, spread=3.0))
    options = {"reference": draw(references(game.policy_shape)), "start": {"current": start, "b": other}}
    return game, draw(PROGRAMS), options


@settings(max_examples=150)
@given(run=runs(), record=st.sampled_from([1, 3, [4]]))
def test_any_program_has_the_same_trace(
    run: tuple[npf.MatrixGame, Program, dict[str, Any]], record: Any
) -> None:
    game, program, options = run
    numpy, compiled = (
        npf.solve(game, program, 8, record=record, keep_policies=True, compiled=flag, **options)
        for flag in (False, True)
    )
    assert (numpy.compiled, compiled.compiled) == (False, True)
    assert numpy.steps.tolist() == compiled.steps.tolist()
    for column in ("gap", "unregularised_gap", "average_gap", "policies"):
        np.testing.assert_allclose(
            getattr(compiled, column), getattr(numpy, column), rtol=0.0, atol=1e-11, err_msg=column
        )
    for name, policy in numpy.snapshot.policies.items():
        np.testing.assert_allclose(
            compiled.snapshot.policies[name], policy, rtol=0.0, atol=1e-11, err_msg=name
        )


@settings(max_examples=60)
@given(data=st.data(), game=preference_games(max_n=4), program=PROGRAMS, compiled=st.booleans())
def test_any_program_is_the_two_player_game(
    data: st.DataObject, game: npf.MatrixGame, program: Program, compiled: bool
) -> None:
    """Both interpreters against the definition, written out independently."""
    start, mu = data.draw(policies(game.n, spread=3.0)), data.draw(policies(game.n, spread=3.0))
    trace = npf.solve(game, program, 8, reference=mu, start=start, keep_policies=True, compiled=compiled)
    rows, columns = two_player_iterates(game, program, start, mu, 8)
    np.testing.assert_allclose(trace.policies, rows, rtol=0.0, atol=1e-11)
    np.testing.assert_allclose(columns, rows, rtol=0.0, atol=1e-11)


@pytest.mark.parametrize(
    "rule", [npf.GDA(beta=0.1), npf.OGDA(beta=0.1), npf.NashMD(beta=0.1), npf.EGPO(beta=0.1)]
)
def test_thousands_of_steps_agree_across_chunks(rule: Any) -> None:
    game, mu = npf.zoo.random_preferences(7, np.random.default_rng(0)), np.full(7, 1 / 7)
    numpy, compiled = (
        npf.solve(game, rule, 4000, reference=mu, record=37, compiled=flag, keep_policies=True)
        for flag in (False, True)
    )
    np.testing.assert_allclose(compiled.policies, numpy.policies, rtol=0.0, atol=1e-12)
    np.testing.assert_allclose(compiled.average_gap, numpy.average_gap, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(compiled.average_policy, numpy.average_policy, atol=1e-13)


@pytest.mark.parametrize("compiled", [False, True], ids=["numpy", "compiled"])
def test_the_average_is_right_when_only_later_programs_ask_for_its_payoffs(compiled: bool) -> None:
    """Ten iterations against the mixture, whose own payoffs nobody needs, then GDA, which needs them."""
    mixed, plain = npf.NashMD(beta=0.1, eta=0.5), npf.GDA(beta=0.1, eta=0.5)

    class Change:
        beta = 0.1

        def steps(self, t: int) -> Sequence[MirrorStep]:
            return (mixed if t < 10 else plain).steps(t)

    game, start = npf.zoo.comal(), np.array([0.6, 0.3, 0.1])
    trace = npf.solve(game, Change(), 90, start=start, record=[90], compiled=compiled)
    expected = npf.duality_gap(game, trace.average_policy, 0.1)
    assert trace.average_gap[-1] == pytest.approx(expected, rel=1e-9)


# --- the encoding ---


def test_a_constant_rule_is_one_program_with_one_column() -> None:
    index = {"current": 0, "reference": 1}
    code = encode(npf.OGDA(beta=0.1, eta=0.4), 0, 50, index)
    assert index == {"current": 0, "reference": 1, "previous": 2, "next": 3}
    assert code.weights.shape == (6, 1)
    assert code.which.tolist() == [0] * 50
    assert code.copied.tolist() == [-1, index["current"], index["next"]]
    assert code.to.tolist() == [index["next"], index["previous"], index["current"]]
    assert code.is_payoff.tolist() == [0, 0, 1, 1, 0, 0]
    assert sorted(code.weights[:4, 0].tolist()) == pytest.approx([-0.4, 0.04, 0.8, 0.96])


def test_a_schedule_is_one_program_with_a_column_for_each_iteration() -> None:
    code = encode(npf.NashMD(beta=0.5), 3, 7, {"current": 0, "reference": 1})
    assert code.weights.shape == (4, 4)
    assert code.weights[3] == pytest.approx([4.0 / (t + 2) for t in range(3, 7)])
    assert code.first_step.tolist() == [0, 2]


def test_programs_that_come_again_are_encoded_once() -> None:
    code = encode(npf.COMAL(beta=0.1, every=3), 1, 9, {"current": 0, "reference": 1})
    assert code.which.tolist() == [0, 1, 0, 0, 1, 0, 0, 1]
    assert len(code.first_step) == 3


# --- choosing ---


def test_long_runs_of_small_games_are_compiled_by_default() -> None:
    game = npf.zoo.comal()
    assert npf.solve(game, npf.OGDA(), 60_000, record=60_000).compiled
    assert not npf.solve(game, npf.OGDA(), 100).compiled
    many = npf.zoo.random_preferences(3, np.random.default_rng(0), batch=1000)
    assert npf.solve(many, npf.OGDA(), 10_000, record=10_000).compiled
    assert not npf.solve(many, npf.OGDA(), 1000, record=1000).compiled
    large = npf.zoo.random_preferences(300, np.random.default_rng(0))
    assert not npf.solve(large, npf.OGDA(), 5).compiled


def test_without_numba_the_numpy_path_is_taken_or_the_remedy_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "nashpref.compiled")
    with pytest.raises(ValueError, match=r"compiled=True needs numba: install nashpref\[fast\]"):
        npf.solve(npf.zoo.comal(), npf.OGDA(), 5, compiled=True)
    monkeypatch.setattr(sys.modules["nashpref.solve"], "_has_numba", lambda: False)
    assert not npf.solve(npf.zoo.comal(), npf.OGDA(), 60_000, record=60_000, tol=1e-3).compiled


def test_runs_in_threads_do_not_disturb_each_other() -> None:
    game, rule = npf.zoo.random_preferences(20, np.random.default_rng(0)), npf.EGPO(beta=0.1)
    alone = npf.solve(game, rule, 20_000, compiled=True).log_policy
    results: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(npf.solve(game, rule, 20_000, compiled=True).log_policy)
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for result in results:
        np.testing.assert_array_equal(result, alone)
