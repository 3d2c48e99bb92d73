"""Methods as configurations: what `nashpref train` runs, from data files to a saved model.

Each method is a dataclass that says what it is made of: which records it needs, how they become examples, and
the objective that is minimised on them, in one run or in rounds.
"""

from collections.abc import Mapping

from nashpref.llm.methods.base import Method
from nashpref.llm.methods.iterative import IterativeDNOPrct, IterativeDPO, IterativeINPO
from nashpref.llm.methods.online import RLHF, Nash
from nashpref.llm.methods.policies import (
    C2DPO,
    DPO,
    GPO,
    INPO,
    IPO,
    SFT,
    SPIN,
    SPPO,
    ChiPO,
    DNOPrct,
    RobustDPO,
)
from nashpref.llm.methods.preferences import (
    BradleyTerry,
    General,
    OutcomeReward,
    Pairwise,
    ProcessReward,
)

__all__ = [
    "C2DPO",
    "DPO",
    "GPO",
    "INPO",
    "IPO",
    "METHODS",
    "RLHF",
    "SFT",
    "SPIN",
    "SPPO",
    "BradleyTerry",
    "ChiPO",
    "DNOPrct",
    "General",
    "IterativeDNOPrct",
    "IterativeDPO",
    "IterativeINPO",
    "Method",
    "Nash",
    "OutcomeReward",
    "Pairwise",
    "ProcessReward",
    "RobustDPO",
]

METHODS: Mapping[str, type[Method]] = {
    "sft": SFT,
    "dpo": DPO,
    "robust_dpo": RobustDPO,
    "ipo": IPO,
    "chi_po": ChiPO,
    "c2_dpo": C2DPO,
    "inpo": INPO,
    "sppo": SPPO,
    "gpo": GPO,
    "spin": SPIN,
    "dno_prct": DNOPrct,
    "iterative_dpo": IterativeDPO,
    "iterative_dno_prct": IterativeDNOPrct,
    "iterative_inpo": IterativeINPO,
    "nash": Nash,
    "rlhf": RLHF,
    "pairwise": Pairwise,
    "general": General,
    "bradley_terry": BradleyTerry,
    "outcome": OutcomeReward,
    "process": ProcessReward,
}
