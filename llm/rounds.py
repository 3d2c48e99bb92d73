"""What a round is trained on: a model's own samples, compared, and the pairs that are far enough apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from nashpref.llm.data import Text
from nashpref.llm.encoding import Encoded, EncodedPair, Encoder
from nashpref.llm.preferences.adapters import Preference
from nashpref.llm.sampling import sample
from nashpref.policies import FloatArray
from nashpref.progress import progress_bar

ROWS = 64  # completions sampled at once
TRAINED_ON, VALIDATED_ON = 0, 1  # which random numbers

T = TypeVar("T")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How many rounds, and which pairs each is trained on.

    Attributes:
        count: of rounds.
        samples: K completions of each prompt in each round.
        max_new_tokens, temperature: of sampling.
        threshold: least difference between the win-rates of a pair's completions among the K, in [0, 1].
        pairs: the "extremes" of each prompt, its best against its worst, or "all" that are far enough apart.
        labels: "hard", the one with the higher win-rate is chosen for certain; or "soft", chosen with the
            probability that the preference gives the pair.
        anchor: weight of the first model in a round's reference, `μ_t ∝ π_0^anchor π_t^{1−anchor}`; above 0 a
            copy of the first model is kept in memory.
        validation_samples: completions of each held-out prompt, of each round's model, that are compared with
            as many of the first model's.
    """

    count: int = 3
    samples: int = 4
    max_new_tokens: int = 128
    temperature: float = 1.0
    threshold: float = 0.0
    pairs: Literal["extremes", "all"] = "extremes"
    labels: Literal["hard", "soft"] = "hard"
    anchor: float = 0.0
    validation_samples: int = 2

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("samples", 2), ("max_new_tokens", 1), ("validation_samples", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} = {value}: it must be at least {least}")
        for name in ("threshold", "anchor"):
            if not 0.0 <= (value := getattr(self, name)) <= 1.0:
                raise ValueError(f"{name} = {value}: it must lie in [0, 1]")
        if not 0.0 < self.temperature < np.inf:
            raise ValueError(f"temperature = {self.temperature}: it must be finite and positive")


def win_rates_among(P: FloatArray) -> FloatArray:
    """`w_i = Σ_{j≠i} P_ij/(K − 1)`: how often each of K samples beats another of them."""
    return np.asarray((P.sum(axis=1) - np.diag(P)) / (len(P) - 1))


def select(P: FloatArray, rounds: Rounds) -> list[tuple[int, int, float]]:
    """Which of K samples make pairs: `(i, j, p_chosen)`, i the one with the higher mean win-rate.

    Args:
        P: `P[i, j] = Pr(i ≻ j)`, K×K.
        rounds: `threshold`, `pairs` and `labels`; with hard labels, equal win-rates make no pair.
    """
    w = win_rates_among(P)
    best_first = np.argsort(-w, kind="stable").tolist()
    if rounds.pairs == "extremes":
        candidates = [(best_first[0], best_first[-1])]
    else:
        candidates = [(i, j) for place, i in enumerate(best_first) for j in best_first[place + 1 :]]
    hard = rounds.labels == "hard"
    return [
        (i, j, 1.0 if hard else float(P[i, j]))
        for i, j in candidates
        if w[i] - w[j] >= rounds.threshold and not (hard and w[i] == w[j])
    ]


class Sampled(NamedTuple):
    """K samples of the prompt in one place, as texts and as the very tokens that were drawn."""

    place: int
    texts: list[str]
    prompt_ids: list[int]
    ids: list[list[int]]


@dataclass(frozen=True)
class Sampler:
    """Samples of a model; processes share the prompts, and each learns what all have found.

    Every prompt has random numbers of its own, so that its samples do not depend on which process draws them.
    """

    model: nn.Module
    encoder: Encoder
    rounds: Rounds
    seed: int
    accelerator: Accelerator
    progress: bool = False

    def pairs(self, t: int, prompts: Sequence[Text], preference: Preference) -> tuple[list[Row], float]:
        """The pairs of round t, as rows that `read_pairs` reads, and the largest margin of any prompt."""
        rounds = self.rounds
        found: list[tuple[int, list[Row], float]] = []
        for sampled in self._drawn(prompts, rounds.samples, [t, TRAINED_ON]):
            P = preference.matrix(prompts[sampled.place], sampled.texts)
            w = win_rates_among(P)
            rows = [
                {
                    "prompt": prompts[sampled.place],
                    "chosen": sampled.texts[i],
                    "rejected": sampled.texts[j],
                    "p_chosen": p,
                    "win_rates": [float(w[i]), float(w[j])],
                    "prompt_ids": sampled.prompt_ids,
                    "chosen_ids": sampled.ids[i],
                    "rejected_ids": sampled.ids[j],
                }
                for i, j, p in select(P, rounds)
                if sampled.ids[i] != sampled.ids[j]
            ]
            found.append((sampled.place, rows, float(np.ptp(w))))
        everything = self.gather(found)
        return [row for _, rows, _ in everything for row in rows], max(margin for *_, margin in everything)

    def answers(self, prompts: Sequence[Text]) -> list[list[str]]:
        """Completions of held-out prompts; from the same random numbers in every round, for less noise."""
        sampled = self._drawn(prompts, self.rounds.validation_samples, [VALIDATED_ON])
        return [texts for _, texts in self.gather([(each.place, each.texts) for each in sampled])]

    def own(self, n: int) -> range:
        """Which of n prompts are this process's."""
        return range(self.accelerator.process_index, n, self.accelerator.num_processes)

    def gather(self, found: list[T]) -> list[T]:
        """What all processes have found, in order of the place that it begins with."""
        return sorted(gather_object(found), key=lambda item: item[0])

    def _drawn(self, prompts: Sequence[Text], count: int, key: Sequence[int]) -> Iterator[Sampled]:
        own = self.own(len(prompts))
        size = max(1, ROWS // count)
        shape = (count, self.rounds.max_new_tokens)
        with progress_bar(self.progress and self.accelerator.is_main_process, len(own), "prompt") as bar:
            for start in range(0, len(own), size):
                part = own[start : start + size]
                generators = (np.random.default_rng([self.seed, *key, i]) for i in part)
                uniforms = np.concatenate([rng.random(shape, dtype=np.float32) for rng in generators])
                with self.accelerator.autocast():
                    samples = sample(
                        self.model,
                        self.encoder,
                        [prompts[i] for i in part],
                        count,
                        max_new_tokens=self.rounds.max_new_tokens,
                        temperature=self.rounds.temperature,
                        uniforms=torch.from_numpy(uniforms),
                    )
                ids, attended, drawn = samples.tokens.to("cpu")
                prompt_ids = [
                    row[mask].tolist() for row, mask in zip(ids, attended.bool() & ~drawn, strict=True)
                ]
                drawn_ids = [row[mask].tolist() for row, mask in zip(ids, drawn, strict=True)]
                for k, i in enumerate(part):
                    rows = slice(k * count, (k + 1) * count)
                    yield Sampled(i, samples.texts[k], prompt_ids[rows.start], drawn_ids[rows])
                bar(min(start + size, len(own)))


def read_pairs(rows: Sequence[Mapping[str, Any]]) -> list[EncodedPair]:
    """The tokens that were sampled, not those of the texts: tokenised again, a text may have others."""
    pairs = []
    for row in rows:
        prompt = row["prompt_ids"]
        chosen, rejected = (
            Encoded([*prompt, *row[name]], len(prompt)) for name in ("chosen_ids", "rejected_ids")
        )
        pairs.append(EncodedPair(chosen, rejected, row["p_chosen"]))
    return pairs
