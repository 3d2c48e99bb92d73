"""What learned preferences share: a transformers backbone with a head, texts in, `Pr(a ≻ b | x)` out.

All are antisymmetric by construction, `p(a, b) + p(b, a) = 1`: the logit is computed in float32 as a
difference that changes sign, bit for bit, when the two responses change places.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from nashpref.llm.data import Pair, Text
from nashpref.llm.encoding import Encoded, EncodedPair, Encoder, Tokens, collate
from nashpref.policies import FloatArray

ROWS = 64  # sequences put through the backbone at once when preferences are asked for


class PreferenceConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
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
        self.backbone = backbone or {}
        self.pooling, self.planes = pooling, planes
        self.prompt_scales, self.max_tokens = prompt_scales, max_tokens
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
        if backbone is None:
            body = AutoConfig.for_model(**config.backbone)  # type: ignore[no-untyped-call]
            # The default dtype is that of the saved weights while `from_pretrained` makes the model.
            backbone = AutoModel.from_config(body, dtype=torch.get_default_dtype())  # type: ignore[no-untyped-call]
        self.backbone = backbone
        self.head = nn.Linear(self.backbone.config.hidden_size, self.outputs)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_length: int | None = None,
        **options: Any,
    ) -> Self:
        """A new preference model, its head at random, on a pretrained backbone, whose dtype it takes.

        Args:
            backbone: a name or folder for `AutoModel`, of which only safetensors are read, or a model, which
                is copied; of a causal language model the head is left out.
            tokenizer: the backbone's; loaded from the same place when None.
            max_length: longest sequence in tokens, `PreferenceConfig.max_tokens`.
            options: the others of `PreferenceConfig`.

        Returns:
            The model in evaluation mode.
        """
        if isinstance(backbone, str | Path):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(backbone)
            body = AutoModel.from_pretrained(backbone, use_safetensors=True)
        else:
            body = _copy(backbone)
        if tokenizer is None:
            raise ValueError("tokenizer: a model handed over as an object needs its tokenizer too")
        config = PreferenceConfig(body.config.to_dict(), max_tokens=max_length, **options)
        model = cls(config, body)
        model.tokenizer = tokenizer
        nn.Module.to(model, device=body.device, dtype=body.dtype)
        model.train(False)
        return model

    @classmethod
    def from_pretrained(cls, path: Any, **options: Any) -> Self:  # type: ignore[override]
        """What `save_pretrained` wrote, with its tokenizer if one is there; only safetensors are read."""
        model = super().from_pretrained(path, **options, use_safetensors=True)
        folder = Path(path)
        if not folder.is_dir() or (folder / "tokenizer_config.json").exists():
            # With a configuration at hand it does not look for one, and wonder at the one that it finds.
            model.tokenizer = AutoTokenizer.from_pretrained(path, config=model.config)
        return model

    def save_pretrained(self, path: Any, **options: Any) -> None:  # type: ignore[override]
        """Weights (safetensors), configuration and tokenizer; `from_pretrained` gives the same model."""
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
        return Encoder(self.tokenizer, self.config.max_tokens)

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
        with self._quietly():
            for part in chunks(order, ROWS // 2):
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
        with self._quietly():
            return torch.cat([self.features(self._collate(part)).cpu() for part in chunks(rows, ROWS)])

    def _pooled(self, states: Tensor, tokens: Tokens) -> Tensor:
        """The hidden state that stands for each sequence, `(B, d)`."""
        if self.config.pooling == "mean":
            mask = tokens.attention_mask.unsqueeze(-1)
            total = (states * mask).sum(dim=1, dtype=torch.float32)
            return (total / mask.sum(dim=1)).to(states.dtype)
        return at(states, tokens.attention_mask.sum(dim=1) - 1)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Buffers that are not saved, such as rotary frequencies, keep their precision when the model is cast:
        # rounded, they would not be those of the same model once it is loaded again.
        kept = [
            (module, name, module._buffers[name])
            for module in self.modules()
            for name in module._non_persistent_buffers_set
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, buffer in kept:
            now = module._buffers[name]
            if buffer is not None and now is not None and now.dtype != buffer.dtype:
                module._buffers[name] = buffer.to(now.device)
        return self

    def _states(self, tokens: Tokens) -> Tensor:
        longest, room = (
            tokens.input_ids.shape[1],
            getattr(self.backbone.config, "max_position_embeddings", None),
        )
        if room is not None and longest > room:
            raise ValueError(f"a sequence of {longest} tokens: the backbone takes {room}; set max_length")
        output = self.backbone(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _collate(self, rows: Sequence[Encoded]) -> Tokens:
        return collate(rows, self.encoder.pad_id).to(self.device)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        training = self.training
        self.eval()  # type: ignore[no-untyped-call]
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)


def _copy(backbone: PreTrainedModel) -> PreTrainedModel:
    """The model without its head, made anew from its configuration, as it will be when it is loaded."""
    body = AutoModel.from_config(backbone.config, dtype=backbone.dtype)  # type: ignore[no-untyped-call]
    unknown = body.load_state_dict(backbone.base_model.state_dict(), strict=False).unexpected_keys
    if unknown:
        kind = type(backbone).__name__
        raise ValueError(f"backbone: {kind} has {unknown[0]}, which {type(body).__name__} of AutoModel lacks")
    return body.to(backbone.device)  # type: ignore[no-any-return]


def at(states: Tensor, positions: Tensor) -> Tensor:
    """The state at one position of each row, `(B, T, d)` → `(B, d)`."""
    return states[torch.arange(len(states), device=states.device), positions]


def probabilities(logits: FloatArray) -> FloatArray:
    """`1/(1 + e^{−s})` with `P + Pᵀ = 1` to the last bit."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits))


def chunks(items: Sequence[Any], size: int) -> Iterator[Any]:
    """Consecutive parts of `size`, the last one shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
