"""To trust a rule of your own: hypothesis strategies for games and policies, and a conformance suite.

The suite tries the rule on matrix games, and on Markov games in every geometry that applies. It needs
hypothesis and pytest; the rest of nashpref imports neither.

    from nashpref.testing import conformance

    test_my_rule = conformance(MyRule(beta=0.1, eta=0.2))
"""

from nashpref.testing.conformance import checks, conformance
from nashpref.testing.markov_games import DYNAMICS, Description, descriptions, markov_games
from nashpref.testing.markov_oracle import markov_two_player_iterates
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
    "DYNAMICS",
    "KINDS",
    "Description",
    "checks",
    "conformance",
    "descriptions",
    "interior_equilibria",
    "markov_games",
    "markov_two_player_iterates",
    "policies",
    "preference_batches",
    "preference_games",
    "references",
    "two_player_iterates",
]
