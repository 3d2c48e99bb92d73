"""Preferences that are not learned: a reward function, a judge, a table, or several annotators together.

Every one is asked as the learned models are: called with N prompts and two responses each it returns
`Pr(a ≻ b | x)`, `(N,)`, and `.matrix(prompt, responses)` returns all pairs of K responses. All are
antisymmetric, and what a user's function answers is checked: `ValueError` names the sample at fault.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nashpref.llm.data import Table, Text
from nashpref.policies import FloatArray

Reward = Callable[[Sequence[Text], Sequence[Text]], Any]
"""`(prompts, responses) -> N finite numbers`."""

Judge = Callable[[Sequence[Text], Sequence[Text], Sequence[Text]], Any]
"""`(prompts, a, b) -> N numbers in [0, 1]`, 1 where `a` wins; it may favour a position."""


class Preference(Protocol):
    """Anything that says how likely one response beats another: a model, or one of these adapters."""

    def __call__(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text], /) -> Tensor:
        """`Pr(a ≻ b | prompt)` for each of N triples, `(N,)`."""
        ...

    def matrix(self, prompt: Text, responses: Sequence[Text], /) -> FloatArray:
        """`P[i, j] = Pr(response i ≻ response j | prompt)`, K×K."""
        ...


@dataclass(frozen=True, slots=True)
class RewardPreference:
    """See `from_reward`."""

    function: Reward
    scale: float = 1.0

    def __call__(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> Tensor:
        """`σ(scale · (r_a − r_b))`, `(N,)` float64."""
        _as_many(prompts, a, b)
        return torch.sigmoid(self.scale * (self._rewards(prompts, a) - self._rewards(prompts, b)))

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """From K rewards."""
        r = self._rewards([prompt] * len(responses), responses).numpy()
        return np.asarray(0.5 + 0.5 * np.tanh(0.5 * self.scale * (r[:, None] - r)))

    def _rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        return checked(self.function(prompts, responses), prompts, "the reward", -np.inf, np.inf)


def from_reward(function: Reward, scale: float = 1.0) -> RewardPreference:
    """Bradley–Terry from a reward function: `Pr(a ≻ b | x) = σ(scale · (r(x, a) − r(x, b)))`.

    Args:
        function: r.
        scale: how decisive a difference of rewards is, above 0.
    """
    if not 0.0 < scale < np.inf:
        raise ValueError(f"scale = {scale}: a positive number is needed")
    return RewardPreference(function, scale)


@dataclass(frozen=True, slots=True)
class LinearPreference:
    """See `from_linear_reward`."""

    function: Reward
    scale: float = 1.0

    def __call__(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> Tensor:
        """`1/2 + scale · (r_a − r_b)`, `(N,)` float64."""
        _as_many(prompts, a, b)
        return self._probability(self._rewards(prompts, a) - self._rewards(prompts, b))

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """From K rewards."""
        r = self._rewards([prompt] * len(responses), responses)
        return np.asarray(self._probability(r[:, None] - r).numpy())

    def cross(
        self, prompts: Sequence[Text], a: Sequence[Sequence[Text]], b: Sequence[Sequence[Text]]
    ) -> Tensor:
        """All of N prompts' K responses against all K', from their rewards: `(N, K, K')`."""
        ours, theirs = (
            self._rewards(
                [x for x, y in zip(prompts, each, strict=True) for _ in y], [z for y in each for z in y]
            )
            for each in (a, b)
        )
        N = len(prompts)
        return self._probability(ours.view(N, -1, 1) - theirs.view(N, 1, -1))

    def _rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        return checked(self.function(prompts, responses), prompts, "the reward", -np.inf, np.inf)

    def _probability(self, difference: Tensor) -> Tensor:
        largest = float(difference.abs().max()) if difference.numel() else 0.0
        if largest * self.scale > 0.5:
            raise ValueError(
                f"rewards {largest:.6g} apart with scale = {self.scale} make no probability of "
                f"1/2 + scale · difference: take a scale of at most {0.5 / largest:.6g}"
            )
        return 0.5 + self.scale * difference


def from_linear_reward(function: Reward, scale: float = 1.0) -> LinearPreference:
    """`Pr(a ≻ b | x) = 1/2 + scale · (r(x, a) − r(x, b))`: RLHF as a game.

    Whom one plays adds a constant to payoffs, so that a rule with this preference maximises
    `E[scale · r] − β KL(π‖μ)`: GDA, and of dialogues MTPO, is then the mirror descent of (multi-turn) RLHF.

    Args:
        function: r.
        scale: above 0; so small that differences stay within 1/2, which is checked.
    """
    if not 0.0 < scale < np.inf:
        raise ValueError(f"scale = {scale}: a positive number is needed")
    return LinearPreference(function, scale)


@dataclass(frozen=True, slots=True)
class JudgePreference:
    """See `from_judge`."""

    judge: Judge

    def __call__(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> Tensor:
        """`(j(x, a, b) + 1 − j(x, b, a))/2`, `(N,)` float64."""
        _as_many(prompts, a, b)
        ab = checked(self.judge(prompts, a, b), prompts, "the judge")
        ba = checked(self.judge(prompts, b, a), prompts, "the judge, asked with a and b swapped,")
        return 0.5 + 0.5 * (ab - ba)

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """From K(K − 1) verdicts."""
        return matrix_of(self, prompt, responses)


def from_judge(judge: Judge) -> JudgePreference:
    """A preference from a judge, who is asked both ways: `(j(x, a, b) + 1 − j(x, b, a))/2`.

    A liking for a position cancels.
    """
    return JudgePreference(judge)


class TablePreference:
    """Known probabilities of known responses, such as the mean of many annotators.

    Args:
        tables: one for each prompt.

    Raises:
        ValueError: a record of another kind, a prompt that has two tables, or a response that is twice in
            one; when it is asked, a prompt or a response that is in none.
    """

    def __init__(self, tables: Iterable[Table]) -> None:
        self._tables: dict[str, tuple[dict[str, int], FloatArray]] = {}
        for n, table in enumerate(tables):
            if not isinstance(table, Table):
                raise ValueError(f"tables[{n}] is a {type(table).__name__}: a Table is needed")
            prompt, places = key_of(table.prompt), {key_of(c): i for i, c in enumerate(table.completions)}
            if prompt in self._tables:
                raise ValueError(f"tables[{n}]: a table of {prompt:.60} is there already; join the two")
            if len(places) < len(table.completions):
                raise ValueError(f"tables[{n}]: a completion is there twice; drop one of the two")
            self._tables[prompt] = places, 0.5 + 0.5 * (table.preferences - table.preferences.T)

    def __call__(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> Tensor:
        """Looked up, `(N,)` float64."""
        _as_many(prompts, a, b)
        found = [self._look_up(i, *triple) for i, triple in enumerate(zip(prompts, a, b, strict=True))]
        return torch.tensor(found, dtype=torch.float64)

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """Looked up."""
        return matrix_of(self, prompt, responses)

    def _look_up(self, i: int, prompt: Text, a: Text, b: Text) -> float:
        if (table := self._tables.get(key_of(prompt))) is None:
            raise ValueError(f"{sample(i, prompt)}: there is no table of this prompt")
        places, P = table
        for response in (a, b):
            if key_of(response) not in places:
                raise ValueError(f"{sample(i, prompt)}: {key_of(response):.60} is not in the prompt's table")
        return float(P[places[key_of(a)], places[key_of(b)]])


class Ensemble:
    """A population of annotators: `Pr(a ≻ b | x) = Σ_m w_m Pr_m(a ≻ b | x)`.

    The mixture of transitive annotators need not be transitive (Condorcet).

    Args:
        preferences: of the annotators, models or adapters.
        weights: their shares w, non-negative and of sum 1; equal ones when None.
    """

    def __init__(self, preferences: Sequence[Preference], weights: Sequence[float] | None = None) -> None:
        self.preferences = tuple(preferences)
        if not self.preferences:
            raise ValueError("preferences: an ensemble needs at least one")
        M = len(self.preferences)
        self.weights = (1.0 / M,) * M if weights is None else tuple(weights)
        if len(self.weights) != M:
            raise ValueError(f"weights: {len(self.weights)} for {M} preferences; give each one")
        if not (min(self.weights) >= 0.0 and abs(sum(self.weights) - 1.0) <= 1e-9):
            raise ValueError(f"weights = {list(self.weights)}: non-negative numbers of sum 1 are needed")

    def __call__(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> Tensor:
        """The weighted mean, `(N,)` float64."""
        _as_many(prompts, a, b)
        mean = torch.zeros(len(prompts), dtype=torch.float64)
        for m, (weight, preference) in enumerate(zip(self.weights, self.preferences, strict=True)):
            mean += weight * checked(preference(prompts, a, b), prompts, f"preferences[{m}]")
        return mean

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """The weighted mean of the annotators' matrices."""
        matrices = [preference.matrix(prompt, responses) for preference in self.preferences]
        return np.asarray(np.tensordot(self.weights, np.stack(matrices), axes=1))


def matrix_of(preference: Preference, prompt: Text, responses: Sequence[Text]) -> FloatArray:
    """All pairs of K responses, each asked once; exactly complementary, 1/2 on the diagonal."""
    K = len(responses)
    i, j = np.triu_indices(K, 1)
    P = np.full((K, K), 0.5)
    if i.size:
        p = preference(
            [prompt] * i.size, [responses[k] for k in i.tolist()], [responses[k] for k in j.tolist()]
        ).numpy()
        P[i, j], P[j, i] = p, 1.0 - p
    return P


def _as_many(prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> None:
    if not len(prompts) == len(a) == len(b):
        raise ValueError(
            f"{len(prompts)} prompts, {len(a)} and {len(b)} responses: as many of each are needed"
        )


def checked(
    values: Any, prompts: Sequence[Text], who: str, low: float = 0.0, high: float = 1.0, *, first: int = 0
) -> Tensor:
    """`values` as `(N,)` float64: one for each prompt, finite and in [low, high]."""
    try:
        found = list(values.tolist() if hasattr(values, "tolist") else values)
    except TypeError:
        raise ValueError(f"{who} gave {values!r}: {len(prompts)} numbers are needed") from None
    if len(found) != len(prompts):
        raise ValueError(f"{who} gave {len(found)} values for {len(prompts)} samples: one for each is needed")
    for i, value in enumerate(found):
        if not (isinstance(value, Real) and np.isfinite(value := float(value)) and low <= value <= high):
            needed = "a probability in [0, 1]" if high == 1.0 else "a finite number"
            raise ValueError(f"{who} gave {value!r} for {sample(first + i, prompts[i])}: {needed} is needed")
    return torch.tensor([float(value) for value in found], dtype=torch.float64)


def sample(i: int, prompt: Text) -> str:
    """How errors name a sample."""
    text = key_of(prompt)
    return f"sample {i} ({text if len(text) <= 60 else text[:59] + '…'})"


def key_of(value: Any) -> str:
    """Equal for equal texts, chats included, which cannot be hashed."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=dict)
