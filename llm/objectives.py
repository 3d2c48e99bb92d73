"""What the training loop minimises: a model, a loss, and how a batch becomes the loss's arguments.

An objective's forward pass returns a mapping of `(n,)` tensors, one value for each example: `"loss"`, and
what is worth logging beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from nashpref.llm import losses
from nashpref.llm.encoding import Encoded, EncodedPair, PairBatch, Tokens, collate, collate_pairs
from nashpref.llm.logprobs import Reference, Score, as_reference, check_model, completion_logps
from nashpref.llm.losses.rewards import NO_LABEL, NO_RANK
from nashpref.llm.preferences.models import BradleyTerryModel, PreferenceModel
from nashpref.llm.preferences.rewards import (
    OutcomeBatch,
    OutcomeRewardModel,
    ProcessRewardModel,
    StepBatch,
    last,
)
from nashpref.llm.shared_prompt import can_share_prompts, pair_logps
from nashpref.progress import progress_bar

PairLoss = Callable[..., Tensor]
"""`(chosen, rejected, reference_chosen, reference_rejected, p_chosen=…) -> (B,)`: a partial `dpo`."""


class Demonstrations(nn.Module):
    """Supervised fine-tuning: `−log π(y|x)`, summed over the completion's tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_model(model)
        self.model = model

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        """`loss`, and `nll_per_token`, whose exponential is the perplexity."""
        loss = losses.sft(completion_logps(self.model, tokens))
        return {"loss": loss, "nll_per_token": loss.detach() / tokens.completion_mask.sum(dim=1)}


class ReferencedPairs(NamedTuple):
    """A batch of pairs with `log μ` of its 2B sequences, computed beforehand."""

    pairs: PairBatch
    reference: Tensor

    def to(self, device: torch.device | str) -> ReferencedPairs:
        """The same on another device."""
        return ReferencedPairs(self.pairs.to(device), self.reference.to(device))


@dataclass(frozen=True, slots=True)
class ReferencedPair:
    """An encoded pair with `log μ` of both completions; as long as the longer one."""

    pair: EncodedPair
    chosen: float
    rejected: float

    def __len__(self) -> int:
        return len(self.pair)


def collate_referenced(examples: Sequence[ReferencedPair], pad_id: int) -> ReferencedPairs:
    """A batch of them."""
    reference = [e.chosen for e in examples] + [e.rejected for e in examples]
    pairs = collate_pairs([e.pair for e in examples], pad_id)
    return ReferencedPairs(pairs, torch.tensor(reference, dtype=torch.float32))


def pair_score(model: nn.Module) -> Score:
    """What gives `log π` of a batch of pairs: one pass over each prompt where the model allows it, else two.

    Raises:
        ValueError: for a model whose log-probabilities are not its head's, see `check_model`.
    """
    check_model(model)
    return pair_logps if can_share_prompts(model) else completion_logps


def with_reference(
    model: nn.Module,
    pairs: Sequence[EncodedPair],
    pad_id: int,
    accelerator: Accelerator,
    *,
    progress: bool = False,
) -> list[ReferencedPair]:
    """Pairs with log μ of both completions, μ being `model` as it is now, under PEFT its base.

    See `scored_pairs`.
    """
    score = pair_score(model)
    with as_reference(model):
        return scored_pairs(partial(score, model), pairs, pad_id, accelerator, progress=progress)


def scored_pairs(
    score: Callable[[Tokens], Tensor],
    pairs: Sequence[EncodedPair],
    pad_id: int,
    accelerator: Accelerator,
    *,
    rows: int = 64,
    progress: bool = False,
) -> list[ReferencedPair]:
    """Pairs with the log-probabilities of both completions; processes share the work.

    Args:
        score: log-probabilities of the 2B rows of a batch of pairs, without gradients.
        pairs: any order; those of similar length are scored together.
        pad_id: of the encoder.
        accelerator: of the training, whose device and precision are used.
        rows: sequences scored at once.
        progress: show a bar, on a terminal, once two seconds have passed.
    """
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i]))
    size, rank = max(1, rows // 2), accelerator.process_index
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    own = parts[rank :: accelerator.num_processes]
    found: list[tuple[int, float, float]] = []
    with accelerator.autocast(), progress_bar(progress and rank == 0, len(own), "batch") as bar:
        for k, part in enumerate(own):
            tokens = collate_pairs([pairs[i] for i in part], pad_id).tokens
            chosen, rejected = score(tokens.to(accelerator.device)).chunk(2)
            found += zip(part, chosen.tolist(), rejected.tolist(), strict=True)
            bar(k + 1)
    return [
        ReferencedPair(pairs[i], chosen, rejected) for i, chosen, rejected in sorted(gather_object(found))
    ]


class PolicyPairs(nn.Module):
    """The DPO family: a policy, and a loss of its and the reference's log-probabilities of pairs.

    Args:
        model: the policy π.
        loss: which member of the family; hyper-parameters bound, as in `partial(losses.dpo, beta=0.1)`.
        margins: whether `loss` takes the pairs' `margin=` too.
        reference: μ, evaluated on every batch; None where batches bring its log-probabilities along.
    """

    def __init__(
        self, model: nn.Module, loss: PairLoss, reference: Reference | None = None, *, margins: bool = False
    ) -> None:
        super().__init__()
        self.model, self.loss, self.reference, self.margins = model, loss, reference, margins
        self._score = pair_score(model)

    def forward(self, batch: PairBatch | ReferencedPairs) -> dict[str, Tensor]:
        """`loss`; `accuracy` of, and `margin` between, the implicit rewards `log π/μ`; log-probabilities."""
        if isinstance(batch, ReferencedPairs):
            batch, reference = batch
        elif self.reference is not None:
            reference = self.reference(batch.tokens)
        else:
            raise ValueError("batches without log-probabilities of the reference need reference=")
        chosen, rejected = self._score(self.model, batch.tokens).chunk(2)
        reference_chosen, reference_rejected = reference.chunk(2)
        labels = {"p_chosen": batch.p_chosen} | ({"margin": batch.margin} if self.margins else {})
        loss = self.loss(chosen, rejected, reference_chosen, reference_rejected, **labels)
        margin = (chosen - reference_chosen - rejected + reference_rejected).detach()
        return {
            "loss": loss,
            "margin": margin,
            "accuracy": _agreement(margin, batch.p_chosen),
            "logps_chosen": chosen.detach(),
            "logps_rejected": rejected.detach(),
        }


class PreferencePairs(nn.Module):
    """A preference model on pairs: cross-entropy with the label `p_chosen`, a margin taken off the logit."""

    def __init__(self, model: PreferenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """`loss` and `accuracy`."""
        logits = self.model.pair_logits(batch.tokens)
        loss = losses.bradley_terry(
            logits, torch.zeros_like(logits), p_chosen=batch.p_chosen, margin=batch.margin
        )
        return {"loss": loss, "accuracy": _agreement(logits.detach(), batch.p_chosen)}


@dataclass(frozen=True, slots=True)
class EncodedRanking:
    """The completions of one prompt and their places, 0 the best; as long as the longest of them."""

    completions: Sequence[Encoded]
    ranking: Sequence[int]

    def __len__(self) -> int:
        return max(map(len, self.completions))


class RankingBatch(NamedTuple):
    """B prompts with up to K ranked completions each.

    `tokens` has a row for every completion, prompt after prompt; `ranking` is `(B, K)`, 0 the best and
    `NO_RANK` where a prompt has fewer than K.
    """

    tokens: Tokens
    ranking: Tensor

    def to(self, device: torch.device | str) -> RankingBatch:
        """The same on another device."""
        return RankingBatch(self.tokens.to(device), self.ranking.to(device))


def collate_rankings(rankings: Sequence[EncodedRanking], pad_id: int) -> RankingBatch:
    """A batch of them."""
    places = torch.full((len(rankings), max(len(r.ranking) for r in rankings)), NO_RANK)
    for row, each in zip(places, rankings, strict=True):
        row[: len(each.ranking)] = torch.tensor(each.ranking)
    return RankingBatch(collate([c for r in rankings for c in r.completions], pad_id), places)


class RewardRankings(nn.Module):
    """A Bradley–Terry model on K-wise rankings, one batch element per prompt.

    All pairs of a prompt share one forward pass of each completion: as separate examples they would be seen
    K − 1 times an epoch, and overfitted (arXiv:2203.02155, §3.5).
    """

    def __init__(self, model: BradleyTerryModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: RankingBatch) -> dict[str, Tensor]:
        """`loss`, the mean over the prompt's ordered pairs."""
        present = batch.ranking != NO_RANK
        values = self.model.features(batch.tokens)[:, 0]
        rewards = values.new_zeros(present.shape).masked_scatter(present, values)
        return {"loss": losses.k_wise(rewards, batch.ranking)}


class Outcomes(nn.Module):
    """An outcome reward model on answers that are known to be right or wrong."""

    def __init__(self, model: OutcomeRewardModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: OutcomeBatch) -> dict[str, Tensor]:
        """`loss`, and `accuracy` of the verdict at the end."""
        logits = self.model.token_logits(batch.tokens)
        loss = losses.outcome(logits, batch.correct, batch.tokens.completion_mask)
        return {"loss": loss, "accuracy": _agreement(last(logits, batch.tokens).detach(), batch.correct)}


class LabelledSteps(nn.Module):
    """A process reward model on answers whose steps have labels."""

    def __init__(self, model: ProcessRewardModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: StepBatch) -> dict[str, Tensor]:
        """`loss`, and `accuracy`, the share of steps whose likeliest label is the right one."""
        logits = self.model.token_outputs(batch.tokens)
        labelled = batch.labels != NO_LABEL
        right = (logits.argmax(dim=-1) - 1 == batch.labels) & labelled
        loss = losses.process(logits, batch.labels)
        return {"loss": loss, "accuracy": right.sum(dim=1) / labelled.sum(dim=1)}


def _agreement(margin: Tensor, p_chosen: Tensor) -> Tensor:
    """1 where the margin has the sign of the label, 1/2 where either has none."""
    return 0.5 + 0.5 * torch.sign(margin) * torch.sign(p_chosen - 0.5)
