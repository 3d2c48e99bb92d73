"""Rows of the report, interleaved timing, and the machine that the numbers belong to."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

FOLDER = Path(__file__).parent
SHORTEST = 0.02  # seconds that one timing must last; quicker calls are repeated
PEERS = (
    "highspy",
    "quantecon",
    "open_spiel",
    "cvxpy",
    "clarabel",
    "ecos",
    "threadpoolctl",
    "torch",
    "transformers",
    "trl",
)

Action = Callable[[], Any]
Clock = Callable[[], float]
Measured = tuple[float, str]  # the value of a row, and what to say about it


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        name: what is measured, and against whom.
        value: the measurement; None when there is none, and `note` says why.
        target: "≥ 12" or "≤ 1e-12"; None for a number that is only reported.
        unit: of `value`; "×" for a ratio.
        holds: whether the target is met; None without one. A measurement that failed never holds.
        note: absolute times, accuracies reached, the reason of a failure.
    """

    name: str
    value: float | None
    target: str | None
    unit: str
    holds: bool | None
    note: str


def row(
    name: str, target: str | None, unit: str, measure: Callable[..., Measured], *args: Any, **options: Any
) -> Row:
    """The row of `measure(*args, **options)`; what goes wrong, a missing peer included, does not hold."""
    try:
        value, note = measure(*args, **options)
    except Exception as error:
        return Row(name, None, target, unit, False, failure(error))
    if not math.isfinite(value):
        return Row(name, None, target, unit, False, f"failed: the value is {value}; {note}")
    return Row(name, value, target, unit, None if target is None else meets(value, target), note)


def meets(value: float, target: str) -> bool:
    """Whether `value` satisfies a target such as "≥ 12"."""
    sign, number = target.split()
    return {"≥": value >= float(number), "≤": value <= float(number)}[sign]


def collect(group: str, rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a group; an error outside of a measurement ends the group with a row that says so."""
    try:
        yield from rows()
    except Exception as error:
        yield Row(f"{group}: the rest of the group", None, None, "", False, failure(error))


def failure(error: Exception) -> str:
    """What went wrong in one line, without paths of this machine."""
    reason = (str(error).strip().splitlines() or ["no message"])[-1]
    return re.sub(r"(?<!\w)/[\w./-]+", "…", f"failed: {type(error).__name__}: {reason}")


# --- timing ---


@dataclass(frozen=True)
class Pairs:
    """Seconds of each call of ours and of the peer, taken in turns, and what the last calls returned."""

    ours: list[float]
    peer: list[float]
    results: tuple[Any, Any]

    @property
    def speedup(self) -> float:
        """Median over the pairs of peer/ours: how many times faster we are."""
        return median(peer / ours for ours, peer in zip(self.ours, self.peer, strict=True))

    @property
    def slowdown(self) -> float:
        """Median over the pairs of ours/peer: how many times slower we are."""
        return median(ours / peer for ours, peer in zip(self.ours, self.peer, strict=True))

    def __str__(self) -> str:
        return f"{seconds(median(self.ours))} against {seconds(median(self.peer))}"

    def each(self, ours: int, peer: int) -> Pairs:
        """Per unit of work, where a call of ours does `ours` units and one of the peer `peer`."""
        return Pairs([t / ours for t in self.ours], [t / peer for t in self.peer], self.results)


def interleave(
    ours: Action, peer: Action, pairs: int = 7, *, warm_up: bool = True, clock: Clock = process_time
) -> Pairs:
    """Time the two in turns, A B A B …, so that a drift of the machine falls on both.

    The clock is the CPU time of this process unless said: both sides run on one thread, and other
    processes of the machine then cost neither. A warm-up runs each once, untimed (compilation, caches), and
    finds how often a call is repeated to last `SHORTEST`; without one, each timing is a single call.
    """
    actions, repeats = (ours, peer), [1, 1]
    if warm_up:
        for k, action in enumerate(actions):
            action()
            repeats[k] = max(1, math.ceil(SHORTEST / max(timed(action, 1, clock)[0], 1e-9)))
    times: tuple[list[float], list[float]] = ([], [])
    results: list[Any] = [None, None]
    for _ in range(pairs):
        for k, action in enumerate(actions):
            elapsed, results[k] = timed(action, repeats[k], clock)
            times[k].append(elapsed)
    return Pairs(*times, (results[0], results[1]))


def timed(action: Action, repeats: int = 1, clock: Clock = process_time) -> tuple[float, Any]:
    """Seconds per call, and what the last one returned."""
    result = None
    began = clock()
    for _ in range(repeats):
        result = action()
    return (clock() - began) / repeats, result


def seconds(t: float) -> str:
    """A duration, readably."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if t >= size:
            return f"{t / size:.3g} {unit}"
    return f"{t / 1e-6:.3g} µs"


wall = perf_counter


def in_fresh_process(measure: Callable[..., Measured], *args: object) -> Measured:
    """`measure(*args)` in a new Python: what it does to thread pools and imports stays there."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *args).result()


def run_script(code: str, *args: str) -> str:
    """Standard output of `code` in a new Python that has imported nothing; RuntimeError if it fails."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return done.stdout.strip()


# --- the machine and the report ---


def machine() -> dict[str, Any]:
    """What the numbers depend on. No host name and no path."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("numpy", "scipy", "numba")},
        "blas": _blas(),
        "peers": {name: _version(name) for name in PEERS},
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gib']} GiB, "
        f"load {machine['load_at_start']} at the start; Python {machine['python']}, "
        + ", ".join(f"{name} {machine[name]}" for name in ("numpy", "scipy", "numba"))
        + f"; BLAS {', '.join(machine['blas'])}; "
        + ", ".join(f"{name} {number}" for name, number in machine["peers"].items())
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    model = facts.get("model name", platform.machine())
    return f"{model} (family {facts.get('cpu family')}, model {facts.get('model')})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _blas() -> list[str]:
    import scipy.linalg.blas  # noqa: F401  (NumPy and SciPy each bring a BLAS: load both)

    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return ["unknown (threadpoolctl is missing)"]
    pools = (pool for pool in threadpool_info() if pool["user_api"] == "blas")
    return [f"{pool['internal_api']} {pool['version']} ({pool.get('architecture', '?')})" for pool in pools]


def number(value: float | None) -> str:
    """A value, readably."""
    return "–" if value is None else f"{value:.3g}"


def summary(row: Row) -> str:
    """A row for the terminal."""
    verdict = {True: "ok    ", False: "MISSED", None: "      "}[row.holds]
    target = f" ({row.target})" if row.target else ""
    return f"{verdict} {row.name}: {number(row.value)} {row.unit}{target}. {row.note}"


def markdown(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """The report as a table for each group."""
    lines = [
        "# Benchmarks",
        "",
        "One thread and CPU time unless said. A ratio is the median over interleaved pairs in one process.",
    ]
    for name, group in groups.items():
        lines += ["", f"## {name}", "", f"{machine_line(group['machine'])}.", ""]
        lines += ["| | value | target | holds | |", "|---|---|---|---|---|"]
        for row in (Row(**each) for each in group["rows"]):
            verdict = {True: "yes", False: "**no**", None: ""}[row.holds]
            cells = (row.name, f"{number(row.value)} {row.unit}", row.target or "", verdict, row.note)
            lines.append("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def write_report(
    measured: Mapping[str, Iterable[Row]], machine: dict[str, Any], folder: Path = FOLDER
) -> None:
    """Put the groups that were measured into `report.json` and `report.md`; the others stay as they are."""
    path = folder / "report.json"
    groups = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, rows in measured.items():
        groups[name] = {"machine": machine, "rows": [asdict(row) for row in rows]}
    text = json.dumps(groups, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")
    (folder / "report.md").write_text(markdown(groups), encoding="utf-8")
