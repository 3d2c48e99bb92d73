"""CARDS: a response in segments, each drawn from the policy until a reward accepts it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from transformers import LogitsProcessor

from nashpref.llm.data import Text
from nashpref.llm.decoding.generation import device_of, generate, left_padded, texts_of
from nashpref.llm.decoding.selection import rewards_of
from nashpref.llm.encoding import Encoder
from nashpref.llm.preferences.adapters import Reward
from nashpref.policies import FloatArray, IntArray


class Segmented(NamedTuple):
    """Responses to B prompts.

    Attributes:
        texts: B of them.
        rewards: of the responses as they ended, `(B,)`.
        proposals: segments that were drawn for each, `(B,)`.
        forced: segments among them that no draw made acceptable, and of which the best was kept, `(B,)`.
    """

    texts: list[str]
    rewards: FloatArray
    proposals: IntArray
    forced: IntArray


class CutWhereUncertain(LogitsProcessor):
    """Ends rows before a token whose entropy under the policy is at least `entropy` nats, save the first.

    `cut` says after how many new tokens each row was ended; the end-of-sequence token there is not the
    policy's word.
    """

    def __init__(self, entropy: float, end_id: int) -> None:
        self.entropy, self.end_id = entropy, end_id
        self.cut: dict[int, int] = {}
        self.count = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The logits, or those of the end alone."""
        log_p = torch.log_softmax(scores.float(), dim=-1)
        uncertain = -torch.special.xlogy(log_p.exp(), log_p.exp()).sum(dim=-1) >= self.entropy
        if self.count == 0:
            uncertain = torch.zeros_like(uncertain)
        for row in uncertain.nonzero().flatten().tolist():
            self.cut.setdefault(row, self.count)
        self.count += 1
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.end_id] = 0.0
        return cast(torch.FloatTensor, torch.where(uncertain[:, None], ended, scores))


def cards(
    policy: Any,
    encoder: Encoder,
    texts: Sequence[Text],
    reward: Reward,
    *,
    goal: float,
    floor: float,
    beta: float,
    entropy: float,
    max_new_tokens: int,
    generator: torch.Generator,
    tries: int = 20,
) -> Segmented:
    """Segment after segment a ~ μ, accepted with probability `min(1, e^{(r(s, [a, segment]) − τ(i))/β})`.

    A segment ends where the entropy of the next token is at least `entropy`: there a new thought begins, and
    what was said can be judged as if it were whole. The threshold rises with the length i of the response,
    `τ(i) = floor + (goal − floor) i/max_new_tokens`. A reward that is τ at least everywhere accepts
    everything, and the responses are those of μ.

    Every proposal reads the whole prefix again, in one pass for all prompts.

    Args:
        policy: μ.
        encoder: its way from texts to tokens.
        texts: B prompts.
        reward: r, `(prompts, responses) -> numbers`, of beginnings too.
        goal, floor: the threshold at the greatest length and at the beginning; good values lie where rewards
            of μ's best responses and of its average ones do.
        beta: β > 0, how strict the threshold is.
        entropy: in nats, ≥ 0; 0 makes every token a segment, `math.inf` the whole response.
        max_new_tokens: longest response.
        generator: of all randomness, on the CPU.
        tries: the most proposals for a segment, of which then the best is kept; `forced` counts these.

    Raises:
        ValueError: numbers out of range, or a reward that fails, with its sample.

    Source: arXiv:2406.16306. There floor and goal are `(1 − α) r* + α r(s)` and `r*`.
    """
    if not (beta > 0.0 and entropy >= 0.0 and tries >= 1):
        raise ValueError(
            f"beta = {beta}, entropy = {entropy}, tries = {tries}: a positive weight, an entropy ≥ 0 and at "
            "least one try are needed"
        )
    if not (math.isfinite(goal) and math.isfinite(floor)):
        raise ValueError(f"goal = {goal}, floor = {floor}: finite thresholds are needed")
    prompts = [list(encoder.encode_prompt(text, room=max_new_tokens).ids) for text in texts]
    B, device = len(texts), device_of(policy)
    said: list[list[int]] = [[] for _ in texts]
    nothing: tuple[float, list[int]] = (-math.inf, [])
    best = [nothing] * B  # of the proposals for the segment at hand
    rewards, (proposals, forced, tried) = np.full(B, np.nan), np.zeros((3, B), dtype=np.int64)
    open_ = list(range(B))
    while open_:
        ids, mask = left_padded([prompts[b] + said[b] for b in open_], encoder.pad_id)
        cut = CutWhereUncertain(entropy, encoder.end_id)
        drawn = generate(
            policy,
            encoder,
            ids.to(device),
            mask.to(device),
            max_new_tokens=max(max_new_tokens - len(said[b]) for b in open_),
            processors=[cut],
            generator=generator,
        )
        longer = [
            (said[b] + (tokens[:-1] if cut.cut.get(row) == len(tokens) - 1 else tokens))[:max_new_tokens]
            for row, (b, tokens) in enumerate(zip(open_, drawn, strict=True))
        ]
        found = rewards_of(reward, [texts[b] for b in open_], texts_of(encoder, longer)).tolist()
        luck = torch.rand(len(open_), generator=generator, dtype=torch.float64).log().tolist()
        for b, tokens, r, u in zip(open_, longer, found, luck, strict=True):
            proposals[b], tried[b] = proposals[b] + 1, tried[b] + 1
            best[b] = max(best[b], (r, tokens), key=lambda each: each[0])
            accepted = u <= (r - floor - (goal - floor) * len(tokens) / max_new_tokens) / beta
            if not accepted and tried[b] == tries:
                forced[b], accepted, (r, tokens) = forced[b] + 1, True, best[b]
            if accepted:
                said[b], rewards[b], best[b], tried[b] = tokens, r, nothing, 0
        open_ = [b for b in open_ if len(said[b]) < max_new_tokens and said[b][-1:] != [encoder.end_id]]
    return Segmented(texts_of(encoder, said), rewards, proposals, forced)
