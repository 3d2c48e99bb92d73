"""Losses of reward models: Bradley–Terry on pairs and rankings, and cross-entropies of outcomes and steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nashpref.llm.losses.common import Label, logistic, same_shape

NO_RANK = -1
NO_LABEL = -100


def bradley_terry(chosen: Tensor, rejected: Tensor, *, p_chosen: Label = 1.0, margin: Label = 0.0) -> Tensor:
    """Bradley–Terry: `−log σ(r(y⁺) − r(y⁻) − margin)`, or its soft-label form.

    Only the difference matters, so it is also the loss of any preference model `P(y ≻ y') = σ(s(y, y'))`,
    with the score in place of `chosen` and zeros in place of `rejected`.

    Args:
        chosen, rejected: rewards r(y⁺) and r(y⁻), `(B,)`.
        p_chosen: Pr(y⁺ beats y⁻).
        margin: what the difference must exceed (arXiv:2307.09288, eq. 2).

    Returns:
        `(B,)`.

    Raises:
        ValueError: tensors of different shapes.

    Source: Bradley & Terry (1952).
    """
    same_shape(chosen=chosen, rejected=rejected, p_chosen=p_chosen, margin=margin)
    return logistic(chosen - rejected - margin, p_chosen)


def k_wise(rewards: Tensor, ranking: Tensor) -> Tensor:
    """Bradley–Terry on a ranking: the mean over the ordered pairs of one prompt.

    `|{i ≻ j}|⁻¹ Σ_{i ≻ j} −log σ(r_i − r_j)`. All pairs of a prompt are one batch element: shuffled as
    examples of their own they overfit, each response being seen K − 1 times an epoch.

    Args:
        rewards: r_i, `(B, K)`.
        ranking: place of each response, 0 the best, `(B, K)`, integers; tied responses make no pair, and
            `NO_RANK` (−1) marks padding.

    Returns:
        `(B,)`.

    Raises:
        ValueError: shapes differ, or a row without two responses of different places.

    Source: arXiv:2203.02155, eq. 1.
    """
    _check_ranking(rewards, ranking)
    present = ranking != NO_RANK
    ordered = ranking[:, :, None] < ranking[:, None, :]
    ordered &= present[:, :, None] & present[:, None, :]
    pairs = ordered.sum(dim=(1, 2))
    _no_row_empty(pairs, "ranking", "at least two responses with different places")
    losses = logistic(rewards[:, :, None] - rewards[:, None, :], 1.0)
    return losses.masked_fill(~ordered, 0.0).sum(dim=(1, 2)) / pairs


def plackett_luce(rewards: Tensor, ranking: Tensor) -> Tensor:
    """Plackett–Luce: the negative log-likelihood of drawing the ranking from the best to the worst.

    `−Σ_k [r_(k) − log Σ_{l ≥ k} exp r_(l)]`, `(k)` the response in place k. With K = 2 it is `bradley_terry`.

    Args:
        rewards: r_i, `(B, K)`.
        ranking: place of each response, `(B, K)`, integers without ties; `NO_RANK` (−1) marks padding.

    Returns:
        `(B,)`.

    Raises:
        ValueError: shapes differ, a row has fewer than two responses, or ties.

    Source: Plackett (1975).
    """
    _check_ranking(rewards, ranking)
    absent = ranking == NO_RANK
    places, order = ranking.masked_fill(absent, torch.iinfo(ranking.dtype).max).sort(dim=1)
    _no_row_empty((~absent).sum(dim=1) - 1, "ranking", "at least two responses")
    sorted_absent = absent.gather(1, order)
    if ((places[:, 1:] == places[:, :-1]) & ~sorted_absent[:, 1:]).any():
        raise ValueError("ranking has ties, which Plackett–Luce does not know: use k_wise")
    scores = rewards.gather(1, order).masked_fill(sorted_absent, -torch.inf)
    rest = scores.flip(1).logcumsumexp(dim=1).flip(1)
    return (rest - scores).masked_fill(sorted_absent, 0.0).sum(dim=1)


def outcome(logits: Tensor, correct: Tensor, completion_mask: Tensor) -> Tensor:
    """Outcome reward model: at every token of a completion, whether its end will be right.

    `−T⁻¹Σ_t [r log p_t + (1 − r) log(1 − p_t)]` with `p_t = σ(logits_t)`.

    Args:
        logits: `(B, T)`.
        correct: r in [0, 1], `(B,)`.
        completion_mask: which tokens count, `(B, T)`.

    Returns:
        `(B,)`, means over the completion's tokens.

    Raises:
        ValueError: shapes that do not fit, or a row without a completion.

    Source: arXiv:2110.14168, §4.2.
    """
    same_shape(logits=logits, completion_mask=completion_mask)
    same_shape(logits_of_a_row=logits[:, 0], correct=correct)
    counted = completion_mask.bool()
    tokens = counted.sum(dim=1)
    _no_row_empty(tokens, "completion_mask", "at least one token")
    losses = logistic(logits, correct[:, None].to(logits.dtype))
    return losses.masked_fill(~counted, 0.0).sum(dim=1) / tokens


def process(logits: Tensor, labels: Tensor) -> Tensor:
    """Process reward model: at the end of every step, whether it is wrong (−1), neutral (0) or right (1).

    `−S⁻¹Σ_s log softmax(logits_s)[label_s]` over the S labelled positions.

    Args:
        logits: `(B, T, 3)`, for −1, 0 and 1 in that order.
        labels: `(B, T)`, integers; `NO_LABEL` (−100) where no step ends.

    Returns:
        `(B,)`, means over the steps.

    Raises:
        ValueError: shapes that do not fit, a label other than these, or a row without a step.

    Source: arXiv:2305.20050, §2.6.
    """
    if logits.shape != (*labels.shape, 3):
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: (B, T, 3) and (B, T)"
        )
    labelled = labels != NO_LABEL
    if (wrong := labels[labelled & (labels.abs() > 1)]).numel():
        raise ValueError(f"label {int(wrong[0])}: a step is −1, 0 or 1, and {NO_LABEL} where none ends")
    steps = labelled.sum(dim=1)
    _no_row_empty(steps, "labels", "at least one step")
    classes = torch.where(labelled, labels + 1, NO_LABEL)
    losses = cross_entropy(logits.transpose(1, 2), classes, ignore_index=NO_LABEL, reduction="none")
    return losses.sum(dim=1) / steps


def _check_ranking(rewards: Tensor, ranking: Tensor) -> None:
    same_shape(rewards=rewards, ranking=ranking)
    if rewards.ndim != 2 or ranking.is_floating_point():
        raise ValueError(f"rewards {tuple(rewards.shape)}, ranking {ranking.dtype}: (B, K) and integers")


def _no_row_empty(counts: Tensor, name: str, needed: str) -> None:
    if rows := (counts <= 0).nonzero().flatten().tolist():
        raise ValueError(f"{name}, row {rows[0]}: {needed} needed; drop the row")
