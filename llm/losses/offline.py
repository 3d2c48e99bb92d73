"""Learning from a fixed set of demonstrations or pairs: SFT and the DPO family.

Arguments as in `nashpref.llm.losses`. All raise `ValueError` for tensors of different shapes and for
hyper-parameters out of range.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from nashpref.llm.losses.common import Label, logistic, positive, same_shape

LARGEST_LOG_RATIO = 20.0  # beyond it e^x saturates every sigmoid, and would soon overflow in float32


def sft(chosen: Tensor) -> Tensor:
    """Supervised fine-tuning, or behavioural cloning: `−log π(y|x)`.

    Stationary where π is the distribution of the data.
    """
    return -chosen


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    p_chosen: Label = 1.0,
    margin: Label = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimization: logistic regression of the label on the implicit reward's difference.

    `−log σ(z)` with `z = β[log π(y⁺)/μ(y⁺) − log π(y⁻)/μ(y⁻)] − margin`; with soft labels
    `−p log σ(z) − (1 − p) log σ(−z)`.

    Guarantee: where every pair occurs, labelled by Bradley–Terry rewards r, the minimiser is
    `nashpref.closed_forms.rlhf(r, beta)`. With hard labels that never contradict each other there is none:
    the margin grows without bound, and both log-probabilities may fall. `ipo` and `c2_dpo` are the remedies.

    Args:
        chosen, rejected, reference_chosen, reference_rejected: `(B,)`.
        beta: β > 0.
        p_chosen: Pr(y⁺ beats y⁻).
        margin: a difference of rewards that the pair must exceed.
        label_smoothing: ε in [0, 1/2): the label p becomes `(1 − ε)p + ε(1 − p)` (conservative DPO).

    Returns:
        `(B,)`.

    Source: arXiv:2305.18290, eq. 7.
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing = {label_smoothing}: it must lie in [0, 1/2)")
    positive(beta=beta)
    same_shape(chosen=chosen, p_chosen=p_chosen, margin=margin)
    gap = _log_ratio_gap(chosen, rejected, reference_chosen, reference_rejected)
    p = p_chosen + label_smoothing * (1.0 - 2.0 * p_chosen)
    return logistic(beta * gap - margin, p)


def robust_dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    flip_rate: float,
    p_chosen: Label = 1.0,
) -> Tensor:
    """DPO for labels of which a known share ε was flipped: its mean over the flips is DPO's loss without any.

    `[(1 − ε)·ℓ(z) − ε·ℓ(−z)]/(1 − 2ε)` with ℓ = −log σ: `dpo` with the label `(p − ε)/(1 − 2ε)`, which lies
    outside [0, 1] for hard labels. A single example's loss is therefore unbounded below.

    Args:
        chosen, rejected, reference_chosen, reference_rejected: `(B,)`.
        beta: β > 0.
        flip_rate: ε in [0, 1/2).
        p_chosen: the label as it was observed.

    Returns:
        `(B,)`.

    Source: arXiv:2403.00409, eq. 12.
    """
    if not 0.0 <= flip_rate < 0.5:
        raise ValueError(f"flip_rate = {flip_rate}: it must lie in [0, 1/2)")
    p = (p_chosen - flip_rate) / (1.0 - 2.0 * flip_rate)
    return dpo(chosen, rejected, reference_chosen, reference_rejected, beta=beta, p_chosen=p)


def ipo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    p_chosen: Label = 1.0,
) -> Tensor:
    """Identity preference optimization: the log-ratios of a pair differ by its preference over β, no more.

    `([log π(y⁺)/μ(y⁺) − log π(y⁻)/μ(y⁻)] − (p − 1/2)/β)²`, p = 1 giving the paper's target 1/(2β).

    Guarantee: on pairs drawn from ν × ν the minimiser is the best response to ν,
    `nashpref.best_response(game, ν, beta)`; with ν = π (pairs on-policy, no gradient through the sampling)
    the stationary point is the regularised equilibrium. Pairs from anywhere else give neither. It is `inpo`
    with η = 1/β.

    Args:
        chosen, rejected, reference_chosen, reference_rejected: `(B,)`.
        beta: β > 0 (τ in the paper).
        p_chosen: Pr(y⁺ beats y⁻): with the probability instead of its sample the mean is the same and the
            variance lower.

    Returns:
        `(B,)`.

    Source: arXiv:2310.12036, eq. 17; on-policy, arXiv:2403.08635.
    """
    positive(beta=beta)
    same_shape(chosen=chosen, p_chosen=p_chosen)
    gap = _log_ratio_gap(chosen, rejected, reference_chosen, reference_rejected)
    return (gap - (p_chosen - 0.5) / beta).square()


def chi_po(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    p_chosen: Label = 1.0,
    r_max: float | None = None,
) -> Tensor:
    """χPO: DPO with the link `φ(z) = z + log z` in place of log z: pessimism where data are scarce.

    `−log σ(clip_{2R}(β[φ(π(y⁺)/μ(y⁺)) − φ(π(y⁻)/μ(y⁻))]))`.

    Guarantee: where every pair occurs, labelled by Bradley–Terry rewards r, the minimiser is
    `nashpref.closed_forms.chi_po(r, beta)`, whose ratios π/μ grow linearly in r instead of exponentially.

    Args:
        chosen, rejected, reference_chosen, reference_rejected: `(B,)`.
        beta: β > 0.
        p_chosen: Pr(y⁺ beats y⁻).
        r_max: R, a bound on the rewards; the argument of σ is clipped to [−2R, 2R], beyond which a pair has
            no gradient. None: no clipping.

    Returns:
        `(B,)`.

    Departs from the paper: ratios above e²⁰ count as e²⁰ in z (not in log z), which keeps float32 finite.

    Source: arXiv:2407.13399, eq. 9 and Algorithm 1.
    """
    positive(beta=beta)
    same_shape(chosen=chosen, rejected=rejected, p_chosen=p_chosen)
    same_shape(chosen=chosen, reference_chosen=reference_chosen, reference_rejected=reference_rejected)
    logit = beta * (_phi(chosen - reference_chosen) - _phi(rejected - reference_rejected))
    if r_max is not None:
        positive(r_max=r_max)
        logit = logit.clamp(-2.0 * r_max, 2.0 * r_max)
    return logistic(logit, p_chosen)


def _phi(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(max=LARGEST_LOG_RATIO).exp() + log_ratio


def c2_dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    penalty: float,
    p_chosen: Label = 1.0,
    constraint: Literal["log", "probability"] = "log",
) -> Tensor:
    """C2-DPO (first published as C-3DPO): DPO, and a penalty on mass that leaves or enters the pair.

    `DPO + λ·([φ(π(y⁺)) + φ(π(y⁻))] − [φ(μ(y⁺)) + φ(μ(y⁻))])²` with φ = log or the identity. DPO determines
    only the difference of the two log-ratios, so both may sink together; the penalty fixes their sum.

    Guarantee: on one pair the minimiser is `nashpref.closed_forms.c2_dpo_pair(p, μ, beta)`, for every λ > 0.

    Args:
        chosen, rejected, reference_chosen, reference_rejected: `(B,)`.
        beta: β > 0.
        penalty: λ > 0.
        p_chosen: Pr(y⁺ beats y⁻).
        constraint: "log", or "probability" for the identity, whose penalty vanishes for completions of more
            than a few tokens: their probabilities are too small.

    Returns:
        `(B,)`.

    Source: arXiv:2502.17507 (v1 as C-3DPO, v2 as C2-DPO).
    """
    positive(penalty=penalty)
    loss = dpo(chosen, rejected, reference_chosen, reference_rejected, beta=beta, p_chosen=p_chosen)
    if constraint == "log":
        moved = chosen + rejected - reference_chosen - reference_rejected
    elif constraint == "probability":
        moved = chosen.exp() + rejected.exp() - reference_chosen.exp() - reference_rejected.exp()
    else:
        raise ValueError(f"constraint = {constraint!r}: 'log' or 'probability'")
    return loss + penalty * moved.square()


def _log_ratio_gap(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor
) -> Tensor:
    """`log π(y⁺)/μ(y⁺) − log π(y⁻)/μ(y⁻)`."""
    same_shape(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    return (chosen - reference_chosen) - (rejected - reference_rejected)
