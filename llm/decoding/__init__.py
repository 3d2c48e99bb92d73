"""Better answers from a frozen policy: guided by a reward at every token, or chosen among several."""

from nashpref.llm.decoding.generation import Prompts, encode_prompts, generate
from nashpref.llm.decoding.guided import (
    Guide,
    NextTokenScores,
    PrefixScores,
    RewardGuided,
    Scores,
    TextScores,
    guided,
    scores_of,
)
from nashpref.llm.decoding.models import FarmaModel, PrefixConfig, PrefixModel, PrefixValueModel, plausible
from nashpref.llm.decoding.objectives import (
    FarmaPairs,
    PrefixValues,
    Rewarded,
    RewardedBatch,
    collate_rewarded,
    consistency,
    prefix_pairs,
    prefix_regression,
    proper_prefixes,
)
from nashpref.llm.decoding.segments import Segmented, cards
from nashpref.llm.decoding.selection import (
    Accepted,
    Selection,
    Vote,
    best_of_n,
    bradley_terry_of_n,
    equilibrium_of_n,
    rejection_sampling,
    self_consistency,
)
from nashpref.llm.decoding.thinking import Thought, budget_forcing

__all__ = [
    "Accepted",
    "FarmaModel",
    "FarmaPairs",
    "Guide",
    "NextTokenScores",
    "PrefixConfig",
    "PrefixModel",
    "PrefixScores",
    "PrefixValueModel",
    "PrefixValues",
    "Prompts",
    "RewardGuided",
    "Rewarded",
    "RewardedBatch",
    "Scores",
    "Segmented",
    "Selection",
    "TextScores",
    "Thought",
    "Vote",
    "best_of_n",
    "bradley_terry_of_n",
    "budget_forcing",
    "cards",
    "collate_rewarded",
    "consistency",
    "encode_prompts",
    "equilibrium_of_n",
    "generate",
    "guided",
    "plausible",
    "prefix_pairs",
    "prefix_regression",
    "proper_prefixes",
    "rejection_sampling",
    "scores_of",
    "self_consistency",
]
