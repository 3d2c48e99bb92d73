"""Reward models of what can be checked: whether an answer is right, and whether each of its steps is.

Both are callable as `(prompts, responses) -> (N,)`, probabilities, and so make a preference by
`nashpref.llm.preferences.from_reward`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nashpref.llm.data import Outcome, Steps, Text
from nashpref.llm.encoding import Encoded, Tokens, collate
from nashpref.llm.logprobs import quietly
from nashpref.llm.losses.rewards import NO_LABEL
from nashpref.llm.preferences.backbone import HeadConfig, HeadModel, at, chunks


class RewardConfig(HeadConfig):  # type: ignore[no-untyped-call]
    """The backbone's configuration, and how a process reward model finds and weighs steps.

    Args:
        backbone: a transformers configuration as a mapping, with its `model_type`.
        separator: what steps are divided by.
        aggregate: the reward of a response is the "product" of its steps' or the "minimum".
        max_tokens: longest sequence; the oldest prompt tokens are dropped, then the response's last.

    Raises:
        ValueError: an empty separator or an unknown aggregate.
    """

    model_type = "nashpref-reward"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        separator: str = "\n",
        aggregate: Literal["product", "minimum"] = "product",
        max_tokens: int | None = None,
        **options: Any,
    ) -> None:
        if not separator:
            raise ValueError("separator is empty: name what steps are divided by, such as a newline")
        if aggregate not in ("product", "minimum"):
            raise ValueError(f"aggregate = {aggregate!r}: choose 'product' or 'minimum'")
        self.separator, self.aggregate = separator, aggregate
        super().__init__(backbone, max_tokens, **options)


class RewardModel(HeadModel, ABC):  # type: ignore[no-untyped-call]
    """What the two share: a causal backbone that is read at the tokens of a response."""

    config_class = RewardConfig

    def forward(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """A probability for each of N responses, `(N,)` float32; without gradients or dropout."""
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses: as many are needed")
        examples = [self.example(x, y) for x, y in zip(prompts, responses, strict=True)]
        rewards = torch.empty(len(examples))
        with quietly(self):
            order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
            for part in chunks(order, self.at_once):
                batch = self.collate([examples[i] for i in part]).to(self.device)
                rewards[part] = self.rewards(batch).cpu()
        return rewards

    def token_outputs(self, tokens: Tokens) -> Tensor:
        """The head's outputs at every token, `(B, T, outputs)` float32."""
        return self.head(self._states(tokens)).float()  # type: ignore[no-any-return]

    @abstractmethod
    def example(self, prompt: Text, response: Text) -> Any:
        """A response of which nothing is known yet, encoded."""

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Any:
        """A batch of encoded examples."""

    @abstractmethod
    def rewards(self, batch: Any) -> Tensor:
        """`(B,)`, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class EncodedOutcome:
    """A response and whether it is right."""

    response: Encoded
    correct: float

    def __len__(self) -> int:
        return len(self.response)


class OutcomeBatch(NamedTuple):
    """B responses, and `correct`, `(B,)` float32."""

    tokens: Tokens
    correct: Tensor

    def to(self, device: torch.device | str) -> OutcomeBatch:
        """The same on another device."""
        return OutcomeBatch(self.tokens.to(device), self.correct.to(device))


class OutcomeRewardModel(RewardModel):  # type: ignore[no-untyped-call]
    """ORM: at every token of a response, the logit that it will turn out right.

    The reward is the probability at the last token; the others are trained along, as auxiliary targets.

    Source: arXiv:2110.14168, §4.2.
    """

    def encode(self, record: Outcome) -> EncodedOutcome:
        """The response's tokens and its label."""
        return EncodedOutcome(self.encoder.encode(record.prompt, record.completion), record.correct)

    def example(self, prompt: Text, response: Text) -> EncodedOutcome:
        """With a label that means nothing."""
        return EncodedOutcome(self.encoder.encode(prompt, response), 0.5)

    def collate(self, examples: Sequence[EncodedOutcome]) -> OutcomeBatch:
        """A batch of them."""
        correct = torch.tensor([example.correct for example in examples], dtype=torch.float32)
        return OutcomeBatch(collate([example.response for example in examples], self.encoder.pad_id), correct)

    def token_logits(self, tokens: Tokens) -> Tensor:
        """`log p/(1 − p)` at every token, `(B, T)` float32."""
        return self.token_outputs(tokens)[..., 0]

    def rewards(self, batch: OutcomeBatch) -> Tensor:
        """`σ` of the logit at the last token."""
        return torch.sigmoid(last(self.token_logits(batch.tokens), batch.tokens))


@dataclass(frozen=True, slots=True)
class EncodedSteps:
    """A response, the positions at which its steps end, and their labels."""

    response: Encoded
    ends: Sequence[int]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.response)


class StepBatch(NamedTuple):
    """B responses; `labels`, `(B, T)` int64, that of each step at its last token, `NO_LABEL` elsewhere."""

    tokens: Tokens
    labels: Tensor

    def to(self, device: torch.device | str) -> StepBatch:
        """The same on another device."""
        return StepBatch(self.tokens.to(device), self.labels.to(device))


class ProcessRewardModel(RewardModel):  # type: ignore[no-untyped-call]
    """PRM: at the last token of every step, whether it is wrong, neutral or right.

    A step's reward is the probability that it is not wrong, a response's that of all its steps together,
    their product, or the least of them. A response is split into steps at `separator`, which counts as the
    end of its step; blank steps are left out. Every step is tokenised on its own, in training as when rewards
    are asked for.

    Source: arXiv:2305.20050, §2.6 and appendix F (neutral counts as good there too).
    """

    @property
    def outputs(self) -> int:
        """Wrong, neutral, right."""
        return 3

    def encode(self, record: Steps) -> EncodedSteps:
        """The response's tokens, and where its steps end.

        Steps that `max_tokens` cuts off, wholly or in part, have no label.

        Raises:
            ValueError: a step that holds the separator or has no token, or a first step that is cut off.
        """
        encoder, separator, limit = self.encoder, self.config.separator, self.config.max_tokens
        pieces = []
        for i, step in enumerate(record.steps):
            text = step.removeprefix(separator).removesuffix(separator)
            if separator in text:
                raise ValueError(
                    f"steps[{i}] holds {separator!r}, at which responses are split into steps: choose "
                    "another separator"
                )
            final = i + 1 == len(record.steps)
            said = text if final else text + separator
            ids = list(encoder.tokenizer(said, add_special_tokens=False, verbose=False).input_ids)
            pieces.append([*ids, encoder.end_id] if final else ids)
            if not pieces[-1]:
                raise ValueError(f"steps[{i}] = {step!r} has no token: leave it out")
        length = sum(map(len, pieces))
        prompt = encoder.encode_prompt(
            record.prompt, room=length if limit is None else min(length, limit - 1)
        )
        ids, ends = list(prompt.ids), []
        for piece in pieces:
            ids += piece
            ends.append(len(ids) - 1)
        kept = ids[:limit]
        inside = [end for end in ends if end < len(kept)]
        if not inside:
            raise ValueError(f"max_tokens = {limit}: the first of the response's steps alone is longer")
        response = Encoded(kept, prompt.start, dropped=prompt.dropped, cut=len(ids) - len(kept))
        return EncodedSteps(response, inside, record.labels[: len(inside)])

    def example(self, prompt: Text, response: Text) -> EncodedSteps:
        """Split into steps, with labels that mean nothing."""
        if not isinstance(response, str):
            raise ValueError("the response is messages: a process reward model splits a text into steps")
        steps = [step for step in response.split(self.config.separator) if step.strip()] or [""]
        return self.encode(Steps(prompt, tuple(steps), (0,) * len(steps)))

    def collate(self, examples: Sequence[EncodedSteps]) -> StepBatch:
        """A batch of them."""
        tokens = collate([example.response for example in examples], self.encoder.pad_id)
        labels = torch.full(tokens.input_ids.shape, NO_LABEL)
        for row, example in zip(labels, examples, strict=True):
            row[list(example.ends)] = torch.tensor(example.labels)
        return StepBatch(tokens, labels)

    def rewards(self, batch: StepBatch) -> Tensor:
        """The product of `1 − Pr(wrong)` over the steps, or their minimum."""
        log_p = torch.log_softmax(self.token_outputs(batch.tokens), dim=-1)
        not_wrong = torch.logsumexp(log_p[..., 1:], dim=-1).masked_fill(batch.labels == NO_LABEL, 0.0)
        steps = not_wrong.sum(dim=1) if self.config.aggregate == "product" else not_wrong.amin(dim=1)
        return steps.exp()


def last(values: Tensor, tokens: Tokens) -> Tensor:
    """`values`, `(B, T)`, at the last token of each completion."""
    mask = tokens.completion_mask.int()
    return at(values, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1))
