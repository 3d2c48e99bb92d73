"""Language models: preference models, losses, training and evaluation.

What is named here is loaded when it is first asked for: importing `nashpref.llm` imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nashpref.llm.nash import NashConfig, NashTrainer
    from nashpref.llm.preferences.models import (
        BradleyTerryModel,
        GeneralPreferenceModel,
        PairwisePreferenceModel,
    )
    from nashpref.llm.rlhf import RLHFConfig, RLHFTrainer

__all__ = [
    "BradleyTerryModel",
    "GeneralPreferenceModel",
    "NashConfig",
    "NashTrainer",
    "PairwisePreferenceModel",
    "RLHFConfig",
    "RLHFTrainer",
]

_PLACES = {
    "NashConfig": "nash",
    "NashTrainer": "nash",
    "RLHFConfig": "rlhf",
    "RLHFTrainer": "rlhf",
    "BradleyTerryModel": "preferences.models",
    "GeneralPreferenceModel": "preferences.models",
    "PairwisePreferenceModel": "preferences.models",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
