"""Preference models and adapters: anything that says how likely one response beats another.

And models of rewards that can be checked, from which `from_reward` makes a preference.
"""

from nashpref.llm.preferences.adapters import (
    Ensemble,
    Judge,
    Preference,
    Reward,
    TablePreference,
    from_judge,
    from_reward,
)
from nashpref.llm.preferences.models import (
    BradleyTerryModel,
    GeneralPreferenceModel,
    PairwisePreferenceModel,
    PreferenceConfig,
    PreferenceModel,
)
from nashpref.llm.preferences.remote import RemoteJudge
from nashpref.llm.preferences.rewards import (
    OutcomeRewardModel,
    ProcessRewardModel,
    RewardConfig,
    RewardModel,
)

__all__ = [
    "BradleyTerryModel",
    "Ensemble",
    "GeneralPreferenceModel",
    "Judge",
    "OutcomeRewardModel",
    "PairwisePreferenceModel",
    "Preference",
    "PreferenceConfig",
    "PreferenceModel",
    "ProcessRewardModel",
    "RemoteJudge",
    "Reward",
    "RewardConfig",
    "RewardModel",
    "TablePreference",
    "from_judge",
    "from_reward",
]
