"""The loop: run a rule on a game, exactly, and measure every iterate."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from nashpref.games.markov import MarkovGame
from nashpref.games.matrix import MatrixGame
from nashpref.interpreter import Interpreter, Iterate, NamedPolicies, State, Target, advance
from nashpref.interrupts import delayed_interrupt
from nashpref.markov_interpreter import MarkovInterpreter
from nashpref.matrix_interpreter import MatrixInterpreter
from nashpref.measure import Measurements, Record
from nashpref.mirror import Geometry, UpdateRule, target_beta
from nashpref.policies import FloatArray, IntArray, check_policy, check_reference, normalise
from nashpref.progress import progress_bar
from nashpref.trace import Snapshot, Status, Trace

RECORDS = 1000  # length of the default recording grid
CHUNK_SECONDS = 0.25  # how long a chunk may take: the reaction time to Ctrl-C, and of the progress bar
CHECKPOINT_SECONDS = 30.0
COMPILED_SIZE = 256  # above this many responses BLAS is as fast as the compiled interpreter
COMPILED_SECONDS = 0.75  # of the numpy interpreter, below which loading the compiled one costs more


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `solve`; `trace` holds everything up to the last whole iteration."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(f"interrupted after {trace.snapshot.step} steps")
        self.trace = trace


def log_grid(steps: int, points: int = RECORDS) -> list[int]:
    """At most `points` + 1 recorded steps from 0 to `steps`: all of them if they fit, else log-spaced."""
    if steps <= points:
        return list(range(steps + 1))
    spaced = np.unique(np.geomspace(1, steps, points).round().astype(np.int64))
    return [0, *spaced.tolist()]


def solve(
    game: MatrixGame | MarkovGame,
    rule: UpdateRule,
    steps: int,
    *,
    geometry: Geometry | str | None = None,
    reference: ArrayLike | None = None,
    start: ArrayLike | Mapping[str, ArrayLike] | None = None,
    tol: float | None = None,
    equilibrium: ArrayLike | None = None,
    record: int | Sequence[int] | None = None,
    keep_policies: bool = False,
    callback: Callable[[Record], object] | None = None,
    compiled: bool | None = None,
    resume: Trace | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Trace:
    """Run `rule` on `game` for `steps` iterations in exact arithmetic of log-probabilities.

    Args:
        game: a preference game, or a batch: each game of it is run with its own policy. Or a Markov game,
            whose gaps are averaged over its initial states.
        rule: any `UpdateRule`.
        steps: iterations to make in all; those of `resume` count.
        geometry: what a mirror step moves in a Markov game; the rule's own (`OMPO`, `MTPO`, …) when None,
            and occupancy measures for a rule that has none.
        reference: μ, shape `game.policy_shape` or the last axes of it, positive everywhere; uniform when
            None.
        start: where `current` (and every other name but `reference`) starts: positive everywhere; μ when
            None. A mapping sets single names.
        tol: stop at the first recorded step whose gap (of every game of a batch) is at most this.
        equilibrium: π*; the trace then has `kl`, KL(π*‖π_t).
        record: which steps are measured: every `record`-th, or those listed; None: all up to 1000 steps,
            else 1000 log-spaced ones. Step 0 and the last are always recorded.
        keep_policies: keep every recorded iterate in `trace.policies`.
        callback: called with a `Record` at each recorded step; a true result stops the run.
        compiled: True runs the compiled interpreter (matrix games; needs numba), False the numpy one; None
            chooses by size. Their iterates agree to 1e-12.
        resume: the trace of an earlier run of the same rule on the same game and reference, to be continued
            as if it had never stopped. Of a schedule that is a function only the name can be compared.
        checkpoint: where to save the trace so far every half minute, for `resume` after a crash.
        progress: show a bar, on a terminal, once two seconds have passed.

    Returns:
        A `Trace`, whose gap is the certificate of each recorded iterate. Not converging is a status.

    Raises:
        ValueError: a policy off the simplex or without full support, a negative number of steps or
            tolerance, a trace that belongs to another run, `compiled=True` without numba or on a Markov game,
            a geometry on a matrix game, or the weighted geometry for a regularised game.
        Interrupted: on Ctrl-C; it carries the trace so far.
    """
    if resume is not None and start is not None:
        raise ValueError("start and resume exclude each other: a resumed run goes on from where it stands")
    if steps < 0 or (tol is not None and not tol >= 0.0):
        raise ValueError(f"steps = {steps} and tol = {tol}: neither may be negative")
    mu = check_reference(reference, game.policy_shape)
    pi_star = None if equilibrium is None else check_policy(equilibrium, game.policy_shape, "equilibrium")
    target = Target(target_beta(rule), mu, pi_star, keep_policies)
    interpreter = _interpreter(game, rule, target, geometry)
    fingerprint = _fingerprint(game, rule, interpreter, mu)
    measured = Measurements()
    if resume is None:
        state = _initial_state(interpreter, mu, start)
    else:
        state = _restored_state(interpreter, resume, fingerprint, measured, steps)
        compiled = resume.compiled if compiled is None else compiled
    run = _loop(game, steps, compiled)
    grid = _record_grid(record, steps)
    # A chunk of iterations is bounded in memory, and ends at each recorded step if a callback watches.
    rows = interpreter.rows(1 if callback is not None else len(grid), callback is not None)

    def trace_at(state: State, status: Status) -> Trace:
        return _trace(interpreter, measured, state, status, rule, run is not advance, fingerprint)

    status: Status | None = None
    threshold = -1.0 if tol is None else tol
    with (
        np.errstate(all="ignore"),
        delayed_interrupt() as stop,
        progress_bar(progress, steps, "step") as bar,
    ):
        if resume is None:
            rows.filled = 0
            rows.record(state)
            status = measured.take(rows, threshold, callback)
        elif float(np.max(resume.gap[-1])) <= threshold:
            status = Status.CONVERGED
        recorded, chunk = state.copy(), 16  # `recorded` is the state at the last measured step
        saved = time.monotonic()
        while status is None and state.step < steps and not stop.is_set():
            until, ahead = _chunk_end(state.step, min(state.step + chunk, steps), grid, rows.capacity)
            first, began = state.step, time.perf_counter()
            run(interpreter, rule, state, until, ahead, rows, stop)
            pace = (state.step - first) / max(time.perf_counter() - began, 1e-6)
            chunk = max(1, min(state.step // 4 + 16, int(CHUNK_SECONDS * pace)))
            if rows.filled:
                status = measured.take(rows, threshold, callback)
                if status is not None and measured.last < state.step:
                    # The chunk ran past the step at which the run ends: go back and make just those.
                    state = recorded
                    run(interpreter, rule, state, measured.last, grid[:0], rows, threading.Event())
                recorded = state.copy()
                if checkpoint is not None and time.monotonic() - saved >= CHECKPOINT_SECONDS:
                    trace_at(recorded, Status.STOPPED).save(checkpoint)
                    saved = time.monotonic()
            bar(state.step)
        interrupted = stop.is_set()
        if interrupted and measured.last < state.step:
            rows.filled = 0
            rows.record(state)
            measured.take(rows, threshold, None)
    if status is None:
        stalled = tol is not None and not interrupted and measured.stalled()
        status = Status.STOPPED if interrupted else Status.STALLED if stalled else Status.MAX_STEPS
    trace = trace_at(state, status)
    if interrupted:
        raise Interrupted(trace)
    return trace


def _chunk_end(step: int, until: int, grid: IntArray, most: int) -> tuple[int, IntArray]:
    """Where the next chunk ends, and its recorded steps, at most `most`: if it has any, at the last one."""
    first = int(np.searchsorted(grid, step, side="right"))
    last = min(first + most, int(np.searchsorted(grid, until, side="right")))
    return (int(grid[last - 1]) if last > first else until), grid[first:last]


def _record_grid(record: int | Sequence[int] | None, steps: int) -> IntArray:
    if record is None:
        chosen = np.array(log_grid(steps), dtype=np.int64)
    elif isinstance(record, int | np.integer):
        if record < 1:
            raise ValueError(f"record = {record}: record every k-th step with k ≥ 1")
        chosen = np.arange(0, steps + 1, record)
    else:
        chosen = np.union1d(np.array([s for s in record if 0 <= s <= steps], dtype=np.int64), [0])
    return chosen if chosen[-1] == steps else np.append(chosen, steps)


def _interpreter(
    game: MatrixGame | MarkovGame, rule: UpdateRule, target: Target, geometry: Geometry | str | None
) -> Interpreter:
    if isinstance(game, MatrixGame):
        if geometry is not None:
            raise ValueError(f"geometry = {str(geometry)!r}: a matrix game has only one, leave it out")
        return MatrixInterpreter(game, target)
    if geometry is None:
        geometry = getattr(rule, "geometry", Geometry.OCCUPANCY)
    if geometry not in list(Geometry):
        raise ValueError(f"geometry = {geometry!r}: choose one of {', '.join(map(repr, map(str, Geometry)))}")
    chosen = Geometry(geometry)
    if chosen is Geometry.WEIGHTED_OCCUPANCY and target.beta > 0.0:
        raise ValueError(
            "the weighted geometry with beta > 0 would weigh the KL to the reference too and solve another "
            "game: choose 'occupancy' or 'per-state'"
        )
    return MarkovInterpreter(game, target, chosen, float(getattr(rule, "beta", 0.0)))


def _loop(game: MatrixGame | MarkovGame, steps: int, compiled: bool | None) -> Callable[..., None]:
    if isinstance(game, MarkovGame):
        if compiled:
            raise ValueError("compiled=True is for matrix games; a Markov game's passes run in BLAS")
        return advance
    if compiled is None:
        seconds = steps * (15e-6 + 2e-8 * game.payoffs[..., 0].size)  # what numpy would take, roughly
        compiled = game.n <= COMPILED_SIZE and seconds >= COMPILED_SECONDS and _has_numba()
    if not compiled:
        return advance
    try:
        from nashpref.compiled import advance_compiled
    except ModuleNotFoundError:
        raise ValueError("compiled=True needs numba: install nashpref[fast]") from None
    return advance_compiled


def _has_numba() -> bool:
    from importlib.util import find_spec

    return find_spec("numba") is not None


def _initial_state(
    interpreter: Interpreter, mu: FloatArray, start: ArrayLike | Mapping[str, ArrayLike] | None
) -> State:
    def iterate(policy: ArrayLike, name: str) -> Iterate:
        checked = check_policy(policy, mu.shape, name, positive=True)
        return interpreter.iterate(*normalise(np.log(checked)))

    given = start if isinstance(start, Mapping) else {} if start is None else {"current": start}
    named = {name: iterate(policy, f"start[{name!r}]") for name, policy in given.items()}
    if "reference" in named:
        raise ValueError("start['reference']: hand the reference over as reference=")
    reference = iterate(mu, "reference")
    current = named.get("current", reference)
    policies = NamedPolicies(current, {"current": current, "reference": reference} | named)
    return State(0, policies, current.plan.copy(), np.zeros_like(current.payoff))


def _restored_state(
    interpreter: Interpreter, trace: Trace, fingerprint: str, measured: Measurements, steps: int
) -> State:
    if trace.fingerprint != fingerprint:
        raise ValueError("the trace to resume belongs to another game, reference, rule or geometry")
    snapshot = trace.snapshot
    if steps < snapshot.step:
        raise ValueError(f"steps = {steps}, but the trace to resume already made {snapshot.step}")
    columns = {"gap": trace.gap, "unregularised_gap": trace.unregularised_gap}
    columns |= {"average_gap": trace.average_gap}
    target = interpreter.target
    for name, wanted in (("kl", target.equilibrium is not None), ("policies", target.keep_policies)):
        recorded = getattr(trace, name)
        if wanted != (recorded is not None):
            raise ValueError(
                f"the trace to resume {'lacks' if wanted else 'has'} {name!r}: resume it as it began"
            )
        if recorded is not None:
            columns[name] = recorded
    measured.append(trace.steps, columns)
    named = {
        name: interpreter.iterate(snapshot.log_policies[name], snapshot.policies[name])
        for name in snapshot.log_policies
    }
    start = named.pop("")
    named["current"] = interpreter.iterate(trace.log_policy, trace.policy, snapshot.payoff)
    payoff_sum = None if snapshot.payoff_sum is None else snapshot.payoff_sum.copy()
    return State(
        snapshot.step, NamedPolicies(start, named), interpreter.flat(snapshot.plan_sum).copy(), payoff_sum
    )


def _trace(
    interpreter: Interpreter,
    measured: Measurements,
    state: State,
    status: Status,
    rule: UpdateRule,
    compiled: bool,
    fingerprint: str,
) -> Trace:
    # The start is kept under the empty name, for names that the rule has yet to write.
    kept = {"": state.policies.start} | state.policies
    columns = {name: measured.column(name) for name in ("gap", "unregularised_gap", "average_gap")}
    target = interpreter.target
    log_mu = np.log(target.reference)
    return Trace(
        steps=np.concatenate(measured.steps),
        **{name: np.asarray(column) for name, column in columns.items()},
        kl=measured.column("kl"),
        policies=measured.column("policies"),
        average_policy=interpreter.average_policy(state),
        beta=target.beta,
        status=status,
        rule=_describe(rule),
        snapshot=Snapshot(
            step=state.step,
            log_policies={
                name: interpreter.full(iterate.log_policy, log_mu) for name, iterate in kept.items()
            },
            policies={
                name: interpreter.full(iterate.policy, target.reference) for name, iterate in kept.items()
            },
            payoff=state.policies["current"].payoff,
            plan_sum=interpreter.full(state.plan_sum, 0.0),
            payoff_sum=state.payoff_sum,
        ),
        compiled=compiled,
        fingerprint=fingerprint,
    )


def _describe(rule: UpdateRule) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(rule))


def _fingerprint(
    game: MatrixGame | MarkovGame, rule: UpdateRule, interpreter: Interpreter, mu: FloatArray
) -> str:
    digest = hashlib.sha256(game.digest.encode())
    digest.update(mu.tobytes())
    digest.update(_describe(rule).encode())
    digest.update(str(getattr(interpreter, "geometry", "")).encode())
    return digest.hexdigest()
