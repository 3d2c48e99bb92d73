"""Theorems as objects that are checked, rates as fits with intervals, and the local spectrum of a game.

>>> import nashpref as npf
>>> from nashpref import theory
>>> case = theory.Case(npf.zoo.comal(), npf.NashMD(beta=0.1), reference=[0.6, 0.3, 0.1])
>>> check = theory.NASH_MD.check(case)
>>> print(check.verdict, check.ratio <= 1)
holds True
>>> theory.NASH_MD.check(theory.Case(npf.zoo.comal(), npf.NashMD(beta=0.1, eta=0.5))).unmet
('η_0 = 0.5, not 2/(β(t+2)) = 10',)
"""

from nashpref.theory.bounds import (
    COMAL_LAST,
    EGPO_LINEAR,
    GDA_LINEAR,
    INPO,
    MMD_LINEAR,
    MWU_AVERAGE,
    MWU_LAST,
    NASH_MD,
    NASH_MD_SHARP,
    NASH_MD_STEP,
    NASH_MD_STEP_SHARP,
    NASH_MP_LINEAR,
    OGDA_AVERAGE,
    ONPO_AVERAGE,
    ONPO_PRINTED,
    REFERENCE_DIVERGENCE,
    REGULARISATION_GAP,
)
from nashpref.theory.markov_bounds import (
    MPO_AVERAGE,
    MPO_TUNED,
    MTPO_A_PRIORI,
    MTPO_LAST,
    MTPO_STEP,
    MTPO_STEP_SHARP,
    MTPO_TAU,
    MTPO_TAU_A_PRIORI,
    MTPO_TAU_MIXTURE,
    MTPO_TAU_STEP,
    MTPO_TAU_STEP_SHARP,
    OMPO_AVERAGE,
    OMPO_PRINTED,
    OMPO_SHARP,
    RLHF,
)
from nashpref.theory.rates import RateFit, geometric, power_law
from nashpref.theory.spectrum import Spectrum, spectrum
from nashpref.theory.theorems import Case, Check, Theorem, Verdict
from nashpref.theory.verdicts import (
    THEOREMS,
    Row,
    Summary,
    check_all,
    named_games,
    named_markov_games,
    references,
    summarise,
    table,
    write_csv,
)

__all__ = [
    "COMAL_LAST",
    "EGPO_LINEAR",
    "GDA_LINEAR",
    "INPO",
    "MMD_LINEAR",
    "MPO_AVERAGE",
    "MPO_TUNED",
    "MTPO_A_PRIORI",
    "MTPO_LAST",
    "MTPO_STEP",
    "MTPO_STEP_SHARP",
    "MTPO_TAU",
    "MTPO_TAU_A_PRIORI",
    "MTPO_TAU_MIXTURE",
    "MTPO_TAU_STEP",
    "MTPO_TAU_STEP_SHARP",
    "MWU_AVERAGE",
    "MWU_LAST",
    "NASH_MD",
    "NASH_MD_SHARP",
    "NASH_MD_STEP",
    "NASH_MD_STEP_SHARP",
    "NASH_MP_LINEAR",
    "OGDA_AVERAGE",
    "OMPO_AVERAGE",
    "OMPO_PRINTED",
    "OMPO_SHARP",
    "ONPO_AVERAGE",
    "ONPO_PRINTED",
    "REFERENCE_DIVERGENCE",
    "REGULARISATION_GAP",
    "RLHF",
    "THEOREMS",
    "Case",
    "Check",
    "RateFit",
    "Row",
    "Spectrum",
    "Summary",
    "Theorem",
    "Verdict",
    "check_all",
    "geometric",
    "named_games",
    "named_markov_games",
    "power_law",
    "references",
    "spectrum",
    "summarise",
    "table",
    "write_csv",
]
