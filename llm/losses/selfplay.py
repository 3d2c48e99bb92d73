"""Mirror steps fitted from samples: the loss of any update rule, and the named methods that are cases of it.

Arguments as in `nashpref.llm.losses`; `previous_…` is the policy π_t from which the step is taken. All raise
`ValueError` for tensors of different shapes and for hyper-parameters out of range.

Which pairs a loss may be used on is part of its statement. The regressions with payoffs of *known* opponents
take pairs from anywhere; those with the label of the pair itself (INPO, IPO) need pairs drawn from the
opponent, because there the label of y⁺ against y⁻ stands for the payoff of either against the opponent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from nashpref.llm.losses.common import Label, positive, same_shape
from nashpref.llm.losses.offline import dpo
from nashpref.mirror import ANCHOR_TOLERANCE, MirrorStep


def pairwise_regression(
    gap: Tensor, step: MirrorStep, anchors: Mapping[str, Tensor], payoffs: Mapping[str, Tensor]
) -> Tensor:
    """Any mirror step as a regression on pairs: the general loss, of which the others are cases.

    With Δf = f(y) − f(y'), `(Δlog π − Σ_k w_k·Δlog π_k − Σ_j g_j·Δq_j)²`, w and g being the anchors and
    payoffs of `step`. The normaliser of the step cancels in the difference.

    Guarantee: stationary at the exact step, and only there, whatever distribution with full support the pairs
    come from; an unbiased estimate of q_j, such as one comparison with one sample from π_j, adds a constant
    to the expected loss and nothing to its minimiser. `inpo` and `ipo` save the samples of the opponent by
    drawing the pairs from it.

    Args:
        gap: Δlog π of the policy that is trained, `(B,)`.
        step: what is fitted, e.g. `nashpref.GDA(beta=0.1).steps(t)[0]`.
        anchors: Δlog π_k for each anchor of the step, `(B,)`.
        payoffs: Δq_j for each opponent of the step, `(B,)`: differences of win rates against π_j.

    Returns:
        `(B,)`.

    Raises:
        ValueError: also for an anchor or an opponent of the step that is missing.
    """
    target = step_target(step, anchors, payoffs)
    same_shape(trained=gap, **_terms(anchors, payoffs))
    return (gap - target).square()


def group_regression(
    logps: Tensor, step: MirrorStep, anchors: Mapping[str, Tensor], payoffs: Mapping[str, Tensor]
) -> Tensor:
    """`pairwise_regression` over all pairs among K responses to one prompt, at the cost of K.

    With the residual `e_i = log π(y_i) − Σ_k w_k log π_k(y_i) − Σ_j g_j q_j(y_i)` the loss is its variance in
    the group, `K⁻¹Σ_i(e_i − ē)² = (2K²)⁻¹Σ_{i,i'}(e_i − e_{i'})²`: ē estimates the step's −log Z.

    Args:
        logps: log π(y_i), `(B, K)`: K responses to each of B prompts.
        step: what is fitted.
        anchors, payoffs: log π_k(y_i) and q_j(y_i) for each name in the step, `(B, K)`.

    Returns:
        `(B,)`.
    """
    if logps.ndim != 2 or logps.shape[1] < 2:
        raise ValueError(f"logps has shape {tuple(logps.shape)}: (B, K) with K ≥ 2 is needed")
    target = step_target(step, anchors, payoffs)
    same_shape(trained=logps, **_terms(anchors, payoffs))
    return variance(logps - target)


def variance(residual: Tensor) -> Tensor:
    """`K⁻¹Σ_i(e_i − ē)²` of each row, `(B, K)` → `(B,)`."""
    return (residual - residual.mean(dim=1, keepdim=True)).square().mean(dim=1)


def step_target(step: MirrorStep, anchors: Mapping[str, Tensor], payoffs: Mapping[str, Tensor]) -> Tensor:
    """`Σ_k w_k·anchors[k] + Σ_j g_j·payoffs[j]`: the logits that a mirror step writes."""
    _same_names("anchors", step.anchors, anchors)
    _same_names("payoffs", step.payoffs, payoffs)
    same_shape(**_terms(anchors, payoffs))
    target: Tensor | None = None
    for weights, terms in ((step.anchors, anchors), (step.payoffs, payoffs)):
        for name, weight in weights.items():
            term = float(weight) * terms[name]
            target = term if target is None else target + term
    assert target is not None  # a step has anchors
    return target


def _terms(anchors: Mapping[str, Tensor], payoffs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {"anchors": anchors, "payoffs": payoffs}
    return {f"{kind}[{name}]": term for kind, terms in named.items() for name, term in terms.items()}


def _same_names(kind: str, wanted: Iterable[str], given: Iterable[str]) -> None:
    if set(wanted) != set(given):
        raise ValueError(f"{kind} for {sorted(given)} were given, the step has {sorted(wanted)}")


def inpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    previous_chosen: Tensor,
    previous_rejected: Tensor,
    *,
    beta: float,
    eta: float,
    p_chosen: Label = 1.0,
) -> Tensor:
    """INPO: the step of `nashpref.GDA` from pairs of its own samples and nothing but their labels.

    `(Δlog π − ηβ·Δlog μ − (1 − ηβ)·Δlog π_t − η(p − 1/2))²`, Δ between y⁺ and y⁻; p = 1 is the paper's binary
    form with target η/2, the probability itself has the same mean and lower variance.

    Guarantee: stationary at the exact step if y⁺ and y⁻ are both drawn from π_t, the opponent; *not* for
    other pairs. With pairs from the mixture of π_t and μ it is the step of `nashpref.NashMD`. A case of
    `pairwise_regression`, which has Δq in place of p − 1/2 and no such condition.

    Args:
        chosen, rejected, reference_chosen, …: `(B,)`.
        beta: β ≥ 0 (τ in the paper); 0: no regularisation.
        eta: η > 0 with ηβ ≤ 1; the paper's η is 1/η.
        p_chosen: Pr(y⁺ beats y⁻).

    Returns:
        `(B,)`.

    Source: arXiv:2407.00617, eq. 10 and Proposition 6.
    """
    positive(eta=eta)
    pull = eta * beta
    if not 0.0 <= pull <= 1.0 + ANCHOR_TOLERANCE:
        raise ValueError(f"eta * beta = {pull:.6g}: it must lie in [0, 1]")
    same_shape(chosen=chosen, rejected=rejected, p_chosen=p_chosen)
    same_shape(chosen=chosen, reference_chosen=reference_chosen, reference_rejected=reference_rejected)
    same_shape(chosen=chosen, previous_chosen=previous_chosen, previous_rejected=previous_rejected)
    anchor = pull * (reference_chosen - reference_rejected)
    anchor = anchor + (1.0 - pull) * (previous_chosen - previous_rejected)
    return (chosen - rejected - anchor - eta * (p_chosen - 0.5)).square()


def sppo(logps: Tensor, previous: Tensor, win_rate: Tensor, *, eta: float, log_z: Label = 0.0) -> Tensor:
    """SPPO, pointwise: the step of `nashpref.MWU` on single responses, its normaliser put at a constant.

    `(log π(y)/π_t(y) − η(P̂(y ≻ π_t) − 1/2) + log Z)²`, with log Z := 0, the paper's `log Z := η/2` for
    payoffs that are not centred.

    Guarantee: with the true `log Z = log E_{π_t} exp(η(P(y ≻ π_t) − 1/2))` stationary at the exact step. With
    log Z = 0 that is missed by `η²Var_{π_t}(P(y ≻ π_t))/2` to leading order; `sppo_centred` is not.

    Args:
        logps, previous: log π(y) and log π_t(y), `(B,)`, y drawn from π_t.
        win_rate: an estimate of P(y ≻ π_t), such as the mean over comparisons with other samples, `(B,)`.
        eta: η > 0.
        log_z: log Z, where it is known.

    Returns:
        `(B,)`.

    Source: arXiv:2405.00675, eq. 4.
    """
    return gpo(logps, previous, win_rate - 0.5, eta=eta, log_z=log_z)


def sppo_pair(
    chosen: Tensor,
    rejected: Tensor,
    previous_chosen: Tensor,
    previous_rejected: Tensor,
    *,
    eta: float,
    p_chosen: Label = 1.0,
) -> Tensor:
    """SPPO from the label of a pair: `sppo` of either response, its win rate being p and 1 − p.

    `(log π(y⁺)/π_t(y⁺) − η(p − 1/2))² + (log π(y⁻)/π_t(y⁻) + η(p − 1/2))²`; p = 1 is "hard" SPPO, the
    probability of a preference model "soft" SPPO.

    Args:
        chosen, rejected, previous_chosen, previous_rejected: `(B,)`, responses drawn from π_t.
        eta: η > 0; 1/β in other libraries.
        p_chosen: Pr(y⁺ beats y⁻).

    Returns:
        `(B,)`.

    Source: arXiv:2405.00675, eq. 4 and Algorithm 1.
    """
    same_shape(chosen=chosen, rejected=rejected, p_chosen=p_chosen)
    payoff = chosen.new_zeros(chosen.shape) + (p_chosen - 0.5)
    winner = gpo(chosen, previous_chosen, payoff, eta=eta)
    return winner + gpo(rejected, previous_rejected, -payoff, eta=eta)


def sppo_centred(logps: Tensor, previous: Tensor, win_rate: Tensor, *, eta: float) -> Tensor:
    """SPPO on K responses to one prompt, the normaliser estimated by their mean instead of a constant.

    `group_regression` of the step of `nashpref.MWU`: stationary at the exact step, for any responses.

    Args:
        logps, previous, win_rate: log π(y_i), log π_t(y_i) and P̂(y_i ≻ π_t), `(B, K)`.
        eta: η > 0.

    Returns:
        `(B,)`.
    """
    positive(eta=eta)
    step = MirrorStep("current", {"current": 1.0}, {"current": eta})
    return group_regression(logps, step, {"current": previous}, {"current": win_rate})


def gpo(logps: Tensor, previous: Tensor, score: Tensor, *, eta: float, log_z: Label = 0.0) -> Tensor:
    """GPO: SPPO with a preference *score* s for the win rate, `(log π(y)/π_t(y) − η·ŝ(y ≻ π_t) + log Z)²`.

    Scores are skew but unbounded, and the equilibrium of the game with payoff s is not that of the game with
    win probability σ(s): the scale of s is a choice, and η is to be chosen with it.

    Args:
        logps, previous: log π(y) and log π_t(y), `(B,)`, y drawn from π_t.
        score: the mean score of y against samples from π_t, `(B,)`.
        eta: η > 0; 1/β in the paper.
        log_z: log Z, zero in the paper.

    Returns:
        `(B,)`.

    Source: arXiv:2410.02197, §5.
    """
    positive(eta=eta)
    same_shape(logps=logps, previous=previous, payoff=score, log_z=log_z)
    return (logps - previous - eta * score + log_z).square()


def dno(
    chosen: Tensor,
    rejected: Tensor,
    previous_chosen: Tensor,
    previous_rejected: Tensor,
    win_rate_chosen: Tensor,
    win_rate_rejected: Tensor,
    *,
    eta: float,
) -> Tensor:
    """DNO: DPO towards π_t, labelled not by who won the pair but by who wins more against π_t.

    `dpo` with β = 1/η and the label `σ(P̂(y⁺ ≻ π_t) − P̂(y⁻ ≻ π_t))`.

    Guarantee: stationary at the step of `nashpref.MWU` with η, for pairs from anywhere, if the win rates are
    exact; σ being nonlinear, noise in them is not harmless as it is in `pairwise_regression`.

    Args:
        chosen, rejected, previous_chosen, previous_rejected: `(B,)`.
        win_rate_chosen, win_rate_rejected: P̂(· ≻ π_t), `(B,)`.
        eta: η > 0; 1/η in the paper.

    Returns:
        `(B,)`.

    Source: arXiv:2404.03715, Algorithm 1.
    """
    positive(eta=eta)
    same_shape(chosen=chosen, win_rate_chosen=win_rate_chosen, win_rate_rejected=win_rate_rejected)
    label = (win_rate_chosen - win_rate_rejected).sigmoid()
    return dpo(chosen, rejected, previous_chosen, previous_rejected, beta=1.0 / eta, p_chosen=label)


def dno_prct(
    chosen: Tensor, rejected: Tensor, previous_chosen: Tensor, previous_rejected: Tensor, *, eta: float
) -> Tensor:
    """DNO-Prct: `−log σ(η⁻¹[log π(y⁺)/π_t(y⁺) − log π(y⁻)/π_t(y⁻)])` on pairs of large margin.

    One round of iterative DPO, μ = π_t and β = 1/η. The pairs are ranked by their win rates among samples of
    π_t, and those with a small margin are dropped. A practical stand-in for `dno` without its fixed point.

    Args:
        chosen, rejected, previous_chosen, previous_rejected: `(B,)`.
        eta: η > 0.

    Returns:
        `(B,)`.

    Source: arXiv:2404.03715, Algorithm 2.
    """
    positive(eta=eta)
    return dpo(chosen, rejected, previous_chosen, previous_rejected, beta=1.0 / eta)


def spin(
    chosen: Tensor, rejected: Tensor, previous_chosen: Tensor, previous_rejected: Tensor, *, eta: float
) -> Tensor:
    """SPIN: DPO towards π_t that prefers the demonstration y⁺ to π_t's own answer y⁻.

    `−log σ(η⁻¹[log π(y⁺)/π_t(y⁺) − log π(y⁻)/π_t(y⁻)])`, `y⁻ ~ π_t`.

    Guarantee: the minimiser is the geometric mixture `π_t^{1−η} p_data^η` (normalised), so p_data after one
    round with η = 1; π = π_t is stationary only if π_t is p_data.

    Args:
        chosen: log π of demonstrations, `(B,)`. rejected: log π of samples from π_t, `(B,)`.
        previous_chosen, previous_rejected: the same under π_t, `(B,)`.
        eta: η > 0; 1/λ in the paper.

    Returns:
        `(B,)`.

    Source: arXiv:2401.01335, eq. 4.7.
    """
    positive(eta=eta)
    return dpo(chosen, rejected, previous_chosen, previous_rejected, beta=1.0 / eta)
