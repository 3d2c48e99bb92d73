"""Answers that can be checked, as rewards: exact match, numbers, a format for reasoning, and two tasks.

Nothing is learned and nothing is asked of a judge: what a response is worth follows from the answer that is
known to be right. Every reward here is a `nashpref.llm.preferences.adapters.Reward`, so `RLHFTrainer` takes
it as it is, and `from_reward` makes a preference of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from nashpref.llm.data import Demonstration, Record, Text
from nashpref.llm.encoding import Encoder
from nashpref.llm.playground import tiny_tokenizer
from nashpref.llm.preferences.adapters import Reward, checked, key_of, sample
from nashpref.llm.sampling import sample as draw

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Check = Callable[[str, str], bool]
"""`(response, answer) -> bool`: whether the response gives this answer."""

ONSETS, VOWELS, CODAS = "bdfghjklmnprstvz", "aeiou", "nrsl"
MOST_NAMES = 1_000_000  # of the 64 million that there are
TAG = r"(?:(?!</?(?:think|answer)>).)*"  # anything but a tag
THINK_ANSWER = re.compile(rf"\s*<think>({TAG})</think>\s*<answer>({TAG})</answer>\s*", re.DOTALL)


def same_text(response: str, answer: str) -> bool:
    """Exact match, white space at both ends aside."""
    return response.strip() == answer.strip()


def same_number(response: str, answer: str) -> bool:
    """Whether both are one number, however it is written: 1,024 is 1024.0; what is no number is wrong."""
    found = _number(response)
    return found is not None and found == _number(answer)


class VerifiableTask:
    """Questions with answers that can be checked; called as a reward, 1 for a right answer and 0 for another.

    ```python
    task = reversal()
    RLHFTrainer(model, RLOO(beta=0.0), task, RLHFConfig(…), task.prompts, task.tokenizer(),
                compute_metrics=greedy_metrics({"exact_match": task}, task.held_out_prompts, tokenizer, …))
    ```

    Args:
        train: right answers, which are also what supervised fine-tuning learns from.
        held_out: others, to measure with. A prompt of both would measure what was trained on.
        check: when a response is right.

    Raises:
        ValueError: nothing to train on, a record that holds no answer or a second one to the same prompt, or
            a prompt that is in both parts; when it is called, a prompt that is in neither.
    """

    def __init__(
        self, train: Iterable[Record], held_out: Iterable[Record] = (), *, check: Check = same_text
    ) -> None:
        self.train, self.held_out = _answers(train, "train"), _answers(held_out, "held_out")
        self.check = check
        if not self.train:
            raise ValueError("train: there are no answers in it")
        train_keys = {key_of(each.prompt) for each in self.train}
        for i, each in enumerate(self.held_out):
            if key_of(each.prompt) in train_keys:
                raise ValueError(f"held_out[{i}]: {key_of(each.prompt):.60} is in train too; leave one out")
        self.answers = {key_of(d.prompt): said(d.completion) for d in (*self.train, *self.held_out)}

    @property
    def prompts(self) -> list[Text]:
        """To train on."""
        return [each.prompt for each in self.train]

    @property
    def held_out_prompts(self) -> list[Text]:
        """To measure with."""
        return [each.prompt for each in self.held_out]

    def __call__(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[float]:
        """1 where the response is right, 0 where it is not."""
        return [
            float(self.check(said(response), self._answer(i, prompt)))
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token for each character that occurs, see `tiny_tokenizer`; no text of the task loses any."""
        texts = [text for d in (*self.train, *self.held_out) for text in (said(d.prompt), said(d.completion))]
        return tiny_tokenizer(texts, level="character")

    @property
    def max_new_tokens(self) -> int:
        """Of that tokenizer: the longest answer and the end of it."""
        return 1 + max(map(len, self.answers.values()))

    def _answer(self, i: int, prompt: Text) -> str:
        if (answer := self.answers.get(key_of(prompt))) is None:
            raise ValueError(f"{sample(i, prompt)}: is none of the task's prompts, and has no known answer")
        return answer


class ThinkAnswer:
    """A reward for `<think>…</think><answer>…</answer>`: `w f + (1 − w) f r(x, answer)`.

    f is 1 if the response has this form, and else 0: both tags once, in this order, closed, and nothing but
    white space around them. What is answered is what stands between the answer's tags, white space at both
    ends aside; only this is shown to r. A right answer in the wrong form gets nothing, as there is no saying
    which part of the response it would be.

    Args:
        correct: r, any reward.
        weight: w in [0, 1], of the form.

    Source: the format reward of arXiv:2501.12948, §2.2.2; the weights are ours.
    """

    def __init__(self, correct: Reward, *, weight: float = 0.1) -> None:
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"weight = {weight}: it must lie in [0, 1]")
        self.reward, self.weight = correct, weight

    def __call__(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[float]:
        """Both parts, weighed."""
        parts = zip(self.form(prompts, responses), self.correct(prompts, responses), strict=True)
        return [self.weight * form + (1.0 - self.weight) * correct for form, correct in parts]

    def form(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[float]:
        """f."""
        return [float(final_answer(said(response)) is not None) for response in responses]

    def correct(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[float]:
        """f r(x, answer); r is asked about well-formed responses alone."""
        answers = {
            i: answer for i, each in enumerate(responses) if (answer := final_answer(said(each))) is not None
        }
        asked, found = [prompts[i] for i in answers], [0.0] * len(responses)
        if answers:
            rewards = checked(self.reward(asked, [*answers.values()]), asked, "correct", -math.inf, math.inf)
            for i, reward in zip(answers, rewards.tolist(), strict=True):
                found[i] = reward
        return found


def final_answer(response: str) -> str | None:
    """What stands between the answer's tags; None where the response has not the form of `ThinkAnswer`."""
    match = THINK_ANSWER.fullmatch(response)
    return match[2].strip() if match else None


def greedy_metrics(
    rewards: Mapping[str, Reward],
    prompts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    max_length: int | None = None,
    batch_size: int = 256,
) -> Callable[[nn.Module], dict[str, float]]:
    """`model -> {name: mean reward of its likeliest tokens}`: the `compute_metrics` of a trainer.

    Args:
        rewards: by the name under which each is logged; a `VerifiableTask`'s is the exact match.
        prompts: such as `held_out_prompts`.
        tokenizer: the model's.
        max_new_tokens, max_length: as in `OnlineConfig`.
        batch_size: prompts answered at once.

    Raises:
        ValueError: nothing to measure; when it is called, a reward that is not one finite number for each
            response: the sample is named.
    """
    if not prompts or not rewards:
        raise ValueError(f"{len(prompts)} prompts, {len(rewards)} rewards: at least one of each is needed")
    encoder = Encoder(tokenizer, max_length)

    def metrics(model: nn.Module) -> dict[str, float]:
        responses: list[str] = []
        for start in range(0, len(prompts), batch_size):
            some = prompts[start : start + batch_size]
            zeros = torch.zeros(len(some), max_new_tokens)
            drawn = draw(model, encoder, some, 1, max_new_tokens=max_new_tokens, top_k=1, uniforms=zeros)
            responses += [text for (text,) in drawn.texts]
        return {
            name: float(checked(reward(prompts, responses), prompts, name, -math.inf, math.inf).mean())
            for name, reward in rewards.items()
        }

    return metrics


def reversal(names: int = 2000, held_out: int = 500, *, seed: int = 0) -> VerifiableTask:
    """Say a name backwards: "kalor>" is answered "rolak".

    The names are made up, of three syllables, and all different; no name is asked backwards that is
    held out forwards, which would give its answer away.

    Args:
        names: how many to train on.
        held_out: how many to measure with.
        seed: of the names.

    Raises:
        ValueError: none to train on, or more than a million in all.
    """
    count = names + held_out
    if names < 1 or held_out < 0 or count > MOST_NAMES:
        raise ValueError(
            f"names = {names}, held_out = {held_out}: from 1 name to train on to {MOST_NAMES} in all are made"
        )
    rng, found = np.random.default_rng(seed), dict[str, None]()
    while len(found) < count:
        name = "".join(_syllable(rng) for _ in range(3))
        if name[::-1] not in found:
            found[name] = None
    records = [Demonstration(f"{name}>", name[::-1]) for name in found]
    return VerifiableTask(records[held_out:], records[:held_out])


def sums(largest: int = 30, held_out: int = 100, *, seed: int = 0) -> VerifiableTask:
    """Add two numbers: "7+12=" is answered "19", checked as a number.

    Args:
        largest: of the two; there are `(largest + 1)²` sums.
        held_out: how many of them, at random, to measure with.
        seed: of the choice, and of the order of the others.

    Raises:
        ValueError: nothing left to train on.
    """
    count = (largest + 1) ** 2
    if largest < 0 or not 0 <= held_out < count:
        raise ValueError(f"largest = {largest}, held_out = {held_out}: there are {count} sums in all")
    pairs = [divmod(int(i), largest + 1) for i in np.random.default_rng(seed).permutation(count)]
    records = [Demonstration(f"{a}+{b}=", str(a + b)) for a, b in pairs]
    return VerifiableTask(records[held_out:], records[:held_out], check=same_number)


def said(text: Text) -> str:
    """A text itself; of a chat, what the last message says."""
    return text if isinstance(text, str) else str(text[-1]["content"])


def _answers(records: Iterable[Record], place: str) -> tuple[Demonstration, ...]:
    """One for each prompt."""
    found: dict[str, Demonstration] = {}
    for i, record in enumerate(records):
        if not isinstance(record, Demonstration):
            raise ValueError(
                f"{place}[{i}] is a {type(record).__name__}: a Demonstration is needed, whose completion is "
                "the right answer"
            )
        there = found.setdefault(key_of(record.prompt), record)
        if said(there.completion) != said(record.completion):
            raise ValueError(
                f"{place}[{i}]: {key_of(record.prompt):.60} is answered {said(there.completion)!r:.40} "
                f"before and {said(record.completion)!r:.40} here: one right answer is needed"
            )
    return tuple(found.values())


def _number(text: str) -> Decimal | None:
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.strip())
    try:
        return number if (number := Decimal(plain)).is_finite() else None
    except InvalidOperation:
        return None


def _syllable(rng: np.random.Generator) -> str:
    onset, vowel, coda = (letters[rng.integers(len(letters))] for letters in (ONSETS, VOWELS, CODAS))
    return onset + vowel + (coda if rng.random() < 0.3 else "")
