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
from nashpref.games.markov import MarkovGame
from nashpref.games.matrix import MatrixGame
from nashpref.measure import Record
from nashpref.metrics import best_response, duality_gap
from nashpref.mirror import Geometry, MirrorStep, UpdateRule, decreasing, horizon
from nashpref.occupancy import occupancy, policy_of_occupancy
from nashpref.rules import (
    COMAL,
    EGPO,
    GDA,
    MMD,
    MNPO,
    MPO,
    MTPO,
    MWU,
    OGDA,
    OMPO,
    ONPO,
    BestResponse,
    MTPOTau,
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
    "MPO",
    "MTPO",
    "MWU",
    "OGDA",
    "OMPO",
    "ONPO",
    "BestResponse",
    "Equilibrium",
    "Geometry",
    "Interrupted",
    "MTPOTau",
    "MarkovGame",
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
    "occupancy",
    "policy_of_occupancy",
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
