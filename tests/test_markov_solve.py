"""Runs on Markov games: what is recorded, in which geometry, how a run ends, and how it goes on."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule
from scipy import sparse

import nashpref as npf
from nashpref import Geometry, Status
from nashpref.dynamic_programming import trajectory_kl
from nashpref.policies import log_policy
from nashpref.testing import Description, descriptions, policies, references

H, S, A = 3, 4, 2
RNG = np.random.default_rng(3)
T = RNG.dirichlet(np.ones(S), (H, S, A))
T[0, :, :, 3] = 0.0  # state 3 is reached late
T[0] /= T[0].sum(axis=-1, keepdims=True)
STEPWISE = npf.zoo.random_preferences(S * A, RNG, batch=H).preferences.reshape(H, S, A, S, A)
FINAL = npf.zoo.random_preferences(S, RNG).preferences
RHO = np.array([0.25, 0.0, 0.75, 0.0])
GAMES = {
    "every step": npf.MarkovGame(T, STEPWISE, 0),
    "final states": npf.MarkovGame(T, FINAL, 1),
    "two initial states": npf.MarkovGame(T, STEPWISE, RHO),
    "sparse, two initial states": npf.MarkovGame(
        [sparse.csr_array(step.reshape(-1, S)) for step in T], FINAL, RHO
    ),
}
RULES: dict[str, npf.UpdateRule] = {
    "COMAL": npf.COMAL(beta=0.2, every=3),
    "OMPO": npf.OMPO(),
    "OMPO, regularised": npf.OMPO(beta=0.2),
    "MTPO": npf.MTPO(beta=0.2),
    "MTPO-τ": npf.MTPOTau(beta=0.2),
    "MPO": npf.MPO(eta=0.5),
    "MNPO": npf.MNPO(beta=0.2, eta=0.3, weights=(0.5, 0.3, 0.2)),
}
RUNS = [
    (name, geometry)
    for name, rule in RULES.items()
    for geometry in Geometry
    if geometry is not Geometry.WEIGHTED_OCCUPANCY or name in ("COMAL", "OMPO", "MPO")
]
EVERY_RUN = pytest.mark.parametrize(("name", "geometry"), RUNS)
EVERY_GAME = pytest.mark.parametrize("game", GAMES.values(), ids=GAMES.keys())


def policy_of(game: npf.MarkovGame, seed: int) -> Any:
    return np.random.default_rng(seed).dirichlet(np.full(A, 3.0), game.policy_shape[:-1])


def solve(game: npf.MarkovGame, rule: npf.UpdateRule, steps: int, **options: Any) -> npf.Trace:
    start, reference = policy_of(game, 0), policy_of(game, 1)
    return npf.solve(game, rule, steps, **({"start": start, "reference": reference} | options))


def equal(actual: npf.Trace, expected: npf.Trace) -> None:
    """Two traces agree bit by bit, as far as anything can be observed."""
    for name in ("steps", "gap", "unregularised_gap", "average_gap", "kl", "policies", "average_policy"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), err_msg=name)
    assert actual.snapshot.policies.keys() == expected.snapshot.policies.keys()
    for name in expected.snapshot.policies:
        for field in ("policies", "log_policies"):
            np.testing.assert_array_equal(
                getattr(actual.snapshot, field)[name], getattr(expected.snapshot, field)[name], err_msg=name
            )
    np.testing.assert_array_equal(actual.snapshot.payoff, expected.snapshot.payoff)
    np.testing.assert_array_equal(actual.snapshot.plan_sum, expected.snapshot.plan_sum)
    assert actual.status is expected.status
    assert actual.fingerprint == expected.fingerprint


# --- what is recorded ---


@EVERY_GAME
@EVERY_RUN
def test_every_column_is_what_the_metrics_say(game: npf.MarkovGame, name: str, geometry: Geometry) -> None:
    star, mu = policy_of(game, 2), policy_of(game, 1)
    trace = solve(game, RULES[name], 12, geometry=geometry, keep_policies=True, equilibrium=star)
    assert trace.steps.tolist() == list(range(13))
    assert trace.policies is not None
    assert trace.kl is not None
    assert trace.policies.shape == (13, *game.policy_shape)
    assert (
        trace.gap.shape == trace.unregularised_gap.shape == trace.average_gap.shape == trace.kl.shape == (13,)
    )
    plan = game.plan(game.flat(star))
    occupancy = np.zeros(game.policy_shape)
    for t, policy in enumerate(trace.policies):
        occupancy += npf.occupancy(game, policy)
        average = npf.policy_of_occupancy(game, occupancy / (t + 1), mu)
        columns = {
            "gap": npf.duality_gap(game, policy, trace.beta, mu),
            "unregularised_gap": npf.duality_gap(game, policy),
            "average_gap": npf.duality_gap(game, average, trace.beta, mu),
            "kl": game.initial_weights
            @ trajectory_kl(plan, log_policy(game.flat(star)), log_policy(game.flat(policy))),
        }
        for column, expected in columns.items():
            assert getattr(trace, column)[t] == pytest.approx(expected, rel=1e-9, abs=1e-13), (column, t)
    np.testing.assert_allclose(trace.average_policy, average, atol=1e-14)
    np.testing.assert_allclose(trace.policy, trace.policies[-1], atol=1e-15)
    np.testing.assert_allclose(np.exp(trace.log_policy), trace.policy, atol=1e-15)
    reached = game.full(np.ones(game.flat_shape), 0.0)
    np.testing.assert_allclose(trace.policies[0] * reached, policy_of(game, 0) * reached, atol=1e-15)


def test_the_average_policy_is_that_of_the_mean_occupancy() -> None:
    """Not the mean of the policies: a step's share of a policy is how often it got there."""
    game = GAMES["every step"]
    trace = solve(game, npf.MPO(eta=3.0), 20, keep_policies=True)
    assert trace.policies is not None
    mean_occupancy = np.mean([npf.occupancy(game, policy) for policy in trace.policies], axis=0)
    np.testing.assert_allclose(npf.occupancy(game, trace.average_policy), mean_occupancy, atol=1e-14)
    difference = np.abs(trace.average_policy - trace.policies.mean(axis=0)).max(axis=(1, 2))
    assert difference[0] < 1e-15  # everybody is in the first state
    assert (difference[1:] > 1e-3).all()


def test_a_gap_is_the_mean_over_initial_states() -> None:
    game = GAMES["two initial states"]
    trace = solve(game, RULES["MTPO"], 8, equilibrium=policy_of(game, 2))
    for column in ("gap", "unregularised_gap", "average_gap", "kl"):
        mean = np.zeros(9)
        for i, s in enumerate((0, 2)):
            alone = npf.MarkovGame(T, STEPWISE, s)
            parts = {"start": 0, "reference": 1, "equilibrium": 2}
            own = {part: policy_of(game, seed)[i] for part, seed in parts.items()}
            mean += RHO[s] * getattr(npf.solve(alone, RULES["MTPO"], 8, **own), column)
        np.testing.assert_allclose(getattr(trace, column), mean, rtol=1e-12, atol=1e-15)


def test_columns_of_a_table(tmp_path: Path) -> None:
    trace = solve(GAMES["two initial states"], RULES["MTPO"], 4)
    assert list(trace.columns()) == ["step", "gap", "unregularised_gap", "average_gap"]
    trace.to_csv(tmp_path / "trace.csv")
    assert len((tmp_path / "trace.csv").read_text().splitlines()) == 6
    assert repr(trace).startswith("Trace(MTPO(eta=None, beta=0.2): max_steps after 4 steps, gap ")


@pytest.mark.parametrize(("name", "geometry"), [run for run in RUNS if run[0] in ("COMAL", "MTPO-τ")])
def test_recording_less_changes_nothing(name: str, geometry: Geometry) -> None:
    """MTPO-τ has no use for the payoffs against its iterates: the average's take a product of their own."""
    game = GAMES["sparse, two initial states"]
    every = solve(game, RULES[name], 100, geometry=geometry)
    some = solve(game, RULES[name], 100, geometry=geometry, record=[7, 50, 51])
    watched = solve(game, RULES[name], 100, geometry=geometry, callback=lambda record: None)
    assert some.steps.tolist() == [0, 7, 50, 51, 100]
    np.testing.assert_allclose(some.average_gap, every.average_gap[some.steps], rtol=1e-9)
    np.testing.assert_array_equal(some.policy, every.policy)
    np.testing.assert_array_equal(some.gap, every.gap[some.steps])
    equal(watched, every)


# --- the geometry ---


def test_the_geometry_is_the_rules_own_unless_told_otherwise() -> None:
    game = GAMES["every step"]
    own = {
        "OMPO": Geometry.OCCUPANCY,
        "MTPO": Geometry.PER_STATE,
        "MTPO-τ": Geometry.PER_STATE,
        "MPO": Geometry.PER_STATE,
        "COMAL": Geometry.OCCUPANCY,
        "MNPO": Geometry.OCCUPANCY,
    }
    for name, geometry in own.items():
        by_default = solve(game, RULES[name], 6)
        equal(solve(game, RULES[name], 6, geometry=geometry), by_default)
        equal(solve(game, RULES[name], 6, geometry=str(geometry)), by_default)
        for other in {Geometry.OCCUPANCY, Geometry.PER_STATE} - {geometry}:
            assert np.abs(solve(game, RULES[name], 6, geometry=other).policy - by_default.policy).max() > 1e-4
    plain = solve(game, npf.OMPO(), 6, geometry="weighted-occupancy").policy
    assert np.abs(plain - solve(game, npf.OMPO(), 6).policy).max() > 1e-3


def test_the_same_rule_under_another_name_is_the_same_run() -> None:
    game = GAMES["two initial states"]
    for ours, theirs, geometry in (
        (npf.OMPO(eta=0.4), npf.OGDA(eta=0.4), Geometry.OCCUPANCY),
        (npf.MTPO(beta=0.2), npf.GDA(beta=0.2), Geometry.PER_STATE),
        (npf.MTPOTau(beta=0.2), npf.NashMD(beta=0.2), Geometry.PER_STATE),
        (npf.MPO(eta=0.4), npf.MWU(eta=0.4), Geometry.PER_STATE),
    ):
        first, second = solve(game, ours, 20), solve(game, theirs, 20, geometry=geometry)
        np.testing.assert_array_equal(first.policy, second.policy)
        np.testing.assert_array_equal(first.gap, second.gap)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a geometry that there is not": (
        {"geometry": "simplex"},
        r"geometry = 'simplex': choose one of 'occupancy', 'weighted-occupancy', 'per-state'",
    ),
    "weights on a regularised game": (
        {"rule": RULES["MTPO"], "geometry": "weighted-occupancy"},
        "the weighted geometry with beta > 0 would weigh the KL to the reference too",
    ),
    "a geometry on a matrix game": (
        {"game": npf.zoo.comal(), "geometry": "occupancy"},
        "geometry = 'occupancy': a matrix game has only one, leave it out",
    ),
    "the compiled interpreter": ({"compiled": True}, "compiled=True is for matrix games"),
    "negative steps": ({"steps": -1}, "steps = -1"),
    "a start of another shape": (
        {"start": np.full((H, S + 1, A), 0.5)},
        r"start\['current'\] has shape \(3, 5, 2\)",
    ),
    "a start with a zero": (
        {"start": np.tile([0.0, 1.0], (H, S, 1))},
        r"start\['current'\]\[0, 0, 0\] = 0.0 is zero; it must be positive everywhere",
    ),
    "a reference with a zero": (
        {"reference": np.tile([0.0, 1.0], (H, S, 1))},
        r"reference\[0, 0, 0\] = 0.0 is zero; it must be positive everywhere",
    ),
    "a reference off the simplex": (
        {"reference": np.full((H, S, A), 0.4)},
        r"reference\[0, 0\] sums to 0.8, not 1",
    ),
    "the reference as a start": (
        {"start": {"reference": np.full((H, S, A), 0.5)}},
        "hand the reference over as",
    ),
    "an equilibrium off the simplex": (
        {"equilibrium": np.full((H, S, A), 0.4)},
        r"equilibrium\[0, 0\] sums to 0.8",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused(what: str) -> None:
    change, message = REFUSED[what]
    asked: dict[str, Any] = {"game": GAMES["every step"], "rule": npf.OMPO(), "steps": 5} | change
    with pytest.raises(ValueError, match=message):
        npf.solve(**asked)


def test_a_policy_of_the_last_axes_serves_every_place() -> None:
    game = GAMES["two initial states"]
    mu, own = np.array([0.3, 0.7]), RNG.dirichlet(np.ones(A), (H, S))
    short = npf.solve(game, npf.MTPO(beta=0.2), 5, reference=mu, start=own)
    shape = game.policy_shape
    long = npf.solve(
        game,
        npf.MTPO(beta=0.2),
        5,
        reference=np.broadcast_to(mu, shape),
        start=np.broadcast_to(own, shape),
    )
    equal(short, long)


# --- starts ---


@EVERY_GAME
def test_a_mapping_starts_single_names(game: npf.MarkovGame) -> None:
    """The opponent is where it was put, the others where `current` starts, and the reference at μ."""
    nu, mu = policy_of(game, 5), policy_of(game, 1)
    rule = npf.BestResponse(beta=0.5, opponent="nu")
    trace = npf.solve(game, rule, 1, start={"nu": nu}, reference=mu)
    np.testing.assert_allclose(trace.policy, npf.best_response(game, nu, 0.5, mu), atol=1e-14)
    elsewhere = npf.solve(game, rule, 1, start={"current": nu}, reference=mu)
    np.testing.assert_allclose(elsewhere.policy, trace.policy, atol=1e-14)
    before = npf.solve(game, npf.OGDA(), 3, start={"previous": nu, "current": mu}, geometry="per-state")
    assert (
        np.abs(before.policy - npf.solve(game, npf.OGDA(), 3, start=mu, geometry="per-state").policy).max()
        > 1e-3
    )


def test_inputs_are_not_changed() -> None:
    game = GAMES["two initial states"]
    arrays = {name: policy_of(game, k) for k, name in enumerate(("start", "reference", "equilibrium"))}
    for array in arrays.values():
        array.flags.writeable = False
    before = game.digest
    trace = npf.solve(game, npf.MTPO(beta=0.2), 10, **arrays)
    assert not np.shares_memory(trace.policy, arrays["start"])
    assert game.digest == before
    for k, array in enumerate(arrays.values()):
        np.testing.assert_array_equal(array, policy_of(game, k))


# --- where a run goes, and how it ends ---


@EVERY_GAME
@pytest.mark.parametrize("geometry", [Geometry.OCCUPANCY, Geometry.PER_STATE])
def test_converged_to_the_equilibrium_that_is_computed(game: npf.MarkovGame, geometry: Geometry) -> None:
    """The regularised equilibrium, by another solver: KL_p falls to nothing, and it stays where it is."""
    mu = policy_of(game, 1)
    star = npf.equilibrium(game, 0.2, mu).policy
    trace = solve(game, npf.EGPO(beta=0.2), 2000, geometry=geometry, equilibrium=star, tol=1e-14)
    assert trace.status is Status.CONVERGED
    assert trace.gap[-1] <= 1e-14 < trace.gap[-2]
    assert trace.kl is not None
    assert trace.kl[0] > 1e-3
    assert trace.kl[-1] < 1e-13
    assert trace.snapshot.step == trace.steps[-1] == len(trace.gap) - 1
    stays = npf.solve(game, npf.EGPO(beta=0.2), 5, geometry=geometry, reference=mu, start=star)
    np.testing.assert_allclose(
        stays.policy, npf.solve(game, npf.EGPO(beta=0.2), 0, reference=mu, start=star).policy
    )
    again = npf.solve(game, npf.EGPO(beta=0.2), 5, geometry=geometry, reference=mu, start=star, tol=1e-10)
    assert again.status is Status.CONVERGED
    assert again.steps.tolist() == [0]


@pytest.mark.parametrize("geometry", list(Geometry))
def test_the_unregularised_game_is_solved(geometry: Geometry) -> None:
    game = GAMES["final states"]
    trace = npf.solve(game, npf.OMPO(), 3000, geometry=geometry, tol=1e-3)
    assert trace.status is Status.CONVERGED
    assert trace.gap[0] > 0.05
    assert npf.duality_gap(game, trace.policy) <= 1e-3


def test_statuses() -> None:
    game = GAMES["every step"]
    mtpo = npf.MTPO(beta=0.2, eta=0.5)
    assert npf.solve(game, mtpo, 5, tol=1e-12).status is Status.MAX_STEPS
    assert npf.solve(game, mtpo, 5).status is Status.MAX_STEPS
    biased = npf.MTPOTau(beta=0.2, eta=0.5)
    assert npf.solve(game, biased, 2000, tol=1e-9).status is Status.STALLED
    assert npf.solve(game, mtpo, 0).steps.tolist() == [0]
    stopped = npf.solve(game, mtpo, 50, callback=lambda record: record.step >= 7)
    assert stopped.status is Status.STOPPED
    assert stopped.steps.tolist() == list(range(8))


@pytest.mark.parametrize("geometry", list(Geometry))
@pytest.mark.parametrize("eta", [1e300, 1.7e308])
def test_an_overflow_is_labelled_and_the_trace_finite(geometry: Geometry, eta: float) -> None:
    for game in GAMES.values():
        trace = solve(game, npf.OGDA(eta=eta), 50, geometry=geometry)
        if eta > 1e308:  # 2η is infinite
            assert trace.status is Status.NON_FINITE
            assert trace.steps.tolist() == [0]
        for values in (trace.gap, trace.unregularised_gap, trace.average_gap, trace.policy):
            assert np.isfinite(values).all()
        assert np.isfinite(trace.average_policy).all()
        np.testing.assert_allclose(trace.policy.sum(axis=-1), 1.0, atol=1e-12)
        assert trace.steps[-1] == trace.snapshot.step


def test_a_callback_sees_what_is_recorded() -> None:
    game = GAMES["sparse, two initial states"]
    seen: list[npf.Record] = []
    trace = solve(game, RULES["MTPO-τ"], 20, record=5, callback=seen.append, keep_policies=True)
    assert [record.step for record in seen] == trace.steps.tolist() == [0, 5, 10, 15, 20]
    np.testing.assert_array_equal([record.gap for record in seen], trace.gap)
    np.testing.assert_array_equal([record.policy for record in seen], trace.policies)
    assert seen[0].policy.shape == game.policy_shape


# --- going on ---


@EVERY_RUN
def test_resuming_is_going_on(name: str, geometry: Geometry, tmp_path: Path) -> None:
    """Bit for bit, wherever it stopped; once through a file."""
    for game in GAMES.values():
        star, mu = policy_of(game, 2), policy_of(game, 1)
        options: dict[str, Any] = {"geometry": geometry, "keep_policies": True, "equilibrium": star}
        whole = solve(game, RULES[name], 20, **options)
        for cut in (0, 1, 2, 3, 11, 20):
            half = solve(game, RULES[name], cut, **options)
            if cut == 11:
                half.save(tmp_path / "half.npz")
                half = npf.Trace.load(tmp_path / "half.npz")
            assert half.snapshot.step == cut
            equal(npf.solve(game, RULES[name], 20, reference=mu, resume=half, **options), whole)


def test_saving_and_loading_keeps_everything(tmp_path: Path) -> None:
    game = GAMES["two initial states"]
    trace = solve(game, RULES["COMAL"], 10, keep_policies=True, equilibrium=policy_of(game, 2))
    trace.save(tmp_path / "trace.npz")
    loaded = npf.Trace.load(tmp_path / "trace.npz")
    equal(loaded, trace)
    assert loaded.beta == trace.beta
    assert loaded.rule == trace.rule
    assert not loaded.compiled
    assert loaded.snapshot.plan_sum.shape == game.policy_shape
    np.testing.assert_allclose(loaded.snapshot.plan_sum.sum(axis=(-1, -2)), 11.0)


MISMATCHED: dict[str, Callable[[npf.MarkovGame], dict[str, Any]]] = {
    "another geometry": lambda game: {"geometry": "per-state"},
    "another game": lambda game: {"game": GAMES["final states"]},
    "other weights of the initial states": lambda game: {
        "game": npf.MarkovGame(T, STEPWISE, [0.5, 0.0, 0.5, 0.0])
    },
    "another reference": lambda game: {"reference": policy_of(game, 7)},
    "another rule": lambda game: {"rule": npf.OMPO(eta=0.1)},
}


@pytest.mark.parametrize("what", MISMATCHED)
def test_resuming_another_run_is_refused(what: str) -> None:
    game = GAMES["two initial states"]
    half = solve(game, npf.OMPO(), 5)
    change = MISMATCHED[what](game)
    asked: dict[str, Any] = {
        "game": game,
        "rule": npf.OMPO(),
        "steps": 9,
        "reference": policy_of(game, 1),
    } | change
    if what == "another game":
        asked["reference"] = policy_of(asked["game"], 1)
    with pytest.raises(
        ValueError, match="the trace to resume belongs to another game, reference, rule or geometry"
    ):
        npf.solve(resume=half, **asked)


def test_the_same_game_written_otherwise_goes_on() -> None:
    """Preferences given once, a run begun on them all: what is reached is what counts."""
    once = npf.MarkovGame(T[0], FINAL, 0, horizon=3)
    all_steps = npf.MarkovGame(np.stack([T[0]] * 3), FINAL, np.eye(S)[0])
    half = npf.solve(once, RULES["MTPO"], 5)
    whole = npf.solve(all_steps, RULES["MTPO"], 9)
    equal(npf.solve(all_steps, RULES["MTPO"], 9, resume=half), whole)


class Runs(RuleBasedStateMachine):
    """Step, stop, save, load and resume in any order: a trace is a prefix of the uninterrupted run."""

    traces = Bundle("traces")
    LENGTH = 24

    @initialize(target=traces, run=st.sampled_from(RUNS), game=st.sampled_from(sorted(GAMES)))
    def begin(self, run: tuple[str, Geometry], game: str) -> npf.Trace:
        self.game, self.rule = GAMES[game], RULES[run[0]]
        self.options: dict[str, Any] = {"geometry": run[1], "record": 2}
        self.whole = solve(self.game, self.rule, self.LENGTH, **self.options)
        return solve(self.game, self.rule, 0, **self.options)

    def on(self, trace: npf.Trace, steps: int, **options: Any) -> npf.Trace:
        mu = policy_of(self.game, 1)
        return npf.solve(self.game, self.rule, steps, reference=mu, resume=trace, **(self.options | options))

    @rule(target=traces, trace=traces, more=st.integers(0, 5))
    def step(self, trace: npf.Trace, more: int) -> npf.Trace:
        return self.check(self.on(trace, min(trace.snapshot.step + 2 * more, self.LENGTH)))

    @rule(target=traces, trace=traces, more=st.integers(1, 10))
    def stop(self, trace: npf.Trace, more: int) -> npf.Trace:
        at = trace.snapshot.step + more
        return self.check(self.on(trace, self.LENGTH, callback=lambda record: record.step >= at))

    @rule(target=traces, trace=consumes(traces))
    def save_and_load(self, trace: npf.Trace) -> npf.Trace:
        path = Path(os.environ["PYTEST_TRACE_FOLDER"]) / "trace.npz"
        trace.save(path)
        return self.check(npf.Trace.load(path))

    def check(self, trace: npf.Trace) -> npf.Trace:
        made = len(trace.steps)
        for name in ("steps", "gap", "unregularised_gap", "average_gap"):
            np.testing.assert_array_equal(
                getattr(trace, name), getattr(self.whole, name)[:made], err_msg=name
            )
        if trace.snapshot.step == self.LENGTH:
            np.testing.assert_array_equal(trace.log_policy, self.whole.log_policy)
            np.testing.assert_array_equal(trace.average_policy, self.whole.average_policy)
        return trace


def test_any_interleaving_of_step_stop_save_load_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setenv("PYTEST_TRACE_FOLDER", str(tmp_path))
    run_state_machine_as_test(Runs, settings=settings(max_examples=25, stateful_step_count=8))


@pytest.mark.parametrize("geometry", list(Geometry))
def test_ctrl_c_between_two_iterations(geometry: Geometry) -> None:
    def press(record: npf.Record) -> None:
        if record.step == 8:
            signal.raise_signal(signal.SIGINT)

    game = GAMES["two initial states"]
    with pytest.raises(npf.Interrupted, match="interrupted after 8 steps") as caught:
        solve(game, npf.OMPO(), 50, geometry=geometry, callback=press, record=2)
    trace = caught.value.trace
    assert trace.status is Status.STOPPED
    assert trace.steps.tolist() == [0, 2, 4, 6, 8]
    mu = policy_of(game, 1)
    on = npf.solve(game, npf.OMPO(), 50, geometry=geometry, reference=mu, record=2, resume=trace)
    equal(on, solve(game, npf.OMPO(), 50, geometry=geometry, record=2))


def test_a_checkpoint_resumes_to_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    game, rule, path = GAMES["two initial states"], RULES["COMAL"], tmp_path / "run.npz"
    monkeypatch.setattr(sys.modules["nashpref.solve"], "CHECKPOINT_SECONDS", 0.0)
    solve(game, rule, 60, checkpoint=path)
    on = npf.solve(game, rule, 120, reference=policy_of(game, 1), resume=npf.Trace.load(path))
    equal(on, solve(game, rule, 120))


# --- what an occupancy is ---


@settings(max_examples=40)
@given(data=st.data(), description=descriptions(max_starts=3))
def test_policies_and_occupancies_are_each_others_inverse(
    data: st.DataObject, description: Description
) -> None:
    game = description.game()
    policy = data.draw(policies(game.policy_shape, zeros=True))
    mu = data.draw(references(game.policy_shape))
    d = npf.occupancy(game, policy)
    assert d.shape == game.policy_shape
    np.testing.assert_allclose(d.sum(axis=(-1, -2)), 1.0, atol=1e-13)
    back = npf.policy_of_occupancy(game, d, mu)
    arrives = d.sum(axis=-1, keepdims=True) > 0.0
    np.testing.assert_allclose(back, np.where(arrives, policy, mu), atol=1e-12)
    np.testing.assert_allclose(npf.occupancy(game, back), d, atol=1e-13)


def test_what_is_no_occupancy_is_refused() -> None:
    game = GAMES["every step"]
    d = npf.occupancy(game, policy_of(game, 0))
    for wrong, message in (
        (d[0], r"the occupancy measure has shape \(4, 2\); the game needs \(3, 4, 2\)"),
        (np.where(d == d.max(), np.nan, d), r"= nan: an occupancy is a finite number ≥ 0"),
        (d - 1e-3, r"measure\[0, 1, 0\] = -0.001: an occupancy is a finite number ≥ 0"),
        (d * np.array([1.0, 1.0, 0.9])[:, None, None], r"measure\[2, \d\] is not what flows into that state"),
        (
            np.full((H, S, A), 1 / (S * A)),
            r"measure\[0, 0\] is not what flows into that state \(off by 0\.75",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            npf.policy_of_occupancy(game, wrong)
