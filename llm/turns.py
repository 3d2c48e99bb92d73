"""Dialogues as the space in which the interpreter's policies live: its prompts are all turns of the policy.

The mirror step of a turn is that of a response, with action values in the place of payoffs:

    log π_new(y|s) = Σ_k w_k log π_k(y|s) + Q̂(s, y) − log Z(s),

where Q̂ comes of playing on from (s, y), once for each of K responses, and comparing what is said then with
whole dialogues of the opponents, who start where the dialogue started, not in s. Two kinds of rule differ in
who plays on (compare `nashpref.markov_interpreter`):

* *per state* (MTPO, MTPO-τ, MPO): `Q̂ = Σ_j g_j (payoff_j − β Σ_{h'>h} log π_j/μ)`, for each opponent π_j of
  the step π_j itself plays on, so that Q is that of π_j against π_j.
* *occupancy* (OMPO, the rules of matrix games): `Q̂ = Σ_j g_j payoff_j + Σ_{h'>h} (Σ_k w_k log π_k − log π)`,
  π, the current policy, plays on against each π_j. The exact step has its own result play on, in the soft
  value `V = log Σ_a exp(Σ_k w_k log π_k + Q) = max_π E_π[Σ_k w_k log π_k − log π + Q]`; with π_t in place of
  the maximum it is the plain value, as in the practical OMPO (arXiv:2502.12678, Remark 8 and Theorem 9), too
  low by terms of second order in the step. Where the step changes nothing the two are equal, and so what the
  rule converges to is the same.

For MTPO and regularised OMPO with one opponent the two are one formula: with w = (1 − ηβ, ηβ) on (π_t, μ),
`Σ_k w_k log π_k − log π_t = −ηβ log π_t/μ`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn.functional import pad

from nashpref.llm.completions import Asked, Completions, CompletionSpace
from nashpref.llm.data import Messages, Text
from nashpref.llm.dialogues import Environment, opened, replies
from nashpref.llm.encoding import Tokens
from nashpref.llm.interpreter import OPPONENTS, Draws
from nashpref.llm.policies import Blend, Policy, Store, Weights
from nashpref.llm.preferences.adapters import Preference
from nashpref.llm.preferences.tournament import win_rates
from nashpref.mirror import Geometry, MirrorStep, Weight

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ON = 2  # a stream of random numbers: for playing on from responses
ASIDE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Turn(Asked):
    """A dialogue in which it is the policy's turn.

    Attributes:
        source: the prompt of the data set.
        opened: how many of the messages are the opening.
        turn: h = 1 … H, which of its turns it is.
        path: what tells it from the others of this prompt.
    """

    source: Text = ""
    opened: int = 0
    turn: int = 1
    path: tuple[int, ...] = ()

    @property
    def place(self) -> tuple[int, ...]:
        """What decides the randomness here."""
        return (self.index, self.turn, *self.path)

    def said(self, text: str) -> Messages:
        """The dialogue after it."""
        return [*self.prompt, {"role": "assistant", "content": text}]


class Played(NamedTuple):
    """What became of N dialogues.

    Attributes:
        ends: all that was said in each after its opening.
        later: the turns of the policy that were played: draws of one response, `(n, 1)`, and which of the N
            dialogues each is of, `(n,)`.
    """

    ends: list[Messages]
    later: list[tuple[Draws, Tensor]]


class DialogueSpace:
    """See `nashpref.llm.interpreter.Space`.

    Args:
        completions: where a turn is drawn and scored; its preference compares whole dialogues, as messages
            after the opening, from each policy's first to its last.
        environment: the other side.
        geometry, beta: what a mirror step moves, and the rule's β, as in `nashpref.solve`.
        lines: dialogues of each prompt that turns after the first are taken from.
        every_turn: the preference compares dialogues after every turn of the policy, and payoffs are summed
            (OMPO, MPO), instead of at the end (MTPO). A dialogue that is over stays as it is.

    Raises:
        ValueError: `turns` or `lines` out of range, importance weights, or `top_k`: see there.
    """

    def __init__(
        self,
        completions: CompletionSpace,
        environment: Environment,
        geometry: Geometry,
        beta: float,
        *,
        lines: int = 1,
        every_turn: bool = False,
    ) -> None:
        if not (isinstance(environment.turns, int) and environment.turns >= 1):
            raise ValueError(f"the environment's turns = {environment.turns!r}: a number from 1 on is needed")
        if not 1 <= lines <= completions.samples:
            raise ValueError(
                f"lines = {lines}: from 1 to samples = {completions.samples}, which they go on from"
            )
        if completions.mixture == "sequence":
            raise ValueError("mixture = 'sequence': weights of whole responses are not those of dialogues")
        if completions.top_k is not None:
            raise ValueError("top_k: values of later turns need the probability of all that can be drawn")
        if geometry is Geometry.WEIGHTED_OCCUPANCY:
            raise ValueError("geometry = 'weighted-occupancy' has no sampled form: use 'occupancy'")
        self.completions, self.environment = completions, environment
        self.geometry, self.beta, self.lines, self.every_turn = geometry, beta, lines, every_turn
        self.single = copy.copy(completions)
        self.single.samples = 1

    @property
    def store(self) -> Store:
        """Of the network that is trained."""
        return self.completions.store

    @property
    def preference(self) -> Preference:
        """Which of two dialogues wins."""
        return self.completions.preference

    def open(self, index: int, prompt: Text) -> Turn:
        """The first turn of the dialogue that a prompt of the data set, at this place, opens."""
        messages = opened(self.environment, prompt)
        return Turn(index, messages, len(self.completions.open(index, messages)), prompt, len(messages))

    def of(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> DialogueSpace:
        """See `CompletionSpace.of`."""
        other = copy.copy(self)
        other.completions, other.single = (
            self.completions.of(model, tokenizer),
            self.single.of(model, tokenizer),
        )
        return other

    def draw(
        self,
        policy: Policy | None,
        prompts: Sequence[Turn],
        step: int,
        stream: int,
        *,
        systematic: bool = False,
    ) -> Draws:
        """K responses to every prompt, and to every later turn of `lines` dialogues that begin with them."""
        turns, owners = list(prompts), list(range(len(prompts)))
        states: list[Turn] = []
        parts: list[Draws] = []
        belong: list[int] = []
        shares: list[float] = []
        for h in range(self.environment.turns):
            drawn = [
                self.completions.draw(
                    policy, turns[i : i + len(prompts)], step, stream, systematic=systematic
                )
                for i in range(0, len(turns), len(prompts))
            ]
            states, parts, belong = states + turns, parts + drawn, belong + owners
            shares += [1.0 if h == 0 else 1.0 / self.lines] * len(turns)
            if h + 1 == self.environment.turns:
                break
            texts = [each for part in drawn for each in part.responses.texts]
            ahead = []
            for turn, owner, said in zip(turns, owners, texts, strict=True):
                rng = self._generator(turn, step, stream)
                chosen = rng.choice(len(said), self.lines if h == 0 else 1, replace=False)
                ahead += [(turn, (*turn.path, k), said[k], owner) for k in chosen.tolist()]
            turns, kept = self._next([each[:3] for each in ahead], step, stream)
            owners = [ahead[i][3] for i in kept]
            if not turns:
                break
        joined = _joined(parts, self.completions.encoder.pad_id)
        device = joined.weights.device
        return Draws(
            states,
            joined.responses,
            joined.weights,
            joined.logps,
            torch.tensor(belong, device=device),
            torch.tensor(shares, device=device),
        )

    def logps(self, policy: Weights | None, draws: Draws) -> Tensor:
        """Of the policy's own turn, `(R, K)`; what was said before is its prompt."""
        return self.completions.logps(policy, draws)

    def some(self, draws: Draws, columns: Tensor) -> Draws:
        """Those responses of each turn."""
        return replace(self.completions.some(draws, columns), owners=draws.owners, shares=draws.shares)

    def gain(
        self,
        step: MirrorStep,
        draws: Draws,
        policy: Callable[[str], Policy],
        at: int,
        *,
        systematic: bool = False,
        drawn: Mapping[str, Draws] | None = None,
    ) -> Tensor:
        """Q̂, see above."""
        total = torch.zeros_like(draws.weights)
        if self.geometry is Geometry.PER_STATE:
            for name, g in step.payoffs.items():
                opponent = policy(name)
                played = self._on(draws, opponent, at)
                payoff = self._payoff(draws, played, self._whole(opponent, draws, at, systematic))
                ratio = partial(self._ratio, opponent, {"reference": 1.0}, policy)
                total += float(g) * (payoff + self.beta * _later(ratio, played, draws))
            return total
        current = policy("current")
        played = self._on(draws, current, at)
        payoffs: dict[Policy, Tensor] = {}
        for name, g in step.payoffs.items():
            opponent = policy(name)
            if opponent not in payoffs:
                payoffs[opponent] = self._payoff(draws, played, self._whole(opponent, draws, at, systematic))
            total += float(g) * payoffs[opponent]
        return total + _later(partial(self._ratio, current, step.anchors, policy), played, draws)

    def respond(
        self, policy: Policy | None, prompts: Sequence[Asked], step: int, stream: int
    ) -> list[list[Text]]:
        """K whole dialogues with each prompt, what was said after the opening."""
        draws = self.completions.draw(policy, prompts, step, stream)
        ends: list[Text] = list(self._on(draws, policy, step, stream).ends)
        K = draws.weights.shape[1]
        return [ends[i : i + K] for i in range(0, len(ends), K)]

    # --- playing on ---

    def _on(self, draws: Draws, policy: Policy | None, step: int, stream: int = ON) -> Played:
        """From every response to the end, `policy` and the environment in turn."""
        K = draws.weights.shape[1]
        turns = [turn for turn in draws.prompts for _ in range(K)]
        said = [text for texts in draws.responses.texts for text in texts]
        ends = [turn.said(text)[turn.opened :] for turn, text in zip(turns, said, strict=True)]
        later = []
        open_ = [
            (i, turn, (*turn.path, i % K), text)
            for i, (turn, text) in enumerate(zip(turns, said, strict=True))
            if turn.turn < self.environment.turns
        ]
        while open_:
            ahead, kept = self._next([each[1:] for each in open_], step, stream)
            places = [open_[i][0] for i in kept]
            open_ = []
            for i in range(0, len(ahead), len(said)):
                part, where = ahead[i : i + len(said)], places[i : i + len(said)]
                single = self.single.draw(policy, part, step, stream)
                later.append((single, torch.tensor(where, device=draws.weights.device)))
                for place, turn, (text,) in zip(where, part, single.responses.texts, strict=True):
                    ends[place] = turn.said(text)[turn.opened :]
                    if turn.turn < self.environment.turns:
                        open_.append((place, turn, turn.path, text))
        return Played(ends, later)

    def _next(
        self, spoken: Sequence[tuple[Turn, tuple[int, ...], str]], step: int, stream: int
    ) -> tuple[list[Turn], list[int]]:
        """The turns after these, and which of them they follow: not those whose dialogue is over."""
        dialogues = [turn.said(text) for turn, _, text in spoken]
        generators = [self._generator(turn, step, stream, *path) for turn, path, _ in spoken]
        said = replies(self.environment, [turn.source for turn, _, _ in spoken], dialogues, generators)
        turns, kept = [], []
        for i, (reply, (turn, path, _)) in enumerate(zip(said, spoken, strict=True)):
            if reply is not None:
                prompt = [*dialogues[i], {"role": "user", "content": reply}]
                turns.append(Turn(turn.index, prompt, 1, turn.source, turn.opened, turn.turn + 1, path))
                kept.append(i)
        return turns, kept

    def _generator(self, turn: Turn, step: int, stream: int, *more: int) -> Generator:
        """For what is drawn here beside the policy's words, for which `ASIDE` is no path."""
        return np.random.default_rng([self.completions.seed, step, stream, *turn.place, ASIDE, *more])

    # --- what it was worth ---

    def _whole(self, policy: Policy, draws: Draws, at: int, systematic: bool) -> list[list[Messages]]:
        """K dialogues of an opponent with each prompt, from its first turn."""
        first = [turn for turn in draws.prompts if turn.turn == 1]
        own = self.completions.draw(policy, first, at, OPPONENTS, systematic=systematic)
        ends, K = self._on(own, policy, at, OPPONENTS).ends, own.weights.shape[1]
        return [ends[i : i + K] for i in range(0, len(ends), K)]

    def _payoff(self, draws: Draws, played: Played, opponents: list[list[Messages]]) -> Tensor:
        """The mean of `Pr(dialogue ≻ dialogue') − 1/2`, at the end or over all turns from h on: `(R, K)`."""
        H, K = self.environment.turns, draws.weights.shape[1]
        assert draws.owners is not None
        owners = draws.owners.tolist()
        total = torch.zeros_like(draws.weights)
        for h in range(1, H + 1) if self.every_turn else [H]:
            rows = [row for row, turn in enumerate(draws.prompts) if turn.turn <= h]
            ours = [[_until(end, h) for end in played.ends[K * row : K * (row + 1)]] for row in rows]
            theirs = [[_until(end, h) for end in each] for each in opponents]
            prompts = [draws.prompts[row].prompt[: draws.prompts[row].opened] for row in rows]
            against = [theirs[owners[row]] for row in rows]
            rates = win_rates(self.completions.preference, prompts, ours, against)
            total[rows] += (rates.mean(dim=2) - 0.5).to(total)
        return total

    def _ratio(
        self, now: Policy, anchors: Mapping[str, Weight], policy: Callable[[str], Policy], draws: Draws
    ) -> Tensor:
        """`Σ_k w_k log π_k(y) − log π(y)` of responses drawn from π = `now`, `(n, 1)`."""
        total = torch.zeros_like(draws.weights)
        for name, weight in anchors.items():
            total += float(weight) * self._logps(policy(name), now, draws)
        return total - self._logps(now, now, draws)

    def _logps(self, policy: Policy, now: Policy, draws: Draws) -> Tensor:
        if policy is now and draws.logps is not None:
            return draws.logps
        if isinstance(policy, Blend):
            return torch.stack([w * self._logps(part, now, draws) for part, w in policy.parts]).sum(dim=0)
        return self.single.logps(policy, draws)


def _later(worth: Callable[[Draws], Tensor], played: Played, draws: Draws) -> Tensor:
    """The sum of `worth` over the turns played after each response, `(R, K)`."""
    total = torch.zeros_like(draws.weights).flatten()
    for each, places in played.later:
        total.index_add_(0, places, worth(each).flatten().to(total))
    return total.view(draws.weights.shape)


def _until(end: Messages, h: int) -> Messages:
    """Up to the policy's h-th turn; the whole where there are fewer."""
    turns = [i for i, message in enumerate(end) if message["role"] == "assistant"]
    return end[: turns[min(h, len(turns)) - 1] + 1]


def _joined(parts: Sequence[Draws], pad_id: int) -> Draws:
    """The rows of all parts."""
    width = max(part.responses.tokens.input_ids.shape[1] for part in parts)
    fills = (pad_id, 0, False)
    tokens = Tokens(
        *(
            torch.cat(
                [
                    pad(part.responses.tokens[i], (0, width - part.responses.tokens[i].shape[1]), value=fill)
                    for part in parts
                ]
            )
            for i, fill in enumerate(fills)
        )
    )
    texts = [each for part in parts for each in part.responses.texts]
    logps = [part.logps for part in parts if part.logps is not None]
    return Draws(
        [],
        Completions(texts, tokens),
        torch.cat([part.weights for part in parts]),
        torch.cat(logps) if len(logps) == len(parts) else None,
    )
