"""Prompts as a batch, and what a frozen policy says to them by transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList

from nashpref.llm.data import Text
from nashpref.llm.encoding import Encoder
from nashpref.llm.logprobs import causal_model, check_temperature, quietly


class Prompts(NamedTuple):
    """B prompts that all end in the last column.

    Attributes:
        texts: as they were given.
        ids: `(B, T)`, padded on the left.
        mask: `(B, T)`, 0 on padding.
    """

    texts: Sequence[Text]
    ids: Tensor
    mask: Tensor


def encode_prompts(encoder: Encoder, texts: Sequence[Text], *, room: int, device: Any = "cpu") -> Prompts:
    """A batch of prompts, each with room for so many new tokens within the encoder's `max_length`.

    Raises:
        ValueError: no prompts.
    """
    if not texts:
        raise ValueError("no prompts: there is nothing to answer")
    rows = [encoder.encode_prompt(text, room=room).ids for text in texts]
    return Prompts(texts, *(each.to(device) for each in left_padded(rows, encoder.pad_id)))


def left_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, `(N, T)`, of rows that all end in the last column."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id, padding_side="left")
    lengths = torch.tensor([len(row) for row in tensors])
    return ids, (torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]).long()


def generate(
    policy: Any,
    encoder: Encoder,
    ids: Tensor,
    mask: Tensor,
    *,
    max_new_tokens: int,
    count: int = 1,
    processors: Iterable[LogitsProcessor] = (),
    temperature: float = 1.0,
    greedy: bool = False,
    stop: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """The new tokens of `count` responses to every prompt, prompt after prompt, B·count lists.

    A list ends with the token that stopped it, or has `max_new_tokens`. transformers draws from the global
    generator: within, it is seeded by one number of `generator`, and afterwards it is as it was. What the
    model's own generation configuration says of temperature, truncation and penalties is put aside: the
    samples are of the policy, as processors change it.

    Args:
        policy: a causal language model, or a PEFT model around one.
        encoder: whose end-of-sequence token ends a response.
        ids, mask: of B prompts that all end in the last column, `(B, T)`, on the policy's device.
        max_new_tokens: longest response.
        count: responses to every prompt.
        processors: what changes the logits of the next token, in this order, before the temperature.
        temperature: of the logits, > 0; without effect on a greedy decoder.
        greedy: the likeliest token always.
        stop: other tokens that end a response.
        generator: of all randomness, on the CPU; needed unless `greedy`.

    Raises:
        ValueError: numbers out of range, or no generator to draw with.
    """
    check_temperature(temperature)
    if max_new_tokens < 1 or count < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}, count = {count}: at least 1 of each is needed")
    if generator is None and not greedy:
        raise ValueError("give generator: the randomness; or greedy=True")
    # top_k = 0 and top_p = 1 keep every token, where None would mean the model's own configuration.
    drawing = {"temperature": temperature, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    ends = [encoder.end_id, *stop]
    with quietly(policy), seeded(generator, ids.device):
        sequences = policy.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            num_beams=1,
            num_return_sequences=count,
            do_sample=not greedy,
            logits_processor=LogitsProcessorList(processors),
            eos_token_id=ends,
            pad_token_id=encoder.pad_id,
            **({} if greedy else drawing),
        )
    return [until(row, ends) for row in sequences[:, ids.shape[1] :].tolist()]


def until(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Up to and with the first of `ends`; all, where there is none."""
    place = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return list(ids[: place + 1])


def texts_of(encoder: Encoder, rows: Iterable[Sequence[int]]) -> list[str]:
    """What responses say, without the end-of-sequence token."""
    said = [row[:-1] if row and row[-1] == encoder.end_id else row for row in rows]
    texts: list[str] = encoder.tokenizer.batch_decode([list(row) for row in said])
    return texts


def device_of(policy: Any) -> torch.device:
    """Where the policy's weights are."""
    device: torch.device = causal_model(policy).device
    return device


@contextmanager
def seeded(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Within, the global generators are a function of `generator`; None leaves them alone."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
