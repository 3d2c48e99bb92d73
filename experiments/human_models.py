"""The preference models of `human_preferences`: from scratch, and as heads on an encoder that is kept."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, PreTrainedModel

from nashpref.llm.batching import LengthBuckets
from nashpref.llm.data import Pair
from nashpref.llm.encoding import Encoded, EncodedPair, collate_pairs
from nashpref.llm.objectives import PreferencePairs
from nashpref.llm.playground import tiny_tokenizer
from nashpref.llm.preferences.base import PreferenceConfig, PreferenceModel
from nashpref.llm.preferences.models import (
    BradleyTerryModel,
    GeneralPreferenceModel,
    PairwisePreferenceModel,
)
from nashpref.llm.training import TrainConfig, fit
from nashpref.policies import FloatArray

IntArray = NDArray[np.int64]

Learner = Callable[[IntArray, IntArray, int], FloatArray]
"""Pairs to learn from, pairs to judge and a seed, to `log p/(1 − p)` of those that are judged."""


KINDS: Mapping[str, type[PreferenceModel]] = {
    "Bradley–Terry": BradleyTerryModel,
    "general": GeneralPreferenceModel,
    "pairwise": PairwisePreferenceModel,
}


@dataclass(frozen=True)
class Training:
    """Options of `TrainConfig`."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int = 32
    warmup_steps: int = 10


@dataclass(frozen=True)
class Tiny:
    """A small bidirectional transformer that begins at random, and the words it knows.

    Its tokens are the most frequent lower-case words and marks of the pairs that it is trained on.
    """

    vocabulary: int = 6000
    layers: int = 1
    width: int = 64
    dropout: float = 0.3


def scratch(
    kind: type[PreferenceModel], pairs: Sequence[Pair], tiny: Tiny, training: Training, max_tokens: int
) -> Learner:
    """Backbone, head and tokenizer are all learnt from the pairs that are given to learn from."""

    def learn(known: IntArray, judged: IntArray, seed: int) -> FloatArray:
        texts = [str(t) for i in known for t in (pairs[i].prompt, pairs[i].chosen, pairs[i].rejected)]
        tokenizer = tiny_tokenizer(texts, level="word", size=tiny.vocabulary)
        shape = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=tiny.width,
            num_hidden_layers=tiny.layers,
            num_attention_heads=max(1, tiny.width // 32),
            intermediate_size=2 * tiny.width,
            max_position_embeddings=2 * max_tokens,  # pairwise, two answers in a row
            hidden_dropout_prob=tiny.dropout,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(seed)
        body: PreTrainedModel = AutoModel.from_config(shape)  # type: ignore[no-untyped-call]
        model = kind.from_backbone(body, tokenizer, pooling="mean", max_length=max_tokens)
        train(model, model.encode_all(pairs[i] for i in known), training, seed)
        return judge(model, model.encode_all(pairs[i] for i in judged))

    return learn


def frozen(kind: type[PreferenceModel], pairs: Sequence[Pair], states: Tensor, training: Training) -> Learner:
    """Only the head is learnt, on `states` that were computed once for all pairs by `read_states`."""

    def learn(known: IntArray, judged: IntArray, seed: int) -> FloatArray:
        torch.manual_seed(seed)
        backbone: Any = States(states)
        model = kind(PreferenceConfig(pooling="last"), backbone)
        train(model, encoded_states(pairs, known), training, seed)
        return judge(model, encoded_states(pairs, judged))

    return learn


def read_states(
    reader: type[PreferenceModel], pairs: Sequence[Pair], folder: str, layers: int, max_tokens: int
) -> Tensor:
    """What the encoder's lowest `layers` make of N pairs, as `reader` reads and pools them, `(2N, d)`.

    Rows 2i and 2i + 1 are the sequences of pair i.
    """
    body = lowest_layers(folder, layers)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = reader.from_backbone(body, tokenizer, pooling="mean", max_length=max_tokens)
    model.head = nn.Identity()  # type: ignore[assignment]
    rows = [row for pair in model.encode_all(pairs) for row in (pair.chosen, pair.rejected)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    states = torch.empty(len(rows), int(body.config.hidden_size))
    states[order] = model.features_of([rows[i] for i in order])
    return states


def lowest_layers(folder: str, layers: int) -> PreTrainedModel:
    """A pretrained encoder without its upper layers, which are made for what it was trained on."""
    whole = AutoModel.from_pretrained(folder, use_safetensors=True)
    shape = copy.deepcopy(whole.config)
    shape.num_hidden_layers = min(layers, shape.num_hidden_layers)
    body: PreTrainedModel = AutoModel.from_config(shape)  # type: ignore[no-untyped-call]
    body.load_state_dict(whole.state_dict(), strict=False)
    return body


class States(nn.Module):
    """A backbone for sequences of one token, which says whose known state it is."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = nn.Parameter(states, requires_grad=False)
        self.config = SimpleNamespace(hidden_size=states.shape[1])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """`(B, 1)` to `(B, 1, d)`."""
        return SimpleNamespace(last_hidden_state=self.states[input_ids])


def encoded_states(pairs: Sequence[Pair], indices: IntArray) -> list[EncodedPair]:
    """Pairs as the indices of their states."""
    return [
        EncodedPair(Encoded([2 * i], 0), Encoded([2 * i + 1], 0), pairs[i].p_chosen) for i in indices.tolist()
    ]


def train(model: PreferenceModel, examples: Sequence[EncodedPair], training: Training, seed: int) -> None:
    """By the library's loop, on the CPU; the run's folder is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        fit(
            PreferencePairs(model),
            examples,
            LengthBuckets([len(e) for e in examples], training.batch_size, seed=seed),
            partial(collate_pairs, pad_id=_pad_id(model)),
            TrainConfig(output=folder, seed=seed, log_every=10**6, **dataclasses.asdict(training)),
        )


def judge(model: PreferenceModel, examples: Sequence[EncodedPair]) -> FloatArray:
    """`log p/(1 − p)` of N pairs, `(N,)` float64."""
    model.eval()  # type: ignore[no-untyped-call]
    logits = np.empty(len(examples))
    with torch.no_grad():
        for part in _parts(sorted(range(len(examples)), key=lambda i: len(examples[i])), 32):
            batch = collate_pairs([examples[i] for i in part], _pad_id(model))
            logits[part] = model.pair_logits(batch.tokens).double().numpy()
    return logits


def _pad_id(model: PreferenceModel) -> int:
    return 0 if model.tokenizer is None else model.encoder.pad_id


def _parts(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))
