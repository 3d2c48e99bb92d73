"""Preference models and adapters: anything that says how likely one response beats another."""

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

__all__ = [
    "BradleyTerryModel",
    "Ensemble",
    "GeneralPreferenceModel",
    "Judge",
    "PairwisePreferenceModel",
    "Preference",
    "PreferenceConfig",
    "PreferenceModel",
    "RemoteJudge",
    "Reward",
    "TablePreference",
    "from_judge",
    "from_reward",
]
