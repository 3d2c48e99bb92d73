"""Losses as pure functions of log-probabilities or scores: tensors in, one loss for each example out.

One naming scheme for all:

* `chosen`, `rejected`: log π(y⁺|x) and log π(y⁻|x) of the policy that is trained, summed over the tokens of
  the completion, shape `(B,)`. For a length-normalised variant divide all log-probabilities by the lengths.
* `reference_chosen`, `reference_rejected`: the same under μ, the reference of the KL with weight `beta`.
* `previous_chosen`, `previous_rejected`: the same under π_t, from which a step of size `eta` is taken.
* `p_chosen`: Pr(y⁺ beats y⁻), a number or `(B,)`: 1 for a hard label, 1 − ε for labels smoothed by ε.
* `margin`: what the logit of the preference must exceed, a number or `(B,)`.

Only the first two carry a gradient; the others are constants. The mean over examples is the caller's.

Every method that takes a mirror step is a special case of `pairwise_regression`, for any `MirrorStep` of
`nashpref.rules`, or of the logistic loss of `dpo`. What RLHF is made of has other shapes, and is a module of
its own: `nashpref.llm.losses.policy_gradient`.
"""

from nashpref.llm.losses.offline import c2_dpo, chi_po, dpo, ipo, robust_dpo, sft
from nashpref.llm.losses.rewards import bradley_terry, k_wise, outcome, plackett_luce, process
from nashpref.llm.losses.selfplay import (
    dno,
    dno_prct,
    gpo,
    group_regression,
    inpo,
    pairwise_regression,
    spin,
    sppo,
    sppo_centred,
    sppo_pair,
)

__all__ = [
    "bradley_terry",
    "c2_dpo",
    "chi_po",
    "dno",
    "dno_prct",
    "dpo",
    "gpo",
    "group_regression",
    "inpo",
    "ipo",
    "k_wise",
    "outcome",
    "pairwise_regression",
    "plackett_luce",
    "process",
    "robust_dpo",
    "sft",
    "spin",
    "sppo",
    "sppo_centred",
    "sppo_pair",
]
