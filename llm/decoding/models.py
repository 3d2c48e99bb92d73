"""What a beginning of a response is worth: models with one number for each prefix, or for each next token."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nashpref.llm.data import Text
from nashpref.llm.encoding import Tokens
from nashpref.llm.logprobs import CHUNK, quietly
from nashpref.llm.preferences.backbone import HeadConfig, HeadModel, chunks
from nashpref.llm.preferences.rewards import last


def plausible(logits: Tensor, top_k: int, min_p: float = 0.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the k likeliest tokens, and these tokens, `(N, k)` each.

    The log-probability is −∞ where the probability is below `min_p` times that of the likeliest token
    (arXiv:2407.01082); the others are not normalised anew.
    """
    log_p, tokens = torch.log_softmax(logits.float(), dim=-1).topk(min(top_k, logits.shape[-1]), dim=-1)
    if min_p > 0.0:
        log_p = log_p.masked_fill(log_p < log_p[:, :1] + math.log(min_p), -torch.inf)
    return log_p, tokens


class PrefixConfig(HeadConfig):  # type: ignore[no-untyped-call]
    """The backbone's configuration; see `HeadConfig`."""

    model_type = "nashpref-prefix"

    # Without one, transformers would write it from the class's annotations, for keywords alone.
    def __init__(
        self, backbone: dict[str, Any] | None = None, max_tokens: int | None = None, **options: Any
    ) -> None:
        super().__init__(backbone, max_tokens, **options)


class PrefixModel(HeadModel, ABC):  # type: ignore[no-untyped-call]
    """What the two share: a causal backbone, and a value of every prefix of a response."""

    config_class = PrefixConfig

    @abstractmethod
    def values(self, tokens: Tokens) -> Tensor:
        """`r(s, a^{1:i})` at the i-th token of each completion, `(B, T)` float32; anything elsewhere."""

    def rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """The value of N whole responses, `(N,)` float32; without gradients or dropout."""
        encoder, found = self.encoder, torch.empty(len(prompts))
        rows = [encoder.encode(x, y) for x, y in zip(prompts, responses, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        with quietly(self):
            for part in chunks(order, self.at_once):
                tokens = self._collate([rows[i] for i in part])
                found[part] = last(self.values(tokens), tokens).cpu()
        return found


class PrefixValueModel(PrefixModel):  # type: ignore[no-untyped-call]
    """`V(s, a^{1:i})`, what the reward of a response will be that begins so, read off its i-th token.

    Source: FUDGE (arXiv:2104.05218), of which controlled decoding's regression (arXiv:2310.17022, CD-FUDGE)
    is the form for rewards that are no classes.
    """

    def values(self, tokens: Tokens) -> Tensor:
        """V at every token."""
        return self.head(self._states(tokens)).float()[..., 0]  # type: ignore[no-any-return]


class FarmaModel(PrefixModel):  # type: ignore[no-untyped-call]
    """FaRMA: `r(s, [a^{1:i}, v])` of all V next tokens v, from one state: `W h(s, a^{1:i}) + b`.

    So the value of a prefix is read one token before its end, and a decoder that wants to compare k next
    tokens reads none of them.

    Source: Rashid et al., ICML 2025 (arXiv:2502.04517).
    """

    @property
    def outputs(self) -> int:
        """One for each token there is."""
        return int(self.backbone.config.get_text_config().vocab_size)

    def values(self, tokens: Tokens) -> Tensor:
        """The head's output for each token, from the state before it."""
        return self._values(self._states(tokens), tokens)

    def values_and_best(self, tokens: Tokens, candidates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`r(s, a^{1:i})` and `max_v r(s, [a^{1:i}, v])` at the i-th token, `(B, T)` each.

        The maximum has no gradient; where the next token is not to be of a completion it means nothing.

        Args:
            tokens: of B prompts and completions.
            candidates: the next tokens v among which it is taken, `(B, T, k)`; None: all.
        """
        states = self._states(tokens)
        with torch.no_grad():
            size = max(1, CHUNK // self.outputs)
            parts = [self.head(part).float() for part in torch.split(states.flatten(0, 1), size)]
            if candidates is not None:
                among = torch.split(candidates.flatten(0, 1), size)
                parts = [part.gather(1, v) for part, v in zip(parts, among, strict=True)]
            best = torch.cat([part.amax(dim=-1) for part in parts])
        return self._values(states, tokens), best.view(states.shape[:2])

    def _values(self, states: Tensor, tokens: Tokens) -> Tensor:
        """With the rows of the head that are needed, and so never `(B, T, V)` numbers with a gradient."""
        weight, bias = self.head.weight[tokens.input_ids[:, 1:]], self.head.bias[tokens.input_ids[:, 1:]]
        after = ((states[:, :-1] * weight).sum(dim=-1) + bias).float()
        return torch.cat([after.new_zeros(len(after), 1), after], dim=1)
