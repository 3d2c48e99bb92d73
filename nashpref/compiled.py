"""The same interpreter, compiled: any rule's program as index and weight arrays, run by one numba kernel.

Small games run for 10⁴–10⁶ steps spend their time in Python between numpy calls; here a whole chunk of
iterations is one call. The kernel knows no rule: it evaluates mirror steps, shares copies and reuses known
payoff vectors exactly as `nashpref.interpreter` does.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from nashpref.interpreter import Iterate, State
from nashpref.matrix_interpreter import MatrixInterpreter, MatrixRows
from nashpref.mirror import MirrorStep, ScheduledRule, UpdateRule
from nashpref.policies import FloatArray, IntArray


class Encoding(NamedTuple):
    """Programs as arrays. Program p has the steps `first_step[p]:first_step[p+1]`; step s writes name
    `to[s]` from the terms `first_term[s]:first_term[s+1]`; term k adds `weights[k, t or 0]` times the log
    (`is_payoff[k] == 0`) or the payoff vector of name `source[k]`. `copied[s]` is the name copied, or −1.
    `which[t]` is the program of iteration t of the chunk.
    """

    which: IntArray
    first_step: IntArray
    to: IntArray
    copied: IntArray
    first_term: IntArray
    source: IntArray
    is_payoff: IntArray
    weights: FloatArray


def encode(rule: UpdateRule, start: int, stop: int, index: dict[str, int]) -> Encoding:
    """Encode iterations start..stop−1 of `rule`; names that are new to `index` are added to it.

    A scheduled rule is asked once, with an array of step sizes; any other rule iteration by iteration, and
    equal tuples are encoded once.
    """
    programs: list[Sequence[MirrorStep]] = []
    which = np.zeros(stop - start, dtype=np.int64)
    if isinstance(rule, ScheduledRule):
        etas = rule.step_sizes(start, stop)
        programs.append(rule.program(etas if np.ptp(etas) > 0.0 else float(etas[0])))
    else:
        known: dict[int, int] = {}
        for t in range(start, stop):
            program = rule.steps(t)
            if id(program) not in known:
                known[id(program)] = len(programs)
                programs.append(program)  # keeps it alive, so that its id is not used again
            which[t - start] = known[id(program)]

    first_step, to, copied, first_term = [0], [], [], [0]
    source: list[int] = []
    is_payoff: list[int] = []
    weights: list[Any] = []
    for program in programs:
        for step in program:
            for terms, flag in ((step.anchors, 0), (step.payoffs, 1)):
                for name, weight in terms.items():
                    source.append(index.setdefault(name, len(index)))
                    is_payoff.append(flag)
                    weights.append(weight)
            to.append(index.setdefault(step.to, len(index)))
            copied.append(-1 if step.copied is None else index[step.copied])
            first_term.append(len(source))
        first_step.append(len(to))
    columns = max((np.size(weight) for weight in weights), default=1)
    table = np.empty((len(weights), columns))
    for row, weight in zip(table, weights, strict=True):
        row[:] = weight
    return Encoding(
        which=which,
        first_step=_ints(first_step),
        to=_ints(to),
        copied=_ints(copied),
        first_term=_ints(first_term),
        source=_ints(source),
        is_payoff=_ints(is_payoff),
        weights=table,
    )


def _ints(values: list[int]) -> IntArray:
    return np.array(values, dtype=np.int64)


def advance_compiled(
    interpreter: MatrixInterpreter,
    rule: UpdateRule,
    state: State,
    until: int,
    grid: IntArray,
    rows: MatrixRows,
    stop: threading.Event,
) -> None:
    """As `nashpref.interpreter.advance`; `stop` is only seen between chunks."""
    rows.steps[: len(grid)], rows.filled = grid, len(grid)
    if until == state.step:
        return
    game = interpreter.game
    index = {name: k for k, name in enumerate(state.policies)}
    code = encode(rule, state.step, until, index)
    names = list(index)
    batch, n = game.batch or 1, game.n
    log_policies = np.stack([state.policies[name].log_policy for name in names]).reshape(-1, batch, n)
    policies = np.stack([state.policies[name].policy for name in names]).reshape(-1, batch, n)
    row_at = np.full(until - state.step, -1, dtype=np.int64)
    row_at[grid - state.step - 1] = np.arange(len(grid))
    payoff_sum = np.zeros((batch, n)) if state.payoff_sum is None else state.payoff_sum.reshape(batch, n)
    left = state.policies["current"].known_payoff
    current_payoff = np.zeros((batch, n)) if left is None else left.reshape(batch, n).copy()
    capacity = rows.log_policy.shape[-2]
    shape = (batch, capacity, n)
    complete, known = _run(
        game.payoffs.reshape(batch, n, n),
        index["current"],
        current_payoff,
        left is not None,
        log_policies,
        policies,
        state.plan_sum.reshape(batch, n),
        payoff_sum,
        state.payoff_sum is not None,
        state.step,
        *code,
        row_at,
        rows.largest.reshape(-1, batch),
        rows.average_largest.reshape(-1, batch),
        rows.log_policy.reshape(shape),
        rows.payoff.reshape(shape),
        rows.average.reshape(shape),
        rows.average_payoff.reshape(shape),
    )
    for k, name in enumerate(names):
        log_pi, pi = (array[k].reshape(game.policy_shape) for array in (log_policies, policies))
        payoff = current_payoff.reshape(game.policy_shape) if known and name == "current" else None
        state.policies[name] = Iterate(game, log_pi, pi, payoff)
    state.payoff_sum = payoff_sum.reshape(game.policy_shape) if complete else None
    state.step = until


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _product(A: FloatArray, b: int, x: FloatArray, k: int, out: FloatArray) -> None:
    """out[k] = A[b] x[k]; the sums may be taken in any order, as BLAS does."""
    for i in range(A.shape[1]):
        total = 0.0
        for j in range(A.shape[1]):
            total += A[b, i, j] * x[k, j]
        out[k, i] = total


@njit(cache=True, nogil=True, error_model="numpy")
def _add(out: FloatArray, to: int, weight: float, x: FloatArray, k: int) -> None:
    """out[to] += weight·x[k]."""
    for i in range(out.shape[1]):
        out[to, i] += weight * x[k, i]


@njit(cache=True, nogil=True, error_model="numpy")
def _free_buffer(at: IntArray, left: int) -> int:
    """The first buffer that no name points at and that is not the one being left."""
    free = 0
    while True:
        taken = free == left
        for k in at:
            taken = taken or k == free
        if not taken:
            return free
        free += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _largest(x: FloatArray, k: int) -> float:
    """max(x[k]); NaN when all entries are, and an iterate that overflowed has no others."""
    largest = x[k, 0]
    for i in range(1, x.shape[1]):
        if x[k, i] > largest:
            largest = x[k, i]
    return largest  # type: ignore[no-any-return]


@njit(cache=True, nogil=True, error_model="numpy")
def _normalise(logits: FloatArray, policy: FloatArray, k: int) -> None:
    """logits[k] ← log π and policy[k] ← π, with π ∝ exp(logits[k])."""
    n = logits.shape[1]
    largest, total = _largest(logits, k), 0.0
    for i in range(n):
        logits[k, i] -= largest
        policy[k, i] = np.exp(logits[k, i])
    for i in range(n):
        total += policy[k, i]
    log_total = np.log(total)
    for i in range(n):
        logits[k, i] -= log_total
        policy[k, i] /= total


@njit(cache=True, nogil=True, error_model="numpy")
def _run(
    A: FloatArray,
    current: int,
    current_payoff: FloatArray,
    current_known: bool,
    log_policies: FloatArray,
    policies: FloatArray,
    policy_sum: FloatArray,
    payoff_sum: FloatArray,
    linear: bool,
    step: int,
    which: IntArray,
    first_step: IntArray,
    to: IntArray,
    copied: IntArray,
    first_term: IntArray,
    source: IntArray,
    is_payoff: IntArray,
    weights: FloatArray,
    row_at: IntArray,
    row_largest: FloatArray,
    row_average_largest: FloatArray,
    row_log: FloatArray,
    row_payoff: FloatArray,
    row_average: FloatArray,
    row_average_payoff: FloatArray,
) -> tuple[bool, bool]:
    """Run every game of the batch through the chunk, in place.

    Returns whether `payoff_sum` is still complete, and whether `current_payoff` holds the payoffs of the last
    iterate: what is known must not depend on where one chunk ends and the next begins.
    """
    names, batch, n = log_policies.shape
    # One buffer for each name, one for the iterate that is being left, one to write. Names point at buffers,
    # so that a copy is a pointer and shares its payoff vector.
    log_pi, pi, q = np.empty((names + 2, n)), np.empty((names + 2, n)), np.empty((names + 2, n))
    known, at = np.empty(names + 2, dtype=np.bool_), np.empty(names, dtype=np.int64)
    average, average_payoff = np.empty((1, n)), np.empty((1, n))
    complete = linear
    for b in range(batch):
        complete = linear
        known[:] = False
        for k in range(names):
            log_pi[k], pi[k], at[k] = log_policies[k, b], policies[k, b], k
        known[current], q[current] = current_known, current_payoff[b]
        for t in range(which.size):
            left = at[current]
            column = t if weights.shape[1] > 1 else 0
            for s in range(first_step[which[t]], first_step[which[t] + 1]):
                if copied[s] >= 0:
                    at[to[s]] = at[copied[s]]
                    continue
                free = _free_buffer(at, left)
                for i in range(n):
                    log_pi[free, i] = 0.0
                for term in range(first_term[s], first_term[s + 1]):
                    k, weight = at[source[term]], weights[term, column]
                    if is_payoff[term]:
                        if not known[k]:
                            _product(A, b, pi, k, q)
                            known[k] = True
                        _add(log_pi, free, weight, q, k)
                    else:
                        _add(log_pi, free, weight, log_pi, k)
                _normalise(log_pi, pi, free)
                known[free] = False
                at[to[s]] = free
            if known[left]:
                _add(payoff_sum, b, 1.0, q, left)
            else:
                complete = False
            now = at[current]
            _add(policy_sum, b, 1.0, pi, now)
            if row_at[t] >= 0:
                row, count = row_at[t], step + t + 2.0
                if not known[now]:
                    _product(A, b, pi, now, q)
                    known[now] = True
                for i in range(n):
                    average[0, i] = policy_sum[b, i] / count
                    average_payoff[0, i] = (payoff_sum[b, i] + q[now, i]) / count
                if not complete:
                    _product(A, b, average, 0, average_payoff)
                row_largest[row, b] = _largest(q, now)
                row_average_largest[row, b] = _largest(average_payoff, 0)
                if row_log.size > 0:
                    for i in range(n):
                        row_log[b, row, i], row_payoff[b, row, i] = log_pi[now, i], q[now, i]
                        row_average[b, row, i] = average[0, i]
                        row_average_payoff[b, row, i] = average_payoff[0, i]
        for k in range(names):
            log_policies[k, b], policies[k, b] = log_pi[at[k]], pi[at[k]]
        current_payoff[b] = q[at[current]]
    return complete, known[at[current]]
