"""Methods as configurations: what `nashpref train` runs, from data files to a saved model.

Each method is a dataclass that says what it is made of: which records it needs, how they become examples, and
the objective that is minimised on them. `train` does the rest, the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from nashpref.llm import losses
from nashpref.llm.data import Demonstration, Pair, Ranking, Record, Table, to_pairs
from nashpref.llm.encoding import Encoder, collate, collate_pairs, encode_demonstrations, encode_pairs
from nashpref.llm.inputs import DataConfig, ModelConfig
from nashpref.llm.logprobs import Reference
from nashpref.llm.objectives import (
    Demonstrations,
    EncodedRanking,
    PairLoss,
    PolicyPairs,
    PreferencePairs,
    RewardRankings,
    collate_rankings,
    collate_referenced,
    with_reference,
)
from nashpref.llm.preferences.models import (
    BradleyTerryModel,
    GeneralPreferenceModel,
    PairwisePreferenceModel,
    PreferenceModel,
)
from nashpref.llm.training import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Task(NamedTuple):
    """What `fit` needs, and the model to save when it is done."""

    objective: nn.Module
    examples: Sequence[Any]
    collate: Callable[[Sequence[Any]], Any]
    held_out: Sequence[Any]
    save: Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """What all methods share; see `METHODS`.

    Attributes:
        method: its name in `METHODS`.
        data, model, train: see there.
    """

    method: str
    data: DataConfig
    model: ModelConfig
    train: TrainConfig

    @abstractmethod
    def task(self, records: Sequence[Record], held_out: Sequence[Record], accelerator: Accelerator) -> Task:
        """Examples and objective; the model is on the accelerator's device."""


class _Policy(Method):
    """A method that trains a causal language model."""

    def policy(self, records: Iterable[Record], device: torch.device) -> tuple[nn.Module, Encoder]:
        from transformers import AutoModelForCausalLM

        model, tokenizer = self.model.load(AutoModelForCausalLM, _texts(records), self.train.seed)
        model.to(device)
        if self.model.lora is not None:
            model = self.model.lora.adapt(model)
        return model, Encoder(tokenizer, self.data.max_length)


@dataclass(frozen=True, kw_only=True)
class SFT(_Policy):
    """Supervised fine-tuning, on demonstrations, or on the chosen completions of pairs."""

    def task(self, records: Sequence[Record], held_out: Sequence[Record], accelerator: Accelerator) -> Task:
        """Examples are encoded demonstrations."""
        model, encoder = self.policy(records, accelerator.device)
        return Task(
            Demonstrations(model),
            encode_demonstrations(encoder, _demonstrations(records)),
            partial(collate, pad_id=encoder.pad_id),
            encode_demonstrations(encoder, _demonstrations(held_out)),
            partial(_save_policy, model, encoder.tokenizer),
        )


@dataclass(frozen=True, kw_only=True)
class _PolicyOnPairs(_Policy):
    """The DPO family.

    Attributes:
        reference: its log-probabilities, "precomputed" before training, or from a "copy" of the model that
            is kept beside it, which costs memory and a forward pass at every step.
    """

    margins: ClassVar[bool] = False
    soft_labels: ClassVar[bool] = True
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
        save = partial(_save_policy, model, encoder.tokenizer)
        if self.reference == "copy":
            objective = PolicyPairs(model, self.loss, Reference(model), margins=self.margins)
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
        return pairs


@dataclass(frozen=True, kw_only=True)
class DPO(_PolicyOnPairs):
    """`losses.dpo`; pairs may have soft labels and margins."""

    margins: ClassVar[bool] = True
    beta: float
    label_smoothing: float = 0.0

    @property
    def loss(self) -> PairLoss:
        """`losses.dpo`."""
        return partial(losses.dpo, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class RobustDPO(_PolicyOnPairs):
    """`losses.robust_dpo`: labels of which a known share is flipped."""

    beta: float
    flip_rate: float

    @property
    def loss(self) -> PairLoss:
        """`losses.robust_dpo`."""
        return partial(losses.robust_dpo, beta=self.beta, flip_rate=self.flip_rate)


@dataclass(frozen=True, kw_only=True)
class IPO(_PolicyOnPairs):
    """`losses.ipo`."""

    beta: float

    @property
    def loss(self) -> PairLoss:
        """`losses.ipo`."""
        return partial(losses.ipo, beta=self.beta)


@dataclass(frozen=True, kw_only=True)
class ChiPO(_PolicyOnPairs):
    """`losses.chi_po`."""

    beta: float
    r_max: float | None = None

    @property
    def loss(self) -> PairLoss:
        """`losses.chi_po`."""
        return partial(losses.chi_po, beta=self.beta, r_max=self.r_max)


@dataclass(frozen=True, kw_only=True)
class C2DPO(_PolicyOnPairs):
    """`losses.c2_dpo`."""

    beta: float
    penalty: float
    constraint: Literal["log", "probability"] = "log"

    @property
    def loss(self) -> PairLoss:
        """`losses.c2_dpo`."""
        return partial(losses.c2_dpo, beta=self.beta, penalty=self.penalty, constraint=self.constraint)


@dataclass(frozen=True, kw_only=True)
class SPPO(_PolicyOnPairs):
    """One round of `losses.sppo_pair`, on pairs sampled from the model that is trained."""

    eta: float

    @property
    def loss(self) -> PairLoss:
        """`losses.sppo_pair`."""
        return partial(losses.sppo_pair, eta=self.eta)


@dataclass(frozen=True, kw_only=True)
class SPIN(_PolicyOnPairs):
    """One round of `losses.spin`: `chosen` a demonstration, `rejected` the model's own answer."""

    soft_labels: ClassVar[bool] = False
    eta: float

    @property
    def loss(self) -> PairLoss:
        """`losses.spin`."""
        return lambda *logps, p_chosen: losses.spin(*logps, eta=self.eta)


@dataclass(frozen=True, kw_only=True)
class DNOPrct(_PolicyOnPairs):
    """One round of `losses.dno_prct`, on pairs of large margin sampled from the model that is trained."""

    soft_labels: ClassVar[bool] = False
    eta: float

    @property
    def loss(self) -> PairLoss:
        """`losses.dno_prct`."""
        return lambda *logps, p_chosen: losses.dno_prct(*logps, eta=self.eta)


@dataclass(frozen=True, kw_only=True)
class _Preference(Method):
    """A preference model on pairs.

    Attributes:
        pooling: what stands for a sequence: the "last" state of a causal model, the "mean" of others.
    """

    kind: ClassVar[type[PreferenceModel]]
    pooling: Literal["last", "mean"] = "last"

    def head_options(self) -> dict[str, Any]:
        """Options of `PreferenceConfig`."""
        return {"pooling": self.pooling, "max_length": self.data.max_length}

    def preference_model(self, records: Iterable[Record], device: torch.device) -> PreferenceModel:
        """A new one on the backbone."""
        from transformers import AutoModel

        backbone, tokenizer = self.model.load(AutoModel, _texts(records), self.train.seed)
        model: PreferenceModel = self.kind.from_backbone(backbone, tokenizer, **self.head_options())
        if self.model.lora is not None:
            model.backbone = self.model.lora.adapt(model.backbone)
        torch.nn.Module.to(model, device)
        return model

    def task(self, records: Sequence[Record], held_out: Sequence[Record], accelerator: Accelerator) -> Task:
        """Examples are encoded pairs."""
        model = self.preference_model(records, accelerator.device)
        return Task(
            PreferencePairs(model),
            [model.encode(pair) for pair in to_pairs(records)],
            partial(collate_pairs, pad_id=model.encoder.pad_id),
            [model.encode(pair) for pair in to_pairs(held_out)],
            partial(_save_preference, model),
        )


@dataclass(frozen=True, kw_only=True)
class Pairwise(_Preference):
    """`PairwisePreferenceModel`."""

    kind: ClassVar[type[PreferenceModel]] = PairwisePreferenceModel


@dataclass(frozen=True, kw_only=True)
class General(_Preference):
    """`GeneralPreferenceModel`."""

    kind: ClassVar[type[PreferenceModel]] = GeneralPreferenceModel
    planes: int = 4
    prompt_scales: bool = False

    def __post_init__(self) -> None:
        if self.planes < 1:
            raise ValueError(f"planes = {self.planes}: it must be at least 1")

    def head_options(self) -> dict[str, Any]:
        """With the planes."""
        return {**super().head_options(), "planes": self.planes, "prompt_scales": self.prompt_scales}


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(_Preference):
    """`BradleyTerryModel`.

    Attributes:
        k_wise: take rankings as they are, one batch element for each prompt, instead of as pairs.
    """

    kind: ClassVar[type[PreferenceModel]] = BradleyTerryModel
    k_wise: bool = False

    def task(self, records: Sequence[Record], held_out: Sequence[Record], accelerator: Accelerator) -> Task:
        """Examples are encoded pairs, or rankings."""
        if not self.k_wise:
            return super().task(records, held_out, accelerator)
        rankings = _rankings(records), _rankings(held_out)
        model = self.preference_model(records, accelerator.device)
        examples = [
            [EncodedRanking(model.encoder.encode_group(r.prompt, r.completions), r.ranking) for r in each]
            for each in rankings
        ]
        pad_id = model.encoder.pad_id
        assert isinstance(model, BradleyTerryModel)
        return Task(
            RewardRankings(model),
            examples[0],
            partial(collate_rankings, pad_id=pad_id),
            examples[1],
            partial(_save_preference, model),
        )


METHODS: Mapping[str, type[Method]] = {
    "sft": SFT,
    "dpo": DPO,
    "robust_dpo": RobustDPO,
    "ipo": IPO,
    "chi_po": ChiPO,
    "c2_dpo": C2DPO,
    "sppo": SPPO,
    "spin": SPIN,
    "dno_prct": DNOPrct,
    "pairwise": Pairwise,
    "general": General,
    "bradley_terry": BradleyTerry,
}


def _demonstrations(records: Iterable[Record]) -> list[Demonstration]:
    """The chosen completion of a pair is one too."""
    demonstrations = []
    for i, record in enumerate(records):
        if isinstance(record, Pair):
            record = Demonstration(record.prompt, record.chosen, record.source)
        if not isinstance(record, Demonstration):
            kind = type(record).__name__
            raise ValueError(f"records[{i}] is a {kind}: sft needs demonstrations or pairs")
        demonstrations.append(record)
    return demonstrations


def _rankings(records: Iterable[Record]) -> list[Ranking]:
    rankings = []
    for i, record in enumerate(records):
        if not isinstance(record, Ranking) or len(set(record.ranking)) == 1:
            what = "has only ties" if isinstance(record, Ranking) else f"is a {type(record).__name__}"
            raise ValueError(f"records[{i}] {what}: k_wise needs rankings of at least two places")
        rankings.append(record)
    return rankings


def _texts(records: Iterable[Record]) -> list[str]:
    """All that is said in them, for a tokenizer to learn from."""
    texts = []
    for record in records:
        parts: list[Any] = [record.prompt]
        if isinstance(record, Pair):
            parts += [record.chosen, record.rejected]
        elif isinstance(record, Ranking | Table):
            parts += record.completions
        elif isinstance(record, Demonstration):
            parts.append(record.completion)
        for part in parts:
            texts += [part] if isinstance(part, str) else [message["content"] for message in part]
    return texts


def _save_policy(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _save_preference(model: Any, folder: Path) -> None:
    if hasattr(model.backbone, "merge_and_unload"):
        model.backbone = model.backbone.merge_and_unload()
    model.save_pretrained(folder)
