"""To trust a rule of your own: hypothesis strategies for games and policies, and a conformance suite.

Needs hypothesis, and pytest for the suite; the rest of nashpref imports neither.

    from nashpref.testing import conformance

    test_my_rule = conformance(MyRule(beta=0.1, eta=0.2))
"""

from nashpref.testing.conformance import checks, conformance
from nashpref.testing.oracle import two_player_iterates
from nashpref.testing.strategies import (
    KINDS,
    interior_equilibria,
    policies,
    preference_batches,
    preference_games,
    references,
)

__all__ = [
    "KINDS",
    "checks",
    "conformance",
    "interior_equilibria",
    "policies",
    "preference_batches",
    "preference_games",
    "references",
    "two_player_iterates",
]
