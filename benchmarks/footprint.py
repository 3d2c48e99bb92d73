"""What nashpref costs before it does anything, and the memory of an exact equilibrium."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

import nashpref as npf
from benchmarks.harness import Measured, Row, row, run_script

HEAVY = ("torch", "cvxpy", "transformers", "matplotlib", "numba", "pandas")
PROCESSES = 9

# The peak is that of the process's own address space, VmHWM: unlike ru_maxrss it starts anew at exec.
PEAK = """
import sys
import numpy as np
import nashpref as npf

def kib(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

before = kib("VmRSS")
game = npf.MatrixGame(np.load(sys.argv[1]))
result = npf.equilibrium(game)
print(before, kib("VmHWM"), result.gap)
"""

IMPORT = f"""
import sys, time
began = time.perf_counter()
import nashpref
print(time.perf_counter() - began, *(name for name in {HEAVY!r} if name in sys.modules))
"""


def rows() -> Iterator[Row]:
    """Memory, then imports."""
    yield row("peak memory of `equilibrium`, uniform n = 2000, above the imports", "≤ 8", "n² doubles", peak)
    yield row("`import nashpref` in a fresh process", "≤ 0.4", "s", import_seconds)
    yield row(f"heavy packages that `import nashpref` loads, of {', '.join(HEAVY)}", "≤ 0", "", heavy_imports)


def peak() -> Measured:
    """The game itself holds two of them: P and A; reading P from disk takes a third for a while."""
    n = 2000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "game.npy"
        np.save(path, npf.zoo.random_preferences(n, np.random.default_rng(50)).preferences)
        before, after, gap = run_script(PEAK, str(path)).split()
    used = (int(after) - int(before)) * 1024
    note = f"{used / 2**20:.0f} MiB above {int(before) / 1024:.0f} MiB; gap {float(gap):.0e}"
    return used / (8 * n**2), note


def import_seconds() -> Measured:
    """Median wall time of nine fresh processes, files cached."""
    times = [float(run_script(IMPORT).split()[0]) for _ in range(PROCESSES)]
    numpy = IMPORT.replace("import nashpref", "import numpy")
    alone = [float(run_script(numpy).split()[0]) for _ in range(PROCESSES)]
    return median(times), f"{PROCESSES} processes, wall time; numpy alone takes {median(alone):.2g} s"


def heavy_imports() -> Measured:
    """Their number, and names."""
    loaded = run_script(IMPORT).split()[1:]
    return len(loaded), ", ".join(loaded) or "none"
