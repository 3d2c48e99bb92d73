"""`python -m benchmarks` measures everything and writes the report; with NAMES, those groups of it.

A group is a module of this package with a function `rows()` that yields `harness.Row`s, listed in `GROUPS`,
or in `LONG` if it takes a quarter of an hour and is measured only where it is named.
`markov` also writes the points of a figure, `markov_growth.csv`.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from time import perf_counter

# One thread for whatever has a pool of its own, before NumPy is loaded and reads it. `threads` widens the
# BLAS pools, in a process of its own; limits set later than this do not reach the compilers' pools.
for pool in ("OPENBLAS", "MKL", "OMP", "NUMBA", "RAYON"):
    os.environ[f"{pool}_NUM_THREADS"] = "1"

GROUPS = (
    "exact",
    "regularised",
    "iterate",
    "batch",
    "threads",
    "footprint",
    "markov",
    "markov_exact",
    "llm",
    "llm_online",
    "llm_training",
    "llm_dialogues",
    "llm_decoding",
)
LONG = ("llm_training_long",)


def main(names: list[str]) -> int:
    """Run the groups `names`, `GROUPS` when there are none, and put their rows into the report."""
    from benchmarks import harness

    if unknown := set(names) - {*GROUPS, *LONG}:
        print(
            f"benchmarks: no group {', '.join(sorted(unknown))}; choose from {', '.join((*GROUPS, *LONG))}",
            file=sys.stderr,
        )
        return 2
    machine = harness.machine()
    print(harness.machine_line(machine))
    began = perf_counter()
    measured: dict[str, list[harness.Row]] = {}
    for name in names or GROUPS:
        print(f"\n{name} ({perf_counter() - began:.0f} s)")
        measured[name] = []
        for row in harness.collect(name, import_module(f"benchmarks.{name}").rows):
            measured[name].append(row)
            print(f"  {harness.summary(row)}", flush=True)
        harness.write_report({name: measured[name]}, machine)
    rows = [row for group in measured.values() for row in group]
    failed = [row.name for row in rows if row.holds is False]
    print(f"\n{len(rows)} rows in {perf_counter() - began:.0f} s; missed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
