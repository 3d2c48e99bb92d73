"""Budget forcing: a model that would stop thinking is told to wait, and one that would not is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from nashpref.llm.data import Text
from nashpref.llm.decoding.generation import device_of, generate, left_padded, texts_of
from nashpref.llm.encoding import Encoder


class Thought(NamedTuple):
    """One response.

    Attributes:
        thinking: all before the end of thinking, the words that made it go on included.
        answer: all after it.
        tokens: of the thinking.
        waits: how often it was made to go on.
    """

    thinking: str
    answer: str
    tokens: int
    waits: int


def budget_forcing(
    policy: Any,
    encoder: Encoder,
    texts: Sequence[Text],
    *,
    end: str,
    wait: str = "Wait",
    times: int,
    max_thinking: int,
    max_answer: int,
    greedy: bool = False,
    generator: torch.Generator | None = None,
) -> list[Thought]:
    """Responses whose thinking goes on `times` times after the model would have ended it.

    In place of the token `end` (or of the end-of-sequence token) the words `wait` are put; the next `end`
    after `times` of them is left to stand. After `max_thinking` tokens, `wait` included, `end` is put there
    in any case. Then the answer is generated.

    Args:
        policy: a causal language model.
        encoder: its way from texts to tokens; its `max_length` must have room for everything.
        texts: B prompts, after which the model thinks.
        end: the end-of-thinking token, one token such as "</think>".
        wait: what is put in its place.
        times: ≥ 0.
        max_thinking, max_answer: longest thinking and answer, in tokens.
        greedy, generator: of `generate`.

    Raises:
        ValueError: an `end` of several tokens, a `wait` of none, or numbers out of range.

    Source: s1 (arXiv:2501.19393).
    """
    stop, words = (list(encoder.tokenizer(each, add_special_tokens=False).input_ids) for each in (end, wait))
    if len(stop) != 1 or stop == [encoder.tokenizer.unk_token_id]:
        raise ValueError(f"end = {end!r} is no single token of the tokenizer: name the end-of-thinking token")
    if not words:
        raise ValueError(f"wait = {wait!r} has no token: there would be nothing to go on from")
    if times < 0 or max_thinking < 1 or max_answer < 1:
        raise ValueError(
            f"times = {times}, max_thinking = {max_thinking}, max_answer = {max_answer}: 0 or more, and at "
            "least one token each"
        )
    room = max_thinking + 1 + max_answer
    prompts = [list(encoder.encode_prompt(text, room=room).ids) for text in texts]

    def speak(rows: Sequence[Sequence[int]], longest: int, stop: Sequence[int]) -> list[list[int]]:
        ids, mask = (each.to(device_of(policy)) for each in left_padded(rows, encoder.pad_id))
        options: dict[str, Any] = {"greedy": greedy, "generator": generator, "stop": stop}
        return generate(policy, encoder, ids, mask, max_new_tokens=longest, **options)

    said: list[list[int]] = [[] for _ in texts]
    waits = [0] * len(texts)
    open_ = list(range(len(texts)))
    while open_:
        longest = max(max_thinking - len(said[b]) for b in open_)
        drawn = speak([prompts[b] + said[b] for b in open_], longest, stop)
        still = []
        for b, tokens in zip(open_, drawn, strict=True):
            ended = tokens[-1] in (*stop, encoder.end_id)
            said[b] = (said[b] + (tokens[:-1] if ended else tokens))[:max_thinking]
            if ended and waits[b] < times and len(said[b]) + len(words) < max_thinking:
                said[b], waits[b] = said[b] + words, waits[b] + 1
                still.append(b)
        open_ = still
    answers = speak([p + s + stop for p, s in zip(prompts, said, strict=True)], max_answer, [])
    both = zip(texts_of(encoder, said), texts_of(encoder, answers), map(len, said), waits, strict=True)
    return [Thought(*each) for each in both]
