"""What the training loop minimises: a model, a loss, and how a batch becomes the loss's arguments.

An objective's forward pass returns a mapping of `(n,)` tensors, one value for each example: `"loss"`, and
what is worth logging beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from nashpref.llm import losses
from nashpref.llm.encoding import Encoded, EncodedPair, PairBatch, Tokens, collate, collate_pairs
from nashpref.llm.logprobs import Reference, completion_logps, reference_logps
from nashpref.llm.losses.rewards import NO_RANK
from nashpref.llm.preferences.models import BradleyTerryModel, PreferenceModel

PairLoss = Callable[..., Tensor]
"""`(chosen, rejected, reference_chosen, reference_rejected, p_chosen=…) -> (B,)`: a partial `dpo`."""


class Demonstrations(nn.Module):
    """Supervised fine-tuning: `−log π(y|x)`, summed over the completion's tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
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


def with_reference(
    model: nn.Module,
    pairs: Sequence[EncodedPair],
    pad_id: int,
    accelerator: Accelerator,
    *,
    rows: int = 64,
    progress: bool = False,
) -> list[ReferencedPair]:
    """Pairs with log μ of both completions, μ being `model` as it is now; processes share the work.

    Args:
        model: on the accelerator's device; under PEFT its base is μ.
        pairs: any order; those of similar length are put through the model together.
        pad_id: of the encoder.
        accelerator: of the training, whose precision is used.
        rows: sequences put through the model at once.
        progress: show a bar, on a terminal, once two seconds have passed.
    """
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i]))
    size, rank = max(1, rows // 2), accelerator.process_index
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    own = parts[rank :: accelerator.num_processes]
    batches = (collate_pairs([pairs[i] for i in part], pad_id).tokens for part in own)
    found: list[tuple[int, float, float]] = []
    if own:
        with accelerator.autocast():
            logps = reference_logps(model, batches, total=len(own), progress=progress and rank == 0)
        for part, values in zip(own, torch.split(logps, [2 * len(part) for part in own]), strict=True):
            chosen, rejected = values.chunk(2)
            found += zip(part, chosen.tolist(), rejected.tolist(), strict=True)
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

    def forward(self, batch: PairBatch | ReferencedPairs) -> dict[str, Tensor]:
        """`loss`; `accuracy` of, and `margin` between, the implicit rewards `log π/μ`; log-probabilities."""
        if isinstance(batch, ReferencedPairs):
            batch, reference = batch
        elif self.reference is not None:
            reference = self.reference(batch.tokens)
        else:
            raise ValueError("batches without log-probabilities of the reference need reference=")
        chosen, rejected = completion_logps(self.model, batch.tokens).chunk(2)
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


def _agreement(margin: Tensor, p_chosen: Tensor) -> Tensor:
    """1 where the margin has the sign of the label, 1/2 where either has none."""
    return 0.5 + 0.5 * torch.sign(margin) * torch.sign(p_chosen - 0.5)
