"""One iteration on a Markov game: against the loop one writes by hand, the bytes it reads, and its peers."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

import nashpref as npf
from benchmarks import loops, markov_loops
from benchmarks.harness import FOLDER, Measured, Row, interleave, row, run_script, seconds, timed
from nashpref.dynamic_programming import action_values
from nashpref.policies import FloatArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ETA, BETA = 0.5, 0.1
SMALL, LARGE = (20, 5, 5), (200, 10, 10)
GROWTH = FOLDER / "markov_growth.csv"  # what paper_figs/markov_cost.py draws

PEAK = """
import sys
import nashpref as npf
import numpy as np

def kib(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

before = kib("VmRSS")
"""
PEAK_DENSE = f"""{PEAK}
transition, preference = (np.load(path) for path in sys.argv[1:3])
inputs = transition.nbytes + preference.nbytes
game = npf.MarkovGame(transition, preference, 0)
npf.solve(game, npf.OMPO(), 5, record=1)
print(before, kib("VmHWM"), inputs)
"""
PEAK_SPARSE = f"""{PEAK}
from scipy.sparse import load_npz

before = kib("VmRSS")
preference, *transition = np.load(sys.argv[1]), *map(load_npz, sys.argv[2:])
inputs = preference.nbytes + sum(T.data.nbytes + T.indices.nbytes + T.indptr.nbytes for T in transition)
game = npf.MarkovGame(transition, preference, 0)
npf.solve(game, npf.OMPO(), 5, record=1)
print(before, kib("VmHWM"), inputs)
"""


def rows() -> Iterator[Row]:
    """The iteration, its bytes, its memory, batches, the joint recursion, growth."""
    rng = np.random.default_rng(60)
    small, large = (npf.zoo.random_markov_game(*shape, rng) for shape in (SMALL, LARGE))
    for game, shape, target, steps in ((small, SMALL, "≤ 1.3", 500), (large, LARGE, "≤ 1.15", 12)):
        yield row(f"OMPO over a hand-written loop, {shape}", target, "×", over_loop, game, steps, False)
        name = f"OMPO with gaps at every step over a hand-written loop, {shape}"
        yield row(name, target, "×", over_loop, game, steps, True)
    name = f"OMPO over a streaming read of as many bytes, {LARGE}"
    yield row(name, "≤ 1.6", "×", over_streaming_read, large, 12)
    name = f"OMPO with gaps at every step over OMPO without, {LARGE}"
    yield row(name, "≤ 1.25", "×", gap_tracing, large, 12)
    del large
    name = f"peak memory of 5 iterations above the imports, {LARGE}, over the arrays handed in"
    yield row(name, "≤ 2", "×", peak, LARGE)
    yield row(f"making a game over copying its arrays, {LARGE}", "≤ 10", "×", construction, LARGE)

    for shape, target, steps in ((SMALL, "≤ 1.3", 500), (LARGE, "≤ 1.3", 60)):
        game = npf.zoo.random_markov_game(*shape, rng, terminal=True)
        name = f"MTPO over a hand-written loop, final preference, {shape}"
        yield row(name, target, "×", per_state_over_loop, game, steps)
    name = f"OMPO over the bare products, final preference, 5 successors, {LARGE}"
    yield row(name, "≤ 4", "×", over_products, LARGE, 100)
    name = f"dense transitions over sparse ones, the same game, 5 successors, {LARGE}"
    yield row(name, "≥ 3", "×", dense_over_sparse, LARGE, 50)
    shape = (2000, 10, 10)
    name = (
        f"peak memory of 5 iterations above the imports, final preference, 5 successors, {shape}, over the "
    )
    yield row(name + "arrays handed in", "≤ 4", "×", sparse_peak, shape)

    for shape, steps in ((SMALL, 200), ((100, 10, 5), 20)):
        for starts in (2, 8):
            name = f"{starts} initial states at once over one after the other, {shape}"
            yield row(name, "≤ 1", "×", batched, shape, starts, steps)

    name = "action values against the joint recursion over Q(s, a, s', a'), (30, 5, 5): largest difference"
    yield row(name, "≤ 1e-15", "", joint_difference, (30, 5, 5), rng)
    name = f"operations of the joint recursion over ours, {LARGE}"
    yield row(name, "≥ 168", "×", joint_operations, LARGE)
    name = "time of the joint recursion over ours, (100, 10, 5)"
    yield row(name, "≥ 8", "×", joint_time, (100, 10, 5), rng)
    name = "exponent of the cost of an OMPO iteration in the number of its operations, from 10⁵ on"
    yield row(name, "≤ 1.25", "", growth)


# --- the loop ---


def ompo(game: npf.MarkovGame, steps: int, gaps: bool = False) -> Callable[[], npf.Trace]:
    """A run that measures every step, or only the first and the last."""
    return lambda: npf.solve(game, npf.OMPO(eta=ETA), steps, record=1 if gaps else [steps])


def over_loop(game: npf.MarkovGame, steps: int, gaps: bool) -> Measured:
    """`solve` with the loop's own step size."""
    R, T = game.payoffs, game.transitions
    pairs = interleave(ompo(game, steps, gaps), lambda: markov_loops.ompo(R, T, ETA, steps, gaps), 9)
    trace, run = pairs.results
    note = agreement(game, trace, run)
    if gaps:
        note += f"; {loops.agreement(trace, (run.gap, run.average_gap))}"
    return pairs.slowdown, f"{pairs.each(steps, steps)} a step; {note}"


def per_state_over_loop(game: npf.MarkovGame, steps: int) -> Measured:
    """MTPO with a constant step."""
    R, T = game.payoffs[0], game.transitions
    pairs = interleave(
        lambda: npf.solve(game, npf.MTPO(beta=BETA, eta=ETA), steps, record=[steps]),
        lambda: markov_loops.mtpo(R, T, BETA, ETA, steps),
        9,
    )
    return pairs.slowdown, f"{pairs.each(steps, steps)} a step; {agreement(game, *pairs.results)}"


def agreement(game: npf.MarkovGame, trace: npf.Trace, run: markov_loops.Run) -> str:
    """How closely the last policy is the same, for the note; `RuntimeError` if it is another."""
    error = np.abs(game.flat(trace.policy)[0] - run.policy).max()
    if not error <= 1e-9:
        raise RuntimeError(f"the hand-written loop has other policies: they differ by {error:.0e}")
    return f"policies differ by {error:.0e}"


# --- bytes ---


def over_streaming_read(game: npf.MarkovGame, steps: int) -> Measured:
    """An iteration against the fastest of three ways to read what it must.

    That is the payoffs, and the transitions twice: forwards before them, backwards after them.
    """
    numbers = np.ones(operations(game))
    readers = (numbers.sum, numbers.max, lambda: numbers @ numbers)
    run = ompo(game, steps)
    run()
    ratios, times, speeds = [], [], []
    for _ in range(7):
        step = min(timed(run)[0] for _ in readers) / steps
        read = min(timed(reader)[0] for reader in readers)
        ratios.append(step / read)
        times.append(step)
        speeds.append(numbers.nbytes / read)
    size, speed = f"{numbers.nbytes / 1e6:.0f} MB", f"{median(speeds) / 1e9:.3g} GB/s"
    return median(ratios), f"{size}, read at {speed}; {seconds(median(times))} a step"


def gap_tracing(game: npf.MarkovGame, steps: int) -> Measured:
    """Both gaps, of the last iterate and of the average, at every step."""
    pairs = interleave(ompo(game, steps, gaps=True), ompo(game, steps), 9)
    return pairs.slowdown, f"{pairs.each(steps, steps)} a step"


def over_products(shape: tuple[int, int, int], steps: int) -> Measured:
    """Nothing but what the iteration multiplies: each transition forwards and backwards, and the payoffs."""
    game = npf.MarkovGame(*sparse_arrays(*shape), 0)
    payoffs, transitions, transposes = game.payoffs[0], game.transitions, game.transposes
    spread, values = ([np.ones(T.shape[axis]) for T in transitions] for axis in (0, 1))

    def products() -> None:
        for _ in range(steps):
            for transposed, d in zip(transposes, spread, strict=True):
                transposed @ d
            payoffs @ values[-1]
            for T, v in zip(transitions, values, strict=True):
                T @ v

    pairs = interleave(ompo(game, steps), products, 9).each(steps, steps)
    return pairs.slowdown, f"{pairs} a step; {sum(T.size for T in transitions)} transitions"


def dense_over_sparse(shape: tuple[int, int, int], steps: int) -> Measured:
    """The same transitions written out, zeros included."""
    S, A, _ = shape
    transition, preference = sparse_arrays(*shape)
    written = np.array([T.toarray().reshape(S, A, S) for T in transition])
    sparse, dense = (npf.MarkovGame(T, preference, 0) for T in (transition, written))
    pairs = interleave(ompo(sparse, steps), ompo(dense, steps)).each(steps, steps)
    error = np.abs(pairs.results[0].policy - pairs.results[1].policy).max()
    return pairs.speedup, f"{pairs} a step; policies differ by {error:.0e}"


# --- memory, and making a game ---


def peak(shape: tuple[int, int, int]) -> Measured:
    """The arrays themselves are one of the two."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.npy" for name in ("transition", "preference")]
        for path, array in zip(paths, dense_arrays(*shape), strict=True):
            np.save(path, array)
        return peak_of(run_script(PEAK_DENSE, *map(str, paths)))


def sparse_peak(shape: tuple[int, int, int]) -> Measured:
    """A preference at every step would be a hundred times the one that is handed in."""
    from scipy.sparse import save_npz

    transition, preference = sparse_arrays(*shape)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{h}.npz" for h in range(len(transition))]
        for path, T in zip(paths, transition, strict=True):
            save_npz(path, T)
        np.save(Path(folder) / "preference.npy", preference)
        return peak_of(run_script(PEAK_SPARSE, str(Path(folder) / "preference.npy"), *map(str, paths)))


def peak_of(output: str) -> Measured:
    """From resident KiB before, resident KiB at most, and the bytes of the inputs."""
    before, most, inputs = map(int, output.split())
    used = (most - before) * 1024
    return used / inputs, f"{used / 2**20:.0f} MiB above {before / 1024:.0f} MiB; {inputs / 2**20:.0f} MiB in"


def construction(shape: tuple[int, int, int]) -> Measured:
    """Checking every number and its mirror image, centring, copying."""
    transition, preference = (np.array(array) for array in dense_arrays(*shape))

    def copies() -> list[Any]:
        return [array[h].copy() for array in (transition, preference) for h in range(len(array))]

    pairs = interleave(lambda: npf.MarkovGame(transition, preference, 0), copies, 5)
    return pairs.slowdown, str(pairs)


def dense_arrays(S: int, A: int, H: int) -> tuple[FloatArray, FloatArray]:
    """Transitions to every state, and one preference for every step, as a view."""
    rng = np.random.default_rng(61)
    transition = rng.random((H, S, A, S))
    transition /= transition.sum(axis=-1, keepdims=True)
    preference = npf.zoo.random_preferences(S * A, rng).preferences.reshape(S, A, S, A)
    return transition, np.broadcast_to(preference, (H, S, A, S, A))


def sparse_arrays(S: int, A: int, H: int) -> tuple[list[csr_array], FloatArray]:
    """Five successors for every action, and a preference of final states."""
    from scipy.sparse import csr_array

    rng = np.random.default_rng(62)
    starts, shape = np.arange(0, 5 * S * A + 1, 5), (S * A, S)
    following = (rng.integers(S, size=(H, S * A, 1)) + 7 * np.arange(5)) % S
    weights = rng.dirichlet(np.ones(5), size=(H, S * A))
    transition = [
        csr_array((w.ravel(), to.ravel(), starts), shape=shape)
        for w, to in zip(weights, following, strict=True)
    ]
    return transition, npf.zoo.random_preferences(S, rng).preferences


# --- initial states ---


def batched(shape: tuple[int, int, int], starts: int, steps: int) -> Measured:
    """All in one run, against a run for each."""
    S = shape[0]
    arrays = dense_arrays(*shape)
    together = npf.MarkovGame(*arrays, np.where(np.arange(S) < starts, 1.0 / starts, 0.0))
    runs = [ompo(npf.MarkovGame(*arrays, s), steps) for s in range(starts)]
    pairs = interleave(ompo(together, steps), lambda: [run() for run in runs]).each(steps, steps)
    ours, apart = pairs.results
    error = max(np.abs(ours.policy[s] - trace.policy).max() for s, trace in enumerate(apart))
    return pairs.slowdown, f"{pairs} a step; policies differ by {error:.0e}"


# --- never the joint Q ---


def joint_difference(shape: tuple[int, int, int], rng: np.random.Generator) -> Measured:
    """Two random policies against each other."""
    game, ours, joint = both_recursions(shape, rng)
    return float(np.abs(ours()[0] - joint()).max()), f"{game}"


def joint_time(shape: tuple[int, int, int], rng: np.random.Generator) -> Measured:
    """Both with NumPy; the joint recursion is in matrix products, whose operations are the cheapest."""
    _, ours, joint = both_recursions(shape, rng)
    pairs = interleave(ours, joint)
    return pairs.speedup, str(pairs)


def both_recursions(
    shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[npf.MarkovGame, Callable[[], FloatArray], Callable[[], FloatArray]]:
    """The game, and the action values of a random policy against another by each way."""
    game = npf.zoo.random_markov_game(*shape, rng)
    pi, opponent = rng.dirichlet(np.ones(game.actions), size=(2, 1, game.flat_shape[1]))
    free = np.zeros(game.flat_shape[:2])
    return (
        game,
        lambda: action_values(game, pi, game.payoff(game.plan(opponent)), free),
        lambda: markov_loops.joint_action_values(game.payoffs, game.transitions, pi[0], opponent[0]),
    )


def joint_operations(shape: tuple[int, int, int]) -> Measured:
    """Multiply–adds of one evaluation, all S states at every step; the averages over policies left out."""
    S, A, H = shape
    n = S * A
    ours = H * n * n + 2 * (H - 1) * n * S
    joint = H * n * n + (H - 1) * (n * S * S + n * S * n)
    return joint / ours, f"counted: {joint:.3g} against {ours:.3g}"


# --- growth ---


def growth() -> Measured:
    """The largest exponent of four series; writes the points. Above 1 is where a game outgrows a cache."""
    series = {
        "S": [(S, 5, 5) for S in (5, 10, 20, 50, 100, 200, 400)],
        "A": [(50, A, 5) for A in (2, 3, 5, 10, 20, 40)],
        "H": [(50, 5, H) for H in (2, 5, 10, 20, 50)],
        "S, sparse": [(S, 5, 5) for S in (20, 50, 100, 200, 500, 1000, 2000)],
    }
    numbers = np.ones(2**25)
    bandwidth = numbers.nbytes / min(timed(lambda: numbers @ numbers)[0] for _ in range(5))
    points, exponents = [], {}
    for varied, shapes in series.items():
        counts, times = [], []
        for shape in shapes:
            options: dict[str, Any] = {"terminal": True, "branching": 3} if varied == "S, sparse" else {}
            game = npf.zoo.random_markov_game(*shape, np.random.default_rng(63), **options)
            counts.append(operations(game))
            times.append(iteration_seconds(game))
            points.append((varied, *shape, counts[-1], f"{times[-1]:.4g}", f"{bandwidth:.4g}"))
        large = np.array(counts) >= 1e5
        exponents[varied] = float(np.polyfit(np.log(counts), np.log(times), 1, w=large)[0])
    with open(GROWTH, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("varied", "S", "A", "H", "operations", "seconds", "bandwidth"))
        writer.writerows(points)
    return max(exponents.values()), ", ".join(f"{name}: {slope:.2f}" for name, slope in exponents.items())


def operations(game: npf.MarkovGame) -> int:
    """Multiply–adds of an iteration: the payoffs once, each transition forwards and backwards."""
    return int(sum(A.size for A in game.payoffs) + 2 * sum(T.size for T in game.transitions))


def iteration_seconds(game: npf.MarkovGame) -> float:
    """The difference of a long and a short run, per step: what a run costs once is left out."""
    ompo(game, 1)()
    once = max(timed(ompo(game, 5))[0] / 5, 1e-5)
    few = max(5, int(0.02 / once))
    times = []
    for _ in range(3):
        short, long = timed(ompo(game, few))[0], timed(ompo(game, 3 * few))[0]
        times.append((long - short) / (2 * few))
    return median(times)
