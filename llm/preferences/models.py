"""Learned preferences: models of `Pr(a ≻ b | x)` over any transformers backbone, from pairs of texts.

All are antisymmetric by construction, `p(a, b) + p(b, a) = 1`: the logit is computed in float32 as a
difference that changes sign, bit for bit, when the two responses change places.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from nashpref.llm.data import Pair, Text
from nashpref.llm.encoding import Encoded, EncodedPair, Encoder, Tokens, collate
from nashpref.policies import FloatArray

INITIAL_SCALE = 1.85  # of a plane, before softplus: λ = 2
ROWS = 64  # sequences put through the backbone at once when preferences are asked for


class PreferenceConfig(PretrainedConfig):
    """The backbone's configuration, and what is put on top of it.

    Args:
        backbone: a transformers configuration as a mapping, with its `model_type`.
        pooling: the hidden state that stands for a sequence: its "last" token's (causal models) or the "mean"
            over all tokens (bidirectional ones).
        planes: of `GeneralPreferenceModel`, how many planes its embedding has.
        prompt_scales: of `GeneralPreferenceModel`, whether each plane's weight depends on the prompt.
        max_length: longest sequence in tokens; the oldest prompt tokens are dropped.
    """

    model_type = "nashpref-preference"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        pooling: Literal["last", "mean"] = "last",
        planes: int = 4,
        prompt_scales: bool = False,
        max_length: int | None = None,
        **options: Any,
    ) -> None:
        self.backbone = backbone or {}
        self.pooling, self.planes = pooling, planes
        self.prompt_scales, self.max_length = prompt_scales, max_length
        super().__init__(**options)


class PreferenceModel(PreTrainedModel, ABC):
    """What the preference models share: a backbone, its tokenizer, and texts in, probabilities out.

    Called with prompts and two responses each it returns `Pr(a ≻ b | x)`, `(N,)`. For training, `encode`
    turns a pair into tokens and `pair_logits` a batch of them into logits.
    """

    config_class = PreferenceConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True

    def __init__(self, config: PreferenceConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.backbone = backbone or AutoModel.from_config(AutoConfig.for_model(**config.backbone))
        self.head = nn.Linear(self.backbone.config.hidden_size, self.outputs)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.post_init()

    @classmethod
    def from_backbone(
        cls, backbone: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any
    ) -> Self:
        """A new preference model, its head at random, on a pretrained backbone.

        Args:
            backbone: a name or folder for `AutoModel`, or a model, which is copied; of a causal language model
                the head is left out.
            tokenizer: the backbone's; loaded from the same place when None.
            options: of `PreferenceConfig`.
        """
        if isinstance(backbone, str):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(backbone)
            body = AutoModel.from_pretrained(backbone)
        else:
            body = copy.deepcopy(backbone.base_model)
        if tokenizer is None:
            raise ValueError("tokenizer: a model handed over as an object needs its tokenizer too")
        model = cls(PreferenceConfig(body.config.to_dict(), **options), body)
        model.tokenizer = tokenizer
        return model

    @classmethod
    def from_pretrained(cls, path: Any, *arguments: Any, **options: Any) -> Self:
        """What `save_pretrained` wrote, with its tokenizer if one is there."""
        model = super().from_pretrained(path, *arguments, **options)
        loaded = model[0] if isinstance(model, tuple) else model
        try:
            loaded.tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError):
            loaded.tokenizer = None
        return model  # type: ignore[no-any-return]

    def save_pretrained(self, path: Any, **options: Any) -> None:
        """Weights (safetensors), configuration and tokenizer."""
        super().save_pretrained(path, **options)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(path)

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for a sequence."""
        return 1

    @property
    def encoder(self) -> Encoder:
        """Text to tokens. Raises `ValueError` without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError("the model has no tokenizer: set model.tokenizer")
        return Encoder(self.tokenizer, self.config.max_length)

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
        encoded = [self.encode(Pair(x, y, z)) for x, y, z in zip(prompts, a, b, strict=True)]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        logits = torch.empty(len(encoded))
        with self._quietly():
            for part in _chunks(order, ROWS // 2):
                rows = [encoded[i].chosen for i in part] + [encoded[i].rejected for i in part]
                logits[part] = self.pair_logits(self._collate(rows)).cpu()
        return torch.sigmoid(logits)

    def features(self, tokens: Tokens) -> Tensor:
        """The head's outputs for each row, `(B, outputs)` float32."""
        return self.head(self._pooled(self._states(tokens), tokens)).float()  # type: ignore[no-any-return]

    def _pooled(self, states: Tensor, tokens: Tokens) -> Tensor:
        """The hidden state that stands for each sequence, `(B, d)`."""
        if self.config.pooling == "mean":
            mask = tokens.attention_mask.unsqueeze(-1).to(states.dtype)
            return (states * mask).sum(dim=1) / mask.sum(dim=1)
        return _at(states, tokens.attention_mask.sum(dim=1) - 1)

    def _states(self, tokens: Tokens) -> Tensor:
        output = self.backbone(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _collate(self, rows: Sequence[Encoded]) -> Tokens:
        return collate(rows, self.encoder.pad_id).to(self.device)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)


class PairwisePreferenceModel(PreferenceModel):
    """A cross-encoder that reads both responses: `logit p(a ≻ b | x) = (f(x, a, b) − f(x, b, a))/2`.

    The most expressive of the three, and the slowest: a K×K matrix takes K(K − 1) sequences.
    Source: the pairwise model of RLHFlow (arXiv:2405.07863) and SLiC-HF, made antisymmetric.
    """

    def encode(self, pair: Pair) -> EncodedPair:
        """`x a b` and `x b a`."""
        return EncodedPair(
            self._both(pair.prompt, pair.chosen, pair.rejected),
            self._both(pair.prompt, pair.rejected, pair.chosen),
            pair.p_chosen,
            pair.margin,
        )

    def _both(self, prompt: Text, first: Text, second: Text) -> Encoded:
        """The tokens of the prompt, the first response and the second, each ended as a completion is."""
        encoder = self.encoder
        one, two = encoder.encode_group(prompt, [first, second])
        ids = [*one.ids, *two.ids[two.start :]]
        limit = self.config.max_length
        dropped = 0 if limit is None else min(max(0, len(ids) - limit), one.start - 1)
        return Encoded(ids[dropped:], one.start - dropped, dropped=dropped)

    def pair_logits(self, tokens: Tokens) -> Tensor:
        """`(f_ab − f_ba)/2`."""
        ab, ba = self.features(tokens)[:, 0].chunk(2)
        return (ab - ba) / 2.0

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """From K(K − 1) sequences."""
        K = len(responses)
        ordered = [(i, j) for i in range(K) for j in range(K) if i != j]
        rows = [self._both(prompt, responses[i], responses[j]) for i, j in ordered]
        f = np.zeros((K, K))
        with self._quietly():
            for part in _chunks(list(range(len(rows))), ROWS):
                values = self.features(self._collate([rows[k] for k in part]))[:, 0].double().cpu().numpy()
                for k, value in zip(part, values, strict=True):
                    f[ordered[k]] = value
        return _probabilities((f - f.T) / 2.0)


class ResponseModel(PreferenceModel):
    """Reads each response by itself and compares what it has noted: K passes for a K×K matrix."""

    def encode(self, pair: Pair) -> EncodedPair:
        """`x a` and `x b`."""
        return self.encoder.encode_pair(pair)

    def pair_logits(self, tokens: Tokens) -> Tensor:
        """`compare` of the two."""
        a, b = self.features(tokens).chunk(2)
        return self.compare(a, b)

    @abstractmethod
    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """`log p/(1 − p)` from the features `(…, F)` of two responses, broadcast: `(…,)`."""

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """From K sequences."""
        rows = self.encoder.encode_group(prompt, responses)
        with self._quietly():
            parts = [self.features(self._collate(part)) for part in _chunks(rows, ROWS)]
            features = torch.cat(parts)
            logits = self.compare(features[:, None], features[None]).double().cpu().numpy()
        return _probabilities((logits - logits.T) / 2.0)


class BradleyTerryModel(ResponseModel):
    """A scalar reward: `logit p(a ≻ b | x) = r(x, a) − r(x, b)`, as in RLHF.

    Always transitive: no setting of its weights says a ≻ b ≻ c ≻ a.
    """

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """`r_a − r_b`."""
        return a[..., 0] - b[..., 0]

    def rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """r(x, y) for each of N pairs, `(N,)` float32; without gradients or dropout."""
        rows = [self.encoder.encode(x, y) for x, y in zip(prompts, responses, strict=True)]
        with self._quietly():
            parts = [self.features(self._collate(part))[:, 0].cpu() for part in _chunks(rows, ROWS)]
        return torch.cat(parts) if parts else torch.empty(0)


class GeneralPreferenceModel(ResponseModel):
    """Skew-symmetric embeddings: `logit p(a ≻ b | x) = Σ_l λ_l(x) (u_l(a) w_l(b) − w_l(a) u_l(b))`.

    Each response is a point `(u_l, w_l)` in each of `planes` planes, on a sphere of all of them together; a
    quarter turn in a plane wins most. One plane is enough for a cycle of any length, which no reward can
    express; K passes give the K×K matrix. The planes' weights λ_l ≥ 0 are learned, or with `prompt_scales`
    computed from the prompt's last hidden state.

    Source: arXiv:2410.02197 (GPM), eq. 4, whose eigenvalue scales these are.
    """

    def __init__(self, config: PreferenceConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self.scale = nn.Parameter(torch.full((config.planes,), INITIAL_SCALE))
        if config.prompt_scales:
            self.prompt_scale = nn.Linear(self.backbone.config.hidden_size, config.planes, bias=False)
            nn.init.zeros_(self.prompt_scale.weight)

    @property
    def outputs(self) -> int:
        """Two numbers for each plane."""
        return 2 * int(self.config.planes)

    def features(self, tokens: Tokens) -> Tensor:
        """The embedding, and the raw scales of the planes: `(B, 3·planes)`."""
        states = self._states(tokens)
        embedding = nn.functional.normalize(self.head(self._pooled(states, tokens)).float(), dim=-1)
        scale = self.scale.float().expand(len(embedding), -1)
        if self.config.prompt_scales:
            prompt_end = tokens.completion_mask.int().argmax(dim=1) - 1
            scale = scale + self.prompt_scale(_at(states, prompt_end)).float()
        return torch.cat([embedding, scale], dim=-1)

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """The skew form. Both responses share a prompt; a bidirectional backbone may still see two scales in
        it, of which the mean keeps the form skew."""
        # Unit embeddings bound the logit by the largest λ: it starts at 2, and so p within 0.12 … 0.88.
        u_a, w_a, scale_a = a.chunk(3, dim=-1)
        u_b, w_b, scale_b = b.chunk(3, dim=-1)
        scale = nn.functional.softplus((scale_a + scale_b) / 2.0)
        return (scale * (u_a * w_b - w_a * u_b)).sum(dim=-1)


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """The state at one position of each row, `(B, T, d)` → `(B, d)`."""
    return states[torch.arange(len(states), device=states.device), positions]


def _probabilities(logits: FloatArray) -> FloatArray:
    """`1/(1 + e^{−s})` with `P + Pᵀ = 1` to the last bit."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits))


def _chunks(items: Sequence[Any], size: int) -> Iterator[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))
