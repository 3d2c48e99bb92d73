"""Methods that train a policy in rounds, on its own samples; see `nashpref.llm.iterative`."""

from __future__ import annotations

import dataclasses
import sys
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from nashpref.llm import losses
from nashpref.llm.data import Record, Text
from nashpref.llm.iterative import iterate
from nashpref.llm.loading import load_preference
from nashpref.llm.methods.base import Save
from nashpref.llm.methods.policies import PolicyMethod, save_policy
from nashpref.llm.objectives import PairLoss
from nashpref.llm.preferences.adapters import key_of
from nashpref.llm.rounds import Rounds


@dataclass(frozen=True, kw_only=True)
class Iterative(PolicyMethod):
    """Rounds on samples of the prompts in `data.train`, of whatever records; completions are left aside.

    Attributes:
        preference: folder of a saved preference model.
        rounds: see there.
    """

    preference: str
    rounds: Rounds = field(default_factory=Rounds)

    def __post_init__(self) -> None:
        one = torch.zeros(1)
        self.loss(one, one, one, one, p_chosen=torch.ones(1))  # it knows which hyper-parameters are good

    @property
    @abstractmethod
    def loss(self) -> PairLoss:
        """With the hyper-parameters bound."""

    @property
    def schedule(self) -> Rounds:
        """The rounds as they are gone through."""
        return self.rounds

    def run(
        self,
        records: Sequence[Record],
        held_out: Sequence[Record],
        accelerator: Accelerator,
        *,
        options: Mapping[str, Any],
        progress: bool = False,
    ) -> Save:
        """`iterate`; what is saved is the model of the best round."""
        preference = load_preference(self.preference)
        model, encoder = self.policy(records, accelerator.device)
        result = iterate(
            model,
            encoder,
            prompts_of(records),
            preference,
            self.loss,
            self.schedule,
            self.train,
            held_out=prompts_of(held_out),
            accelerator=accelerator,
            options=options,
            progress=progress,
        )
        if accelerator.is_main_process:
            if result.stopped:
                print(f"nashpref: {result.stopped}", file=sys.stderr)
            best = result.rounds[result.best]
            print(f"nashpref: round {result.best}, win-rate {best['win_rate']:.3f}", file=sys.stderr)
        return partial(save_policy, model, encoder.tokenizer)


@dataclass(frozen=True, kw_only=True)
class IterativeDPO(Iterative):
    """Rounds of `losses.dpo`; `rounds.anchor` says how much of the first model is in the reference."""

    beta: float

    @property
    def loss(self) -> PairLoss:
        """`losses.dpo`."""
        return partial(losses.dpo, beta=self.beta)


@dataclass(frozen=True, kw_only=True)
class IterativeDNOPrct(Iterative):
    """Rounds of `losses.dno_prct`: certain labels, each round's start its reference."""

    eta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds.labels != "hard" or self.rounds.anchor != 0.0:
            raise ValueError("rounds: DNO-Prct has hard labels and anchor 0; for others use iterative_dpo")

    @property
    def loss(self) -> PairLoss:
        """`losses.dno_prct`."""
        return lambda *logps, p_chosen: losses.dno_prct(*logps, eta=self.eta)


@dataclass(frozen=True, kw_only=True)
class IterativeINPO(Iterative):
    """Rounds of `losses.inpo`, towards the regularised equilibrium of the preference.

    The two references of the loss, π_t with weight 1 − ηβ and μ = π_0 with ηβ, are one with `Rounds.anchor`.
    Its guarantee is for samples of π_t itself, all of them in pairs: so temperature, threshold, `pairs`,
    `labels` and `anchor` are not for choice.
    """

    eta: float
    beta: float

    def __post_init__(self) -> None:
        given, fixed = self.rounds, Rounds()
        for name in ("temperature", "threshold", "pairs", "labels", "anchor"):
            if getattr(given, name) != getattr(fixed, name):
                raise ValueError(f"rounds: {name} is not for choice in INPO; leave it out")
        zero = torch.zeros(1)
        losses.inpo(*[zero] * 6, beta=self.beta, eta=self.eta)  # it knows which hyper-parameters are good

    @property
    def schedule(self) -> Rounds:
        """All pairs, labelled by their probabilities."""
        anchor = min(1.0, self.eta * self.beta)
        return dataclasses.replace(self.rounds, pairs="all", labels="soft", anchor=anchor)

    @property
    def loss(self) -> PairLoss:
        """`losses.inpo`, with both references in one."""
        return partial(losses.ipo, beta=1.0 / self.eta)


def prompts_of(records: Iterable[Record]) -> list[Text]:
    """Each once, in order."""
    return list({key_of(record.prompt): record.prompt for record in records}.values())
