"""Methods that train a policy on data: supervised fine-tuning, and the DPO family on pairs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nashpref.llm import losses
from nashpref.llm.data import Demonstration, Outcome, Pair, Record, to_pairs
from nashpref.llm.encoding import Encoder, collate, collate_pairs, encode_demonstrations, encode_pairs
from nashpref.llm.logprobs import Reference
from nashpref.llm.methods.base import Method, OneRun, Task, texts_of
from nashpref.llm.objectives import (
    Demonstrations,
    PairLoss,
    PolicyPairs,
    collate_referenced,
    pair_score,
    with_reference,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PolicyMethod(Method):
    """A method that trains a causal language model."""

    def policy(self, records: Iterable[Record], device: torch.device) -> tuple[nn.Module, Encoder]:
        """The model to start from, with adapters if there are to be any, and its encoder."""
        from transformers import AutoModelForCausalLM

        model, tokenizer = self.model.load(AutoModelForCausalLM, texts_of(records), self.train.seed)
        model.to(device)
        if self.model.lora is not None:
            model = self.model.lora.adapt(model)
        return model, Encoder(tokenizer, self.data.max_length)


@dataclass(frozen=True, kw_only=True)
class SFT(PolicyMethod, OneRun):
    """Supervised fine-tuning, on demonstrations, or on the chosen completions of pairs."""

    def task(self, records: Sequence[Record], held_out: Sequence[Record], accelerator: Accelerator) -> Task:
        """Examples are encoded demonstrations."""
        model, encoder = self.policy(records, accelerator.device)
        return Task(
            Demonstrations(model),
            encode_demonstrations(encoder, _demonstrations(records)),
            partial(collate, pad_id=encoder.pad_id),
            encode_demonstrations(encoder, _demonstrations(held_out)),
            partial(save_policy, model, encoder.tokenizer),
        )


@dataclass(frozen=True, kw_only=True)
class PolicyOnPairs(PolicyMethod, OneRun):
    """The DPO family.

    Attributes:
        reference: its log-probabilities, "precomputed" before training, or from a "copy" of the model that
            is kept beside it, which costs memory and a forward pass at every step.
    """

    margins: ClassVar[bool] = False
    soft_labels: ClassVar[bool] = True
    certain_labels: ClassVar[bool] = True
    reference: Literal["precomputed", "copy"] = "precomputed"

    def __post_init__(self) -> None:
        one = torch.zeros(1)
        self.loss(one, one, one, one, p_chosen=torch.ones(1))  # it knows which hyper-parameters are good

    @property
    @abstractmethod
    def loss(self) -> PairLoss:
        """With the hyper-parameters bound."""

    def task(self, records: Sequence[Record], held_out: Sequence[Record], accelerator: Accelerator) -> Task:
        """Examples are encoded pairs, with the reference's log-probabilities or without."""
        pairs = self._pairs(records), self._pairs(held_out)
        model, encoder = self.policy(records, accelerator.device)
        encoded = [encode_pairs(encoder, each) for each in pairs]
        save = partial(save_policy, model, encoder.tokenizer)
        if self.reference == "copy":
            reference = Reference(model, pair_score(model))
            objective = PolicyPairs(model, self.loss, reference, margins=self.margins)
            return Task(
                objective, encoded[0], partial(collate_pairs, pad_id=encoder.pad_id), encoded[1], save
            )
        examples = [with_reference(model, each, encoder.pad_id, accelerator) for each in encoded]
        objective = PolicyPairs(model, self.loss, margins=self.margins)
        return Task(
            objective, examples[0], partial(collate_referenced, pad_id=encoder.pad_id), examples[1], save
        )

    def _pairs(self, records: Iterable[Record]) -> list[Pair]:
        pairs = to_pairs(records)
        for i, pair in enumerate(pairs):
            if pair.margin and not self.margins:
                raise ValueError(f"pair {i} has a margin, of which {self.method} knows nothing: use dpo")
            if pair.p_chosen != 1.0 and not self.soft_labels:
                raise ValueError(
                    f"pair {i} has p_chosen = {pair.p_chosen:g}: {self.method} needs certain labels"
                )
            if pair.p_chosen in (0.0, 1.0) and not self.certain_labels:
                raise ValueError(
                    f"pair {i} has p_chosen = {pair.p_chosen:g}, whose logit is infinite: {self.method} "
                    "needs probabilities between 0 and 1, such as a preference model gives"
                )
        return pairs


@dataclass(frozen=True, kw_only=True)
class DPO(PolicyOnPairs):
    """`losses.dpo`; pairs may have soft labels and margins."""

    margins: ClassVar[bool] = True
    beta: float
    label_smoothing: float = 0.0

    @property
    def loss(self) -> PairLoss:
        """`losses.dpo`."""
        return partial(losses.dpo, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class RobustDPO(PolicyOnPairs):
    """`losses.robust_dpo`: labels of which a known share is flipped."""

    beta: float
    flip_rate: float

    @property
    def loss(self) -> PairLoss:
        """`losses.robust_dpo`."""
        return partial(losses.robust_dpo, beta=self.beta, flip_rate=self.flip_rate)


@dataclass(frozen=True, kw_only=True)
class IPO(PolicyOnPairs):
    """`losses.ipo`."""

    beta: float

    @property
    def loss(self) -> PairLoss:
        """`losses.ipo`."""
        return partial(losses.ipo, beta=self.beta)


@dataclass(frozen=True, kw_only=True)
class ChiPO(PolicyOnPairs):
    """`losses.chi_po`."""

    beta: float
    r_max: float | None = None

    @property
    def loss(self) -> PairLoss:
        """`losses.chi_po`."""
        return partial(losses.chi_po, beta=self.beta, r_max=self.r_max)


@dataclass(frozen=True, kw_only=True)
class C2DPO(PolicyOnPairs):
    """`losses.c2_dpo`."""

    beta: float
    penalty: float
    constraint: Literal["log", "probability"] = "log"

    @property
    def loss(self) -> PairLoss:
        """`losses.c2_dpo`."""
        return partial(losses.c2_dpo, beta=self.beta, penalty=self.penalty, constraint=self.constraint)


@dataclass(frozen=True, kw_only=True)
class SPPO(PolicyOnPairs):
    """One round of `losses.sppo_pair`, on pairs sampled from the model that is trained.

    "Hard" where a pair has p_chosen = 1, "soft" where it has the probability of a preference model.
    """

    eta: float

    @property
    def loss(self) -> PairLoss:
        """`losses.sppo_pair`."""
        return partial(losses.sppo_pair, eta=self.eta)


@dataclass(frozen=True, kw_only=True)
class INPO(PolicyOnPairs):
    """The first round of `losses.inpo`, on pairs sampled from the model that is trained.

    That model, as it is at the start, is both μ and π_t: β drops out, and what is left is `ipo` with
    β = 1/η. For the rounds after it see `iterative_inpo`.
    """

    eta: float

    @property
    def loss(self) -> PairLoss:
        """`losses.inpo`."""

        def loss(chosen: Tensor, rejected: Tensor, *start: Tensor, p_chosen: Tensor) -> Tensor:
            return losses.inpo(chosen, rejected, *start, *start, beta=0.0, eta=self.eta, p_chosen=p_chosen)

        return loss


@dataclass(frozen=True, kw_only=True)
class GPO(PolicyOnPairs):
    """One round of `losses.gpo`, on pairs sampled from the model that is trained.

    The score of a pair is the logit of its label, `s = log p/(1 − p)`, as the general preference model has
    it: s for `chosen` and −s for `rejected`. Certain labels have none.
    """

    certain_labels: ClassVar[bool] = False
    eta: float

    @property
    def loss(self) -> PairLoss:
        """`losses.gpo` of either response."""

        def loss(
            chosen: Tensor,
            rejected: Tensor,
            start_chosen: Tensor,
            start_rejected: Tensor,
            *,
            p_chosen: Tensor,
        ) -> Tensor:
            score = torch.logit(p_chosen)
            winner = losses.gpo(chosen, start_chosen, score, eta=self.eta)
            return winner + losses.gpo(rejected, start_rejected, -score, eta=self.eta)

        return loss


@dataclass(frozen=True, kw_only=True)
class SPIN(PolicyOnPairs):
    """One round of `losses.spin`: `chosen` a demonstration, `rejected` the model's own answer."""

    soft_labels: ClassVar[bool] = False
    eta: float

    @property
    def loss(self) -> PairLoss:
        """`losses.spin`."""
        return lambda *logps, p_chosen: losses.spin(*logps, eta=self.eta)


@dataclass(frozen=True, kw_only=True)
class DNOPrct(PolicyOnPairs):
    """One round of `losses.dno_prct`, on pairs of large margin sampled from the model that is trained."""

    soft_labels: ClassVar[bool] = False
    eta: float

    @property
    def loss(self) -> PairLoss:
        """`losses.dno_prct`."""
        return lambda *logps, p_chosen: losses.dno_prct(*logps, eta=self.eta)


def _demonstrations(records: Iterable[Record]) -> list[Demonstration]:
    """The chosen completion of a pair is one too."""
    demonstrations = []
    for i, record in enumerate(records):
        if isinstance(record, Pair):
            record = Demonstration(record.prompt, record.chosen, record.source)
        if not isinstance(record, Demonstration):
            kind, more = type(record).__name__, ""
            if isinstance(record, Outcome):
                more = "; to imitate right and wrong answers alike, read prompt and completion only (columns)"
            raise ValueError(f"records[{i}] is a {kind}: sft needs demonstrations or pairs{more}")
        demonstrations.append(record)
    return demonstrations


def save_policy(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The model, adapters merged into it, with its tokenizer."""
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
