"""The body of `nashpref generate FOLDER --data FILE --out FILE`: answers to prompts, by a decoding method."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nashpref.llm.data import Text, read
from nashpref.llm.decoding.generation import device_of, encode_prompts, generate, texts_of
from nashpref.llm.decoding.guided import guided
from nashpref.llm.decoding.segments import cards
from nashpref.llm.decoding.selection import Selection, best_of_n, bradley_terry_of_n, equilibrium_of_n
from nashpref.llm.loading import Policy, load_policy, load_preference, load_reward
from nashpref.llm.preferences.adapters import key_of
from nashpref.llm.sampling import sample
from nashpref.progress import progress_bar

NEEDS: Mapping[str, tuple[str, ...]] = {
    "sample": (),
    "greedy": (),
    "best_of_n": ("reward",),
    "bradley_terry": ("preference",),
    "equilibrium": ("preference",),
    "guided": ("reward", "beta"),
    "cards": ("reward", "beta", "goal", "floor", "entropy"),
}
MAY_HAVE: Mapping[str, tuple[str, ...]] = {
    "sample": ("samples", "temperature"),
    "best_of_n": ("samples", "temperature"),
    "bradley_terry": ("samples", "temperature"),
    "equilibrium": ("samples", "temperature", "beta"),
    "guided": ("samples", "top_k", "min_p"),
}
PARTIAL = ".partial"  # behind the name of the file, while it is being written


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is generated, and how; options that are None take the default in brackets, where they belong.

    Attributes:
        model: a folder with a causal language model and its tokenizer.
        data: a file of records, read by `nashpref.llm.data.read`, whose prompts are answered, each once.
        method: a key of `NEEDS`.
        reward: the folder of a Bradley–Terry model or of a model of `nashpref.llm.decoding`.
        preference: the folder of a preference model.
        samples: responses to every prompt: n where one of them is chosen (16), else how many are wanted (1).
        temperature: of the samples (1).
        beta: weight of the KL: to the policy ("guided", "cards"), or to the n responses ("equilibrium", 0).
        top_k, min_p: candidates for the next token of "guided" (10 and 0).
        goal, floor, entropy: of "cards".
        max_new_tokens: longest response.
        batch_size: responses at once.
        seed: of the samples.
        columns: field → column, where they differ.
        skip_bad: leave bad rows out.
    """

    model: str
    data: str
    method: str = "sample"
    reward: str | None = None
    preference: str | None = None
    samples: int | None = None
    temperature: float | None = None
    beta: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    goal: float | None = None
    floor: float | None = None
    entropy: float | None = None
    max_new_tokens: int = 128
    batch_size: int = 16
    seed: int = 0
    columns: dict[str, str] | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.method not in NEEDS:
            raise ValueError(f"--method {self.method}: no such method; choose from {', '.join(NEEDS)}")
        for name in NEEDS[self.method]:
            if getattr(self, name) is None:
                raise ValueError(f"--method {self.method} needs --{name}: give it")
        fields = {field.name for field in dataclasses.fields(self) if field.default is None} - {"columns"}
        for name in sorted(fields - {*NEEDS[self.method], *MAY_HAVE.get(self.method, ())}):
            if (value := getattr(self, name)) is not None:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {value}: --method {self.method} has no use for it; leave it out")
        for name in ("samples", "top_k", "max_new_tokens", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
        for name in ("temperature", "beta"):
            low = name == "beta" and self.method == "equilibrium"
            value = getattr(self, name)
            if value is not None and not (0.0 < value < math.inf or (low and value == 0.0)):
                raise ValueError(f"--{name} {value}: it must be finite and positive")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: it must be ≥ 0")

    @property
    def count(self) -> int:
        """Responses that are drawn for each prompt."""
        chosen = self.method in ("best_of_n", "bradley_terry", "equilibrium")
        return self.samples or (16 if chosen else 1)


Record = dict[str, Any]
Answer = Callable[[Sequence[Text], torch.Generator], list[Record]]
"""Prompts to records, whose `responses` are the answers."""


def main(settings: Settings, out: str) -> int:
    """Generate, and write a record for each prompt; the exit status.

    Records are kept beside `out` as they are made, and become `out` once all are there: the same command goes
    on after an interruption, and writes what it would have written without one.

    Raises:
        ValueError, OSError: a mistake in the settings or the data, or in what is kept of another run.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ours is the one
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it warns of padding that it drops the mask of
    records = read(settings.data, columns=settings.columns, skip_bad=settings.skip_bad)
    prompts = list({key_of(record.prompt): record.prompt for record in records}.values())
    size = max(1, settings.batch_size // settings.count)
    kept, answer = Kept(Path(out), settings, size), answers(settings)
    try:
        with progress_bar(True, len(prompts), "prompt") as bar:
            for start, part in _batches(prompts, size):
                if start >= kept.count:
                    seed = int(np.random.SeedSequence([settings.seed, start]).generate_state(1)[0])
                    kept.add(answer(part, torch.Generator().manual_seed(seed)))
                bar(kept.count)
    except KeyboardInterrupt:
        print(
            f"nashpref: interrupted after {kept.count} of {len(prompts)} prompts, kept in {kept.path}; the "
            "same command goes on from there",
            file=sys.stderr,
        )
        return 130
    kept.finish()
    return 0


def answers(settings: Settings) -> Answer:
    """The method, its models loaded.

    Raises:
        ValueError: a folder without the model that is needed.
    """
    s, policy = settings, load_policy(settings.model)
    room = policy.encoder.max_length
    if room is not None and s.max_new_tokens >= room:
        raise ValueError(f"--max-new-tokens {s.max_new_tokens}: the policy reads {room} tokens in all")
    reward = None if s.reward is None else load_reward(s.reward)
    preference = None if s.preference is None else load_preference(s.preference)

    def drawn(prompts: Sequence[Text], generator: torch.Generator) -> list[list[str]]:
        return sample(
            policy.model,
            policy.encoder,
            prompts,
            s.count,
            max_new_tokens=s.max_new_tokens,
            temperature=s.temperature or 1.0,
            generator=generator,
        ).texts

    def answer(prompts: Sequence[Text], generator: torch.Generator) -> list[Record]:
        if s.method == "sample":
            return _records(prompts, drawn(prompts, generator))
        if s.method == "greedy":
            return _records(prompts, [[text] for text in _greedy(policy, prompts, s.max_new_tokens)])
        if s.method in ("best_of_n", "bradley_terry", "equilibrium"):
            candidates = drawn(prompts, generator)
            if reward is not None:
                selection = best_of_n(reward.rewards, prompts, candidates)
            elif s.method == "bradley_terry":
                assert preference is not None
                selection = bradley_terry_of_n(preference, prompts, candidates)
            else:
                assert preference is not None
                selection = equilibrium_of_n(preference, prompts, candidates, generator, beta=s.beta or 0.0)
            return _selected(prompts, candidates, selection)
        assert reward is not None
        assert s.beta is not None
        if s.method == "guided":
            options = {name: value for name in ("top_k", "min_p") if (value := getattr(s, name)) is not None}
            texts = guided(
                policy.model,
                policy.encoder,
                prompts,
                reward,
                beta=s.beta,
                max_new_tokens=s.max_new_tokens,
                count=s.count,
                generator=generator,
                **options,
            )
            return _records(prompts, texts)
        assert s.goal is not None
        assert s.floor is not None
        assert s.entropy is not None
        found = cards(
            policy.model,
            policy.encoder,
            prompts,
            reward.rewards,
            goal=s.goal,
            floor=s.floor,
            beta=s.beta,
            entropy=s.entropy,
            max_new_tokens=s.max_new_tokens,
            generator=generator,
        )
        return [
            record | {"scores": [r], "proposals": n}
            for record, r, n in zip(
                _records(prompts, [[text] for text in found.texts]),
                found.rewards.tolist(),
                found.proposals.tolist(),
                strict=True,
            )
        ]

    return answer


def _greedy(policy: Policy, prompts: Sequence[Text], max_new_tokens: int) -> list[str]:
    """The likeliest token always."""
    model, encoder = policy
    batch = encode_prompts(encoder, prompts, room=max_new_tokens, device=device_of(model))
    rows = generate(model, encoder, batch.ids, batch.mask, max_new_tokens=max_new_tokens, greedy=True)
    return texts_of(encoder, rows)


def _records(prompts: Sequence[Text], texts: Sequence[Sequence[str]]) -> list[Record]:
    return [{"prompt": x, "responses": list(each)} for x, each in zip(prompts, texts, strict=True)]


def _selected(
    prompts: Sequence[Text], candidates: Sequence[Sequence[str]], selection: Selection
) -> list[Record]:
    """With the candidates, what was found of each, and the probability with which it could be chosen."""
    return [
        {"prompt": x, "responses": [text], "candidates": list(each), "scores": scores, "mixture": mixture}
        for x, text, each, scores, mixture in zip(
            prompts,
            selection.texts,
            candidates,
            selection.scores.tolist(),
            selection.mixture.tolist(),
            strict=True,
        )
    ]


def _batches(prompts: Sequence[Text], size: int) -> Iterator[tuple[int, Sequence[Text]]]:
    for start in range(0, len(prompts), size):
        yield start, prompts[start : start + size]


class Kept:
    """Records beside the file that they will be: a line of settings, and a line for each.

    Of what an interruption left there, whole batches count.

    Raises:
        ValueError: what is there is of other settings.
    """

    def __init__(self, out: Path, settings: Settings, batch: int) -> None:
        self.out, self.path, self.count = out, out.with_name(out.name + PARTIAL), 0
        self.header = json.dumps(dataclasses.asdict(settings), sort_keys=True).encode() + b"\n"
        if not self.path.exists():
            return
        header, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        if header != self.header:
            raise ValueError(
                f"{self.path}: is of a run with other settings; finish that one, remove the file, or choose "
                "another --out"
            )
        whole = sum(line.endswith(b"\n") for line in lines)
        self.count = whole // batch * batch
        os.truncate(self.path, len(header) + sum(map(len, lines[: self.count])) if self.count else 0)

    def add(self, records: Sequence[Record]) -> None:
        """Write them down."""
        lines = [json.dumps(record, ensure_ascii=False, default=dict).encode() + b"\n" for record in records]
        with self.path.open("ab") as file:
            file.write(b"".join(lines if self.count else [self.header, *lines]))
        self.count += len(records)

    def finish(self) -> None:
        """Put the records in their place."""
        temporary = self.out.with_name(f".{self.out.name}.{os.getpid()}")
        temporary.write_bytes(self.path.read_bytes()[len(self.header) :])
        temporary.replace(self.out)
        self.path.unlink()
