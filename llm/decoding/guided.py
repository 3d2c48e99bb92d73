"""Token by token towards a reward: `π(v|s,a) ∝ μ(v|s,a) exp(r(s,[a,v])/β)`, the policy μ left as it is.

What r is makes the method: a reward model of whole responses asked about beginnings (ARGS, arXiv:2402.01694),
one that was trained on beginnings (PARGS, arXiv:2406.07780), a value function of beginnings (FUDGE,
arXiv:2104.05218; CD, arXiv:2310.17022), or one that knows all next tokens at once (FaRMA, arXiv:2502.04517).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor

from nashpref.llm.data import Text
from nashpref.llm.decoding.generation import Prompts, device_of, encode_prompts, generate, texts_of, until
from nashpref.llm.decoding.models import FarmaModel, PrefixValueModel, plausible
from nashpref.llm.decoding.reading import Reader
from nashpref.llm.decoding.selection import rewards_of
from nashpref.llm.encoding import Encoder
from nashpref.llm.logprobs import quietly
from nashpref.llm.preferences.adapters import Reward
from nashpref.llm.preferences.models import BradleyTerryModel

Scores = Callable[[Tensor, Tensor], Tensor]
"""`(ids (N, T), candidates (N, k)) -> r(s, [a, v])` of each row's prefix with each candidate, `(N, k)`."""

Guide = BradleyTerryModel | PrefixValueModel | FarmaModel | Reward


class RewardGuided(LogitsProcessor):
    """For `model.generate(logits_processor=[…])`: `log π(v) = log μ(v) + r(v)/β − log Z` among top-k tokens.

    The k likeliest tokens of μ are candidates, all others are excluded. For β → ∞ this is μ among its top k,
    for β → 0 the candidate of highest reward; greedy decoding takes the best sum, as ARGS does (w = 1/β).
    The reward is asked once for all candidates of all rows. Rows that have ended are scored along, and
    whatever is said of them is ignored by `generate`.

    Args:
        scores: r; it belongs to one batch of prompts if it knows of these (see `scores_of`).
        beta: β > 0; the KL's weight in `max E[r] − β KL(π‖μ)` of which this is the solution for one token.
        top_k: k ≥ 1.
        min_p: in [0, 1): candidates whose probability is a smaller share of the likeliest token's are
            excluded too. Where μ is all but certain, the k-th token is one that no response has there, and
            what a reward says of it is a guess.

    Raises:
        ValueError: numbers out of range; when it is called, a score that is not finite, or scores of another
            shape, with the row and the candidate.
    """

    def __init__(self, scores: Scores, beta: float, top_k: int = 10, min_p: float = 0.0) -> None:
        if not 0.0 < beta < math.inf:
            raise ValueError(f"beta = {beta}: it must be finite and positive")
        if top_k < 1:
            raise ValueError(f"top_k = {top_k}: at least one candidate is needed")
        if not 0.0 <= min_p < 1.0:
            raise ValueError(f"min_p = {min_p}: a share in [0, 1) is needed")
        self.scores, self.beta, self.top_k, self.min_p = scores, beta, top_k, min_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Logits `(N, V)` of the next token."""
        log_mu, candidates = plausible(scores, self.top_k, self.min_p)
        rewards = self.scores(input_ids, candidates)
        if rewards.shape != candidates.shape:
            raise ValueError(
                f"the scores have the shape {tuple(rewards.shape)}: one for each of {len(candidates)} rows "
                f"and {candidates.shape[1]} candidates is needed"
            )
        if not (finite := rewards.isfinite()).all():
            row, place = (~finite).nonzero()[0].tolist()
            raise ValueError(
                f"the reward of row {row} with candidate {place}, token {int(candidates[row, place])}, is "
                f"{float(rewards[row, place])}: a finite number is needed"
            )
        tilted = (log_mu + rewards.to(log_mu) / self.beta).to(scores)
        return cast(torch.FloatTensor, torch.full_like(scores, -torch.inf).scatter(1, candidates, tilted))


class PrefixScores:
    """r of each prefix with each candidate by a model that gives a prefix one number; see `Reader.ahead`."""

    def __init__(self, model: BradleyTerryModel | PrefixValueModel, mask: Tensor | None = None) -> None:
        self.model, self.reader = model, Reader(model.backbone, mask)

    def __call__(self, ids: Tensor, candidates: Tensor) -> Tensor:
        """`(N, k)` from `1 + k` tokens of every row."""
        with quietly(self.model):
            scores: Tensor = self.model.head(self.reader.ahead(ids, candidates)).float()
        return scores[..., 0]


class NextTokenScores:
    """r of each prefix with each candidate by a model that gives all of them together (FaRMA)."""

    def __init__(self, model: FarmaModel, mask: Tensor | None = None) -> None:
        self.model, self.reader = model, Reader(model.backbone, mask)

    def __call__(self, ids: Tensor, candidates: Tensor) -> Tensor:
        """`(N, k)` from one token of every row."""
        with quietly(self.model):
            scores: Tensor = self.model.head(self.reader.last(ids)).float()
        return scores.gather(1, candidates)


class TextScores:
    """r by any function of prompts and responses, a beginning being taken for a whole response.

    The end-of-sequence token adds nothing to what is said. Rows that have ended score 0.

    Args:
        reward: `(prompts, responses) -> numbers`, asked once for all candidates of all rows.
        encoder: of the policy.
        prompts: of this call of `generate`.
    """

    def __init__(self, reward: Reward, encoder: Encoder, prompts: Prompts) -> None:
        self.reward, self.encoder, self.prompts = reward, encoder, prompts

    def __call__(self, ids: Tensor, candidates: Tensor) -> Tensor:
        """`(N, k)`; errors of the reward count samples row by row, k to each that goes on."""
        N, k = candidates.shape
        end, width = self.encoder.end_id, self.prompts.ids.shape[1]
        count = N // len(self.prompts.ids)
        rows, asked, prefixes = [], [], []
        for row, (said, tokens) in enumerate(zip(ids[:, width:].tolist(), candidates.tolist(), strict=True)):
            if end in said:
                continue
            rows.append(row)
            asked += [self.prompts.texts[row // count]] * k
            prefixes += [until([*said, token], [end]) for token in tokens]
        found = torch.zeros(N, k, dtype=torch.float64)
        if rows:
            texts = texts_of(self.encoder, prefixes)
            found[rows] = rewards_of(self.reward, asked, texts).view(len(rows), k)
        return found.to(candidates.device)


def scores_of(guide: Guide, encoder: Encoder, prompts: Prompts) -> Scores:
    """The scores that a guide gives to prefixes of answers to these prompts, for one call of `generate`.

    Raises:
        ValueError: a model whose tokens are not the policy's.
    """
    if not isinstance(guide, BradleyTerryModel | PrefixValueModel | FarmaModel):
        return TextScores(guide, encoder, prompts)
    theirs = guide.encoder.tokenizer
    if theirs is not encoder.tokenizer and theirs.get_vocab() != encoder.tokenizer.get_vocab():
        raise ValueError(
            f"the {type(guide).__name__} reads other tokens than the policy: guide with one on the policy's "
            "tokenizer, or, slower, with a function of texts such as its `rewards`"
        )
    if isinstance(guide, FarmaModel):
        return NextTokenScores(guide, prompts.mask)
    return PrefixScores(guide, prompts.mask)


def guided(
    policy: Any,
    encoder: Encoder,
    texts: Sequence[Text],
    guide: Guide,
    *,
    beta: float,
    max_new_tokens: int,
    top_k: int = 10,
    min_p: float = 0.0,
    count: int = 1,
    greedy: bool = False,
    generator: torch.Generator | None = None,
) -> list[list[str]]:
    """`count` responses to each of B prompts, every token drawn from `RewardGuided`.

    Args:
        policy: μ, a causal language model.
        encoder: its way from texts to tokens.
        texts: the prompts.
        guide: a model with the policy's tokenizer, or any function `(prompts, responses) -> numbers`.
        beta, top_k, min_p: of `RewardGuided`.
        max_new_tokens, count, greedy, generator: of `generate`.

    Raises:
        ValueError: see `RewardGuided`, `scores_of` and `generate`.
    """
    prompts = encode_prompts(encoder, texts, room=max_new_tokens, device=device_of(policy))
    processor = RewardGuided(scores_of(guide, encoder, prompts), beta, top_k, min_p)
    rows = generate(
        policy,
        encoder,
        prompts.ids,
        prompts.mask,
        max_new_tokens=max_new_tokens,
        count=count,
        processors=[processor],
        greedy=greedy,
        generator=generator,
    )
    said = texts_of(encoder, rows)
    return [said[start : start + count] for start in range(0, len(said), count)]
