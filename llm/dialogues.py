"""The other side of a dialogue: users who follow a script, are drawn at random, or are a model themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from numpy.random import Generator
from torch import nn

from nashpref.llm.data import Messages, Text
from nashpref.llm.encoding import Encoder
from nashpref.llm.preferences.adapters import sample as named
from nashpref.llm.sampling import sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPEAKERS = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


class Environment(Protocol):
    """What a policy talks to.

    Two policies that are compared start from the same opening, and each has a dialogue of its own.
    """

    @property
    def turns(self) -> int:
        """H, after so many turns of the policy a dialogue is over, whatever would be said to it."""
        ...

    def reset(self, prompt: Text, /) -> Messages:
        """How the dialogue opens: messages of which the last is not the assistant's."""
        ...

    def respond(
        self, prompts: Sequence[Text], dialogues: Sequence[Messages], generators: Sequence[Generator], /
    ) -> Sequence[str | None]:
        """What is said to each of N dialogues, which end with the policy's turn; None: it is over.

        Args:
            prompts: with which they were opened.
            dialogues: all that was said, the opening included.
            generators: the only randomness, one for each.
        """
        ...


@dataclass(frozen=True)
class User:
    """A user whose next words are a function of the dialogue, or are drawn from probabilities that are.

    Attributes:
        reply: dialogue → what the user says, None if it is over, or a mapping from these to probabilities.
        turns: H.
    """

    reply: Callable[[Messages], str | Mapping[str | None, float] | None]
    turns: int

    def reset(self, prompt: Text) -> Messages:
        """See `opening`."""
        return opening(prompt)

    def respond(
        self, prompts: Sequence[Text], dialogues: Sequence[Messages], generators: Sequence[Generator]
    ) -> list[str | None]:
        """Each by itself."""
        return [self._said(*each) for each in zip(dialogues, generators, strict=True)]

    def _said(self, dialogue: Messages, generator: Generator) -> str | None:
        reply = self.reply(dialogue)
        if not isinstance(reply, Mapping):
            return reply
        total = sum(reply.values())
        if min(reply.values(), default=-1.0) < 0.0 or abs(total - 1.0) > 1e-9:
            raise ValueError(f"the user's words have probabilities {list(reply.values())}: of sum 1, please")
        left = generator.random() * total
        for words, p in reply.items():
            left -= p
            if left < 0.0:
                return words
        return words


@dataclass(frozen=True)
class Scripted:
    """A user who says these lines, one after another, and then no more.

    Attributes:
        lines: after each turn of the policy the next one.
    """

    lines: tuple[str, ...]

    @property
    def turns(self) -> int:
        """H, one more than there are lines."""
        return len(self.lines) + 1

    def reset(self, prompt: Text) -> Messages:
        """See `opening`."""
        return opening(prompt)

    def respond(
        self, prompts: Sequence[Text], dialogues: Sequence[Messages], generators: Sequence[Generator]
    ) -> list[str | None]:
        """The next line."""
        turns = [(len(d) - len(opening(x))) // 2 for x, d in zip(prompts, dialogues, strict=True)]
        return [self.lines[turn] if turn < len(self.lines) else None for turn in turns]


@dataclass(frozen=True)
class Recorded:
    """Users as they were recorded: prompts are whole dialogues, of which the user's turns are said again.

    What the policy says changes nothing about them. HH-RLHF's dialogues load as they are, as text with
    "\\n\\nHuman:" and "\\n\\nAssistant:" or as messages.

    Attributes:
        turns: H.
    """

    turns: int

    def reset(self, prompt: Text) -> Messages:
        """Up to the first message of the user."""
        said = opening(prompt)
        first = next(i for i, message in enumerate(said) if message["role"] == "user")
        return said[: first + 1]

    def respond(
        self, prompts: Sequence[Text], dialogues: Sequence[Messages], generators: Sequence[Generator]
    ) -> list[str | None]:
        """The record's next user turn."""
        said = []
        for prompt, dialogue in zip(prompts, dialogues, strict=True):
            lines = [message["content"] for message in opening(prompt) if message["role"] == "user"]
            turn = sum(message["role"] == "assistant" for message in dialogue)
            said.append(lines[turn] if turn < len(lines) else None)
        return said


@dataclass(frozen=True, eq=False)
class ModelUser:
    """Another language model as the user: it reads the dialogue with the roles exchanged.

    Attributes:
        model: a causal language model; it is not trained.
        tokenizer: its own, with a chat template.
        turns: H.
        instruction: what it is told first, as its user.
        over: a text; a reply that holds it ends the dialogue. An empty reply does, too.
        max_new_tokens, temperature: of its replies.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    turns: int
    instruction: str
    over: str | None = None
    max_new_tokens: int = 64
    temperature: float = 1.0

    def reset(self, prompt: Text) -> Messages:
        """See `opening`."""
        return opening(prompt)

    def respond(
        self, prompts: Sequence[Text], dialogues: Sequence[Messages], generators: Sequence[Generator]
    ) -> list[str | None]:
        """Drawn from the model, all at once."""
        drawn = sample(
            self.model,
            Encoder(self.tokenizer),
            [self._seen(dialogue) for dialogue in dialogues],
            1,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            uniforms=torch.tensor([each.random(self.max_new_tokens).tolist() for each in generators]),
        )
        texts = [text.strip() for (text,) in drawn.texts]
        return [None if not text or (self.over and self.over in text) else text for text in texts]

    def _seen(self, dialogue: Messages) -> Messages:
        exchanged = {"user": "assistant", "assistant": "user"}
        said = [
            {"role": exchanged[message["role"]], "content": message["content"]}
            for message in dialogue
            if message["role"] in exchanged
        ]
        return [{"role": "user", "content": self.instruction}, *said]


def opening(prompt: Text) -> list[Mapping[str, str]]:
    """A prompt as messages: HH-RLHF's turns are told apart, other text is what the user says.

    Raises:
        ValueError: a prompt in which the user says nothing.
    """
    if not isinstance(prompt, str):
        messages: list[Mapping[str, str]] = list(prompt)
    elif SPEAKERS.search(prompt):
        _, *pieces = SPEAKERS.split(prompt)
        turns = zip(pieces[::2], pieces[1::2], strict=True)
        messages = [{"role": ROLES[who], "content": said.strip()} for who, said in turns if said.strip()]
    else:
        messages = [{"role": "user", "content": prompt}]
    if not any(message["role"] == "user" for message in messages):
        raise ValueError(f"the prompt {str(prompt)[:60]!r} has no message of the user")
    return messages


def opened(environment: Environment, prompt: Text) -> Messages:
    """The environment's opening of a prompt.

    Raises:
        ValueError: there is nothing in it to be answered.
    """
    messages = environment.reset(prompt)
    if not messages or messages[-1]["role"] == "assistant":
        raise ValueError(
            f"the environment opens {named(0, prompt)[9:]} with {messages!r:.80}: messages that end with one "
            "to be answered are needed"
        )
    return messages


def replies(
    environment: Environment,
    prompts: Sequence[Text],
    dialogues: Sequence[Messages],
    generators: Sequence[Generator],
) -> list[str | None]:
    """What the environment says to each dialogue.

    Raises:
        ValueError: not one reply for each dialogue, or one that is neither text nor None, or empty; the
            dialogue is named. What the environment itself raises, with a note of where.
    """
    try:
        said = list(environment.respond(prompts, dialogues, generators))
    except Exception as error:
        error.add_note(f"raised by the environment, answering {len(dialogues)} dialogues")
        raise
    if len(said) != len(dialogues):
        raise ValueError(
            f"the environment gave {len(said)} replies to {len(dialogues)} dialogues: one to each is needed"
        )
    for i, reply in enumerate(said):
        if reply is not None and not (isinstance(reply, str) and reply.strip()):
            raise ValueError(
                f"the environment's reply to {named(i, dialogues[i][-1]['content'])} is {reply!r}: a text "
                "is needed, or None where the dialogue is over"
            )
    return said
