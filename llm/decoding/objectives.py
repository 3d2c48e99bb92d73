"""How rewards of prefixes are learned: what `nashpref.llm.training.fit` minimises, and on which examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nashpref.llm.decoding.models import FarmaModel, PrefixValueModel, plausible
from nashpref.llm.encoding import Encoded, EncodedPair, PairBatch, Tokens, collate
from nashpref.llm.logprobs import CHUNK, causal_model, hidden_states, logits_of, quietly
from nashpref.llm.losses.rewards import bradley_terry
from nashpref.llm.preferences.rewards import last


def consistency(values: Tensor, best: Tensor, inner: Tensor) -> Tensor:
    """FaRMA's L2: `½ (r(s, a^{1:i}) − max_v r(s, [a^{1:i}, v]))²`, a mean over a response's proper prefixes.

    Zero exactly if a prefix is worth its best completion. The maximum is a target: no gradient goes through
    it, else it would be drawn down to the prefix that it is to lift.

    Args:
        values: `r(s, a^{1:i})` at the i-th token, `(B, T)`.
        best: `max_v r(s, [a^{1:i}, v])` there, `(B, T)`.
        inner: `(B, T)` bool, True where a prefix is a proper one (`proper_prefixes`).

    Returns:
        `(B,)`; 0 for a response of one token.

    Source: arXiv:2502.04517.
    """
    residual = (values - best.detach()).masked_fill(~inner, 0.0)
    return 0.5 * residual.square().sum(dim=1) / inner.sum(dim=1).clamp(min=1)


def proper_prefixes(tokens: Tokens) -> Tensor:
    """True at the tokens of completions that another one of theirs follows, `(B, T)` bool."""
    mask = tokens.completion_mask
    return mask & torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)


def prefix_regression(values: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """`½ (V(s, a^{1:i}) − r(s, a))²`, the mean over all prefixes of a response of the policy.

    Its minimum is `V(s, a^{1:i}) = E_μ[r(s, a) | a^{1:i}]`.

    Args:
        values: V at every token, `(B, T)`.
        rewards: r of the whole responses, `(B,)`.
        mask: True on the responses' tokens, `(B, T)` bool.

    Returns:
        `(B,)`.

    Source: arXiv:2310.17022, CD-FUDGE.
    """
    residual = (values - rewards[:, None]).masked_fill(~mask, 0.0)
    return 0.5 * residual.square().sum(dim=1) / mask.sum(dim=1)


def prefix_pairs(pairs: Sequence[EncodedPair], every: int = 1) -> list[EncodedPair]:
    """PARGS: each pair, cut after i tokens of both completions, for i = every, 2·every, …, and as a whole.

    A `BradleyTerryModel` that is trained on these (`nashpref.llm.objectives.PreferencePairs`) learns how
    often a beginning turns out better than another, and is asked about beginnings as it was trained.

    Args:
        pairs: of whole completions.
        every: tokens between two cuts; 1 makes as many pairs as the longer completion has tokens.

    Raises:
        ValueError: `every` below 1.

    Source: arXiv:2406.07780.
    """
    if every < 1:
        raise ValueError(f"every = {every}: at least one token lies between two cuts")
    cut = []
    for pair in pairs:
        both = (pair.chosen, pair.rejected)
        longest = max(len(each) - each.start for each in both)
        for i in (*range(every, longest, every), longest):
            chosen, rejected = (_beginning(each, i) for each in both)
            if list(chosen.ids) != list(rejected.ids):
                cut.append(EncodedPair(chosen, rejected, pair.p_chosen, pair.margin))
    return cut


def _beginning(encoded: Encoded, count: int) -> Encoded:
    end = encoded.start + count
    others = tuple(position for position in encoded.others if position < end)
    return Encoded(encoded.ids[:end], encoded.start, others, encoded.dropped)


class FarmaPairs(nn.Module):
    """FaRMA: L1 = `−log σ(r(s, a⁺) − r(s, a⁻))` on one optimizer step, L2 = `consistency` on the next.

    With a policy, L2's maximum is over the tokens among which a decoder will choose. The paper takes it over
    all, most of which no response has where they would follow: no pair says what they are worth, and the
    largest of so many guesses is far too large.

    Args:
        model: r.
        policy: μ, frozen, with the same tokens; None: all tokens, as in the paper.
        top_k, min_p: of the decoder, see `plausible`.
    """

    def __init__(
        self, model: FarmaModel, policy: nn.Module | None = None, top_k: int = 10, min_p: float = 0.0
    ) -> None:
        super().__init__()
        self.model, self.top_k, self.min_p, self.taken = model, top_k, min_p, 0
        self._policy = None if policy is None else (policy,)  # in a tuple: no submodule, never trained

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """`loss`, that of the step; `accuracy` on the pairs; `inconsistency`, the mean of `|r − max_v r|`;
        and `deviation`, that of `|r(s, a) − r̄|` over the batch, to hold it against: rewards have no unit.
        """
        values, best = self.model.values_and_best(batch.tokens, self._candidates(batch.tokens))
        whole = last(values, batch.tokens)
        chosen, rejected = whole.chunk(2)
        inner = proper_prefixes(batch.tokens)
        if self.taken % 2:
            loss = _of_pairs(consistency(values, best, inner))
        else:
            loss = bradley_terry(chosen, rejected, p_chosen=batch.p_chosen, margin=batch.margin)
        residual = (values - best).abs().masked_fill(~inner, 0.0).sum(dim=1) / inner.sum(dim=1).clamp(min=1)
        right = 0.5 + 0.5 * torch.sign(chosen - rejected) * torch.sign(batch.p_chosen - 0.5)
        return {
            "loss": loss,
            "accuracy": right.detach(),
            "inconsistency": _of_pairs(residual.detach()),
            "deviation": _of_pairs((whole - whole.mean()).abs().detach()),
        }

    def _candidates(self, tokens: Tokens) -> Tensor | None:
        """The policy's plausible next tokens at every token, `(B, T, k)`; the likeliest fills the gaps."""
        if self._policy is None:
            return None
        (policy,) = self._policy
        causal, found = causal_model(policy), []
        with quietly(policy):
            states = hidden_states(causal, tokens)
            size = max(1, CHUNK // causal.config.get_text_config().vocab_size)
            for part in torch.split(states.flatten(0, 1), size):
                log_p, likeliest = plausible(logits_of(causal, part), self.top_k, self.min_p)
                found.append(torch.where(log_p.isfinite(), likeliest, likeliest[:, :1]))
        return torch.cat(found).view(*states.shape[:2], -1)

    def advance(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The other loss's turn."""
        self.taken += 1
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Whose turn it is."""
        return {}, {"taken": self.taken}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.taken = int(state["taken"])


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A response of the policy, and its reward."""

    response: Encoded
    reward: float

    def __len__(self) -> int:
        return len(self.response)


class RewardedBatch(NamedTuple):
    """B of them; `rewards` is `(B,)` float32."""

    tokens: Tokens
    rewards: Tensor

    def to(self, device: torch.device | str) -> RewardedBatch:
        """The same on another device."""
        return RewardedBatch(self.tokens.to(device), self.rewards.to(device))


def collate_rewarded(examples: Sequence[Rewarded], pad_id: int) -> RewardedBatch:
    """A batch of them."""
    rewards = torch.tensor([example.reward for example in examples], dtype=torch.float32)
    return RewardedBatch(collate([example.response for example in examples], pad_id), rewards)


class PrefixValues(nn.Module):
    """A prefix value function on responses of the policy and their rewards: `prefix_regression`."""

    def __init__(self, model: PrefixValueModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: RewardedBatch) -> dict[str, Tensor]:
        """`loss`."""
        values = self.model.values(batch.tokens)
        return {"loss": prefix_regression(values, batch.rewards, batch.tokens.completion_mask)}


def _of_pairs(rows: Tensor) -> Tensor:
    """The mean of the two responses of each pair, `(2B,)` → `(B,)`."""
    return rows.view(2, -1).mean(dim=0)
