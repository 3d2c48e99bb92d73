"""What learned preferences share: a transformers backbone with a head, texts in, `Pr(a ≻ b | x)` out.

All are antisymmetric by construction, `p(a, b) + p(b, a) = 1`: the logit is computed in float32 as a
difference that changes sign, bit for bit, when the two responses change places.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nashpref.llm.data import Pair, Text
from nashpref.llm.encoding import Encoded, EncodedPair, Tokens
from nashpref.llm.logprobs import quietly
from nashpref.llm.preferences.backbone import HeadConfig, HeadModel, at, chunks
from nashpref.policies import FloatArray


class PreferenceConfig(HeadConfig):  # type: ignore[no-untyped-call]
    """The backbone's configuration, and what is put on top of it.

    Args:
        backbone: a transformers configuration as a mapping, with its `model_type`.
        pooling: the hidden state that stands for a sequence: its "last" token's (causal models) or the "mean"
            over all tokens (bidirectional ones).
        planes: of `GeneralPreferenceModel`, how many planes its embedding has.
        prompt_scales: of `GeneralPreferenceModel`, whether each plane's weight depends on the prompt.
        max_tokens: longest sequence; the oldest prompt tokens are dropped, as many for each of the responses
            that are compared. Not called `max_length`, with which transformers refuses to save.

    Raises:
        ValueError: an unknown pooling, or planes below 1.
    """

    model_type = "nashpref-preference"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        pooling: Literal["last", "mean"] = "last",
        planes: int = 4,
        prompt_scales: bool = False,
        max_tokens: int | None = None,
        **options: Any,
    ) -> None:
        if pooling not in ("last", "mean"):
            raise ValueError(f"pooling = {pooling!r}: choose 'last' or 'mean'")
        if planes < 1:
            raise ValueError(f"planes = {planes}: it must be at least 1")
        self.pooling, self.planes, self.prompt_scales = pooling, planes, prompt_scales
        super().__init__(backbone, max_tokens, **options)


class PreferenceModel(HeadModel, ABC):  # type: ignore[no-untyped-call]
    """What the preference models share: texts in, probabilities out.

    Called with prompts and two responses each it returns `Pr(a ≻ b | x)`, `(N,)`. For training, `encode`
    turns a pair into tokens and `pair_logits` a batch of them into logits.
    """

    config_class = PreferenceConfig

    @abstractmethod
    def encode(self, pair: Pair) -> EncodedPair:
        """The two sequences that decide a pair."""

    @abstractmethod
    def pair_logits(self, tokens: Tokens) -> Tensor:
        """`log p/(1 − p)` of B pairs, `(B,)` float32; pair b has the rows b and B + b of `tokens`."""

    @abstractmethod
    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """`P[i, j] = Pr(response i ≻ response j | prompt)`, K×K, exactly complementary, in float64."""

    def forward(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> Tensor:
        """`Pr(a ≻ b | prompt)` for each of N triples, `(N,)` float32; without gradients or dropout."""
        if not len(prompts) == len(a) == len(b):
            raise ValueError(
                f"{len(prompts)} prompts, {len(a)} and {len(b)} responses: as many of each are needed"
            )
        pairs = self.encode_all([Pair(x, y, z) for x, y, z in zip(prompts, a, b, strict=True)])
        # Arithmetic in low precision depends on a row's place in the batch. So which response goes first is
        # decided by the tokens: asked either way, the same numbers are added, and only the sign differs.
        ids = [(list(pair.chosen.ids), list(pair.rejected.ids)) for pair in pairs]
        signs = torch.tensor([float((x > y) - (x < y)) for x, y in ids])
        logits = torch.empty(len(pairs))
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i]))
        with quietly(self):
            for part in chunks(order, self.at_once // 2):
                ordered = [(pairs[i].chosen, pairs[i].rejected)[:: int(signs[i]) or 1] for i in part]
                rows = [first for first, _ in ordered] + [second for _, second in ordered]
                logits[part] = self.pair_logits(self._collate(rows)).cpu()
        return torch.sigmoid(signs * logits)

    def encode_all(self, pairs: Iterable[Pair]) -> list[EncodedPair]:
        """Every pair; errors name its index."""
        encoded = []
        for i, pair in enumerate(pairs):
            try:
                encoded.append(self.encode(pair))
            except ValueError as error:
                raise ValueError(f"pairs[{i}]: {error}") from None
        return encoded

    def features(self, tokens: Tokens) -> Tensor:
        """The head's outputs for each row, `(B, outputs)` float32."""
        return self.head(self._pooled(self._states(tokens), tokens)).float()  # type: ignore[no-any-return]

    def features_of(self, rows: Sequence[Encoded]) -> Tensor:
        """`features` of N ≥ 1 sequences, on the CPU; without gradients or dropout."""
        with quietly(self):
            return torch.cat(
                [self.features(self._collate(part)).cpu() for part in chunks(rows, self.at_once)]
            )

    def _pooled(self, states: Tensor, tokens: Tokens) -> Tensor:
        """The hidden state that stands for each sequence, `(B, d)`."""
        if self.config.pooling == "mean":
            return mean(states, tokens.attention_mask)
        return at(states, tokens.attention_mask.sum(dim=1) - 1)


def mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row's states where `mask` is set, summed in float32, `(B, T, d)` → `(B, d)`."""
    total = (states * mask.unsqueeze(-1)).sum(dim=1, dtype=torch.float32)
    return (total / mask.sum(dim=1, keepdim=True)).to(states.dtype)


def probabilities(logits: FloatArray) -> FloatArray:
    """`1/(1 + e^{−s})` with `P + Pᵀ = 1` to the last bit."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits))
