"""The loop: what is recorded, how a run ends, and that stopping and going on changes nothing."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule

import nashpref as npf
from nashpref import MirrorStep, Status
from nashpref.policies import kl, log_policy
from nashpref.testing import policies, preference_batches, preference_games

GAME = npf.zoo.comal()
START = np.array([0.6, 0.3, 0.1])
MU = np.array([0.2, 0.3, 0.5])

RULES: dict[str, npf.UpdateRule] = {
    "MWU": npf.MWU(eta=0.3),
    "GDA": npf.GDA(beta=0.1),
    "Nash-MD": npf.NashMD(beta=0.1),
    "Nash-EMA": npf.NashEMA(beta=0.1, eta=0.5),
    "OGDA": npf.OGDA(beta=0.1, eta=0.5),
    "ONPO": npf.ONPO(),
    "EGPO": npf.EGPO(beta=0.1),
    "MNPO": npf.MNPO(beta=0.1, eta=0.3, weights=(0.5, 0.3, 0.2)),
    "COMAL": npf.COMAL(beta=0.1, every=7),
    "best response": npf.BestResponse(beta=0.5, opponent="current"),
}
INTERPRETERS = pytest.mark.parametrize("compiled", [False, True], ids=["numpy", "compiled"])


def solve(rule: npf.UpdateRule, steps: int, game: npf.MatrixGame = GAME, **options: Any) -> npf.Trace:
    return npf.solve(game, rule, steps, **({"start": START, "reference": MU} | options))


# --- what is recorded ---


@INTERPRETERS
@pytest.mark.parametrize("name", RULES)
def test_every_column_is_what_the_metrics_say(name: str, compiled: bool) -> None:
    rule = RULES[name]
    star = npf.equilibrium(GAME, 0.1, MU).policy
    trace = solve(rule, 60, keep_policies=True, equilibrium=star, compiled=compiled)
    beta = trace.beta
    assert trace.steps.tolist() == list(range(61))
    assert trace.policies is not None
    assert trace.kl is not None
    averages = np.cumsum(trace.policies, axis=0) / np.arange(1, 62)[:, None]
    for t, (pi, average) in enumerate(zip(trace.policies, averages, strict=True)):
        assert trace.gap[t] == pytest.approx(npf.duality_gap(GAME, pi, beta, MU), rel=1e-9, abs=1e-13)
        assert trace.unregularised_gap[t] == pytest.approx(npf.duality_gap(GAME, pi), abs=1e-14)
        assert trace.average_gap[t] == pytest.approx(
            npf.duality_gap(GAME, average, beta, MU), rel=1e-9, abs=1e-13
        )
        assert trace.kl[t] == pytest.approx(float(kl(log_policy(star), log_policy(pi))), rel=1e-9, abs=1e-15)
    np.testing.assert_allclose(trace.average_policy, averages[-1], atol=1e-14)
    np.testing.assert_allclose(trace.policy, trace.policies[-1], atol=1e-16)
    np.testing.assert_allclose(np.exp(trace.log_policy), trace.policy, atol=1e-15)
    np.testing.assert_allclose(trace.policies[0], START, atol=1e-16)


@INTERPRETERS
@settings(max_examples=15)
@given(game=preference_batches(), data=st.data())
def test_a_batch_is_measured_game_by_game(game: npf.MatrixGame, data: st.DataObject, compiled: bool) -> None:
    start = data.draw(policies(game.policy_shape, spread=5.0))
    rule = npf.OGDA(beta=0.1, eta=0.4)
    together = npf.solve(game, rule, 10, start=start, compiled=compiled)
    assert together.gap.shape == (11, game.batch)
    for b, P in enumerate(game.preferences):
        alone = npf.solve(npf.MatrixGame(P), rule, 10, start=start[b], compiled=compiled)
        for column in ("gap", "unregularised_gap", "average_gap"):
            np.testing.assert_allclose(getattr(together, column)[:, b], getattr(alone, column), atol=1e-12)
        np.testing.assert_allclose(together.average_policy[b], alone.average_policy, atol=1e-12)


GRIDS: dict[str, tuple[Any, int, list[int]]] = {
    "all": (1, 5, [0, 1, 2, 3, 4, 5]),
    "every third": (3, 7, [0, 3, 6, 7]),
    "every third, exactly": (3, 6, [0, 3, 6]),
    "a larger stride than the run": (100, 7, [0, 7]),
    "chosen": ([2, 5], 7, [0, 2, 5, 7]),
    "unsorted, repeated, out of range": ([5, -3, 2, 5, 99], 7, [0, 2, 5, 7]),
    "none chosen": ([], 4, [0, 4]),
    "an array": (np.array([3, 1]), 4, [0, 1, 3, 4]),
    "short runs whole": (None, 4, [0, 1, 2, 3, 4]),
    "no steps": (None, 0, [0]),
    "no steps, chosen": ([3], 0, [0]),
}


@INTERPRETERS
@pytest.mark.parametrize("case", GRIDS)
def test_recording_grids(case: str, compiled: bool) -> None:
    record, steps, expected = GRIDS[case]
    trace = solve(RULES["EGPO"], steps, record=record, compiled=compiled)
    every = solve(RULES["EGPO"], steps, record=1, compiled=compiled)
    assert trace.steps.tolist() == expected
    np.testing.assert_array_equal(trace.gap, every.gap[expected])
    np.testing.assert_allclose(trace.average_gap, every.average_gap[expected], rtol=1e-12)


@INTERPRETERS
def test_recorded_steps_survive_many_chunks(compiled: bool) -> None:
    """A run is cut into chunks of growing length; the recorded steps are those asked for all the same."""
    trace = solve(RULES["MWU"], 3000, record=1, compiled=compiled)
    assert trace.steps.tolist() == list(range(3001))
    sparse = solve(RULES["MWU"], 3000, record=7, compiled=compiled)
    assert sparse.steps.tolist() == [*range(0, 3000, 7), 3000]
    np.testing.assert_array_equal(sparse.gap, trace.gap[sparse.steps])


def test_the_default_grid_is_log_spaced_beyond_a_thousand_steps() -> None:
    grid = npf.log_grid(10**6)
    assert grid[0] == 0
    assert grid[-1] == 10**6
    assert len(grid) <= 1001
    assert (np.diff(grid) > 0).all()
    ratios = np.divide(grid[-99:], grid[-100:-1])
    assert ratios.max() / ratios.min() < 1.001
    assert npf.log_grid(1000) == list(range(1001))
    assert solve(RULES["MWU"], 1500, compiled=False).steps.tolist() == npf.log_grid(1500)


def test_a_million_steps_in_bounded_memory() -> None:
    solve(RULES["OGDA"], 10, compiled=True)  # compilation, or its cache, is not what is measured
    tracemalloc.start()
    began = time.process_time()
    trace = solve(RULES["OGDA"], 10**6)
    seconds = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert trace.compiled
    assert trace.snapshot.step == trace.steps[-1] == 10**6
    assert len(trace.steps) <= 1001
    assert trace.gap[-1] < 1e-20
    assert seconds < 5.0
    assert peak < 40e6  # the chunk of a quarter second, not the million


# --- how a run ends ---


@INTERPRETERS
@pytest.mark.parametrize("record", [1, 10, [3, 50, 77, 78, 120]])
@pytest.mark.parametrize("name", ["GDA", "OGDA", "EGPO", "Nash-MD", "COMAL"])
def test_converged_at_the_first_recorded_step_below_the_tolerance(
    name: str, record: Any, compiled: bool
) -> None:
    whole = solve(RULES[name], 400, record=record, keep_policies=True, compiled=compiled)
    tol = float(whole.gap[len(whole.gap) // 2 : -1].min() * 1.0001)
    first = int(np.argmax(whole.gap <= tol))
    trace = solve(RULES[name], 400, record=record, keep_policies=True, tol=tol, compiled=compiled)
    assert trace.status is Status.CONVERGED
    assert trace.gap[-1] <= tol
    assert (trace.gap[:-1] > tol).all()
    assert trace.steps.tolist() == whole.steps[: first + 1].tolist()
    assert trace.snapshot.step == trace.steps[-1]
    assert whole.policies is not None
    np.testing.assert_allclose(trace.policy, whole.policies[first], atol=1e-15)
    np.testing.assert_array_equal(trace.gap, whole.gap[: first + 1])


def test_converged_before_the_first_step() -> None:
    star = npf.equilibrium(GAME, 0.1, MU).policy
    trace = solve(RULES["EGPO"], 100, start=star, tol=1e-12)
    assert trace.status is Status.CONVERGED
    assert trace.steps.tolist() == [0]
    np.testing.assert_allclose(trace.policy, star, atol=1e-16)


def test_a_batch_converges_when_its_last_game_does() -> None:
    games = npf.MatrixGame(np.stack([npf.zoo.condorcet_cycle().preferences, GAME.preferences]))
    trace = npf.solve(games, npf.EGPO(beta=0.1), 1000, tol=1e-10)
    assert trace.status is Status.CONVERGED
    assert trace.gap[-1].max() <= 1e-10
    assert (trace.gap[:-1].max(axis=1) > 1e-10).all()
    assert trace.gap[0, 0] <= 1e-10  # the cycle's equilibrium is where it starts


@INTERPRETERS
def test_max_steps(compiled: bool) -> None:
    assert solve(RULES["EGPO"], 20, compiled=compiled).status is Status.MAX_STEPS
    falling = solve(RULES["EGPO"], 60, tol=1e-12, compiled=compiled)
    assert falling.status is Status.MAX_STEPS
    assert falling.gap[-1] > 1e-12


STALLING: dict[str, npf.UpdateRule] = {
    "a limit cycle": npf.GDA(beta=0.02, eta=8.0),
    "a bias": npf.NashMD(beta=0.1, eta=0.5),
    "rounding": npf.EGPO(beta=0.5),
}


@INTERPRETERS
@pytest.mark.parametrize("why", STALLING)
def test_stalled(why: str, compiled: bool) -> None:
    tol = 0.0 if why == "rounding" else 1e-9
    trace = solve(STALLING[why], 2000, tol=tol, record=1, compiled=compiled)
    assert trace.status in ({Status.STALLED, Status.CONVERGED} if why == "rounding" else {Status.STALLED})
    assert np.isfinite(trace.gap).all()
    assert solve(STALLING[why], 2000, compiled=compiled).status is Status.MAX_STEPS  # nothing was asked for


@INTERPRETERS
@pytest.mark.parametrize("rule", [npf.MWU, npf.OGDA, npf.ONPO, npf.EGPO])
@pytest.mark.parametrize("game", [GAME, npf.zoo.bradley_terry([4.0, 0.0, -4.0])], ids=["cycle", "winner"])
def test_a_run_past_the_largest_float_leaves_a_finite_trace(
    rule: Any, game: npf.MatrixGame, compiled: bool
) -> None:
    for eta in (1e300, 1e307, 1.7e308):
        trace = solve(rule(eta=eta), 300, game, compiled=compiled)
        assert (trace.snapshot.step < 300) == (trace.status is Status.NON_FINITE)
        assert trace.steps[-1] == trace.snapshot.step
        for column in (trace.gap, trace.unregularised_gap, trace.average_gap, trace.policy):
            assert np.isfinite(column).all()
        assert trace.policy.sum() == pytest.approx(1.0, abs=1e-12)
        assert np.isfinite(trace.average_policy).all()


@INTERPRETERS
def test_an_overflow_is_labelled(compiled: bool) -> None:
    """2η is infinite: the first extrapolated step has no number."""
    trace = solve(npf.OGDA(eta=1.7e308), 300, compiled=compiled)
    assert trace.status is Status.NON_FINITE
    assert trace.steps.tolist() == [0]
    np.testing.assert_allclose(trace.policy, START, atol=1e-16)


@INTERPRETERS
def test_a_callback_sees_every_recorded_step_and_can_stop(compiled: bool) -> None:
    seen: list[npf.Record] = []

    def stop_at_12(record: npf.Record) -> bool:
        seen.append(record)
        return record.step >= 12

    trace = solve(RULES["EGPO"], 50, record=5, callback=stop_at_12, keep_policies=True, compiled=compiled)
    assert trace.status is Status.STOPPED
    assert [record.step for record in seen] == trace.steps.tolist() == [0, 5, 10, 15]
    np.testing.assert_array_equal([record.gap for record in seen], trace.gap)
    np.testing.assert_array_equal([record.policy for record in seen], trace.policies)
    unwatched = solve(RULES["EGPO"], 50, record=5, compiled=compiled)
    np.testing.assert_array_equal(trace.gap, unwatched.gap[:4])


def test_a_callback_that_stops_at_once_or_raises() -> None:
    assert solve(RULES["EGPO"], 50, callback=lambda record: True).steps.tolist() == [0]
    before = signal.getsignal(signal.SIGINT)

    def fail(record: npf.Record) -> None:
        if record.step == 3:
            raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"):
        solve(RULES["EGPO"], 50, callback=fail)
    assert signal.getsignal(signal.SIGINT) is before


def test_converged_wins_over_a_callback_that_stops_at_the_same_step() -> None:
    trace = solve(RULES["EGPO"], 500, tol=1e-6, callback=lambda record: record.gap <= 1e-6)
    assert trace.status is Status.CONVERGED


# --- going on ---


def equal(actual: npf.Trace, expected: npf.Trace) -> None:
    """Two traces agree bit by bit, as far as anything can be observed."""
    for name in ("steps", "gap", "unregularised_gap", "average_gap", "policies"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), err_msg=name)
    for name, policy in expected.snapshot.policies.items():
        np.testing.assert_array_equal(actual.snapshot.policies[name], policy, err_msg=name)
        np.testing.assert_array_equal(
            actual.snapshot.log_policies[name], expected.snapshot.log_policies[name]
        )
    np.testing.assert_array_equal(actual.average_policy, expected.average_policy)
    assert actual.snapshot.policies.keys() == expected.snapshot.policies.keys()


@INTERPRETERS
@pytest.mark.parametrize("name", RULES)
def test_resuming_is_going_on(name: str, compiled: bool) -> None:
    options = {"record": 1, "keep_policies": True, "compiled": compiled}
    whole = solve(RULES[name], 90, **options)
    for cut in (0, 1, 6, 7, 16, 45, 89, 90):
        half = solve(RULES[name], cut, **options)
        equal(npf.solve(GAME, RULES[name], 90, reference=MU, resume=half, **options), whole)


def test_resuming_a_batch_of_games() -> None:
    rng = np.random.default_rng(0)
    games = npf.zoo.random_preferences(4, rng, batch=3)
    options: dict[str, Any] = {"reference": rng.dirichlet(np.ones(4), 3), "record": 1, "keep_policies": True}
    rule = npf.COMAL(beta=0.1, every=5)
    half = npf.solve(games, rule, 13, **options)
    equal(npf.solve(games, rule, 40, resume=half, **options), npf.solve(games, rule, 40, **options))


def test_resuming_keeps_the_interpreter_and_the_kl() -> None:
    star = npf.equilibrium(GAME, 0.1, MU).policy
    half = solve(RULES["EGPO"], 20, equilibrium=star, compiled=True)
    on = npf.solve(GAME, RULES["EGPO"], 40, reference=MU, equilibrium=star, resume=half)
    assert on.compiled
    np.testing.assert_array_equal(on.kl, solve(RULES["EGPO"], 40, equilibrium=star, compiled=True).kl)


def test_resuming_a_converged_run_adds_nothing_until_more_is_asked() -> None:
    done = solve(RULES["EGPO"], 500, tol=1e-6)
    again = npf.solve(GAME, RULES["EGPO"], 500, reference=MU, tol=1e-6, resume=done)
    assert again.status is Status.CONVERGED
    assert again.steps.tolist() == done.steps.tolist()
    further = npf.solve(GAME, RULES["EGPO"], 500, reference=MU, tol=1e-9, resume=done)
    assert further.status is Status.CONVERGED
    assert further.gap[-1] <= 1e-9
    np.testing.assert_array_equal(further.policy, solve(RULES["EGPO"], 500, tol=1e-9).policy)


def test_resuming_a_stopped_run() -> None:
    stopped = solve(RULES["OGDA"], 50, callback=lambda record: record.step == 11)
    on = npf.solve(GAME, RULES["OGDA"], 50, reference=MU, resume=stopped)
    np.testing.assert_array_equal(on.gap, solve(RULES["OGDA"], 50).gap)


def test_a_trace_is_not_changed_by_being_resumed() -> None:
    half = solve(RULES["COMAL"], 10, keep_policies=True)
    before = half.average_policy.copy(), half.policy.copy(), half.gap.copy()
    for _ in range(2):
        npf.solve(GAME, RULES["COMAL"], 30, reference=MU, resume=half, keep_policies=True)
    for kept, was in zip((half.average_policy, half.policy, half.gap), before, strict=True):
        np.testing.assert_array_equal(kept, was)


MISMATCHED: dict[str, tuple[dict[str, Any], str]] = {
    "another game": (
        {"game": npf.zoo.condorcet_cycle()},
        "belongs to another game, reference, rule",
    ),
    "another reference": ({"reference": START}, "belongs to another game, reference, rule"),
    "another rule": (
        {"rule": npf.EGPO(beta=0.1, eta=0.1)},
        "belongs to another game, reference, rule",
    ),
    "fewer steps": ({"steps": 10}, "steps = 10, but the trace to resume already made 20"),
    "an equilibrium that it lacks": ({"equilibrium": MU}, "the trace to resume lacks 'kl'"),
    "policies that it has": ({"keep_policies": False}, "the trace to resume has 'policies'"),
}


@pytest.mark.parametrize("case", MISMATCHED)
def test_resuming_another_run_is_refused(case: str) -> None:
    change, message = MISMATCHED[case]
    half = solve(RULES["EGPO"], 20, keep_policies=True)
    asked: dict[str, Any] = {
        "game": GAME,
        "rule": RULES["EGPO"],
        "steps": 40,
        "reference": MU,
        "keep_policies": True,
    }
    with pytest.raises(ValueError, match=message):
        npf.solve(resume=half, **(asked | change))


class Runs(RuleBasedStateMachine):
    """Step, stop, save, load, fork and resume in any order: a trace is a prefix of the uninterrupted run."""

    traces = Bundle("traces")
    LENGTH = 60

    @initialize(target=traces, name=st.sampled_from(sorted(RULES)), compiled=st.booleans())
    def begin(self, name: str, compiled: bool) -> npf.Trace:
        self.rule = RULES[name]
        self.options = {"record": 1, "keep_policies": True, "compiled": compiled}
        self.whole = solve(self.rule, self.LENGTH, **self.options)
        return solve(self.rule, 0, **self.options)

    @rule(target=traces, trace=traces, more=st.integers(0, 25))
    def step(self, trace: npf.Trace, more: int) -> npf.Trace:
        steps = min(trace.snapshot.step + more, self.LENGTH)
        return self.check(npf.solve(GAME, self.rule, steps, reference=MU, resume=trace, **self.options))

    @rule(target=traces, trace=traces, more=st.integers(1, 25))
    def stop(self, trace: npf.Trace, more: int) -> npf.Trace:
        at = min(trace.snapshot.step + more, self.LENGTH)
        stopped = npf.solve(
            GAME,
            self.rule,
            self.LENGTH,
            reference=MU,
            resume=trace,
            callback=lambda r: r.step >= at,
            **self.options,
        )
        assert stopped.snapshot.step == at
        return self.check(stopped)

    @rule(target=traces, trace=consumes(traces))
    def save_and_load(self, trace: npf.Trace) -> npf.Trace:
        path = Path(os.environ["PYTEST_TRACE_FOLDER"]) / "trace.npz"
        trace.save(path)
        return self.check(npf.Trace.load(path))

    @rule(target=traces, trace=traces)
    def fork(self, trace: npf.Trace) -> Any:
        return multiple(trace, trace)

    def check(self, trace: npf.Trace) -> npf.Trace:
        made = trace.snapshot.step + 1
        assert len(trace.steps) == made
        for name in ("steps", "gap", "unregularised_gap", "average_gap", "policies"):
            np.testing.assert_array_equal(
                getattr(trace, name), getattr(self.whole, name)[:made], err_msg=name
            )
        if made == self.LENGTH + 1:
            equal(trace, self.whole)
        return trace


def test_any_interleaving_of_step_stop_save_load_fork_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setenv("PYTEST_TRACE_FOLDER", str(tmp_path))
    run_state_machine_as_test(Runs, settings=settings(max_examples=40, stateful_step_count=12))


# --- Ctrl-C ---

CHILD = """
    import sys, threading
    import numpy as np
    import nashpref as npf

    compiled = sys.argv[2] == "compiled"
    game, rule = npf.zoo.comal(), npf.COMAL(beta=0.1, every=7)
    options = {"start": [0.6, 0.3, 0.1], "reference": [0.2, 0.3, 0.5], "compiled": compiled}
    npf.solve(game, rule, 100, **options)
    threading.Timer(0.2, lambda: print("running", flush=True)).start()
    try:
        npf.solve(game, rule, 10**9, **options)
    except npf.Interrupted as interrupted:
        interrupted.trace.save(sys.argv[1])
        print(interrupted, flush=True)
        sys.exit(130)
"""


@INTERPRETERS
def test_ctrl_c_loses_nothing(tmp_path: Path, compiled: bool) -> None:
    path = tmp_path / "trace.npz"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path), "compiled" if compiled else "numpy"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=30)[0]
    assert child.returncode == 130
    trace = npf.Trace.load(path)
    made = trace.snapshot.step
    assert said == f"interrupted after {made} steps\n"
    assert trace.status is Status.STOPPED
    assert trace.steps[-1] == made > 0
    assert np.isfinite(trace.gap).all()
    rule = npf.COMAL(beta=0.1, every=7)
    on = npf.solve(GAME, rule, made + 50, reference=MU, resume=trace)
    whole = solve(rule, made + 50, compiled=compiled, record=[made])
    np.testing.assert_array_equal(on.log_policy, whole.log_policy)
    np.testing.assert_array_equal(on.average_policy, whole.average_policy)
    assert trace.gap[-1] == whole.gap[1]


@INTERPRETERS
def test_ctrl_c_between_two_iterations(compiled: bool) -> None:
    def press(record: npf.Record) -> None:
        if record.step == 20:
            signal.raise_signal(signal.SIGINT)

    rule = RULES["OGDA"]
    with pytest.raises(npf.Interrupted, match="interrupted after 20 steps") as caught:
        solve(rule, 90, callback=press, record=5, compiled=compiled)
    assert isinstance(caught.value, KeyboardInterrupt)
    trace = caught.value.trace
    assert trace.status is Status.STOPPED
    assert trace.steps.tolist() == [0, 5, 10, 15, 20]
    on = npf.solve(GAME, rule, 90, reference=MU, record=5, resume=trace)
    np.testing.assert_array_equal(on.gap, solve(rule, 90, record=5, compiled=compiled).gap)


def test_ctrl_c_is_left_alone_outside_a_run_and_off_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGINT)
    solve(RULES["EGPO"], 5)
    assert signal.getsignal(signal.SIGINT) is before
    traces: list[npf.Trace] = []
    thread = threading.Thread(target=lambda: traces.append(solve(RULES["EGPO"], 5)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(traces[0].gap, solve(RULES["EGPO"], 5).gap)


# --- inputs ---


def test_inputs_are_not_changed_and_may_be_read_only() -> None:
    start, mu, star = START.copy(), MU.copy(), MU.copy()
    for array in (start, mu, star):
        array.flags.writeable = False
    trace = npf.solve(GAME, RULES["EGPO"], 20, start=start, reference=mu, equilibrium=star)
    for array, was in ((start, START), (mu, MU), (star, MU)):
        np.testing.assert_array_equal(array, was)
    assert not np.shares_memory(trace.policy, start)


def test_defaults_are_uniform_reference_and_start_at_it() -> None:
    trace = npf.solve(GAME, RULES["EGPO"], 3, keep_policies=True)
    assert trace.policies is not None
    np.testing.assert_array_equal(trace.policies[0], np.full(3, 1 / 3))
    given = npf.solve(GAME, RULES["EGPO"], 3, reference=MU, keep_policies=True)
    assert given.policies is not None
    np.testing.assert_allclose(given.policies[0], MU, atol=1e-16)


def test_one_start_and_reference_serve_a_whole_batch() -> None:
    games = npf.zoo.random_preferences(3, np.random.default_rng(0), batch=2)
    one = npf.solve(games, RULES["EGPO"], 5, start=START, reference=MU)
    each = npf.solve(games, RULES["EGPO"], 5, start=np.tile(START, (2, 1)), reference=np.tile(MU, (2, 1)))
    np.testing.assert_array_equal(one.gap, each.gap)


def test_other_names_start_where_current_does() -> None:
    class Peek:
        def steps(self, t: int) -> Sequence[MirrorStep]:
            return (MirrorStep("current", {"never written": 1.0}),)

    np.testing.assert_allclose(solve(Peek(), 3).policy, START, atol=1e-16)


@settings(max_examples=15)
@given(game=preference_games(max_n=3))
def test_small_games_and_one_response(game: npf.MatrixGame) -> None:
    trace = npf.solve(game, npf.OGDA(), 20)
    assert np.isfinite(trace.gap).all()
    if game.n == 1:
        assert trace.policy.tolist() == [1.0]
        assert trace.gap.max() == 0.0


FAIR = np.full(3, 1 / 3)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "negative steps": ({"steps": -1}, r"steps = -1 and tol = None: neither may be negative"),
    "negative tolerance": ({"tol": -1e-3}, r"tol = -0\.001: neither may be negative"),
    "tolerance nan": ({"tol": np.nan}, "tol = nan"),
    "record zero": ({"record": 0}, "record = 0: record every k-th step with k ≥ 1"),
    "reference with a zero": (
        {"reference": [0.5, 0.5, 0.0]},
        r"reference\[2\] = 0\.0 is zero; it must be positive",
    ),
    "reference nan": ({"reference": [0.5, np.nan, 0.5]}, r"reference\[1\] = nan is not finite"),
    "reference of another size": (
        {"reference": [0.5, 0.5]},
        r"reference has shape \(2,\); the game needs \(3,\)",
    ),
    "reference off the simplex": ({"reference": [0.5, 0.5, 0.5]}, r"reference sums to 1\.5, not 1"),
    "start with a zero": ({"start": [1.0, 0.0, 0.0]}, r"start\['current'\]\[1\] = 0\.0 is zero"),
    "start negative": ({"start": [1.2, -0.1, -0.1]}, r"start\['current'\]\[1\] = -0\.1 is negative"),
    "named start with a zero": (
        {"start": {"previous": [1.0, 0.0, 0.0]}},
        r"start\['previous'\]\[1\] = 0\.0 is zero",
    ),
    "reference as a start": ({"start": {"reference": FAIR}}, "hand the reference over as reference="),
    "a number for a policy": ({"reference": 1 / 3}, r"reference has shape \(\); the game needs \(3,\)"),
    "equilibrium off the simplex": ({"equilibrium": [0.5, 0.1, 0.1]}, r"equilibrium sums to 0\.7, not 1"),
    "equilibrium of another size": ({"equilibrium": [1.0]}, r"equilibrium has shape \(1,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs(case: str) -> None:
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        npf.solve(**({"game": GAME, "rule": RULES["EGPO"], "steps": 10} | change))


def test_progress_is_silent_off_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    trace = solve(RULES["EGPO"], 100, progress=True)
    assert capfd.readouterr() == ("", "")
    np.testing.assert_array_equal(trace.gap, solve(RULES["EGPO"], 100).gap)


def test_resume_takes_no_start_and_numpy_integers_are_integers() -> None:
    half = npf.solve(GAME, npf.OGDA(), 10)
    with pytest.raises(ValueError, match="start and resume"):
        npf.solve(GAME, npf.OGDA(), 20, start=MU, resume=half)
    assert npf.solve(GAME, npf.OGDA(), 20, record=np.int64(10)).steps.tolist() == [0, 10, 20]


class RoundedDown(npf.MatrixGame):
    """Payoffs a little low, as rounding leaves them at an equilibrium: all of them can be negative."""

    def payoff(self, opponent: Any) -> Any:
        return super().payoff(opponent) - 1e-3


def test_the_gap_is_that_of_the_game_the_rule_seeks() -> None:
    comal = solve(RULES["COMAL"], 30)
    assert comal.beta == 0.0  # its own β is only a means
    np.testing.assert_array_equal(comal.gap, comal.unregularised_gap)
    assert solve(RULES["GDA"], 1).beta == 0.1
    assert solve(RULES["MWU"], 1).beta == 0.0


def test_a_gap_is_never_negative() -> None:
    game = RoundedDown(np.full((3, 3), 0.5))
    trace = npf.solve(game, npf.MWU(eta=0.1), 5, compiled=False)
    assert (trace.gap == 0.0).all()
    assert (trace.average_gap == 0.0).all()
    assert npf.duality_gap(game, np.full(3, 1 / 3)) == 0.0


@pytest.mark.parametrize("compiled", [False, True])
def test_a_checkpoint_resumes_to_the_same_run(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, path = npf.COMAL(beta=0.1, every=7), tmp_path / "run.npz"
    whole = npf.solve(GAME, rule, 3000, compiled=compiled)
    monkeypatch.setattr(sys.modules["nashpref.solve"], "CHECKPOINT_SECONDS", 0.0)
    saved, save = [], npf.Trace.save
    monkeypatch.setattr(
        npf.Trace, "save", lambda self, to: saved.append(self.snapshot.step) or save(self, to)
    )
    npf.solve(GAME, rule, 1500, compiled=compiled, checkpoint=path)
    assert len(saved) > 3
    assert saved == sorted(set(saved))
    on = npf.solve(GAME, rule, 3000, resume=npf.Trace.load(path))
    np.testing.assert_array_equal(on.policy, whole.policy)
    np.testing.assert_array_equal(on.average_policy, whole.average_policy)


def test_a_killed_run_leaves_a_checkpoint_to_resume(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    code = (
        "import sys, nashpref as npf\n"
        "sys.modules['nashpref.solve'].CHECKPOINT_SECONDS = 0.0\n"
        "game, rule = npf.zoo.comal(), npf.OGDA(eta=1.0)\n"
        "npf.solve(game, rule, 10**9, record=1000, compiled=False, checkpoint=sys.argv[1])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while not path.exists():
        time.sleep(0.05)
        assert process.poll() is None
    time.sleep(0.5)
    process.kill()
    process.wait()
    trace = npf.Trace.load(path)
    done = trace.snapshot.step
    assert done % 1000 == 0
    on = npf.solve(npf.zoo.comal(), npf.OGDA(eta=1.0), done + 500, record=1000, resume=trace)
    straight = npf.solve(npf.zoo.comal(), npf.OGDA(eta=1.0), done + 500, record=1000, compiled=False)
    np.testing.assert_array_equal(on.policy, straight.policy)
    np.testing.assert_array_equal(on.gap, straight.gap)
