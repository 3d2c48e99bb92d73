"""A transformers backbone with a head and its tokenizer: made, saved, loaded, and asked for its states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from nashpref.llm.encoding import Encoded, Encoder, Tokens, collate


class HeadConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """The backbone's configuration.

    Args:
        backbone: a transformers configuration as a mapping, with its `model_type`.
        max_tokens: longest sequence; the oldest prompt tokens are dropped. Not called `max_length`, with
            which transformers refuses to save.
    """

    def __init__(
        self, backbone: dict[str, Any] | None = None, max_tokens: int | None = None, **options: Any
    ) -> None:
        self.backbone, self.max_tokens = backbone or {}, max_tokens
        super().__init__(**options)


class HeadModel(PreTrainedModel):
    """What preference and reward models share: a backbone, a linear head on its states, and a tokenizer."""

    config_class: type[HeadConfig] = HeadConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True

    def __init__(self, config: HeadConfig, backbone: PreTrainedModel | None = None) -> None:
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
        """A new model, its head at random, on a pretrained backbone, whose dtype it takes.

        Args:
            backbone: a name or folder for `AutoModel`, of which only safetensors are read, or a model, which
                is copied; of a causal language model the head is left out.
            tokenizer: the backbone's; loaded from the same place when None.
            max_length: longest sequence in tokens, `max_tokens` of the configuration.
            options: the others of the configuration.

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
        config = cls.config_class(body.config.to_dict(), max_tokens=max_length, **options)
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
    def at_once(self) -> int:
        """Sequences put through the backbone together when the model is asked; a CPU's cache holds few."""
        return 16 if self.device.type == "cpu" else 64

    @property
    def encoder(self) -> Encoder:
        """Text to tokens. Raises `ValueError` without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError("the model has no tokenizer: set model.tokenizer")
        return Encoder(self.tokenizer, self.config.max_tokens)

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


def chunks(items: Sequence[Any], size: int) -> Iterator[Any]:
    """Consecutive parts of `size`, the last one shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
