"""Text to tokens, such that the model is trained on exactly the tokens that it would sample.

A sequence is a prompt followed by a completion. The prompt's tokens do not depend on what follows them,
because at sampling time nothing follows yet; the completion's are those that the policy draws, up to and
including the end-of-sequence token. Whatever belongs to neither (a user's turn inside a longer completion, a
newline that a template puts after the end-of-sequence token) is never in the completion mask.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from nashpref.llm.data import Demonstration, Messages, Pair, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R = TypeVar("R")
E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a prompt and its completion.

    Attributes:
        ids: token ids, prompt and completion together.
        start: position of the completion's first token, at least 1.
        others: positions after `start` that are not the policy's own, such as a user's turn.
        dropped: prompt tokens that were left out to keep within `max_length`.
        cut: tokens that the completion lost at its end, because alone it was too long.
    """

    ids: Sequence[int]
    start: int
    others: Sequence[int] = ()
    dropped: int = 0
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Two completions of one prompt, which has the same tokens in both; as long as the longer one."""

    chosen: Encoded
    rejected: Encoded
    p_chosen: float = 1.0
    margin: float = 0.0

    def __len__(self) -> int:
        return max(len(self.chosen), len(self.rejected))


class Tokens(NamedTuple):
    """A batch of sequences, padded on the right.

    Attributes:
        input_ids: `(B, T)` int64.
        attention_mask: `(B, T)` int64, 0 on padding.
        completion_mask: `(B, T)` bool, True on the policy's own tokens, the end-of-sequence token included.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    completion_mask: torch.Tensor

    def to(self, device: torch.device | str) -> Tokens:
        """The same on another device."""
        return Tokens(*(tensor.to(device) for tensor in self))


class PairBatch(NamedTuple):
    """B pairs: `tokens` has 2B rows, first the chosen ones, then the rejected; the rest is `(B,)` float32."""

    tokens: Tokens
    p_chosen: torch.Tensor
    margin: torch.Tensor

    def to(self, device: torch.device | str) -> PairBatch:
        """The same on another device."""
        return PairBatch(self.tokens.to(device), self.p_chosen.to(device), self.margin.to(device))


class Truncation(NamedTuple):
    """How much `max_length` took away: sequences in all, those that lost tokens, and the tokens lost."""

    sequences: int
    prompts: int
    prompt_tokens: int
    completions: int
    completion_tokens: int


class Encoder:
    """Prompts and completions to token ids.

    Plain text becomes `[first] prompt completion end`: `first` is what the tokenizer itself puts before any
    text (or, before an empty prompt, its begin- or else its end-of-sequence token, since the first token of a
    completion needs something to follow), `end` the end-of-sequence token. Messages are rendered by the
    tokenizer's chat template; the completion of a chat is one text, or messages of which only the assistant's
    are the policy's own.

    The prompt is tokenised on its own; the completion takes the tokens that prompt and completion have
    together when these begin with the prompt's, and otherwise (a token would straddle the boundary) its own.

    Sequences longer than `max_length` lose the oldest prompt tokens, except a begin-of-sequence token at the
    very front, down to one; a completion that is then still too long is cut at its end, and so has no
    end-of-sequence token. `Encoded.dropped` and `.cut` count the tokens lost.

    Args:
        tokenizer: any tokenizer of transformers; its padding side and truncation settings play no part.
        max_length: most tokens of prompt and completion together, at least 2; None: no limit.
        template_options: passed on to the chat template, such as `{"enable_thinking": False}`.

    Raises:
        ValueError: a tokenizer that has no token to end a text with, or `max_length` below 2.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        *,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length = {max_length}: room for a prompt and a completion token is needed")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.template_options = dict(template_options or {})
        # BERT and its like have a separator in place of an end, and a class token in place of a beginning.
        end: int | None = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
        if end is None:
            raise ValueError("the tokenizer has no end-of-sequence token: set tokenizer.eos_token")
        self.end_id: int = end
        self.pad_id: int = _first(tokenizer.pad_token_id, end)
        self._begin: int = _first(tokenizer.bos_token_id, tokenizer.cls_token_id, end)
        front = list(tokenizer("").input_ids)[:1]
        self._front: list[int] = front if front == [self._begin] else []

    def encode(self, prompt: Text, completion: Text) -> Encoded:
        """One prompt with one completion.

        Raises:
            ValueError: messages that the chat template refuses or does not render piece by piece, no chat
                template, or a text prompt with messages as its completion.
        """
        return self.encode_group(prompt, [completion])[0]

    def encode_pair(self, pair: Pair) -> EncodedPair:
        """Both completions of a pair after the same prompt tokens."""
        chosen, rejected = self.encode_group(pair.prompt, [pair.chosen, pair.rejected])
        return EncodedPair(chosen, rejected, pair.p_chosen, pair.margin)

    def encode_prompt(self, prompt: Text, *, room: int = 1) -> Encoded:
        """A prompt to sample from, leaving room for so many tokens within `max_length`."""
        if self.max_length is not None and room >= self.max_length:
            raise ValueError(f"room = {room}: max_length = {self.max_length} leaves no token for the prompt")
        if isinstance(prompt, str):
            ids = self._plain(self._ids(prompt))
        else:
            ids = self._ids(self._render(prompt, True))
        keep = len(ids) if self.max_length is None else min(len(ids), self.max_length - room)
        return Encoded(array("i", self._newest(ids, keep)), keep, dropped=len(ids) - keep)

    def encode_group(self, prompt: Text, completions: Sequence[Text]) -> list[Encoded]:
        """Several completions of one prompt; what is dropped from the prompt is dropped for all of them."""
        known: dict[str, list[int]] = {}
        rows = [self._row(prompt, completion, known) for completion in completions]
        longest = max((len(ids) - start for ids, start, _ in rows), default=0)
        encoded = []
        for ids, start, others in rows:
            keep, end = start, len(ids)
            if self.max_length is not None:
                keep = min(start, max(1, self.max_length - longest))
                end = min(end, start + self.max_length - keep)
            shift = start - keep
            encoded.append(
                Encoded(
                    array("i", self._newest(ids[:start], keep) + ids[start:end]),
                    keep,
                    tuple(position - shift for position in others if position < end),
                    dropped=shift,
                    cut=len(ids) - end,
                )
            )
        return encoded

    def _row(
        self, prompt: Text, completion: Text, known: dict[str, list[int]]
    ) -> tuple[list[int], int, list[int]]:
        """Ids, start and the positions that are not the policy's own, at full length.

        `known` holds the tokens of texts that came up before, such as the prompt's.
        """
        if not isinstance(prompt, str):
            if isinstance(completion, str):
                completion = [{"role": "assistant", "content": completion}]
            return self._chat_row(prompt, completion, known)
        if not isinstance(completion, str):
            raise ValueError("the prompt is text and the completion messages: give both in one way")
        given, said = self._tokens([prompt, completion], known)
        given = self._plain(given)
        return [*given, *said, self.end_id], len(given), []

    def _chat_row(
        self, prompt: Messages, completion: Messages, known: dict[str, list[int]]
    ) -> tuple[list[int], int, list[int]]:
        segments = self._segments(prompt, completion)
        tokens = self._tokens(segments, known)
        if segments[-1].strip() == str(completion[-1]["content"]).strip():
            tokens[-1].append(self.end_id)  # the template has no sign that an answer is over
        ids = tokens[0] or [self._begin]
        start = len(ids)
        others: list[int] = []
        for i, new in enumerate(tokens[1:], 1):
            own = len(new) if i % 2 else 0
            if own and self.end_id in new:  # sampling stops there: what follows is the template's
                own -= new[::-1].index(self.end_id)
            others += range(len(ids) + own, len(ids) + len(new))
            ids = ids + new
        while others and others[-1] == len(ids) - 1:
            del ids[-1], others[-1]
        return ids, start, others

    def _segments(self, prompt: Messages, completion: Messages) -> list[str]:
        """The rendered chat in pieces: what the policy is given, what it says, what it is given, …"""
        if not completion or completion[-1]["role"] != "assistant":
            raise ValueError("the completion of a chat must end with a message of the assistant")
        segments, text = [], ""
        for i, message in enumerate(completion):
            if message["role"] != "assistant":
                continue
            for messages, generation in ((completion[:i], True), (completion[: i + 1], False)):
                rendered = self._render([*prompt, *messages], generation)
                if not rendered.startswith(text):
                    at = next(k for k, c in enumerate(text) if rendered[k : k + 1] != c)
                    raise ValueError(
                        "the chat template renders the beginning of a chat differently once more follows "
                        f"({text[at : at + 20]!r} becomes {rendered[at : at + 20]!r} after {at} characters), "
                        "so that training and sampling would see different prompts: use a template that only "
                        "adds to what it wrote, or template_options that make it so"
                    )
                segments.append(rendered[len(text) :])
                text = rendered
        return segments

    def _render(self, messages: Messages, generation: bool) -> str:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template: set tokenizer.chat_template, or give prompts and "
                "completions as plain text"
            )
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation,
                **self.template_options,
            )
        except TemplateError as error:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise ValueError(f"the chat template refuses messages of {roles}: {error}") from None
        return str(rendered)

    def _tokens(self, texts: Sequence[str], known: dict[str, list[int]]) -> list[list[int]]:
        """The tokens of consecutive texts: those of the whole, where a token ends at each boundary.

        Otherwise of each text alone: what the earlier ones are made of never depends on the later ones.
        """
        pieces: list[list[int]] = []
        text = ""
        ids: list[int] = []
        for more in texts:
            text += more
            if text not in known:
                known[text] = self._ids(text)
            joint = known[text]
            pieces.append(joint[len(ids) :] if joint[: len(ids)] == ids else self._ids(more))
            ids = ids + pieces[-1]
        return pieces

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _plain(self, ids: list[int]) -> list[int]:
        """A text prompt's tokens: at least one, since a completion's first token must follow something."""
        return [*self._front, *ids] or [self._begin]

    def _newest(self, ids: list[int], keep: int) -> list[int]:
        """The last `keep` of `ids`, with a begin-of-sequence token kept in front where there is room."""
        if 1 < keep < len(ids) and ids[0] == self._begin:
            return [ids[0], *ids[len(ids) - keep + 1 :]]
        return ids[len(ids) - keep :]


def encode_pairs(encoder: Encoder, pairs: Iterable[Pair]) -> list[EncodedPair]:
    """Every pair; errors name its index."""
    return [_at(i, encoder.encode_pair, pair) for i, pair in enumerate(pairs)]


def encode_demonstrations(encoder: Encoder, demonstrations: Iterable[Demonstration]) -> list[Encoded]:
    """Every demonstration; errors name its index."""
    return [_at(i, lambda d: encoder.encode(d.prompt, d.completion), d) for i, d in enumerate(demonstrations)]


def truncation(encoded: Iterable[Encoded | EncodedPair]) -> Truncation:
    """What `max_length` took from these sequences; a pair counts as two."""
    sequences = [s for e in encoded for s in ([e] if isinstance(e, Encoded) else [e.chosen, e.rejected])]
    return Truncation(
        len(sequences),
        sum(e.dropped > 0 for e in sequences),
        sum(e.dropped for e in sequences),
        sum(e.cut > 0 for e in sequences),
        sum(e.cut for e in sequences),
    )


def collate(encoded: Sequence[Encoded], pad_id: int) -> Tokens:
    """A batch of sequences, padded on the right to the longest with `pad_id` (`Encoder.pad_id`)."""
    shape = (len(encoded), max(len(e) for e in encoded))
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    completion_mask = torch.zeros(shape, dtype=torch.bool)
    for i, e in enumerate(encoded):
        input_ids[i, : len(e)] = torch.as_tensor(e.ids)
        attention_mask[i, : len(e)] = 1
        completion_mask[i, e.start : len(e)] = True
        completion_mask[i, list(e.others)] = False
    return Tokens(input_ids, attention_mask, completion_mask)


def collate_pairs(pairs: Sequence[EncodedPair], pad_id: int) -> PairBatch:
    """A batch of B pairs in one batch of 2B sequences, the chosen ones first."""
    return PairBatch(
        collate([p.chosen for p in pairs] + [p.rejected for p in pairs], pad_id),
        torch.tensor([p.p_chosen for p in pairs], dtype=torch.float32),
        torch.tensor([p.margin for p in pairs], dtype=torch.float32),
    )


def _at(index: int, encode: Callable[[R], E], record: R) -> E:
    try:
        return encode(record)
    except ValueError as error:
        raise ValueError(f"records[{index}]: {error}") from None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
