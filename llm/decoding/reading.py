"""Prefixes read by a reward model while they grow, each token once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nashpref.llm.logprobs import quietly


class Reader:
    """A causal backbone and its cache of keys and values, beside a policy that is decoding.

    Between two calls prefixes usually grow by a token, and only this one is read. Where they are others than
    before, as in a new call of `generate` or under beam search, everything is read again.

    Args:
        backbone: causal, and told positions (not ALiBi); its attention takes masks of four dimensions, as
            transformers' "sdpa" and "eager" do.
        mask: 0 on the padding of the prompts, `(B, T)`, where they are padded on the left; N rows are N/B to
            every prompt.
    """

    def __init__(self, backbone: PreTrainedModel, mask: Tensor | None = None) -> None:
        self.backbone, self.prompt_mask = backbone, mask
        self.read: Tensor | None = None
        self.cache: Any = None

    def last(self, ids: Tensor) -> Tensor:
        """The states of the last tokens, `(N, d)`, of prefixes `(N, T)`."""
        mask, new = self._news(ids)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new:]
        states = self._forward(ids[:, -new:], mask, positions)
        self.read = ids
        return states[:, -1]

    def ahead(self, ids: Tensor, candidates: Tensor) -> Tensor:
        """The state of each candidate as the next token of its row, `(N, k, d)`; candidates `(N, k)`.

        All are read in one pass, after the prefix and blind to one another, and forgotten.
        """
        mask, new = self._news(ids)
        k = candidates.shape[1]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        nexts = positions[:, -1:] + 1
        # Queries: the new tokens and the candidates. Keys: the prefix and the candidates.
        T = ids.shape[1]
        order = torch.arange(T, device=ids.device)
        seen = torch.zeros(len(ids), new + k, T + k, dtype=torch.bool, device=ids.device)
        seen[:, :new, :T] = mask[:, None].bool() & (order <= order[-new:, None])
        seen[:, new:, :T] = mask[:, None].bool()
        seen[:, new:, T:] = torch.eye(k, dtype=torch.bool, device=ids.device)
        seen[:, :new, :T] |= order == order[-new:, None]  # padding sees itself: no row without a key
        dtype = self.backbone.dtype
        blocked = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=ids.device)
        states = self._forward(
            torch.cat([ids[:, -new:], candidates], dim=1),
            blocked.masked_fill(seen, 0.0)[:, None],
            torch.cat([positions[:, -new:], nexts.expand(-1, k)], dim=1),
        )
        self.cache.crop(-k)
        self.read = ids
        return states[:, new:]

    def _news(self, ids: Tensor) -> tuple[Tensor, int]:
        """The mask of the prefixes, and how many of their last tokens are to be read."""
        width = 0 if self.read is None else self.read.shape[1]
        if self.read is None or width >= ids.shape[1] or not torch.equal(ids[:, :width], self.read):
            self.cache, width = None, 0
        room = getattr(self.backbone.config, "max_position_embeddings", None)
        if room is not None and ids.shape[1] >= room:
            raise ValueError(
                f"prefixes of {ids.shape[1]} tokens and their next ones: the reward model reads {room}; set "
                "max_length of the policy's encoder, or generate fewer tokens"
            )
        mask = torch.ones_like(ids)
        if self.prompt_mask is not None:
            B, T = self.prompt_mask.shape
            mask[:, :T] = self.prompt_mask.to(ids).repeat_interleave(len(ids) // B, dim=0)
        return mask, ids.shape[1] - width

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        with quietly(self.backbone):
            output = self.backbone(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache = output.past_key_values
        states: Tensor = output[0]
        return states
