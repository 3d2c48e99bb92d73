"""What a configuration says of the model to start from and the data to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from nashpref.llm.data import Records, read
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A small model at random, and a tokenizer of the training data: see `nashpref.llm.playground`."""

    level: Literal["word", "character", "subword"] = "word"
    vocabulary: int | None = None
    layers: int = 2
    width: int = 64
    kind: Literal["llama", "gpt2"] = "llama"
    context: int = 512


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Train adapters of low rank (arXiv:2106.09685) in place of the weights; they are merged in the end."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)

    def adapt(self, model: PreTrainedModel) -> nn.Module:
        """`model` with adapters; only these are trained."""
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise ValueError("lora needs peft: pip install 'nashpref[peft]'") from None
        from transformers.pytorch_utils import Conv1D

        targets = self.targets[0] if self.targets == ("all-linear",) else list(self.targets)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            # GPT-2's matrices are the other way round.
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        return get_peft_model(model, config)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where the model comes from.

    Attributes:
        name: a folder or a name for `from_pretrained`; of weights, only safetensors are read.
        tiny: a new small model instead.
        dtype: of the weights that are trained; with "bfloat16" no float32 copy of them is kept, which small
            learning rates need.
        lora: adapters instead of all weights.
    """

    name: str | None = None
    tiny: Tiny | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: Lora | None = None

    def __post_init__(self) -> None:
        if (self.name is None) == (self.tiny is None):
            raise ValueError("give one of 'name', a model to start from, and 'tiny', a new small one")

    def load(self, auto: Any, texts: Iterable[str], seed: int) -> tuple[Any, PreTrainedTokenizerBase]:
        """The model, by the transformers class `auto`, and its tokenizer; `texts` are for a tiny one's."""
        if self.tiny is not None:
            t = self.tiny
            tokenizer = tiny_tokenizer(texts, level=t.level, size=t.vocabulary)
            sizes = {"layers": t.layers, "width": t.width, "context": t.context}
            return tiny_causal_lm(tokenizer, **sizes, kind=t.kind, seed=seed), tokenizer
        from transformers import AutoTokenizer

        dtype = getattr(torch, self.dtype)
        model = auto.from_pretrained(self.name, dtype=dtype, use_safetensors=True)
        return model, AutoTokenizer.from_pretrained(self.name)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which records, read by `nashpref.llm.data.read`.

    Attributes:
        train, evaluate: files.
        columns: field → column, where they differ.
        max_length: in tokens, prompt and completion together; the oldest prompt tokens are dropped first.
        skip_bad: leave bad rows out, and count them.
    """

    train: str
    evaluate: str | None = None
    columns: dict[str, str] | None = None
    max_length: int | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length = {self.max_length}: it must be at least 2")

    def read(self, path: str, say: Callable[[str], None]) -> Records:
        """The records of a file; `say` is told of bad rows that were left out."""
        records = read(path, columns=self.columns, skip_bad=self.skip_bad)
        if records.skipped:
            rows = "row" if records.skipped == 1 else "rows"
            say(f"{path}: {records.skipped} bad {rows} left out, the first: {records.messages[0]}")
        return records
