"""nashpref: game-theoretic preference optimization, exactly.

An algorithm is a short program of mirror steps over named policies; an interpreter runs it on a preference
game; a certificate says how far the result is from Nash.

>>> import nashpref as npf
>>> game = npf.zoo.rock_paper_scissors()
>>> npf.equilibrium(game).policy.round(3).tolist()
[0.333, 0.333, 0.333]
"""

from typing import TYPE_CHECKING, Any

from nashpref.equilibrium import Equilibrium, equilibrium
from nashpref.games import zoo
from nashpref.games.matrix import MatrixGame
from nashpref.measure import Record
from nashpref.metrics import best_response, duality_gap
from nashpref.mirror import MirrorStep, UpdateRule, decreasing, horizon
from nashpref.rules import (
    COMAL,
    EGPO,
    GDA,
    MMD,
    MNPO,
    MWU,
    OGDA,
    ONPO,
    BestResponse,
    NashEMA,
    NashMD,
    NashMP,
)
from nashpref.solve import Interrupted, log_grid, solve
from nashpref.trace import Status, Trace

if TYPE_CHECKING:
    from nashpref.analysis import Ranking, rank

__version__ = "0.1.0"

__all__ = [
    "COMAL",
    "EGPO",
    "GDA",
    "MMD",
    "MNPO",
    "MWU",
    "OGDA",
    "ONPO",
    "BestResponse",
    "Equilibrium",
    "Interrupted",
    "MatrixGame",
    "MirrorStep",
    "NashEMA",
    "NashMD",
    "NashMP",
    "Ranking",
    "Record",
    "Status",
    "Trace",
    "UpdateRule",
    "best_response",
    "decreasing",
    "duality_gap",
    "equilibrium",
    "horizon",
    "log_grid",
    "rank",
    "solve",
    "zoo",
]


def __getattr__(name: str) -> Any:
    # The analysis of data brings parts of scipy that take longer to import than all the rest.
    if name in ("Ranking", "rank"):
        from nashpref import analysis

        return getattr(analysis, name)
    raise AttributeError(f"module 'nashpref' has no attribute {name!r}")
